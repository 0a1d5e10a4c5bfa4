"""Measurements of Lévy processes: 64 numbers, ``x_i = u_1 + ... + u_i``.

The increments are Gaussian (variance 0.25), Laplace (scale 1), Student (1 or 3 degrees of freedom) or Bernoulli-Laplace
(zero with probability 0.9, scale 1). Measured are

    denoise       x
    blur          the circular convolution with a Gaussian of 13 samples and standard deviation 2
    imputation    each number with probability 0.4
    fourier       the 5 lowest frequencies, and each other one with probability 0.4, orthonormal

with noise 25 dB below the median power of what is measured. These are the problems of the paper; the probability 0.4 is
ours. The schedule is the paper's, too: 1000 levels with linear betas.

Source: Zach et al., "A Statistical Benchmark for Diffusion Posterior Sampling Algorithms", 2025,
https://arxiv.org/abs/2509.12821.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from deepinv.physics import Denoising, Inpainting, LinearPhysics
from torch import Tensor

from cmidiff.laboratory.increments import BernoulliLaplace, Gaussian, Increments, Laplace, Student, normal, uniform
from cmidiff.laboratory.levy_gibbs import Model, Reference
from cmidiff.laboratory.levy_prior import LevyPrior
from cmidiff.laboratory.settings import make_seed
from cmidiff.physics import from_matrix
from cmidiff.physics.operators import gaussian_noise

FAMILIES: Mapping[str, Increments] = {
    "gauss": Gaussian(),
    "laplace": Laplace(),
    "student-1": Student(1.0),
    "student-3": Student(3.0),
    "bernoulli-laplace": BernoulliLaplace(),
}
TASKS = ("denoise", "blur", "imputation", "fourier")
D, SNR, SEEN, LOWEST = 64, 25.0, 0.4, 5


@dataclass(frozen=True)
class Problems:
    """Measurements of P signals of one kind by one operator.

    Attributes:
        prior: the process, with its exact denoiser.
        x: signals, shape (P, d), float64.
        y: shape (P, 1, d) for denoising and imputation, else (P, m).
        physics: the operator on signals of shape (1, d).
        matrix: its rows, shape (m, d), without numbers that are not measured.
        noise_std: sigma_y.
    """

    prior: LevyPrior
    x: Tensor
    y: Tensor
    physics: LinearPhysics
    matrix: Tensor
    noise_std: float

    def reference(self, count: int, generator: torch.Generator) -> Reference:
        """Reference samples of the posteriors."""
        measured = self.y.flatten(1)
        if isinstance(self.physics, Inpainting):
            measured = measured @ self.matrix.mT
        return Model(self.prior.increments, self.matrix, measured, self.noise_std).sample(count, generator)


def matrix_of(task: str, d: int, generator: torch.Generator) -> Tensor:
    """The rows of ``A``, shape (m, d), float64."""
    eye = torch.eye(d, dtype=torch.float64)
    match task:
        case "denoise":
            return eye
        case "blur":
            taps = torch.exp(-0.5 * (torch.arange(-6, 7, dtype=torch.float64) / 2) ** 2)
            shifted = torch.stack([eye.roll(k, 1) for k in range(-6, 7)])
            return torch.einsum("k,kij->ij", taps / taps.sum(), shifted)
        case "imputation":
            seen = uniform((d,), generator) < SEEN
            return eye[seen if bool(seen.any()) else [0]]
        case "fourier":
            frequencies = torch.arange(d // 2 + 1)
            seen = (frequencies < LOWEST) | (uniform(tuple(frequencies.shape), generator) < SEEN)
            transform = torch.fft.rfft(eye, norm="ortho").mT[seen]
            single = ((frequencies == 0) | (2 * frequencies == d))[seen, None]
            cosines, sines = transform.real * torch.where(single, 1.0, math.sqrt(2)), transform.imag * math.sqrt(2)
            return torch.cat([cosines, sines[~single[:, 0]]])
    raise ValueError(f"task must be one of {', '.join(TASKS)}, received {task!r}")


def problems_of(family: str, task: str, count: int, generator: torch.Generator, d: int = D) -> Problems:
    """Random signals and their measurements. The operator and the noise level are those of the task and the process."""
    prior = LevyPrior(FAMILIES[family], d)
    fixed = torch.Generator().manual_seed(make_seed("operator", task, d))
    matrix = matrix_of(task, d, fixed)
    power = (prior.sample(1000, fixed) @ matrix.mT).square().mean(1).median()
    noise_std = math.sqrt(float(power) / 10 ** (SNR / 10))
    x = prior.sample(count, generator)
    y = x @ matrix.mT + noise_std * normal((count, len(matrix)), generator)
    noise = gaussian_noise(noise_std, torch.float64)
    match task:
        case "denoise":
            physics: LinearPhysics = Denoising(noise)
        case "imputation":
            y, size = y @ matrix, cast(Any, (1, d))  # deepinv annotates a tuple of two as a tuple of one
            physics = Inpainting(size, mask=matrix.sum(0)[None], noise_model=noise)
        case _:
            physics = from_matrix(matrix, (1, d), noise_std=noise_std, dtype=torch.float64)
    shaped = y[:, None] if task in ("denoise", "imputation") else y
    return Problems(prior, x, shaped, physics, matrix, noise_std)
