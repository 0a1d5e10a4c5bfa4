"""FFDNet as a teacher: its output replaces the clean image as the target at low noise.

The target of denoising is the posterior mean plus an error that no network can predict. At low noise a good denoiser is
nearer to the posterior mean than the clean image is, so that gradients of a small batch are less noisy.

Zhang, Zuo, Zhang 2018, FFDNet, https://arxiv.org/abs/1710.04026.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from cmidiff.prior.ffdnet import FFDNet, load_ffdnet
from cmidiff.prior.weights import read_tensors

MIN_SIGMA = 6 / 255  # of images in [0, 1]; below, FFDNet denoises thumbnails worse than version 1 of natural-64
MAX_SIGMA = 75 / 255  # the largest noise that the weights were trained on
Teacher = Callable[[Tensor, Tensor], Tensor]


def load_teacher(path: Path) -> FFDNet:
    """Return FFDNet with its published weights, ready to evaluate.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds something else.
    """
    network = load_ffdnet(read_tensors(path), path)
    network = cast(FFDNet, nn.Module.to(network, memory_format=torch.channels_last))
    return network.eval().requires_grad_(False)


@torch.no_grad()
def teach(teacher: Teacher, x_0: Tensor, noisy: Tensor, ratio: Tensor) -> Tensor:
    """Return the targets: the teacher's output between ``MIN_SIGMA`` and ``MAX_SIGMA``, elsewhere ``x_0``.

    Args:
        teacher: ``D(x, sigma)`` for images in [0, 1].
        x_0: clean images (B, 3, H, W) in [-1, 1].
        noisy: ``x_t / alpha_t``, the same shape.
        ratio: ``sigma_t / alpha_t``, shape (B,).
    """
    taught = (ratio >= 2 * MIN_SIGMA) & (ratio <= 2 * MAX_SIGMA)
    if not taught.any():
        return x_0
    target = x_0.clone()
    target[taught] = 2 * teacher((noisy[taught] + 1) / 2, ratio[taught] / 2) - 1
    return target
