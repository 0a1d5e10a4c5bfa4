"""A prior on images larger than it was trained for: overlapping tiles, blended at every evaluation.

With ``R_i`` the crop of tile ``i`` and windows ``W_i`` that sum to one at every pixel (a smooth partition of unity),

    x_hat(x_t) = sum_i R_i^T W_i D(R_i x_t, t)            J^T v = sum_i R_i^T J_i^T W_i R_i v

so the sampler, the guidance and CMI see one denoiser of the whole image, and the physics is never cut. Blending what
diffusion models predict on overlapping windows is the idea of MultiDiffusion (Bar-Tal, Yariv, Lipman, Dekel, 2023,
https://arxiv.org/abs/2302.08113); the windows here are smooth, and the blend is differentiable.

Tiles are evaluated a chunk at a time. The backward pass evaluates each chunk again with a graph of its own, so that
only the activations of one chunk are stored. Memory does not grow with the image (Chen et al., "Training Deep Nets with
Sublinear Memory Cost", 2016, https://arxiv.org/abs/1604.06174). There is no second derivative: CMI's
``finite-difference`` needs none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from cmidiff.prior.base import Denoiser, Evaluation, Prediction
from cmidiff.prior.decoder import Decoder
from cmidiff.prior.windows import starts, windows
from cmidiff.prior.wrapped import WrappedPrior

FAR, AUTO = 4, 2  # times the training size: up to there as a whole, beyond in tiles of that; docs/large-images.md
Place = tuple[slice, ...]


def fitted(prior: Denoiser, shape: tuple[int, ...], tile: int | Literal["auto"] | None = "auto") -> Denoiser:
    """The prior for states of ``shape`` (C, ...): itself, or `Tiled`.

    Args:
        tile: side of the tiles in pixels of the image, which overlap by a quarter. None: the signal as a whole.
            ``auto``: tiles of `AUTO` times the training size where a side is more than `FAR` times that. A prior whose
            training size is not known is left as it is.

    Raises:
        ValueError: for a tile that cannot be.
    """
    if tile is None:
        return prior
    if tile != "auto":
        if isinstance(tile, bool) or not isinstance(tile, int):
            raise ValueError(f"tile must be a number of pixels, 'auto' or None, received {tile!r}")
        factor = 1 if prior.decoder is None else prior.decoder.factor
        if tile % factor:
            raise ValueError(f"tile must be a multiple of {factor}, the pixels of one latent, received {tile}")
        tile //= factor
        return Tiled(prior, tile, max(0, min(tile // 4, tile - prior.multiple)))
    size = prior.size
    if size is None or all(side <= FAR * size for side in shape[1:]):
        return prior
    return Tiled(prior, AUTO * size, AUTO * size // 4)


@dataclass(frozen=True)
class Tiled(WrappedPrior):
    """A denoiser of signals of any size, made of one for tiles: see the module.

    Args:
        inner: the denoiser of a tile. That of a latent prior decodes and encodes in tiles, too.
        tile: side of the tiles in every dimension after the channels, a multiple of ``inner.multiple``.
        overlap: what neighbours share at least, less than ``tile``.
        chunk: tiles evaluated at once; memory is proportional to it.

    A signal that one tile covers is given to ``inner`` as it is.

    Raises:
        ValueError: for a tile or an overlap that cannot be.
    """

    inner: Denoiser
    tile: int = 64
    overlap: int = 16
    chunk: int = 8

    def __post_init__(self) -> None:
        if self.tile < 1 or self.tile % self.inner.multiple:
            raise ValueError(
                f"tile must be a positive multiple of {self.inner.multiple}, which the prior's sides must be, "
                f"received {self.tile}"
            )
        if not 0 <= self.overlap <= self.tile - self.inner.multiple or self.chunk < 1:
            raise ValueError(
                f"need 0 <= overlap <= {self.tile - self.inner.multiple} (tile {self.tile} less one multiple of "
                f"{self.inner.multiple}) and chunk >= 1, received {self.overlap} and {self.chunk}"
            )

    def evaluations(self, shape: tuple[int, ...], batch: int) -> list[Evaluation]:
        if self._covers(shape):
            return self.inner.evaluations(shape, batch)
        tile = (shape[0], *(min(side, self.tile) for side in shape[1:]))
        count = math.prod(len(self._starts(side)) for side in shape[1:])
        decoder = None if self.inner.decoder is None else self.inner.decoder.network  # it sees one tile at a time
        parts = self.inner.evaluations(tile, batch * min(self.chunk, count))
        return [part._replace(batch=batch) if part.prior is decoder else part for part in parts]

    @property
    def decoder(self) -> Decoder | None:
        whole = self.inner.decoder
        return None if whole is None else whole.tiled(self.tile, self.overlap)

    def _covers(self, shape: tuple[int, ...]) -> bool:
        """Whether one tile covers a signal of shape (C, ...)."""
        return all(side <= self.tile for side in shape[1:])

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        """``E[x_0 | x_t]`` of each tile, blended; ``x_t`` of shape (B, C, ...)."""
        if self._covers(tuple(x_t.shape[1:])):
            return self.inner(x_t, t)
        return Prediction(*_Blend.apply(x_t, t, self))

    def places(self, x: Tensor) -> Iterator[list[tuple[Place, Tensor]]]:
        """The tiles of signals (B, C, ...), a chunk at a time: where each lies, and its window, as numbers of ``x``."""
        along = [
            [(slice(at, at + min(n, self.tile)), w) for at, w in zip(self._starts(n), self._windows(n, x), strict=True)]
            for n in x.shape[2:]
        ]
        tiles = iter(itertools.product(*along))
        while chunk := list(itertools.islice(tiles, self.chunk)):
            yield [(tuple(part for part, _ in tile), _outer([w for _, w in tile])) for tile in chunk]

    def _starts(self, side: int) -> list[int]:
        return starts(side, self.tile, self.overlap, self.multiple)

    def _windows(self, side: int, x: Tensor) -> Tensor:
        return _windows_like(side, self.tile, self.overlap, self.multiple, x.dtype, x.device)


@lru_cache(maxsize=32)
def _windows_like(
    side: int, tile: int, overlap: int, multiple: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """`windows`, rounded before they reach the device, which may have no double precision; made once."""
    return windows(side, tile, overlap, multiple).to(dtype).to(device)


class _Blend(torch.autograd.Function):
    """``x_t -> (x_hat, variance_fraction)``, its activations recomputed chunk by chunk in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_t: Tensor, t: float, tiled: Tiled) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(x_t)
        ctx.t, ctx.tiled = t, tiled
        mean, fraction = torch.zeros_like(x_t), None
        for chunk in tiled.places(x_t):
            prediction = tiled.inner(_cut(x_t, chunk), t)
            _paste(mean, chunk, prediction.mean, windowed=True)
            if prediction.variance_fraction is not None:
                fraction = torch.zeros_like(x_t) if fraction is None else fraction
                _paste(fraction, chunk, prediction.variance_fraction, windowed=True)
        if fraction is not None:
            ctx.mark_non_differentiable(fraction)
        return mean, fraction

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():  # create_graph=True: the result would be taken for a constant
            raise RuntimeError("a tiled prior has no second derivative: each chunk's graph is gone after its pass")
        (x_t,), v = ctx.saved_tensors, grads[0]
        pulled = torch.zeros_like(x_t)
        for chunk in ctx.tiled.places(x_t):
            with torch.enable_grad():
                tiles = _cut(x_t.detach(), chunk).requires_grad_()
                x_hat = ctx.tiled.inner(tiles, ctx.t).mean
            weighted = _cut(v, chunk) * _stacked(chunk, v)
            _paste(pulled, chunk, torch.autograd.grad(x_hat, tiles, weighted)[0], windowed=False)
        return pulled, None, None


def _cut(x: Tensor, chunk: list[tuple[Place, Tensor]]) -> Tensor:
    """The tiles of a chunk, shape (tiles * B, C, ...), tile by tile."""
    return torch.cat([x[(..., *place)] for place, _ in chunk])


def _stacked(chunk: list[tuple[Place, Tensor]], like: Tensor) -> Tensor:
    """The windows of a chunk, shape (tiles * B, 1, ...)."""
    return torch.stack([window for _, window in chunk]).repeat_interleave(len(like), 0).unsqueeze(1)


def _paste(x: Tensor, chunk: list[tuple[Place, Tensor]], tiles: Tensor, *, windowed: bool) -> None:
    """Add the tiles to ``x`` where they belong."""
    weighted = tiles * _stacked(chunk, x) if windowed else tiles
    for (place, _), tile in zip(chunk, weighted.chunk(len(chunk)), strict=True):
        x[(..., *place)] += tile


def _outer(factors: list[Tensor]) -> Tensor:
    """The product window of a tile."""
    window = factors[0]
    for factor in factors[1:]:
        window = window[..., None] * factor
    return window
