"""The U-Net of guided diffusion (ADM), the network of both papers' checkpoints.

Residual blocks at ``L`` resolutions, ``r`` of them each, with self-attention at some; the time embedding ``e(t)``
scales and shifts every block's second normalisation:

    h = conv(silu(norm(x)));   h = conv(silu(norm(h) (1 + scale(e)) + shift(e)));   x <- skip(x) + h

A released file is a bare dictionary of tensors, so its architecture is read off the names and shapes in it
(`ADMConfig.infer`). Two things leave no trace there and have to be stated. These are the channels of an attention head,
and the order in which its queries, keys and values are stored. Modules carry the names that the files use: what does
not fit is reported under the file's own name.

The attention is written out, because fused kernels have no second derivative. Activation checkpointing is an option. It
costs every gradient one more forward pass.

Source: Dhariwal, Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, https://arxiv.org/abs/2105.05233
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, linear

from cmidiff.prior.checkpointed import Checkpointed

GROUPS = 32
Resample = Literal["down", "up"]
Resampling = Literal["block", "convolution", "pooling"]


@dataclass(frozen=True)
class ADMConfig:
    """An architecture.

    Attributes:
        in_channels, out_channels: of the image, and of the output (twice as many with a learned variance).
        base: channels that the time embedding starts from; ``embedding`` those it has.
        widths: channels at each resolution, finest first.
        blocks: residual blocks at each resolution.
        attention: whether there is attention, at each resolution.
        resblock_resampling: resolutions are joined by residual blocks instead of a convolution or pooling.
        conv_resampling: without residual blocks, they are joined by a convolution instead of pooling.
        scale_shift: the embedding scales and shifts; otherwise it is added.
        classes: number of classes, or None.
        head_channels: channels of an attention head, or None if ``heads`` is given.
        heads, heads_up: number of heads on the way down and up, where ``head_channels`` is None.
        new_attention_order: queries, keys and values are split before the heads.
    """

    in_channels: int
    out_channels: int
    base: int
    embedding: int
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]
    resblock_resampling: bool = True
    conv_resampling: bool = True
    scale_shift: bool = True
    classes: int | None = None
    head_channels: int | None = None
    heads: int | None = None
    heads_up: int | None = None
    new_attention_order: bool = False

    def __post_init__(self) -> None:
        for width in self.widths:
            if width < GROUPS or width % GROUPS:
                raise ValueError(
                    f"a guided-diffusion network normalises groups of {GROUPS} channels, received a block of {width}"
                )
        attended = {w for w, on in zip(self.widths, self.attention, strict=True) if on} | {self.widths[-1]}
        for width in attended:
            for up in (False, True):
                self.heads_of(width, up)

    @property
    def multiple(self) -> int:
        """Sides must be divisible by this."""
        return 2 ** (len(self.widths) - 1)

    @property
    def learned_variance(self) -> bool:
        return self.out_channels == 2 * self.in_channels

    def heads_of(self, width: int, up: bool = False) -> int:
        """Attention heads of a block of ``width`` channels."""
        if self.head_channels is not None:
            if self.head_channels < 1 or width % self.head_channels:
                raise ValueError(
                    f"attention over {width} channels does not split into heads of {self.head_channels}: "
                    "state num_head_channels or num_heads in the card"
                )
            return width // self.head_channels
        heads = (self.heads_up if up else None) or self.heads
        if heads is None or heads < 1 or width % heads:
            raise ValueError(
                f"attention over {width} channels does not split into {heads} heads: "
                "state num_head_channels or num_heads in the card"
            )
        return heads

    @classmethod
    def infer(cls, shapes: Mapping[str, tuple[int, ...]], **stated: Any) -> ADMConfig:
        """The architecture that has tensors of these names and shapes; ``stated`` is what they do not state:
        ``head_channels`` or ``heads``, ``heads_up``, ``new_attention_order``."""
        first = _shape(shapes, "input_blocks.0.0.weight", 4)
        embedding, base = _shape(shapes, "time_embed.0.weight", 2)
        out_channels = _shape(shapes, "out.2.weight", 4)[0]
        resampling, blocks, levels = _resolutions(shapes)
        starts = [1 + level * (blocks + 1) for level in range(levels)]
        widths = tuple(_shape(shapes, f"input_blocks.{i}.0.in_layers.2.weight", 4)[0] for i in starts)
        modulation = _shape(shapes, "input_blocks.1.0.emb_layers.1.weight", 2)[0]
        classes = shapes.get("label_emb.weight")
        return cls(
            in_channels=first[1],
            out_channels=out_channels,
            base=base,
            embedding=embedding,
            widths=widths,
            blocks=blocks,
            attention=tuple(f"input_blocks.{i}.1.qkv.weight" in shapes for i in starts),
            resblock_resampling=resampling == "block",
            conv_resampling=resampling == "convolution",
            scale_shift=modulation == 2 * widths[0],
            classes=None if classes is None else classes[0],
            **stated,
        )


def _shape(shapes: Mapping[str, tuple[int, ...]], key: str, dimensions: int) -> tuple[int, ...]:
    shape = shapes.get(key)
    if shape is None or len(shape) != dimensions:
        seen = "none" if shape is None else f"shape {tuple(shape)}"
        raise ValueError(
            f"these are not the weights of a guided-diffusion network: expected {key} with {dimensions} dimensions, "
            f"received {seen}"
        )
    return shape


def _numbers(shapes: Mapping[str, tuple[int, ...]], part: str) -> set[int]:
    """Numbers of a part's blocks; those without weights (pooling) leave gaps."""
    numbers = {name.split(".")[1] for name in shapes if name.startswith(f"{part}.")}
    found = {int(n) for n in numbers if n.isdecimal() and len(n) < 4}
    if not found:
        raise ValueError(f"these are not the weights of a guided-diffusion network: there is no {part}.0")
    return found


def _resolutions(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Resampling, int, int]:
    """How resolutions are joined, blocks at each, and how many there are.

    Input and output blocks are ``L (r + 1)`` each; ``r`` follows from where the resolution changes.
    """
    held = _numbers(shapes, "input_blocks")
    inputs, outputs = max(held) + 1, max(_numbers(shapes, "output_blocks")) + 1
    convolutions = [i for i in range(inputs) if f"input_blocks.{i}.0.op.weight" in shapes]
    gaps = [i for i in range(inputs) if i not in held]
    ups = [i for i in range(outputs) if any(f"output_blocks.{i}.{j}.in_layers.2.weight" in shapes for j in (1, 2))]
    if convolutions or gaps:
        blocks, levels = (convolutions or gaps)[0] - 1, len(convolutions or gaps) + 1
        how: Resampling = "convolution" if convolutions else "pooling"
    else:
        blocks, levels, how = (ups[0] if ups else outputs - 1), len(ups) + 1, "block"
    if blocks < 1 or not inputs == outputs == levels * (blocks + 1):
        raise ValueError(
            f"these are not the weights of a guided-diffusion network: {inputs} input and {outputs} output blocks make "
            f"no {levels} resolutions of {blocks} blocks each"
        )
    return how, blocks, levels


class ADMUNet(Checkpointed):
    """``(x_t, t) -> output``.

    Args:
        config: the architecture.
        checkpointing: while a graph is recorded, keep each block's input only and compute the rest again when it is
            differentiated: less memory, one more forward pass.
    """

    def __init__(self, config: ADMConfig, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = checkpointing
        self.time_embed = nn.Sequential(
            nn.Linear(config.base, config.embedding), nn.SiLU(), nn.Linear(config.embedding, config.embedding)
        )
        if config.classes is not None:
            self.label_emb = nn.Embedding(config.classes, config.embedding)
        self.input_blocks, skips = _input_blocks(config)
        self.middle_block = Stage(
            _block(config, config.widths[-1], config.widths[-1]),
            _attention(config, config.widths[-1]),
            _block(config, config.widths[-1], config.widths[-1]),
        )
        self.output_blocks = _output_blocks(config, skips)
        self.out = nn.Sequential(
            nn.GroupNorm(GROUPS, config.widths[0]),
            nn.SiLU(),
            nn.Conv2d(config.widths[0], config.out_channels, 3, padding=1),
        )

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Output, shape (B, C', H, W), from ``x_t`` of shape (B, C, H, W) and times ``t`` of shape (B,). A
        class-conditional network takes labels of shape (B,) too."""
        # Times are embedded in their own precision: bfloat16 cannot tell t = 731 from 732.
        e = self.time_embed(sinusoids(t, self.config.base).to(x_t.dtype))
        if label is not None:
            e = e + self.label_emb(label)
        h, skips = x_t, []
        for stage in self.input_blocks:
            h = self.run(stage, e, h)
            skips.append(h)
        h = self.run(self.middle_block, e, h)
        for stage in self.output_blocks:
            h = self.run(stage, e, h, skips.pop())
        return self.out(h)


def sinusoids(t: Tensor, size: int, longest: float = 10_000.0) -> Tensor:
    """Cosines, then sines, of ``t`` at ``size // 2`` frequencies from 1 down to (almost) ``1 / longest``, shape
    (B, size)."""
    half = size // 2
    frequencies = torch.exp(-math.log(longest) / half * torch.arange(half, dtype=t.dtype, device=t.device))
    angles = t[:, None] * frequencies
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    return nn.functional.pad(waves, (0, size % 2))


class Stage(nn.Sequential):
    """Layers of one number in the files: residual blocks, attention, resampling."""

    def forward(self, e: Tensor, *h: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """``h`` after all layers; several are joined along their channels first."""
        x = h[0] if len(h) == 1 else torch.cat(h, dim=1)
        for layer in self:
            x = layer(x, e) if isinstance(layer, ResidualBlock) else layer(x)
        return x


class ResidualBlock(nn.Module):
    """``skip(x) + conv(silu(norm(conv(silu(norm(x)))) * (1 + scale) + shift))``, with ``scale`` and ``shift`` from the
    embedding, between resolutions if ``resample`` says so."""

    def __init__(
        self, channels: int, out_channels: int, embedding: int, *, scale_shift: bool, resample: Resample | None = None
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.resample: Resample | None = resample
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, (1 + scale_shift) * out_channels))
        # The second place was dropout's, which does nothing after training.
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, out_channels),
            nn.SiLU(),
            nn.Identity(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        norm, silu, conv = self.in_layers
        h = conv(_resampled(silu(norm(x)), self.resample))
        modulation = self.emb_layers(e)[:, :, None, None]
        if self.scale_shift:
            scale, shift = modulation.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + modulation)
        return self.skip_connection(_resampled(x, self.resample)) + h


def _resampled(x: Tensor, how: Resample | None) -> Tensor:
    match how:
        case "down":
            return avg_pool2d(x, 2)
        case "up":
            return interpolate(x, scale_factor=2.0, mode="nearest")
        case None:
            return x


class Attention(nn.Module):
    """Self-attention over the pixels, ``x + W softmax(q k^T / sqrt(d)) v``, with heads of ``d`` channels."""

    def __init__(self, channels: int, heads: int, new_order: bool) -> None:
        super().__init__()
        self.heads = heads
        self.new_order = new_order
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        tokens = self.norm(x).flatten(2).mT
        q, k, v = self._split(linear(tokens, self.qkv.weight[:, :, 0], self.qkv.bias))
        # Each factor carries half of the 1 / sqrt(d): the product stays in the range of 16-bit numbers.
        scale = (c // self.heads) ** -0.25
        weights = torch.softmax((q * scale) @ (k * scale).mT, dim=-1)
        mixed = (weights @ v).transpose(1, 2).reshape(b, height * width, c)
        out = linear(mixed, self.proj_out.weight[:, :, 0], self.proj_out.bias)
        return x + out.mT.reshape(b, c, height, width)

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, heads, pixels, d), from (B, pixels, 3 C)."""
        b, pixels, _ = qkv.shape
        if self.new_order:
            parts = qkv.reshape(b, pixels, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        else:
            parts = qkv.reshape(b, pixels, self.heads, 3, -1).permute(3, 0, 2, 1, 4)
        q, k, v = parts
        return q, k, v


class Resolution(nn.Module):
    """Half or double the resolution, by a convolution or by pooling and repetition."""

    def __init__(self, channels: int, how: Resample, convolution: bool) -> None:
        super().__init__()
        self.how: Resample = how
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if convolution and how == "down" else None
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if convolution and how == "up" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.op is not None:
            return self.op(x)
        x = _resampled(x, self.how)
        return x if self.conv is None else self.conv(x)


def _block(config: ADMConfig, channels: int, out_channels: int, resample: Resample | None = None) -> ResidualBlock:
    return ResidualBlock(channels, out_channels, config.embedding, scale_shift=config.scale_shift, resample=resample)


def _attention(config: ADMConfig, width: int, up: bool = False) -> Attention:
    return Attention(width, config.heads_of(width, up), config.new_attention_order)


def _between(config: ADMConfig, width: int, how: Resample) -> nn.Module:
    if config.resblock_resampling:
        return _block(config, width, width, how)
    return Resolution(width, how, config.conv_resampling)


def _input_blocks(config: ADMConfig) -> tuple[nn.ModuleList, list[int]]:
    """The way down, and the channels after each of its stages."""
    channels = config.widths[0]
    stages, skips = [Stage(nn.Conv2d(config.in_channels, channels, 3, padding=1))], [channels]
    for level, width in enumerate(config.widths):
        for _ in range(config.blocks):
            layers: list[nn.Module] = [_block(config, channels, width)]
            if config.attention[level]:
                layers.append(_attention(config, width))
            stages.append(Stage(*layers))
            skips.append(channels := width)
        if level < len(config.widths) - 1:
            stages.append(Stage(_between(config, channels, "down")))
            skips.append(channels)
    return nn.ModuleList(stages), skips


def _output_blocks(config: ADMConfig, skips: list[int]) -> nn.ModuleList:
    """The way up; each stage also takes the output of its counterpart on the way down."""
    channels, stages, left = config.widths[-1], [], list(skips)
    for level in reversed(range(len(config.widths))):
        width = config.widths[level]
        for i in range(config.blocks + 1):
            layers: list[nn.Module] = [_block(config, channels + left.pop(), width)]
            if config.attention[level]:
                layers.append(_attention(config, width, up=True))
            if level > 0 and i == config.blocks:
                layers.append(_between(config, width, "up"))
            stages.append(Stage(*layers))
            channels = width
    return nn.ModuleList(stages)
