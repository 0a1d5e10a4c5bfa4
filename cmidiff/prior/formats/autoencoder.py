"""The autoencoders of latent pipelines of diffusers, ``AutoencoderKL`` and ``VQModel``, as a `Decoder`.

The prior's latents are the autoencoder's in the units that the network was trained on, ``z = scale (latent - shift)``,
or, with statistics of each channel, ``z = scale (latent - mean) / std``.

A KL encoder gives the mean of its Gaussian, so that encoding draws no random number. A VQ decoder rounds a latent to
the nearest code, as in its pipeline; its derivative is that of the identity there (straight-through).

Attention is the plain one: fused kernels have no second derivative and no forward-mode derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from cmidiff.prior.checkpointed import Checkpointed
from cmidiff.prior.decoder import Decoder
from cmidiff.prior.formats.card import Fields
from cmidiff.prior.formats.offload import offload as offload_weights
from cmidiff.prior.network import NetworkPrior

Kind = Literal["AutoencoderKL", "VQModel"]
KINDS: dict[str, Kind] = {"AutoencoderKL": "AutoencoderKL", "VQModel": "VQModel"}


@dataclass(frozen=True)
class Autoencoder:
    """Both halves of an autoencoder, on the CPU, in the precision of the file.

    Attributes:
        decoder, encoder: ``(x, t) -> output``; ``t`` is not used.
        channels, image_channels, factor: see `Decoder`.
        float16: whether half precision is enough for it; False where its configuration forces single precision.
    """

    decoder: nn.Module
    encoder: nn.Module
    channels: int
    image_channels: int
    factor: int
    float16: bool

    def on(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        max_batch: int | None = None,
        checkpointing: bool = False,
        offload: bool = False,
        name: str = "autoencoder",
    ) -> Decoder:
        """The decoder of a prior on a device; options as in `load_prior`, ``name`` for messages."""
        dtype = torch.float32 if dtype is torch.float16 and not self.float16 else dtype

        def prior(network: nn.Module, part: str) -> NetworkPrior:
            network = network.to(dtype=dtype).eval().requires_grad_(False)
            network = (offload_weights(network) if offload else network).to(device)
            cast(Checkpointed, network).checkpointing = checkpointing
            return NetworkPrior(
                network,
                "x0",
                value_range=None,
                channels=None,
                name=f"{part} of {name}",
                dtype=dtype,
                max_batch=max_batch,
            )

        decoder, encoder = prior(self.decoder, "the decoder"), prior(self.encoder, "the encoder")
        return Decoder(
            lambda z: decoder(z, 0.0).mean,
            lambda x: encoder(x, 0.0).mean,
            self.channels,
            self.factor,
            self.image_channels,
            decoder,
            encoder,
        )


def autoencoder_of(config: Fields, make: Callable[[type], nn.Module]) -> Autoencoder:
    """The autoencoder of a pipeline; ``make`` gives the network of a class of diffusers, with its weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.vq_model import VQModel

    kind: Kind = config.choice("_class_name", KINDS)
    widths = config.numbers("block_out_channels")
    model: Any = make(AutoencoderKL if kind == "AutoencoderKL" else VQModel)
    for module in model.modules():
        if hasattr(module, "set_processor"):
            from diffusers.models.attention_processor import AttnProcessor

            module.set_processor(AttnProcessor())
    config_of = model.config
    channels = int((kind == "VQModel" and config_of.vq_embed_dim) or config_of.latent_channels)
    # Files of a VQ model that do not state a factor, as those of the latent diffusion paper, have 1; the default of
    # diffusers is that of Stable Diffusion, with which its own pipeline makes no image of them.
    unscaled = {"scaling_factor": 1.0} if kind == "VQModel" and "scaling_factor" not in config else {}
    affine = _affine({**model.config, **unscaled}, channels)
    return Autoencoder(
        _Decode(model, kind, *affine),
        _Encode(model, kind, *affine),
        channels,
        int(model.config.out_channels),
        2 ** (len(widths) - 1),
        not model.config.force_upcast,
    )


def _affine(config: Mapping[str, Any], channels: int) -> tuple[Tensor, Tensor]:
    """``(gain, offset)`` with latent = gain z + offset, each of shape (1, c, 1, 1)."""
    scale, mean = config["scaling_factor"], config.get("latents_mean")
    if mean is not None:
        std = torch.tensor(config["latents_std"], dtype=torch.float32)
        return (std / scale).reshape(1, -1, 1, 1), torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1)
    one = torch.ones(1, channels, 1, 1)
    return one / scale, one * (config.get("shift_factor") or 0.0)


class _Half(Checkpointed):
    """One half of an autoencoder."""

    gain: Tensor
    offset: Tensor

    def __init__(self, kind: Kind, gain: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.kind: Kind = kind
        self.register_buffer("gain", gain)
        self.register_buffer("offset", offset)


class _Decode(_Half):
    """``x = D(gain z + offset)``."""

    def __init__(self, model: Any, kind: Kind, gain: Tensor, offset: Tensor) -> None:
        super().__init__(kind, gain, offset)
        self.decoder, self.before = model.decoder, getattr(model, "post_quant_conv", None)
        self.quantize = model.quantize if kind == "VQModel" else None
        self.spatial = model.config.get("norm_type") == "spatial"

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        latent = self.gain * z + self.offset
        if self.quantize is not None:
            with torch.no_grad():
                rounded = self.quantize(latent.detach())[0]
            latent = latent + (rounded - latent.detach())
        inside = latent if self.before is None else self.before(latent)
        return self.decoder(inside, latent) if self.spatial else self.decoder(inside)


class _Encode(_Half):
    """``z = (E(x) - offset) / gain``."""

    def __init__(self, model: Any, kind: Kind, gain: Tensor, offset: Tensor) -> None:
        super().__init__(kind, gain, offset)
        self.encoder, self.after = model.encoder, getattr(model, "quant_conv", None)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        latent = self.encoder(x)
        latent = latent if self.after is None else self.after(latent)
        if self.kind == "AutoencoderKL":
            latent = latent.chunk(2, dim=1)[0]  # the mean; the other half is the logarithm of the variance
        return (latent - self.offset) / self.gain
