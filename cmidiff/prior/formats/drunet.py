"""DRUNet, a large denoiser of photographs: deepinv's network with weights from a file.

A U-Net of residual blocks at four resolutions, without biases or normalisation, with the noise level as a channel. It
is piecewise linear.

Source: Zhang et al., "Plug-and-Play Image Restoration with Deep Denoiser Prior", 2021,
    https://arxiv.org/abs/2008.13751
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from deepinv.models import DRUNet as DeepinvDRUNet
from torch import Tensor, nn
from torch.nn.functional import pad

from cmidiff.prior.checkpointed import Checkpointed
from cmidiff.prior.formats.weights import fill

MULTIPLE = 8  # of the sides: three downsamplings by two
PARTS = ("m_down1", "m_down2", "m_down3", "m_body", "m_up3", "m_up2", "m_up1")


class DRUNet(Checkpointed):
    """``D(x, sigma)`` for images in [0, 1].

    Args:
        unet: deepinv's network.
    """

    def __init__(self, unet: DeepinvDRUNet) -> None:
        super().__init__()
        self.unet = unet
        self.channels = unet.get_parameter("m_tail.weight").shape[0]

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The denoised images.

        Args:
            x: noisy images, shape (B, C, H, W) with any H and W. Sides are extended to multiples of 8 by repeating the
                last row and column.
            sigma: standard deviation of the noise, shape () or (B,), in units of ``x``.
        """
        height, width = x.shape[2:]
        h = pad(x, (0, -width % MULTIPLE, 0, -height % MULTIPLE), "replicate")
        level = sigma.to(x).reshape(-1, 1, 1, 1).expand(len(h), 1, *h.shape[2:])
        skips = [self.unet.m_head(torch.cat([h, level], dim=1))]
        for name in PARTS[:3]:
            skips.append(self.run(self._part(name), skips[-1]))
        h = self.run(self._part("m_body"), skips[-1])
        for name in PARTS[4:]:
            h = self.run(self._part(name), h + skips.pop())
        return self.unet.m_tail(h + skips.pop())[..., :height, :width]

    def _part(self, name: str) -> nn.Module:
        return self.unet.get_submodule(name)


def load_drunet(tensors: Mapping[str, Tensor], where: Path) -> DRUNet:
    """The network whose weights these are, by the names of deepinv's and the authors' network. Widths and number of
    blocks are read off their names and shapes."""
    blocks = {match[1] for name in tensors if (match := re.fullmatch(r"m_body\.(\d+)\.res\.0\.weight", name))}
    heads = ["m_head.weight", *(f"m_up{i}.0.weight" for i in (1, 2, 3)), "m_tail.weight"]
    shapes: list[tuple[int, ...]] = [tuple(tensors[name].shape) if name in tensors else () for name in heads]
    if not blocks or not all(len(shape) == 4 for shape in shapes):
        raise ValueError(f"{where} is not a DRUNet: it needs {', '.join(heads)} with 4 dimensions and m_body.K.res")
    with torch.device("meta"):
        unet = DeepinvDRUNet(
            in_channels=shapes[0][1] - 1,
            out_channels=shapes[4][0],
            nc=(shapes[0][0], shapes[1][0], shapes[2][0], shapes[3][0]),
            nb=len(blocks),
            pretrained=None,
        )
    fill(unet, tensors, where)
    return DRUNet(unet)
