"""Priors that come as objects: a function of your own, or a denoiser of azula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from cmidiff.prior.base import Prediction, Prior, digest
from cmidiff.prior.decoder import Decoder
from cmidiff.prior.latent import LatentPrior
from cmidiff.prior.network import Network, NetworkPrior, Parametrisation, tensors_of, try_prior
from cmidiff.schedule import Schedule, checked_steps


def from_callable(
    fn: Network,
    schedule: Schedule,
    parametrisation: Parametrisation,
    *,
    shape: tuple[int, ...] | None = None,
    learned_variance: bool = False,
    value_range: tuple[float, float] | None = (-1.0, 1.0),
    channels: int | None = 3,
    multiple: int = 1,
    name: str = "callable",
    classes: int | None = None,
    label: int | None = None,
    smooth: bool = True,
    dtype: torch.dtype | None = None,
    variance: float | None = None,
    decoder: Decoder | None = None,
) -> NetworkPrior | LatentPrior:
    """A prior from any function that predicts.

    Args:
        fn: ``(x_t, t) -> output``, differentiable, with ``x_t`` of shape (B, ...) and the schedule's times ``t`` of
            shape (B,); with ``classes``, ``(x_t, t, label)``.
        schedule: the perturbation kernel it was trained on, e.g. ``DDPM.linear()``, ``VE()``, ``RectifiedFlow()``.
        parametrisation: what the output is: ``"eps"``, ``"x0"``, ``"v"`` or ``"flow"``.
        shape: of one signal, (C, H, W) or any other; if given, ``fn`` is tried on zeros of it, and its answer checked.
        learned_variance, value_range, channels, multiple, name, classes, label, smooth, dtype, variance: see
            `NetworkPrior`. For signals other than images, ``value_range=None, channels=None`` and their ``variance``.
        decoder: what makes images of what ``fn`` denoises. ``value_range`` is then that of the images; ``channels``,
            ``multiple`` and ``shape`` are those of the latents.

    Returns:
        With a decoder, a `LatentPrior`.

    Raises:
        TypeError: ``fn`` cannot be called, or ``schedule`` is none.
        ValueError: an unknown parametrisation or label; an output of another shape, or one that is not finite.
    """
    if not callable(fn):
        raise TypeError(f"fn must be a function (x_t, t) -> output, received {type(fn).__name__}")
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be one of cmidiff.schedule, such as DDPM.linear(), received {schedule!r}")
    prior = NetworkPrior(
        fn,
        parametrisation,
        schedule,
        learned_variance=learned_variance,
        value_range=value_range if decoder is None else None,
        channels=channels if decoder is None or channels is None else decoder.channels,
        multiple=multiple,
        name=name,
        classes=classes,
        label=label,
        smooth=smooth,
        dtype=dtype,
        variance=variance,
    )
    if shape is not None:
        try_prior(prior, shape)
    return prior if decoder is None else LatentPrior(prior, decoder, value_range)


class AzulaDenoiser(Protocol):
    """What is used of ``azula.denoise.Denoiser``."""

    @property
    def schedule(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]: ...

    def __call__(self, x_t: Tensor, t: Tensor) -> Any: ...


@dataclass(frozen=True)
class AzulaSchedule:
    """A schedule of azula, ``t`` in [0, 1] from clean to noisy. Its own level at ``t = 0`` keeps a little noise; here
    ``t = 0`` is the clean image."""

    inner: Callable[[Tensor], tuple[Tensor, Tensor]]
    end: float = field(default=0.0, init=False)

    def __call__(self, t: float) -> tuple[float, float]:
        if t <= self.end:
            return 1.0, 0.0
        alpha, sigma = self.inner(torch.tensor(float(t), dtype=torch.float64))
        return float(alpha), float(sigma)

    def time(self, ratio: float) -> float:
        low, high = self.end, 1.0
        for _ in range(60):  # bisection: the noise level grows with t
            middle = (low + high) / 2
            alpha, sigma = self(middle)
            low, high = (middle, high) if sigma < ratio * alpha else (low, middle)
        return high

    def grid(self, steps: int) -> list[float]:
        return np.linspace(1.0, self.end, checked_steps(steps) + 1)[:-1].tolist()


class AzulaPrior(Prior):
    """A denoiser of azula as a prior of this library; see `from_azula`."""

    def __init__(self, denoiser: AzulaDenoiser, name: str) -> None:
        self.denoiser, self.schedule, self._name = denoiser, AzulaSchedule(denoiser.schedule), name

    @property
    def device(self) -> torch.device | None:
        return next((value.device for value in self._tensors()), None)

    @property
    def name(self) -> str:
        return self._name

    @property
    def fingerprint(self) -> str:
        return digest(self.name, *self._tensors())

    def to(self, device: torch.device | str) -> Self:
        if isinstance(self.denoiser, nn.Module):
            self.denoiser.to(device)
        return self

    def _tensors(self) -> list[Tensor]:
        return list(tensors_of(self.denoiser)) if isinstance(self.denoiser, nn.Module) else []

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        return Prediction(self.denoiser(x_t, torch.tensor(t, dtype=x_t.dtype, device=x_t.device)).mean)


def from_azula(
    denoiser: AzulaDenoiser,
    *,
    value_range: tuple[float, float] | None = (-1.0, 1.0),
    channels: int | None = 3,
    multiple: int = 1,
    smooth: bool = True,
    name: str = "azula",
    decoder: Decoder | None = None,
) -> AzulaPrior | LatentPrior:
    """A denoiser of azula (https://github.com/probabilists/azula) as a prior.

    Args:
        denoiser: called as ``denoiser(x_t, t).mean``, with ``denoiser.schedule(t) -> (alpha_t, sigma_t)``.
        value_range: range of its images, or None for other signals.
        channels: of its images, or None if any shape goes.
        multiple: sides must be divisible by this.
        smooth: whether its second derivatives mean something; False for piecewise linear networks.
        name: for messages and records.
        decoder: as in `from_callable`, for denoisers of latents.

    Raises:
        TypeError: it is no such denoiser.
    """
    schedule = getattr(denoiser, "schedule", None)
    if not (callable(denoiser) and callable(schedule)):
        raise TypeError(f"denoiser must have azula's schedule and be called as denoiser(x_t, t), received {denoiser!r}")
    prior = AzulaPrior(denoiser, name)
    prior.channels, prior.multiple, prior.smooth = channels, multiple, smooth
    if decoder is None:
        prior.value_range = value_range
        return prior
    prior.channels = None if channels is None else decoder.channels
    return LatentPrior(prior, decoder, value_range)
