"""A new denoising network: diffusers' ``UNet2DModel`` behind a pixel-unshuffle, with attention at its coarsest
level only.

It takes any size divisible by ``patch_size * 2^(levels - 1)``.
"""

from __future__ import annotations

from typing import cast

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import nn

from cmidiff.prior.patch import PatchUNet
from cmidiff.train.config import TrainConfig


def build(config: TrainConfig) -> PatchUNet:
    """A new network with weights drawn from ``config.seed``; the output layer starts at zero."""
    coarser = len(config.channels) - 1
    wide = 3 * config.patch_size**2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        unet = UNet2DModel(
            sample_size=config.size // config.patch_size,
            in_channels=wide,
            out_channels=wide,
            block_out_channels=config.channels,
            layers_per_block=config.layers,
            down_block_types=("DownBlock2D",) * coarser + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * coarser,
            attention_head_dim=min(32, config.channels[-1]),
            norm_num_groups=config.groups,
        )
    nn.init.zeros_(unet.conv_out.weight)
    return PatchUNet(cast(UNet2DModel, nn.Module.to(unet, memory_format=torch.channels_last)), config.patch_size)
