"""Decoders: from the latents that a prior denoises to the images that a physics measures, and back.

A latent prior has states ``z`` of shape (c, h, w); its images are ``x = decode(z)`` of shape (C, f h, f w). A
measurement of the image is one of the latents through ``A(decode(z))``, see `cmidiff.measurement.Measurement`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from cmidiff.prior.checkpointed import recompute
from cmidiff.prior.windows import starts, windows

if TYPE_CHECKING:
    from cmidiff.prior.network import NetworkPrior

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Decoder:
    """The decoder of a latent prior, and its encoder.

    Args:
        decode: latents (B, c, h, w) to images (B, C, f h, f w), differentiable. Rows are independent.
        encode: images to latents, differentiable; None if there is none.
        channels: ``c``, of the latents; for signals of one dimension, their length.
        factor: ``f``, pixels for each latent along a side.
        image_channels: ``C``; for signals of one dimension, their length.
        network: the decoder as a network, for memory, devices and fingerprints; None for functions.
        encoder: the encoder likewise.

    Raises:
        TypeError: ``decode`` or ``encode`` cannot be called.
        ValueError: a number below 1.
    """

    decode: Map
    encode: Map | None = None
    channels: int = 4
    factor: int = 8
    image_channels: int = 3
    network: NetworkPrior | None = None
    encoder: NetworkPrior | None = None

    def __post_init__(self) -> None:
        if not callable(self.decode) or not (self.encode is None or callable(self.encode)):
            raise TypeError(
                f"decode and encode must be functions of a batch, received {self.decode!r}, {self.encode!r}"
            )
        for name in ("channels", "factor", "image_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"Decoder: {name} must be at least 1, received {getattr(self, name)}")

    def latent_shape(self, image: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the latents of an image of shape (C, H, W)."""
        return (self.channels, *(side // self.factor for side in image[1:]))

    def image_shape(self, latent: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the image of latents of shape (c, h, w)."""
        return (self.image_channels, *(side * self.factor for side in latent[1:]))

    def encoded(self, image: Tensor) -> Tensor:
        """The latents of images (B, C, H, W).

        Raises:
            ValueError: there is no encoder.
        """
        if self.encode is None:
            raise ValueError("the prior has a decoder and no encoder: pass Decoder(decode, encode=...)")
        return self.encode(image)

    def tiled(self, tile: int, overlap: int) -> Self:
        """The same maps on overlapping tiles of ``tile`` latents along a side, blended.

        One tile at a time is in memory, also for a gradient.
        """
        f, encode = self.factor, self.encode
        return dataclasses.replace(
            self,
            decode=lambda z: in_tiles(self.decode, z, 1, f, tile, overlap),
            encode=None if encode is None else lambda x: in_tiles(encode, x, f, 1, tile, overlap),
        )

    def to(self, device: torch.device | str) -> Self:
        """The same decoder with its networks moved to a device."""
        for network in (self.network, self.encoder):
            if network is not None:
                network.to(device)
        return self


def in_tiles(f: Map, x: Tensor, side_in: int, side_out: int, tile: int, overlap: int) -> Tensor:
    """``f`` of overlapping tiles of signals (B, c, H, W), blended by windows that sum to one.

    Args:
        f: a map of blocks of ``side_in`` pixels to blocks of ``side_out`` pixels.
        x: the signals.
        side_in, side_out: see ``f``.
        tile, overlap: in blocks.
    """
    sides = [n // side_in for n in x.shape[2:]]
    if all(side <= tile for side in sides):
        return f(x)
    places = [
        list(
            zip(
                starts(n, tile, overlap),
                windows(side_out * n, side_out * tile, side_out * overlap, side_out),
                strict=True,
            )
        )
        for n in sides
    ]
    total: Tensor | int = 0
    for (top, row), (left, column) in itertools.product(*places):
        height, width = (min(tile, n) for n in sides)
        cut = x[..., side_in * top : side_in * (top + height), side_in * left : side_in * (left + width)]
        part = recompute(f, cut) if torch.is_grad_enabled() and x.requires_grad else f(cut)
        part = part * (row[:, None] * column).to(part)
        right, below = sides[1] - left - width, sides[0] - top - height
        total = total + pad(part, [side_out * n for n in (left, right, top, below)])
    assert isinstance(total, Tensor)
    return total
