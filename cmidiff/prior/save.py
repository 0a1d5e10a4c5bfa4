"""A prior as a folder in diffusers' format, on disk or on the hub; `load_prior` reads it.

unet/config.json, unet/diffusion_pytorch_model.safetensors   the network, in its own precision
scheduler/scheduler_config.json                               the noise schedule, what the network predicts, clipping
model_index.json                                              with the side of the blocks of pixels
moments.safetensors                                           the second moments, if the prior has them
card.json, README.md                                          source, data, licence, hash
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import nn

from cmidiff.prior.formats.patch import PatchUNet
from cmidiff.prior.formats.pipeline import WEIGHTS_FILE
from cmidiff.prior.formats.scheduler import PREDICTIONS
from cmidiff.prior.hub import HUB, hub_repository
from cmidiff.prior.load import MOMENTS
from cmidiff.schedule import DDPM

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

    from cmidiff.prior.network import NetworkPrior, Parametrisation

WEIGHTS = f"unet/{WEIGHTS_FILE}"
LINEAR = (1e-4, 0.02)  # the betas of `DDPM.linear`
INSTEAD = "save prior.network.state_dict() and a card instead (docs/priors.md)"


def write_pipeline(
    network: PatchUNet, schedule: DDPM, parametrisation: Parametrisation, folder: Path, *, clip: bool
) -> None:
    """Write a network on the CPU and its grid as a pipeline of diffusers; files of the same names are replaced."""
    import diffusers
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    cast("UNet2DModel", network.unet).save_pretrained(folder / "unet")
    (folder / WEIGHTS).chmod(0o644)
    levels, known = schedule.levels, {made: cast(Any, name) for name, made in PREDICTIONS.items()}
    betas: dict[str, Any] = {"beta_start": LINEAR[0], "beta_end": LINEAR[1], "beta_schedule": "linear"}
    if not np.array_equal(schedule.alphas_cumprod, DDPM.linear(levels).alphas_cumprod):
        betas = {"trained_betas": schedule.betas.tolist()}
    DDPMScheduler(
        num_train_timesteps=levels, prediction_type=known[parametrisation], clip_sample=clip, **betas
    ).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "patch_size": network.patch_size,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def save_prior(prior: NetworkPrior, folder: Path, *, overwrite: bool) -> None:
    """Write a prior; see `NetworkPrior.save_pretrained`."""
    network, schedule = _writable(prior)
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: pass overwrite=True, or another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_pipeline(network, schedule, prior.parametrisation, folder, clip=prior.clip is not None)
    (folder / MOMENTS).unlink(missing_ok=True)  # of the prior that was there
    if prior.second_moments is not None:
        prior.second_moments.save(folder / MOMENTS)
    card = {"name": prior.name, **prior.card, "sha256": hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()}
    card |= {} if prior.label is None else {"label": prior.label}
    (folder / "card.json").write_text(json.dumps(card, indent=2, default=str) + "\n")
    (folder / "README.md").write_text(_readme(card))


def push_prior(prior: NetworkPrior, repository: str, *, private: bool, token: str | None) -> str:
    """Upload a prior; see `NetworkPrior.push_to_hub`."""
    import huggingface_hub

    name, revision = hub_repository(repository)
    if revision is not None:
        raise ValueError(f"repository must be OWNER/NAME, received {repository!r}: leave out the revision")
    hub = huggingface_hub.HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_prior(prior, Path(folder), overwrite=False)
        try:
            hub.create_repo(name, private=private, exist_ok=True)
            hub.upload_folder(repo_id=name, folder_path=folder, commit_message=f"The prior {prior.name}")
        except Exception as error:  # offline, refused, no such owner: as many classes as the hub has versions
            raise ConnectionError(
                f"{prior.name} was not uploaded to https://huggingface.co/{name} ({type(error).__name__}): check the "
                "connection and log in with `hf auth login`, or use save_pretrained(FOLDER) and upload the folder later"
            ) from error
    return f"{HUB}{name}"


def _writable(prior: NetworkPrior) -> tuple[PatchUNet, DDPM]:
    """The network and the schedule of a prior that the format can state; ``ValueError`` otherwise."""
    network, schedule = prior.network, prior.schedule
    if not isinstance(network, PatchUNet):
        kind = type(network).__name__ if isinstance(network, nn.Module) else "a function"
        raise ValueError(f"save_pretrained writes networks of the class UNet2DModel, received {kind}: {INSTEAD}")
    if not isinstance(schedule, DDPM) or prior.parametrisation not in PREDICTIONS.values():
        raise ValueError(
            f"save_pretrained writes eps, x0 and v on a grid of DDPM, received {prior.parametrisation} on "
            f"{type(schedule).__name__}: {INSTEAD}"
        )
    if prior.value_range != (-1.0, 1.0):
        raise ValueError(f"save_pretrained needs images in (-1, 1), received {prior.value_range}: {INSTEAD}")
    return network, schedule


def _readme(card: dict[str, Any]) -> str:
    facts = "\n".join(f"- **{key}**: {card[key]}" for key in ("source", "data", "licence", "sha256") if key in card)
    return f"""---
library_name: cmidiff
tags: [diffusion, inverse-problems]
---
# {card["name"]}

A diffusion prior in diffusers' format, written by cmidiff. `cmidiff.load_prior(FOLDER)` reads it.

{facts}
"""
