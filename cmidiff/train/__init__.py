"""How the embedded prior is made: a denoising network trained on images, on one machine.

The objective is the denoiser itself. With ``x_t = alpha_t x_0 + sigma_t eps`` on the DDPM grid, ``t`` real, and the
target ``v = alpha_t eps - sigma_t x_0`` (Salimans, Ho 2022, https://arxiv.org/abs/2202.00512), the network minimises
``E |v_theta(x_t, t) - v|^2``. Its posterior mean is ``x_hat = alpha_t x_t - sigma_t v_theta``, well conditioned at
every noise level.

A missing file is a `FileNotFoundError`; one that cannot be used, and a refused option, is a `ValueError`.

    config.py      TrainConfig, read from TOML
    data.py        archives of images -> cached uint8 arrays; the batch of step n
    loss.py        the times of a batch, alpha_t and sigma_t at real t, the loss, FFDNet's output as the target
    optimiser.py   Muon and AdamW
    loop.py        the steps, their average, resume, cool-down
    checkpoint.py  the network and the state of a run, in one file
    validate.py    denoising error by noise level, loss curve, examples and samples
    export.py      diffusers' folder and its card
"""

from __future__ import annotations

from cmidiff.train.config import TrainConfig as TrainConfig
from cmidiff.train.export import export as export
from cmidiff.train.loop import run as run
from cmidiff.train.loop import snapshot as snapshot
