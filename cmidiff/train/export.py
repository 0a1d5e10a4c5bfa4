"""A trained network as a folder in diffusers' format, with its card.

unet/config.json, unet/diffusion_pytorch_model.safetensors   half precision
scheduler/scheduler_config.json                               the DDPM grid, v-prediction
model_index.json
card.json, README.md                                          data, licence, training, error by noise level, hash
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from jinja2 import Environment, StrictUndefined
from torch import nn

from cmidiff.prior.formats.patch import PatchUNet
from cmidiff.prior.save import WEIGHTS, write_pipeline
from cmidiff.schedule import DDPM
from cmidiff.train.config import TrainConfig
from cmidiff.train.validate import LevelLoss


def export(network: PatchUNet, config: TrainConfig, steps: int, seconds: float, levels: list[LevelLoss]) -> Path:
    """Write the averaged network (float32) to ``config.export_to`` with its card; a prior already there is replaced
    only when the new one is whole. Returns the folder."""
    target = config.export_to
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    _write_model(network, made)
    facts = card(network, config, steps, seconds, levels, made / WEIGHTS)
    (made / "card.json").write_text(json.dumps(facts, indent=2) + "\n")
    (made / "README.md").write_text(readme(facts))
    made.chmod(0o755)
    old = made.with_name(made.name + "-old")
    if target.exists():
        target.replace(old)
    made.replace(target)
    shutil.rmtree(old, ignore_errors=True)
    return target


def read(folder: Path) -> PatchUNet:
    """Return the network of an exported folder, in float32, ready to evaluate."""
    unet = UNet2DModel.from_pretrained(folder / "unet", torch_dtype=torch.float32, use_safetensors=True)
    patch_size = json.loads((folder / "model_index.json").read_text())["patch_size"]
    return PatchUNet(unet, patch_size).eval().requires_grad_(False)


def _write_model(network: PatchUNet, folder: Path) -> None:
    half = nn.Module.half(nn.Module.to(copy.deepcopy(network).cpu(), memory_format=torch.contiguous_format))
    write_pipeline(cast(PatchUNet, half), DDPM.linear(), "v", folder, clip=False)


def card(
    network: PatchUNet, config: TrainConfig, steps: int, seconds: float, levels: list[LevelLoss], weights: Path
) -> dict[str, Any]:
    """Return what a user must know about the weights, as a JSON-ready table."""
    return {
        "name": config.name,
        "source": f"trained by `cmidiff train` from cmidiff/train/{config.name}.toml"
        if (Path(__file__).parent / f"{config.name}.toml").is_file()
        else "trained by `cmidiff train`",
        "data": config.data,
        "licence": config.licence,
        "parametrisation": "v",
        "schedule": "DDPM linear betas 1e-4..0.02, 1000 steps, trained at real t",
        "value_range": [-1, 1],
        "channels": 3,
        "multiple": config.multiple,
        "patch_size": network.patch_size,
        "parameters": sum(p.numel() for p in network.parameters()),
        **_origin(config),
        "steps": steps,
        "batch": config.batch,
        "images_seen": steps * config.batch,
        "wall_time_seconds": round(seconds),
        "machine": config.machine,
        "average": f"exponential moving average of the weights, over a tenth of the steps, decay at most {config.ema}",
        "validation_images": config.validation_images if levels else 0,
        "validation": [{k: float(f"{v:.5g}") for k, v in level._asdict().items()} for level in levels],
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "configuration": config.choices(),
    }


def _origin(config: TrainConfig) -> dict[str, Any]:
    """The prior whose weights the run started from, if any."""
    if config.initial is None:
        return {}
    path = config.initial / "card.json"
    origin = json.loads(path.read_text()) if path.is_file() else {"name": config.initial.name}
    kept = ("name", "steps", "batch", "images_seen", "wall_time_seconds", "sha256")
    return {"started_from": {key: origin[key] for key in kept if key in origin}}


def readme(facts: dict[str, Any]) -> str:
    """Return the card for a person, in Markdown."""
    text = (Path(__file__).parent / "card.md.jinja").read_text(encoding="utf-8")
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    return Environment(undefined=StrictUndefined, **options).from_string(text).render(facts, file=WEIGHTS)
