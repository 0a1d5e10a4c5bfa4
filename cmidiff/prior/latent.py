"""A prior of latents with the decoder that makes images of them."""

from __future__ import annotations

from typing import Self

import torch

from cmidiff.prior.base import Denoiser, Evaluation, Range, digest
from cmidiff.prior.decoder import Decoder
from cmidiff.prior.wrapped import WrappedPrior


class LatentPrior(WrappedPrior):
    """A denoiser of latents and its decoder.

    ``channels``, ``multiple``, ``size``, ``variance`` and ``second_moments`` are those of the latents; ``value_range``
    is that of the decoded images. Latents have no range, so that nothing is clipped.

    Args:
        inner: the denoiser of the latents.
        decoder: what makes images of them.
        value_range: of the images.
        name: for messages and records; by default that of ``inner``.
    """

    def __init__(
        self, inner: Denoiser, decoder: Decoder, value_range: Range | None = (-1.0, 1.0), name: str | None = None
    ) -> None:
        self.inner, self.value_range = inner, value_range
        self._decoder, self._name = decoder, name or inner.name

    @property
    def decoder(self) -> Decoder:
        return self._decoder

    @property
    def clip(self) -> None:
        return None

    @property
    def name(self) -> str:
        return self._name

    @property
    def fingerprint(self) -> str:
        parts = [part.fingerprint for part in (self._decoder.network, self._decoder.encoder) if part is not None]
        return digest("latent", self.inner.fingerprint, self.value_range, self._decoder.factor, *parts)

    def evaluations(self, shape: tuple[int, ...], batch: int) -> list[Evaluation]:
        own = self.inner.evaluations(shape, batch)
        return own if self._decoder.network is None else [*own, Evaluation(self._decoder.network, shape, batch)]

    def to(self, device: torch.device | str) -> Self:
        moved = super().to(device)
        moved._decoder = self._decoder.to(device)
        return moved
