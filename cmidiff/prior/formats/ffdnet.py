"""FFDNet, a small and strong denoiser of photographs.

Blocks of 2 x 2 pixels become channels, and a channel with the noise level is added. A chain of 3 x 3 convolutions with
ReLU between them gives the denoised blocks. It takes any noise level up to 75/255 on images in [0, 1]. It is piecewise
linear: its Jacobian is piecewise constant.

Source: Zhang, Zuo, Zhang, "FFDNet: Toward a Fast and Flexible Solution for CNN-based Image Denoising", 2018,
    https://arxiv.org/abs/1710.04026
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from cmidiff.prior.checkpointed import Checkpointed
from cmidiff.prior.formats.weights import fill

BLOCK = 2
SEGMENT = 3  # convolutions that are computed again together


class FFDNet(Checkpointed):
    """``D(x, sigma)`` for images in [0, 1].

    Args:
        channels: of the images.
        width: channels between the convolutions.
        layers: number of convolutions.
    """

    def __init__(self, channels: int = 3, width: int = 96, layers: int = 12) -> None:
        super().__init__()
        self.channels = channels
        widths = [BLOCK**2 * channels + 1, *[width] * (layers - 1), BLOCK**2 * channels]
        parts: list[nn.Module] = []
        for inside, outside in itertools.pairwise(widths):
            parts += [nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU(inplace=True)]
        self.model = nn.Sequential(*parts[:-1])

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The denoised images.

        Args:
            x: noisy images, shape (B, C, H, W) with any H and W.
            sigma: standard deviation of the noise, shape () or (B,), in units of ``x``.
        """
        height, width = x.shape[2:]
        missing = (0, width % BLOCK, 0, height % BLOCK)
        h = pad(x, missing, "reflect" if min(height, width) > 1 else "replicate") if any(missing) else x
        h = pixel_unshuffle(h, BLOCK)
        level = sigma.to(x).reshape(-1, 1, 1, 1).expand(len(h), 1, *h.shape[2:])
        h = torch.cat([h, level], dim=1)
        for start in range(0, len(self.model), 2 * SEGMENT):
            h = self.run(self.model[start : start + 2 * SEGMENT], h)
        return pixel_shuffle(h, BLOCK)[..., :height, :width]


def load_ffdnet(tensors: Mapping[str, Tensor], where: Path) -> FFDNet:
    """The network whose weights these are: ``K.weight`` and ``K.bias`` of every convolution, K its place in the
    chain (0, 2, 4, ...). Its size is read off their shapes."""
    first = tensors.get("0.weight")
    layers = sum(name.endswith(".weight") for name in tensors)
    if first is None or first.ndim != 4 or layers < 2 or (first.shape[1] - 1) % BLOCK**2:
        raise ValueError(f"{where} is not an FFDNet: 0.weight must have shape (width, {BLOCK**2} C + 1, 3, 3)")
    with torch.device("meta"):
        network = FFDNet((first.shape[1] - 1) // BLOCK**2, first.shape[0], layers)
    fill(network.model, tensors, where)
    return network
