"""The embedded network's shape: diffusers' ``UNet2DModel`` behind a pixel-unshuffle.

Blocks of ``patch x patch`` pixels become channels, so that the finest level costs a ``patch^2``-th for the same image,
the idea of FFDNet (Zhang, Zuo, Zhang, 2018, https://arxiv.org/abs/1710.04026). With ``patch = 1`` it is the bare
network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from cmidiff.prior.checkpointed import Checkpointed

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel


class PatchUNet(Checkpointed):
    """``(x_t, t) -> output``.

    Args:
        unet: called as ``unet(x, t, return_dict=False)``, with ``C patch^2`` channels in.
        patch_size: side of the blocks.
    """

    def __init__(self, unet: UNet2DModel, patch_size: int) -> None:
        super().__init__()
        self.unet = unet
        self.patch_size = patch_size
        self.time_scale = 1.0  # of the network's own time over that of its schedule

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Output of the network, shape (B, C', H, W), from ``x_t`` of shape (B, C, H, W) and times ``t``. A
        class-conditional network takes labels of shape (B,) too."""
        patches = pixel_unshuffle(x_t, self.patch_size).contiguous(memory_format=torch.channels_last)
        return pixel_shuffle(
            self.unet(patches, t * self.time_scale, class_labels=label, return_dict=False)[0], self.patch_size
        )
