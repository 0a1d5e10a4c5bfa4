"""How much memory latent priors take, counted on shapes: ``python -m benchmarks.latent_memory``

The networks have the published configurations of Stable Diffusion 1.5 (U-Net of 860 million parameters, autoencoder of
84 million) and no weights: torch's fake tensors carry out every operation on shapes alone, and what is allocated at a
time is counted (see `cmidiff.prior.memory`). What libraries need beside is not in the table.
"""

from __future__ import annotations

import itertools
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode

from cmidiff.prior import NetworkPrior, estimate_memory
from cmidiff.prior.checkpointed import Checkpointed
from cmidiff.prior.formats.autoencoder import autoencoder_of
from cmidiff.prior.formats.card import Fields
from cmidiff.prior.formats.conditional import Conditional

GIB = 2**30
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}


def make_parts(dtype: torch.dtype, checkpointing: bool) -> list[NetworkPrior]:
    """The U-Net for one text, without guidance, and the decoder."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    unet = Conditional(UNet2DConditionModel(cross_attention_dim=768), {"text": torch.zeros(1, 77, 768)})
    fields = Fields({"_class_name": "AutoencoderKL"} | VAE, "Stable Diffusion 1.5")
    decoder = autoencoder_of(fields, lambda cls: cast(type[AutoencoderKL], cls)(**cast(Any, VAE))).decoder
    torch.set_default_dtype(before)
    parts = []
    for name, network in (("U-Net", unet), ("decoder", cast(Checkpointed, decoder))):
        network.checkpointing = checkpointing
        network.requires_grad_(False)
        parts.append(NetworkPrior(network, "x0", value_range=None, channels=4, dtype=dtype, name=name))
    return parts


def main() -> None:
    print("| image | part | precision | checkpointing | weights | forward | with its gradient |")
    print("|---|---|---|---|---|---|---|")
    for checkpointing, dtype in itertools.product((False, True), (torch.float32, torch.bfloat16)):
        with FakeTensorMode(allow_non_fake_inputs=True):
            parts = make_parts(dtype, checkpointing)
        for side, part in itertools.product((512, 1024), parts):
            shape = (4, side // 8, side // 8)
            needs = [estimate_memory(part, shape, graph=graph) for graph in (False, True)]
            shown = " | ".join("-" if need is None else f"{need.activations / GIB:.2f}" for need in needs)
            weights = "-" if needs[0] is None else f"{needs[0].weights / GIB:.2f}"
            precision = str(dtype).removeprefix("torch.")
            print(f"| {side} | {part.name} | {precision} | {'yes' if checkpointing else 'no'} | {weights} | {shown} |")


if __name__ == "__main__":
    main()
