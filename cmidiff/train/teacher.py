"""FFDNet as a teacher: its output replaces the clean image as the target at low noise.

The target of denoising is the posterior mean plus an error that no network can predict. At low noise a good denoiser is
nearer to the posterior mean than the clean image is, so that gradients of a small batch are less noisy.

Zhang, Zuo, Zhang 2018, FFDNet, https://arxiv.org/abs/1710.04026.
"""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

MIN_SIGMA = 6 / 255  # of images in [0, 1]; below, FFDNet denoises thumbnails worse than version 1 of natural-64
MAX_SIGMA = 75 / 255  # the largest noise that the weights were trained on


class FFDNet(nn.Module):
    """Twelve convolutions of 96 channels with ReLU on 2 x 2 blocks and a map of the noise level.

    Args:
        path: its published weights for colour images.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds something else.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        widths = [13, *[96] * 11, 12]
        layers: list[nn.Module] = []
        for received, sent in itertools.pairwise(widths):
            layers += [nn.Conv2d(received, sent, 3, padding=1), nn.ReLU()]
        self.model = nn.Sequential(*layers[:-1])
        if not path.is_file():
            raise FileNotFoundError(f"no weights of FFDNet at {path}; correct the path")
        try:
            self.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        except (RuntimeError, pickle.UnpicklingError, AttributeError, EOFError, TypeError) as error:
            raise ValueError(f"{path} does not hold the weights of FFDNet for colour images; name that file") from error
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, ratio: Tensor) -> Tensor:
        """Return the denoised images.

        Args:
            x: noisy images (B, 3, H, W) in [-1, 1] with even sides.
            ratio: standard deviation of the noise in the same units, shape (B,).
        """
        blocks = pixel_unshuffle((x + 1) / 2, 2)
        level = (ratio / 2).to(x.dtype)[:, None, None, None].expand(-1, 1, *blocks.shape[2:])
        inputs = torch.cat([blocks, level], 1).contiguous(memory_format=torch.channels_last)
        return 2 * pixel_shuffle(self.model(inputs), 2) - 1


@torch.no_grad()
def teach(teacher: FFDNet, x_0: Tensor, noisy: Tensor, ratio: Tensor) -> Tensor:
    """Return the targets: FFDNet's output between its lowest useful and its largest noise, elsewhere ``x_0``.

    Args:
        teacher: the network.
        x_0: clean images (B, 3, H, W) in [-1, 1].
        noisy: ``x_t / alpha_t``, the same shape.
        ratio: ``sigma_t / alpha_t``, shape (B,).
    """
    taught = (ratio >= 2 * MIN_SIGMA) & (ratio <= 2 * MAX_SIGMA)
    if not taught.any():
        return x_0
    target = x_0.clone()
    target[taught] = teacher(noisy[taught], ratio[taught])
    return target
