"""The denoiser contract: all that a sampler needs to know about ``p(x_0)``.

A prior is called as ``prior(x_t, t).mean`` and returns ``x_hat = E[x_0 | x_t]``, differentiable in ``x_t`` and not
clipped. By Tweedie's formula the score is ``(alpha_t x_hat - x_t) / sigma_t^2``, and the Jacobian ``J = d x_hat / d
x_t`` gives the posterior covariance, ``Cov(x_0 | x_t) = (sigma_t^2 / alpha_t) J`` (arXiv 2501.02880, eq. 7a). The call
has the same form as that of azula's denoisers.

A prior also declares facts about itself: `Denoiser` lists them, `Prior` gives each of them but the schedule a default.
Code that uses a prior reads these facts and nothing else.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from cmidiff.moments import SecondMoments
from cmidiff.prior.decoder import Decoder
from cmidiff.schedule import Schedule

Range = tuple[float, float]
IMAGE_VARIANCE = 0.3  # about that of natural images in [-1, 1]


class Prediction(NamedTuple):
    """One evaluation of a denoiser.

    Attributes:
        mean: ``x_hat``, shape (B, ...), not clipped.
        variance_fraction: of a learned-variance head, the fraction ``f`` in [0, 1] of the reverse kernel's log-variance
            between its lower and its upper bound, shape (B, ...). None without one.
    """

    mean: Tensor
    variance_fraction: Tensor | None = None


class Evaluation(NamedTuple):
    """What one call of a prior evaluates: a network on a number of states at once.

    Attributes:
        prior: the prior that holds the network.
        shape: of one state, (C, ...).
        batch: number of states.
    """

    prior: Denoiser
    shape: tuple[int, ...]
    batch: int


class Denoiser(Protocol):
    """A pretrained prior.

    Attributes:
        schedule: its perturbation kernel. Its grid begins at the noisiest level that the prior denoises.
        value_range: the range of its images, (-1, 1) for image priors, to which input images are mapped; None for a
            prior over any other signal. Of a latent prior, that of the decoded images.
        decoder: what makes images of the states of a latent prior; None where the state is the image. All facts but
            ``value_range`` are about states.
        clip: the range to which samplers clip ``x_hat``, or None: ``value_range`` unless the checkpoint says otherwise.
        channels: channels of its images, or None if any shape is allowed.
        multiple: sides must be divisible by this.
        size: side of the images that it was trained on, or None if images of any size serve it alike.
        dtype: precision in which ``x_t`` enters the network, or None for that of ``x_t``.
        device: where it computes, or None if ``x_t`` decides.
        name: for messages and records.
        card: source, data, licence and training of the weights.
        fingerprint: changes whenever the function that the prior computes does: part of a run's identity.
        smooth: whether ``x_hat`` has a second derivative that means something at every noise level. False for piecewise
            linear networks (ReLU without normalisation): there it is zero almost everywhere.
        second_moments: mean and variances of its signals in the DCT domain, or None if they have not been measured.
        variance: mean variance of one number of its signals, to which defaults of solvers are relative.
        min_ratio, max_ratio: the smallest and the largest ``sigma_t / alpha_t`` that it denoises; 0 and infinity
            without limits.
    """

    @property
    def schedule(self) -> Schedule: ...
    @property
    def value_range(self) -> Range | None: ...
    @property
    def decoder(self) -> Decoder | None: ...
    @property
    def clip(self) -> Range | None: ...
    @property
    def channels(self) -> int | None: ...
    @property
    def multiple(self) -> int: ...
    @property
    def size(self) -> int | None: ...
    @property
    def dtype(self) -> torch.dtype | None: ...
    @property
    def device(self) -> torch.device | None: ...
    @property
    def name(self) -> str: ...
    @property
    def card(self) -> dict[str, Any]: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def smooth(self) -> bool: ...
    @property
    def second_moments(self) -> SecondMoments | None: ...
    @property
    def variance(self) -> float: ...
    @property
    def min_ratio(self) -> float: ...
    @property
    def max_ratio(self) -> float: ...

    def smooth_at(self, ratio: float) -> bool:
        """Whether it is smooth at the noise level ``sigma_t / alpha_t = ratio``."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """The images of states: the states themselves without a decoder."""
        ...

    def encode(self, image: Tensor) -> Tensor:
        """The states of images: the images themselves without a decoder."""
        ...

    def evaluations(self, shape: tuple[int, ...], batch: int) -> list[Evaluation]:
        """The networks that a call with ``x_t`` of shape (batch, \\*shape) may evaluate; empty without any."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The same prior on a device; its networks are moved, not copied."""
        ...

    def __call__(self, x_t: Tensor, t: float) -> Prediction: ...


class Prior(ABC):
    """Base class of priors: the default of every fact in `Denoiser`, except the schedule.

    A subclass sets ``schedule``, defines ``__call__``, and sets the facts that differ.
    """

    schedule: Schedule
    value_range: Range | None = None
    channels: int | None = None
    multiple: int = 1
    size: int | None = None
    smooth: bool = True
    min_ratio: float = 0.0
    max_ratio: float = math.inf

    @property
    def clip(self) -> Range | None:
        return self.value_range

    @property
    def decoder(self) -> Decoder | None:
        return None

    @property
    def second_moments(self) -> SecondMoments | None:
        return None

    @property
    def variance(self) -> float:
        """That of the second moments; otherwise that of natural images in the range, or 1 without a range."""
        if self.second_moments is not None:
            return self.second_moments.variance
        return (
            1.0 if self.value_range is None else IMAGE_VARIANCE * ((self.value_range[1] - self.value_range[0]) / 2) ** 2
        )

    @property
    def dtype(self) -> torch.dtype | None:
        return None

    @property
    def device(self) -> torch.device | None:
        return None

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def card(self) -> dict[str, Any]:
        return {}

    @property
    def fingerprint(self) -> str:
        return digest(self.name)

    def smooth_at(self, ratio: float) -> bool:
        return self.smooth

    def decode(self, x: Tensor) -> Tensor:
        return x if self.decoder is None else self.decoder.decode(x)

    def encode(self, image: Tensor) -> Tensor:
        return image if self.decoder is None else self.decoder.encoded(image)

    def evaluations(self, shape: tuple[int, ...], batch: int) -> list[Evaluation]:
        return []

    def to(self, device: torch.device | str) -> Self:
        return self

    @abstractmethod
    def __call__(self, x_t: Tensor, t: float) -> Prediction: ...


FACTS = tuple(name for name, value in vars(Denoiser).items() if isinstance(value, property))


def check_prior(prior: object) -> None:
    """Check that an object is a prior.

    Raises:
        TypeError: it cannot be called, or lacks facts.
    """
    nothing = object()  # facts are looked up without being computed: a fingerprint reads all weights
    names = (*FACTS, "smooth_at", "decode", "encode", "evaluations", "to")
    missing = [name for name in names if inspect.getattr_static(prior, name, nothing) is nothing]
    if missing or not callable(prior):
        lacks = f" without {', '.join(missing)}" if 0 < len(missing) <= 8 else ""
        raise TypeError(
            f"prior must be a denoiser, such as load_prior('natural-64') returns, received {_seen(prior)}{lacks}: "
            "derive your own class from cmidiff.prior.Prior, or use cmidiff.prior.from_callable or from_denoiser"
        )


def _seen(value: object) -> str:
    return repr(value) if isinstance(value, str) else type(value).__name__


def digest(*parts: object) -> str:
    """SHA-256 of tensors, by their bytes, and of other values, by their representation."""
    hashed = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            hashed.update(repr((tuple(part.shape), part.dtype)).encode())
            hashed.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            hashed.update(repr(part).encode())
    return hashed.hexdigest()


def levels(schedule: Schedule) -> list[tuple[float, float, float]]:
    """``(t, alpha_t, sigma_t)`` at a few times of a schedule, in which different schedules differ."""
    return [(t, *schedule(t)) for t in (schedule.time(ratio) for ratio in (0.1, 0.3, 1.0, 3.0))]
