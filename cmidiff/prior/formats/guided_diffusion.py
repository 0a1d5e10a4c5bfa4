"""Checkpoints of guided diffusion: a dictionary of tensors, and the flags of the command line that trained it.

A card may repeat those flags (``num_channels``, ``num_res_blocks``, ``attention_resolutions``, ...): then they are the
architecture that the file must have. Without them it is read off the file. Only what leaves no trace there has to be
stated:  ``num_head_channels`` (or ``num_heads``) and ``use_new_attention_order``, ``noise_schedule``,
``diffusion_steps`` and ``predict_xstart``.

Source: Dhariwal, Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, https://arxiv.org/abs/2105.05233
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmidiff.prior.formats.adm import ADMConfig, ADMUNet
from cmidiff.prior.formats.card import Fields, schedule_of, value_range_of
from cmidiff.prior.formats.weights import fill, shapes_of
from cmidiff.prior.network import PARAMETRISATIONS, Loaded
from cmidiff.schedule import DDPM, Schedule

ARCHITECTURE = ("num_res_blocks", "channel_mult", "attention_resolutions", "resblock_updown", "class_cond")
MULTIPLIERS = {512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4)}
MOST_HEAD_CHANNELS = 64
# Constants of the schedule that a port of the network keeps beside its weights.
SURPLUS = ("sqrt_alphas_cumprod", "sqrt_1m_alphas_cumprod")


def is_guided_diffusion(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors carry the names of this format."""
    return any(name.startswith("input_blocks.") for name in tensors)


def load(tensors: Mapping[str, Tensor], card: Fields, path: Path) -> Loaded:
    """The network of a checkpoint; flags are at the top of the card or under ``architecture``."""
    flags = card.within("architecture") if isinstance(card.values.get("architecture"), Mapping) else card
    if "num_channels" in flags:  # all flags of the command: what is not among them has its default
        config, assumed = stated_config(flags), []
    else:
        config, assumed = _inferred_config(flags, shapes_of(tensors))
        assumed += _assumed(flags, card)
    _check_channels(config, card, path)
    with torch.device("meta"):
        network = ADMUNet(config)
    fill(network, tensors, path, SURPLUS)
    return Loaded(
        network,
        card.choice("parametrisation", PARAMETRISATIONS, "x0" if flags.flag("predict_xstart", False) else "eps"),
        schedule_of(card) if "schedule" in card else _schedule(flags),
        learned_variance=config.learned_variance,
        channels=config.in_channels,
        multiple=config.multiple,
        classes=config.classes,
        value_range=value_range_of(card),
        size=flags.integer("image_size", low=1, high=2**16) if "image_size" in flags else None,
        assumed=tuple(assumed),
    )


def stated_config(flags: Fields) -> ADMConfig:
    """The architecture that guided diffusion's flags describe, with that code's defaults."""
    base = flags.integer("num_channels", low=1, high=2**16)
    image_size = flags.integer("image_size", 64, low=1, high=2**16)
    multipliers = _numbers(flags, "channel_mult") or MULTIPLIERS.get(image_size)
    if not multipliers or len(multipliers) > 16:
        raise flags.wrong("channel_mult", f"1 to 16 numbers, as image_size = {image_size} has none of its own")
    strides = {image_size // int(side) for side in _numbers(flags, "attention_resolutions") or (16, 8) if side >= 1}
    in_channels = flags.integer("in_channels", 3, low=1, high=2**10)
    return ADMConfig(
        in_channels=in_channels,
        out_channels=in_channels * (2 if flags.flag("learn_sigma", False) else 1),
        base=base,
        embedding=4 * base,
        widths=tuple(int(m * base) for m in multipliers),
        blocks=flags.integer("num_res_blocks", 2, low=1, high=64),
        attention=tuple(2**level in strides for level in range(len(multipliers))),
        resblock_resampling=flags.flag("resblock_updown", False),
        scale_shift=flags.flag("use_scale_shift_norm", True),
        classes=flags.integer("num_classes", 1000, low=1, high=10**6) if flags.flag("class_cond", False) else None,
        **(_heads(flags) or {"heads": 4}),
    )


def _inferred_config(flags: Fields, shapes: Mapping[str, tuple[int, ...]]) -> tuple[ADMConfig, list[str]]:
    """The architecture that the file shows, and what of it is assumed."""
    partial = [name for name in ARCHITECTURE if name in flags]
    if partial:
        raise ValueError(
            f"{flags.where} states {partial[0]} but not num_channels: state the whole architecture, "
            "or only the heads of its attention"
        )
    stated, assumed = _heads(flags), []
    if not stated:
        base = shapes.get("time_embed.0.weight", (0, 0))[-1]
        heads = min(MOST_HEAD_CHANNELS, max(base // 2, 1))
        stated = {"head_channels": heads, "new_attention_order": False}
        assumed = [f"num_head_channels = {heads}", "use_new_attention_order = false"]
    return ADMConfig.infer(shapes, **stated), assumed


def _assumed(flags: Fields, card: Fields) -> list[str]:
    """What leaves no trace in a file, besides its attention, and is not stated: as in the papers' checkpoints."""
    unstated = [] if "schedule" in card or "noise_schedule" in flags else ["noise_schedule = linear"]
    if "schedule" not in card and "diffusion_steps" not in flags:
        unstated.append("diffusion_steps = 1000")
    if "parametrisation" not in card and "predict_xstart" not in flags:
        unstated.append("parametrisation = eps")
    return unstated if "value_range" in card.values else [*unstated, "value_range = [-1, 1]"]


def _heads(flags: Fields) -> dict[str, Any]:
    """What is stated about attention heads; empty if nothing is."""
    order = {"new_attention_order": flags.flag("use_new_attention_order", False)}
    channels = flags.integer("num_head_channels", -1, low=-1, high=2**16)
    if channels > 0:
        return order | {"head_channels": channels}
    if "num_heads" not in flags:
        return {}
    up = flags.integer("num_heads_upsample", -1, low=-1, high=2**16)
    return order | {"heads": flags.integer("num_heads", low=1, high=2**16), "heads_up": up if up > 0 else None}


def _numbers(flags: Fields, name: str) -> tuple[float, ...]:
    """Numbers given as a list, as one number, or as text with commas; empty if there are none."""
    value = flags.values.get(name)
    if isinstance(value, str):
        try:
            value = [float(part) for part in value.split(",") if part.strip()]
        except ValueError:
            raise flags.wrong(name, "numbers with commas between them") from None
    elif isinstance(value, int | float) and not isinstance(value, bool):
        value = [value]
    numbers = tuple(Fields({name: value}, flags.where).numbers(name)) if value else ()
    if any(not 0 < number < 2**16 for number in numbers):
        raise flags.wrong(name, "positive numbers")
    return numbers


def _check_channels(config: ADMConfig, card: Fields, path: Path) -> None:
    """A super-resolution network also has 2C channels coming out, but of C more going in."""
    fits = config.learned_variance or config.out_channels == config.in_channels
    if not fits or (config.in_channels == config.out_channels == 6 and "channels" not in card):
        raise ValueError(
            f"{path} takes {config.in_channels} channels and gives {config.out_channels}: as many or twice as many are "
            "needed (a network conditioned on a second image is no prior)"
        )


def _schedule(flags: Fields) -> Schedule:
    """The discrete grid of the flags; the linear one keeps its end points for any number of levels."""
    levels = flags.integer("diffusion_steps", 1000, low=1, high=100_000)
    if flags.flag("rescale_timesteps", False) and levels != 1000:
        raise flags.wrong("rescale_timesteps", f"false with diffusion_steps = {levels}: rescaled times are not known")
    grids = {"linear": lambda: DDPM.linear(levels, 0.1 / levels, 20.0 / levels), "cosine": lambda: DDPM.cosine(levels)}
    try:
        return flags.choice("noise_schedule", grids, "linear")()
    except ValueError as error:
        raise ValueError(f"{flags.where}: {error}") from error
