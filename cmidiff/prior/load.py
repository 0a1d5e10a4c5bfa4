"""Priors by name or path: the one place that knows where weights lie."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch

from cmidiff.prior.network import NetworkPrior, Parametrisation
from cmidiff.prior.patch import PatchUNet
from cmidiff.schedule import DDPM

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
PREDICTIONS: dict[str, Parametrisation] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


@dataclass(frozen=True)
class PriorInfo:
    """An entry of the table of priors."""

    name: str
    description: str
    folder: Path

    def where(self) -> Path | None:
        """The folder of its weights, or None if they are not present."""
        return self.folder if (self.folder / "unet" / "diffusion_pytorch_model.safetensors").is_file() else None

    @property
    def licence(self) -> str:
        return str(read_card(self.folder).get("licence", "not stated"))


PRIORS: dict[str, PriorInfo] = {
    "natural-64": PriorInfo(
        "natural-64",
        "natural images, trained at 64x64 by this project, embedded; any size divisible by 8",
        WEIGHTS / "natural-64",
    )
}


def load_prior(
    name_or_path: str | Path = "natural-64", device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> NetworkPrior:
    """A network prior by its name in `PRIORS`, or from a folder in diffusers' format (``unet/`` and ``scheduler/``).

    Loading executes no code from the files: a JSON configuration and safetensors.

    Args:
        name_or_path: a name of the table or a folder.
        device: where the network runs.
        dtype: of its weights and of ``x_t``.

    Raises:
        FileNotFoundError: unknown name, or files that are not there.
        ValueError: a configuration or weights that do not fit each other.
    """
    known = PRIORS.get(str(name_or_path))
    folder = known.folder if known else Path(name_or_path)
    if not (folder / "unet" / "config.json").is_file():
        raise FileNotFoundError(
            f"no prior {str(name_or_path)!r}: neither a known name ({', '.join(PRIORS)}) nor a "
            "folder with unet/config.json"
        )
    return _from_diffusers(folder, known.name if known else folder.name, torch.device(device), dtype)


def read_card(folder: Path) -> dict[str, Any]:
    """What is known of the weights: data, licence, training, hash; empty without a card."""
    return _json(folder / "card.json")


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _from_diffusers(folder: Path, name: str, device: torch.device, dtype: torch.dtype) -> NetworkPrior:
    from diffusers.models.attention_processor import Attention, AttnProcessor
    from diffusers.models.unets.unet_2d import UNet2DModel
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = json.loads((folder / "unet" / "config.json").read_text())
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"the weights of prior {name!r} are missing: {weights}")
    try:
        unet = cast(UNet2DModel, UNet2DModel.from_config(config))  # pyright: ignore[reportCallIssue]
        unet.load_state_dict(load_file(weights))
    except (RuntimeError, OSError, ValueError, TypeError, SafetensorError) as error:
        raise ValueError(f"{weights} and {folder / 'unet' / 'config.json'} make no network: {error}") from error
    for module in unet.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())  # fused attention has no second derivative
    patch = int(_json(folder / "model_index.json").get("patch_size", 1))
    network = PatchUNet(unet, patch).to(device=device, dtype=dtype).eval().requires_grad_(False)
    channels = int(config["in_channels"]) // patch**2
    schedule, parametrisation = _scheduler(folder)
    return NetworkPrior(
        network,
        parametrisation,
        schedule,
        learned_variance=int(config["out_channels"]) == 2 * int(config["in_channels"]),
        channels=channels,
        multiple=patch * 2 ** (len(config["block_out_channels"]) - 1),
        name=name,
        card=read_card(folder),
    )


def _scheduler(folder: Path) -> tuple[DDPM, Parametrisation]:
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it states the noise schedule and what the network predicts")
    config = json.loads(path.read_text())
    kind: Literal["linear", "squaredcos_cap_v2"] = config.get("beta_schedule", "linear")
    levels, prediction = int(config.get("num_train_timesteps", 1000)), config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ValueError(f"{path}: prediction_type must be one of {', '.join(PREDICTIONS)}, received {prediction!r}")
    match kind:
        case "linear":
            schedule = DDPM.linear(levels, float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02)))
        case "squaredcos_cap_v2":
            schedule = DDPM.cosine(levels)
        case _:
            raise ValueError(f"{path}: beta_schedule must be linear or squaredcos_cap_v2, received {kind!r}")
    return schedule, PREDICTIONS[prediction]
