"""How the embedded prior is made: a denoising network trained on images, on one machine, for a stated time.

The objective is the denoiser itself. With ``x_t = alpha_t x_0 + sigma_t eps`` on the DDPM grid, ``t`` real, and the
target ``v = alpha_t eps - sigma_t x_0`` (Salimans, Ho 2022, https://arxiv.org/abs/2202.00512), the network minimises
``E |v_theta(x_t, t) - v|^2``; its posterior mean is ``x_hat = alpha_t x_t - sigma_t v_theta``, well conditioned at
every noise level.

    config.py   TrainConfig, read from TOML
    data.py     archives of images -> one cached uint8 array; the batch of step n
    noise.py    the times of a batch, alpha_t and sigma_t at real t
    network.py  the U-Net, behind a pixel-unshuffle
    loop.py     optimiser, average, checkpoint, resume
    validate.py denoising error by noise level, samples
    export.py   diffusers' folder and its card
"""

from __future__ import annotations

from cmidiff.train.config import TrainConfig
from cmidiff.train.export import export
from cmidiff.train.loop import run

__all__ = ["TrainConfig", "export", "run"]
