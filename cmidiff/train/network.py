"""The denoising network: diffusers' ``UNet2DModel`` behind a pixel-unshuffle.

Working on ``patch_size x patch_size`` blocks as channels makes the finest level four times cheaper for the same image,
the idea of FFDNet (Zhang et al. 2018, https://arxiv.org/abs/1710.04026). The network stays convolutional, with
attention at its coarsest level only, so it takes any size divisible by ``patch_size * 2^(levels - 1)``.
"""

from __future__ import annotations

from typing import cast

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from cmidiff.train.config import TrainConfig


class PatchUNet(nn.Module):
    """``(x_t, t) -> v``.

    Args:
        unet: with ``3 patch_size^2`` channels in and out.
        patch_size: side of the pixel-unshuffle.
    """

    def __init__(self, unet: UNet2DModel, patch_size: int) -> None:
        super().__init__()
        self.unet = unet
        self.patch_size = patch_size

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """``v`` of shape (B, 3, H, W) from ``x_t`` of the same shape in [-1, 1] units and real ``t``, shape (B,)."""
        patches = pixel_unshuffle(x_t, self.patch_size).contiguous(memory_format=torch.channels_last)
        return pixel_shuffle(self.unet(patches, t, return_dict=False)[0], self.patch_size)


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
