"""A network as a prior: from what it was trained to predict to ``x_hat = E[x_0 | x_t]``.

With ``x_t = alpha x_0 + sigma eps``:

    eps    x_hat = (x_t - sigma eps) / alpha          divides the network's error by alpha: ill-conditioned towards pure
    noise
    x0     x_hat = the output
    v      x_hat = (alpha x_t - sigma v) / (alpha^2 + sigma^2),   v = alpha eps - sigma x_0
    flow   x_hat = (x_t - sigma u) / (alpha + sigma),             u = eps - x_0

The state has its own precision, which is independent of the network's. ``x_t`` is rounded at the input, ``x_hat`` is
formed from the unrounded ``x_t``, and times are never rounded.

Sources: Ho et al. 2020, https://arxiv.org/abs/2006.11239 (eps); Salimans, Ho 2022, https://arxiv.org/abs/2202.00512
(v); Lipman et al. 2023, https://arxiv.org/abs/2210.02747 (flow).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypedDict, get_args

import torch
from torch import Tensor, nn

from cmidiff.moments import SecondMoments
from cmidiff.prior.base import Denoiser, Evaluation, Prediction, Prior, Range, digest, levels
from cmidiff.prior.checkpointed import recompute
from cmidiff.schedule import DDPM, Schedule, within

Parametrisation = Literal["eps", "x0", "v", "flow"]
Network = Callable[..., Tensor]
PARAMETRISATIONS: dict[str, Parametrisation] = {"eps": "eps", "x0": "x0", "v": "v", "flow": "flow"}
TOLERANCE = 1e-6  # of the limits of the noise level: what a time and back may round


@dataclass(frozen=True)
class Loaded:
    """A network with its weights, on the CPU, in the precision of the file, and what its output means.

    Attributes:
        network: ``(x_t, t)`` or, with ``classes``, ``(x_t, t, label)`` to output.
        parametrisation, schedule, learned_variance, channels, multiple, classes, value_range, clip, size, smooth,
            min_ratio, max_ratio, second_moments: see `NetworkPrior`.
        assumed: what neither the file nor a card states, as ``name = value``.
    """

    network: nn.Module
    parametrisation: Parametrisation
    schedule: Schedule
    learned_variance: bool
    channels: int
    multiple: int
    classes: int | None = None
    value_range: tuple[float, float] | None = (-1.0, 1.0)
    clip: bool = True
    size: int | None = None
    smooth: bool = True
    min_ratio: float = 0.0
    max_ratio: float = math.inf
    second_moments: SecondMoments | None = None
    assumed: tuple[str, ...] = ()


class Facts(TypedDict, total=False):
    """What a caller may state of a network; see `NetworkPrior`."""

    channels: int | None
    multiple: int
    name: str
    card: dict[str, Any] | None
    dtype: torch.dtype | None
    max_batch: int | None
    size: int | None
    smooth: bool
    variance: float | None


class NetworkPrior(nn.Module, Prior):
    """A denoiser made of a network.

    The prior is a `torch.nn.Module`: ``to``, ``half``, ``compile``, ``parameters`` and ``state_dict`` act on the
    network. A network that is a plain function is called as it is.

    Args:
        network: ``(x_t, t) -> output`` with ``x_t`` of shape (B, C, H, W) and ``t`` of shape (B,): the schedule's
            times, never in less than single precision. With ``classes``, ``(x_t, t, label)``.
        parametrisation: what the output means.
        schedule: the perturbation kernel it was trained on; the DDPM linear grid by default.
        learned_variance: the output has 2C channels, the second half being ``v`` in [-1, 1] of Nichol and Dhariwal's
            learned range.
        value_range: range of the training images.
        channels: C.
        multiple: sides must be divisible by this (2 to the number of downsamplings).
        name: for messages and records.
        card: source, licence, hash, training of the weights.
        dtype: precision of the network's input; by default that of ``x_t``.
        max_batch: at most this many rows are in the network at once. A gradient then computes each such part again
            instead of keeping them all. Where memory does not suffice, it is halved until it does.
        classes: number of classes of a class-conditional network.
        label: the class, from 0.
        clip: whether samplers clip ``x_hat`` to ``value_range``.
        size: side of the training images, or None if images of any size serve the network alike.
        smooth: whether second derivatives mean something; False for piecewise linear networks.
        min_ratio, max_ratio: noise levels ``sigma_t / alpha_t`` that the network denoises; the grid of the schedule
            lies between them.
        second_moments: of its images, in the DCT domain.
        variance: mean variance of one number of its signals, to which defaults of solvers are relative. None: that of
            the second moments, of natural images in ``value_range``, or 1 for signals without a range.

    Raises:
        ValueError: an unknown parametrisation, ``max_batch`` below 1, or a label that the network does not have; in a
            call, a noise level beyond ``min_ratio`` or ``max_ratio``.
    """

    def __init__(
        self,
        network: Network,
        parametrisation: Parametrisation = "eps",
        schedule: Schedule | None = None,
        *,
        learned_variance: bool = False,
        value_range: tuple[float, float] | None = (-1.0, 1.0),
        channels: int | None = 3,
        multiple: int = 1,
        name: str = "network",
        card: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        max_batch: int | None = None,
        classes: int | None = None,
        label: int | None = None,
        clip: bool = True,
        size: int | None = None,
        smooth: bool = True,
        min_ratio: float = 0.0,
        max_ratio: float = math.inf,
        second_moments: SecondMoments | None = None,
        variance: float | None = None,
    ) -> None:
        if parametrisation not in get_args(Parametrisation):
            raise ValueError(
                f"parametrisation must be one of {get_args(Parametrisation)}, received {parametrisation!r}"
            )
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, or None for no limit, received {max_batch}")
        if variance is not None and not 0 < variance < math.inf:
            raise ValueError(f"variance must be a number > 0, or None, received {variance!r}")
        super().__init__()
        self.network = network
        self.parametrisation: Parametrisation = parametrisation
        self.schedule: Schedule = within(DDPM.linear() if schedule is None else schedule, min_ratio, max_ratio)
        self.learned_variance = learned_variance
        self.value_range = value_range
        self.channels = channels
        self.multiple = multiple
        self.max_batch = max_batch
        self.classes = classes
        self.label = _checked_label(label, classes, name)
        self.size = size
        self.smooth = smooth
        self.min_ratio = min_ratio
        self.max_ratio = max_ratio
        self._moments, self._variance = second_moments, variance
        self._clips, self._dtype, self._name, self._card = clip, dtype, name, {} if card is None else card

    @property
    def clip(self) -> Range | None:
        return self.value_range if self._clips else None

    @property
    def dtype(self) -> torch.dtype | None:
        return self._dtype

    @property
    def second_moments(self) -> SecondMoments | None:
        return self._moments

    @property
    def variance(self) -> float:
        return super().variance if self._variance is None else self._variance

    @property
    def device(self) -> torch.device | None:
        return next((value.device for value in tensors_of(self.network)), None)

    @property
    def name(self) -> str:
        return self._name

    @property
    def card(self) -> dict[str, Any]:
        return self._card

    @property
    def fingerprint(self) -> str:
        state = self.network.state_dict() if isinstance(self.network, nn.Module) else {"": self.name}
        facts = self.parametrisation, levels(self.schedule), self.label, self.value_range, self.clip, self.dtype
        moments = () if self._moments is None else (self._moments.mean, self._moments.variances)
        return digest(facts, *moments, *(part for item in sorted(state.items()) for part in item))

    def evaluations(self, shape: tuple[int, ...], batch: int) -> list[Evaluation]:
        return [Evaluation(self, shape, batch)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply ``fn`` to the tensors of the network; the precision of its input follows that of its weights."""
        before = self._precision()
        super()._apply(fn, recurse)
        if (after := self._precision()) != before:
            self._dtype = after
        return self

    def extra_repr(self) -> str:
        return f"{self.name}, {self.parametrisation}"

    def _precision(self) -> torch.dtype | None:
        """The precision of the network's weights."""
        return next((value.dtype for value in tensors_of(self.network) if value.is_floating_point()), None)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the network in place with the options of `torch.compile`; the formulas around it are not compiled."""
        if isinstance(self.network, nn.Module):
            self.network.compile(*args, **kwargs)
        else:
            self.network = torch.compile(self.network, *args, **kwargs)

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the prior as a folder in diffusers' format, which `load_prior` reads.

        Args:
            folder: new, empty, or replaced with ``overwrite``.
            overwrite: whether files of the same names are replaced.

        Raises:
            ValueError: the network is no ``UNet2DModel``, or the format cannot state its schedule or its output.
            FileExistsError: the folder has files and ``overwrite`` is not set.
        """
        from cmidiff.prior.save import save_prior

        save_prior(self, Path(folder), overwrite=overwrite)

    def push_to_hub(self, repository: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes to a repository of the Hugging Face hub.

        Args:
            repository: ``OWNER/NAME``; created if it does not exist.
            private: whether a new repository is private.
            token: of the hub; by default that of ``hf auth login``.

        Returns:
            The name for `load_prior`, ``hf:OWNER/NAME``.

        Raises:
            ValueError: as `save_pretrained`, or ``repository`` is not a name of the hub.
            ConnectionError: the hub cannot be reached or refuses.
        """
        from cmidiff.prior.save import push_prior

        return push_prior(self, repository, private=private, token=token)

    def with_label(self, label: int) -> NetworkPrior:
        """The same prior for another class, from 0; the network is shared.

        Raises:
            ValueError: there is no such class, or there are none.
        """
        other = copy.copy(self)
        other.label = _checked_label(label, self.classes, self.name)
        return other

    def forward(self, x_t: Tensor, t: float) -> Prediction:
        """Return ``E[x_0 | x_t]`` at states of shape (B, C, H, W) and a time of the schedule."""
        self._check_level(t)
        out = self._output(x_t, torch.full((len(x_t),), t, dtype=_at_least_single(x_t.dtype), device=x_t.device))
        fraction = None
        if self.learned_variance:
            out, v = out.chunk(2, dim=1)
            fraction = (v + 1) / 2
        return Prediction(self._clean(x_t, t, out), fraction)

    def _check_level(self, t: float) -> None:
        """Raise ``ValueError`` for a noise level that the network does not denoise."""
        alpha_t, sigma_t = self.schedule(t)
        clean = sigma_t < alpha_t * self.min_ratio * (1 - TOLERANCE)
        noisy = self.max_ratio < math.inf and sigma_t > alpha_t * self.max_ratio * (1 + TOLERANCE)
        if clean or noisy:
            raise ValueError(
                f"{self.name} denoises sigma/alpha from {self.min_ratio:.4g} to {self.max_ratio:.4g}, received "
                f"{sigma_t / alpha_t:.4g}: start at max_ratio, or join it with a prior for other levels by "
                "cmidiff.prior.Composite(low, high, at)"
            )

    def _output(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's output in the dtype of ``x_t``; where memory does not suffice, rows are halved and stay so."""
        while True:
            try:
                return self._in_parts(x_t, t)
            except (RuntimeError, MemoryError) as error:
                rows = len(x_t) if self.max_batch is None else min(len(x_t), self.max_batch)
                if rows == 1 or not is_out_of_memory(error):
                    raise
                self.max_batch = rows // 2
                warnings.warn(
                    f"{self.name} does not fit into memory with {rows} rows: it now evaluates {self.max_batch} at a "
                    "time; load_prior(..., max_batch=) avoids the attempt",
                    stacklevel=2,
                )

    def _in_parts(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The output, evaluated in parts of ``max_batch`` rows."""
        if self.max_batch is None or len(x_t) <= self.max_batch:
            return self._evaluate(x_t, t)
        parts = zip(x_t.split(self.max_batch), t.split(self.max_batch), strict=True)
        if not (torch.is_grad_enabled() and x_t.requires_grad):
            return torch.cat([self._evaluate(*part) for part in parts])
        return torch.cat([recompute(self._evaluate, *part) for part in parts])

    def _evaluate(self, x_t: Tensor, t: Tensor) -> Tensor:
        inside = x_t if self.dtype is None else x_t.to(self.dtype)
        if self.label is None:
            return self.network(inside, t).to(x_t.dtype)
        return self.network(inside, t, torch.full_like(t, self.label, dtype=torch.long)).to(x_t.dtype)

    def _clean(self, x_t: Tensor, t: float, out: Tensor) -> Tensor:
        alpha_t, sigma_t = self.schedule(t)
        match self.parametrisation:
            case "eps":
                return (x_t - sigma_t * out) / alpha_t
            case "x0":
                return out
            case "v":
                return (alpha_t * x_t - sigma_t * out) / (alpha_t**2 + sigma_t**2)
            case "flow":
                return (x_t - sigma_t * out) / (alpha_t + sigma_t)


def tensors_of(network: Network) -> Iterator[Tensor]:
    """Parameters and buffers of a network; nothing for a function."""
    if isinstance(network, nn.Module):
        yield from network.parameters()
        yield from network.buffers()


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that an allocation failed, on a GPU or on the host."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory: you tried" in str(error)


def _at_least_single(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def _checked_label(label: int | None, classes: int | None, name: str) -> int | None:
    if classes is None:
        if label is not None:
            raise ValueError(f"the prior {name} is not class-conditional, received label={label}: leave it out")
        return None
    if label is None:
        raise ValueError(
            f"the prior {name} has classes: pass label=, a class from 0 to {classes - 1}, or state it in a card"
        )
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < classes:
        raise ValueError(f"label must be a class of {name}, from 0 to {classes - 1}, received {label!r}")
    return label


def try_prior(prior: Denoiser, shape: tuple[int, ...]) -> None:
    """Evaluate a prior at the cleanest time of its grid on two signals of zeros, in its precision or in float32.

    Raises:
        ValueError: the prior is for images and the signals are none, or the output has another shape or is not finite.
    """
    if prior.channels is not None and (len(shape) < 2 or shape[0] != prior.channels):
        raise ValueError(
            f"shape {shape} is no image of {prior.channels} channels: pass channels=, or value_range=None, "
            "channels=None for other signals"
        )
    x_t = torch.zeros(2, *shape, dtype=prior.dtype or torch.float32, device=prior.device)
    with torch.no_grad():
        x_hat = prior(x_t, prior.schedule.grid(2)[-1]).mean
    if x_hat.shape != x_t.shape:
        raise ValueError(
            f"{prior.name} answers {tuple(x_t.shape)} with {tuple(x_hat.shape)}: the output must have x_t's shape, or "
            "twice its channels with learned_variance=True"
        )
    if not bool(torch.isfinite(x_hat).all()):
        raise ValueError(f"{prior.name} answers zeros with values that are not finite at its cleanest time")
