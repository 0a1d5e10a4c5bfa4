"""The embedded network's shape: diffusers' ``UNet2DModel`` behind a pixel-unshuffle.

Blocks of ``patch x patch`` pixels become channels, so that the finest level costs a ``patch^2``-th for the same
picture, the idea of FFDNet (Zhang, Zuo,
Zhang, 2018, https://arxiv.org/abs/1710.04026). With ``patch = 1`` it is the bare network.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


class PatchUNet(nn.Module):
    """``(x_t, t) -> output``.

    Args:
        unet: called as ``unet(x, t, return_dict=False)``, with ``C patch^2`` channels in.
        patch: side of the blocks.
    """

    def __init__(self, unet: nn.Module, patch: int) -> None:
        super().__init__()
        self.unet = unet
        self.patch = patch

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Output of the network, shape (B, C', H, W), from ``x_t`` of shape (B, C, H, W) and times ``t`` of shape
        (B,)."""
        return pixel_shuffle(self.unet(pixel_unshuffle(x_t, self.patch), t, return_dict=False)[0], self.patch)
