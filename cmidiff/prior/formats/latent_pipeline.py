"""Latent pipelines of diffusers: a network on latents, an autoencoder, and perhaps text encoders, in one folder.

| class in ``model_index.json`` | network | text |
|---|---|---|
| ``LDMPipeline`` | ``UNet2DModel`` | none |
| ``StableDiffusionPipeline`` (1.x, 2.x) | ``UNet2DConditionModel`` | CLIP |
| ``StableDiffusionXLPipeline`` | ``UNet2DConditionModel`` | two CLIP |
| ``StableDiffusion3Pipeline`` | ``SD3Transformer2DModel`` | two CLIP, and T5 if it is there |
| ``FluxPipeline`` | ``FluxTransformer2DModel`` | CLIP, T5 |

Weights are read as those of other priors: safetensors, or the tensors of a pickle; text encoders in safetensors alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmidiff.prior.formats.autoencoder import Autoencoder, autoencoder_of
from cmidiff.prior.formats.card import Fields
from cmidiff.prior.formats.conditional import Conditional, ConditionalFlux, ConditionalSD3, ConditionalXL
from cmidiff.prior.formats.pipeline import (
    CONFIG_FILE,
    PICKLED_FILE,
    SCHEDULER_FILE,
    WEIGHTS_FILE,
    build,
    network_of,
    renamed,
    weights_of,
)
from cmidiff.prior.formats.scheduler import Noise, read_scheduler
from cmidiff.prior.formats.text import ENCODERS, encode_text
from cmidiff.prior.formats.weights import fill, read_shards
from cmidiff.prior.network import Loaded

INDEX = "model_index.json"
LATENT_PARTS = ("vae", "vqvae", "movq", "vqgan", "transformer")  # what an index of a latent pipeline may name
FLUX_SIZE = 128  # latents along a side: what FLUX.1 was trained on, which no configuration states


@dataclass(frozen=True)
class _Kind:
    """What a class of pipelines consists of."""

    network: str
    model: str
    autoencoder: str = "vae"
    conditional: type[Conditional] | None = None


PIPELINES = {
    "LDMPipeline": _Kind("unet", "UNet2DModel", "vqvae"),
    "StableDiffusionPipeline": _Kind("unet", "UNet2DConditionModel", conditional=Conditional),
    "StableDiffusionXLPipeline": _Kind("unet", "UNet2DConditionModel", conditional=ConditionalXL),
    "StableDiffusion3Pipeline": _Kind("transformer", "SD3Transformer2DModel", conditional=ConditionalSD3),
    "FluxPipeline": _Kind("transformer", "FluxTransformer2DModel", conditional=ConditionalFlux),
}


@dataclass(frozen=True)
class Prompt:
    """The condition of a text-conditional prior.

    Attributes:
        text: what the image shows; "" for no text.
        negative: the negative text of classifier-free guidance.
        guidance_scale: its scale; 1 for none.
    """

    text: str = ""
    negative: str = ""
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.text, str) and isinstance(self.negative, str)):
            raise TypeError(f"prompt must be a text, received {self.text!r} and {self.negative!r}")
        if not 0 <= self.guidance_scale < 1000:
            raise ValueError(f"guidance_scale must be a number >= 0 (1 is none), received {self.guidance_scale}")
        if self.negative and self.guidance_scale == 1:
            raise ValueError(
                f"negative_prompt counts only with guidance, received {self.negative!r} and guidance_scale=1: pass "
                "guidance_scale=3, or leave negative_prompt out"
            )

    @property
    def stated(self) -> bool:
        """Whether anything was asked for."""
        return self != Prompt()


def is_latent(folder: Path) -> bool:
    """Whether a folder holds a latent pipeline, also one with a part that is missing."""
    if not (folder / INDEX).is_file():
        return False
    parts = any((folder / part).is_dir() for part in ("vae", "vqvae"))
    return parts or Fields.read(folder / INDEX).values.get("_class_name") in PIPELINES


def check_kind(index: Fields, *, latent: bool = False) -> None:
    """Check that the index of a pipeline names no latent pipeline of a kind that is not known here."""
    latent = latent or any(part in index.values for part in (*LATENT_PARTS, *ENCODERS))
    if latent and index.values.get("_class_name") not in PIPELINES:
        raise index.wrong(
            "_class_name",
            f"one of {', '.join(PIPELINES)}: of other latent pipelines neither the inputs of the network nor the "
            "autoencoder are known here; write x_hat(x_t, t) and pass cmidiff.prior.from_callable(..., decoder=)",
        )
    if index.values.get("requires_aesthetics_score"):
        raise index.wrong(
            "requires_aesthetics_score", "false: the refiner of Stable Diffusion XL is no prior by itself"
        )


def load_latent(folder: Path, prompt: Prompt, device: torch.device, dtype: torch.dtype) -> tuple[Loaded, Autoencoder]:
    """The network and the autoencoder of a latent pipeline, on the CPU; text encoders compute on ``device`` in
    ``dtype``."""
    index = Fields.read(folder / INDEX)
    check_kind(index, latent=True)
    name = index.values["_class_name"]
    kind = PIPELINES[str(name)]
    if prompt.stated and kind.conditional is None:
        raise ValueError(f"{folder.name} takes no text: leave prompt and guidance_scale out")
    autoencoder = autoencoder_of(_config(folder, kind.autoencoder), lambda cls: _model(folder, kind.autoencoder, cls))
    config = _config(folder, kind.network)
    noise = _noise(folder, config)
    if kind.conditional is None:
        found = network_of(build(config, _tensors(folder / kind.network), folder / kind.network, 1), config, 1, noise)
    else:
        found = _conditional(folder, str(name), kind, config, noise, prompt, autoencoder, (device, dtype))
    if found.channels != autoencoder.channels:
        raise ValueError(
            f"{folder}: its network takes {found.channels} channels and its autoencoder has {autoencoder.channels} of "
            "latents: a network with further inputs (a mask, a depth, another image) is no prior of the image alone"
        )
    return replace(found, value_range=None, clip=False, assumed=noise.assumed), autoencoder


def _conditional(
    folder: Path,
    name: str,
    kind: _Kind,
    config: Fields,
    noise: Noise,
    prompt: Prompt,
    autoencoder: Autoencoder,
    place: tuple[torch.device, torch.dtype],
) -> Loaded:
    """A network that is conditioned on text."""
    import diffusers

    assert kind.conditional is not None
    for option in ("time_cond_proj_dim", "class_embed_type", "encoder_hid_dim_type", "num_class_embeds"):
        if option in config:
            raise config.wrong(option, "absent: an input of the network that is not known here")
    wanted = "text_time" if name == "StableDiffusionXLPipeline" else None
    if config.values.get("addition_embed_type") != wanted:
        raise config.wrong("addition_embed_type", f"{wanted or 'absent'} in a {name}")
    distilled = bool(config.values.get("guidance_embeds"))
    if distilled and prompt.negative:
        raise ValueError(
            f"{folder.name} was distilled with guidance: it takes guidance_scale as an input and no negative text, "
            "leave negative_prompt out"
        )
    negative = None if prompt.guidance_scale == 1 or distilled else prompt.negative
    embeddings = encode_text(folder, name, prompt.text, negative, *place)
    network = _model(folder, kind.network, getattr(diffusers, kind.model))
    flux = name == "FluxPipeline"
    time_scale = noise.time_scale / 1000 if flux else noise.time_scale
    wrapped = kind.conditional(network, embeddings, prompt.guidance_scale, time_scale)
    if isinstance(wrapped, ConditionalXL):
        wrapped.factor = autoencoder.factor
    channels = config.integer("in_channels", 64 if flux else 4) // (4 if flux else 1)
    blocks = len(config.numbers("block_out_channels")) if kind.network == "unet" else 2
    return Loaded(
        wrapped,
        noise.parametrisation,
        noise.schedule,
        learned_variance=False,
        channels=channels,
        multiple=2 if flux else config.integer("patch_size", 2) if kind.network == "transformer" else 2 ** (blocks - 1),
        size=_size(config, name),
    )


def _noise(folder: Path, config: Fields) -> Noise:
    """What the scheduler states; the shift of a flow that depends on the size of the image is that of the training
    size."""
    path = folder / "scheduler" / SCHEDULER_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it states the noise schedule and what the network predicts")
    size = FLUX_SIZE if config.values.get("_class_name") == "FluxTransformer2DModel" else _size(config, "")
    return read_scheduler(Fields.read(path), tokens=None if size is None else (size // 2) ** 2)


def _size(config: Fields, name: str) -> int | None:
    """Latents along a side that the network was trained on."""
    size = config.values.get("sample_size", FLUX_SIZE if name == "FluxPipeline" else None)
    return size if isinstance(size, int) and not isinstance(size, bool) and 0 < size < 2**16 else None


def _config(folder: Path, part: str) -> Fields:
    return Fields.read(folder / part / CONFIG_FILE)


def _model(folder: Path, part: str, cls: Any) -> nn.Module:
    """The network of a part of a pipeline, with its weights."""
    config = _config(folder, part)
    try:
        with torch.device("meta"):
            model = cls.from_config(dict(config.values))
    except Exception as error:  # a configuration from anywhere meets code that trusts it
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{config.where} makes no {cls.__name__}: {type(error).__name__}: {reason}") from error
    fill(model, renamed(_tensors(folder / part)), folder / part)
    return model


def _tensors(folder: Path) -> Mapping[str, Tensor]:
    """The tensors of a part: of one file, or of several."""
    files = weights_of(path.name for path in folder.glob("*"))
    if not files:
        raise FileNotFoundError(f"the weights are missing: {folder / WEIGHTS_FILE} (or {PICKLED_FILE})")
    return read_shards([folder / file for file in files])
