"""Unconditional and class-conditional pipelines of diffusers: a folder, or a bare ``UNet2DModel``.

A folder holds ``unet/`` and ``scheduler/``, or the same files at its top, as the older pipelines of the hub do. JSON
and safetensors are read, and the tensors of a pickle where there are no safetensors.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from cmidiff.prior.formats.card import Fields, assumed_of, schedule_of, value_range_of
from cmidiff.prior.formats.patch import PatchUNet
from cmidiff.prior.formats.scheduler import Noise, read_scheduler
from cmidiff.prior.formats.weights import fill, read_tensors
from cmidiff.prior.network import PARAMETRISATIONS, Loaded, Parametrisation
from cmidiff.schedule import Schedule

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
PICKLED_FILE = "diffusion_pytorch_model.bin"  # what older pipelines have instead; only its tensors are read
CONFIG_FILE, SCHEDULER_FILE = "config.json", "scheduler_config.json"
# Names of attention weights in files that diffusers before version 0.17 wrote, and what they are called since.
FORMER_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def is_folder(folder: Path) -> bool:
    """Whether a folder has the configuration of a network."""
    return part_of(folder, "unet", CONFIG_FILE) is not None


def load_folder(folder: Path) -> Loaded:
    """The network of a pipeline's folder."""
    config = part_of(folder, "unet", CONFIG_FILE)
    if config is None:
        raise FileNotFoundError(f"{folder} has neither unet/{CONFIG_FILE} nor {CONFIG_FILE}: it is no pipeline")
    if any((folder / latent).exists() for latent in ("vae", "vqvae")):
        raise FileNotFoundError(f"{folder} has an autoencoder and no model_index.json, which states its kind")
    weights = weights_beside(config)
    if weights is None:
        raise FileNotFoundError(
            f"the weights of prior {folder.name!r} are missing: {config.with_name(WEIGHTS_FILE)} (or {PICKLED_FILE})"
        )
    index, fields = folder / "model_index.json", Fields.read(config)
    patch = Fields.read(index).integer("patch_size", 1, low=1, high=64) if index.is_file() else 1
    try:
        network = build(fields, read_tensors(weights), weights, patch)
    except ValueError as error:
        raise ValueError(f"{config} and its weights make no network: {error}") from error
    scheduler = part_of(folder, "scheduler", SCHEDULER_FILE)
    if scheduler is None:
        raise FileNotFoundError(
            f"{folder / 'scheduler' / SCHEDULER_FILE} is missing: it states the noise schedule and what the network "
            "predicts"
        )
    noise = read_scheduler(Fields.read(scheduler))
    return replace(network_of(network, fields, patch, noise), clip=noise.clip, assumed=noise.assumed)


def network_of(network: PatchUNet, config: Fields, patch: int, noise: Noise) -> Loaded:
    """A ``UNet2DModel`` with what its scheduler states."""
    network.time_scale = noise.time_scale
    return _loaded(network, config, patch, noise.parametrisation, noise.schedule)


def load_tensors(tensors: Mapping[str, Tensor], card: Fields, path: Path) -> Loaded:
    """The network of a single file whose card states the ``UNet2DModel`` under ``architecture``."""
    fields = card.within("architecture")
    patch = fields.integer("patch_size", 1, low=1, high=64)
    if "parametrisation" not in card:
        raise card.wrong("parametrisation", f"one of {', '.join(PARAMETRISATIONS)}")
    config = Fields({k: v for k, v in fields.values.items() if k not in ("kind", "patch_size")}, fields.where)
    network = build(config, tensors, path, patch)
    parametrisation = card.choice("parametrisation", PARAMETRISATIONS)
    loaded = _loaded(network, config, patch, parametrisation, schedule_of(card))
    return replace(loaded, value_range=value_range_of(card), assumed=tuple(assumed_of(card)))


def build(config: Fields, tensors: Mapping[str, Tensor], path: Path, patch: int) -> PatchUNet:
    """The network of a configuration, with its weights."""
    from diffusers.models.attention_processor import Attention, AttnProcessor
    from diffusers.models.unets.unet_2d import UNet2DModel

    _check_config(config)
    try:
        with torch.device("meta"):
            unet = cast(UNet2DModel, UNet2DModel.from_config(dict(config.values)))  # pyright: ignore[reportCallIssue]
    except Exception as error:  # a configuration from anywhere meets code that trusts it
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{config.where} makes no UNet2DModel: {type(error).__name__}: {reason}") from error
    fill(unet, renamed(tensors), path)
    for module in unet.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())  # fused attention has no second derivative
    return PatchUNet(unet, patch)


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names that diffusers gives them since version 0.17."""
    old = re.compile(rf"(.*\.)?attentions\.\d+\.({'|'.join(FORMER_ATTENTION)})\.(weight|bias)")
    found = {name: match for name in tensors if (match := old.fullmatch(name))}
    new = {name: name.replace(f".{m[2]}.", f".{FORMER_ATTENTION[m[2]]}.") for name, m in found.items()}
    return {new.get(name, name): value for name, value in tensors.items()}


def _check_config(config: Fields) -> None:
    """Bounds on what decides how much is built; diffusers checks the rest."""
    kind = config.values.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise config.wrong(
            "_class_name", "UNet2DModel: other networks are read as parts of a pipeline (docs/latent.md)"
        )
    widths = config.numbers("block_out_channels")
    if not 1 <= len(widths) <= 16 or not all(w.is_integer() and 1 <= w <= 2**16 for w in widths):
        raise config.wrong("block_out_channels", "1 to 16 whole numbers from 1 to 65536")
    config.integer("layers_per_block", 2, low=1, high=64)
    for channels in ("in_channels", "out_channels"):
        config.integer(channels, 3, low=1, high=2**12)


def _loaded(
    network: PatchUNet, config: Fields, patch: int, parametrisation: Parametrisation, schedule: Schedule
) -> Loaded:
    given, made = config.integer("in_channels", 3), config.integer("out_channels", 3)
    if given % patch**2 or made not in (given, 2 * given):
        raise ValueError(
            f"{config.where}: in_channels = {given} and out_channels = {made} must be the same or one to two, and "
            f"patch_size = {patch} must divide them"
        )
    side = _side(config)
    classes = config.integer("num_class_embeds", low=1) if "num_class_embeds" in config else None
    return Loaded(
        network,
        parametrisation,
        schedule,
        learned_variance=made == 2 * given,
        channels=given // patch**2,
        multiple=patch * 2 ** (len(config.numbers("block_out_channels")) - 1),
        classes=classes,
        size=None if side is None else patch * side,
    )


def _side(config: Fields) -> int | None:
    """The side that a network was trained on, in its own blocks of pixels, where its configuration states one."""
    size = config.values.get("sample_size")
    size = size[0] if isinstance(size, list) and size else size
    return size if isinstance(size, int) and not isinstance(size, bool) and 0 < size < 2**16 else None


def part_of(folder: Path, name: str, file: str) -> Path | None:
    """A file of a part of the pipeline, in its own folder or at the top."""
    return next((path for path in (folder / name / file, folder / file) if path.is_file()), None)


def weights_beside(config: Path) -> Path | None:
    """The file of weights beside a network's configuration."""
    files = (config.with_name(name) for name in (WEIGHTS_FILE, PICKLED_FILE))
    return next((path for path in files if path.is_file()), None)


def weights_of(names: Iterable[str]) -> list[str]:
    """One set of weights among the files of a part. Safetensors are preferred, those without a variant first, in one
    file or in several. Empty without any."""
    names = list(names)
    for end, variant, shard in itertools.product(("safetensors", "bin"), ("", ".fp16", ".bf16"), ("", r"-\d+-of-\d+")):
        middle = f"({re.escape(variant)}{shard}|{shard}{re.escape(variant)})"
        if found := [n for n in names if re.fullmatch(rf"(diffusion_pytorch_)?model{middle}\.{end}", n)]:
            return sorted(found)
    return []
