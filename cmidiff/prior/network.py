"""A network as a prior: from what it was trained to predict to ``x_hat = E[x_0 | x_t]``.

With ``x_t = alpha x_0 + sigma eps``:

    eps    x_hat = (x_t - sigma eps) / alpha          divides the network's error by alpha: ill-conditioned towards pure
    noise
    x0     x_hat = the output
    v      x_hat = (alpha x_t - sigma v) / (alpha^2 + sigma^2),   v = alpha eps - sigma x_0
    flow   x_hat = (x_t - sigma u) / (alpha + sigma),             u = eps - x_0

Sources: Ho et al. 2020, https://arxiv.org/abs/2006.11239 (eps); Salimans, Ho 2022, https://arxiv.org/abs/2202.00512
(v); Lipman et al. 2023,
https://arxiv.org/abs/2210.02747 (flow).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from cmidiff.prior.base import Prediction
from cmidiff.schedule import DDPM, Schedule

Parametrisation = Literal["eps", "x0", "v", "flow"]
Network = Callable[[Tensor, Tensor], Tensor]


class NetworkPrior:
    """A denoiser made of a network.

    Args:
        network: ``(x_t, t) -> output`` with ``x_t`` of shape (B, C, H, W) and ``t`` of shape (B,): the schedule's
            times, in the dtype of ``x_t``.
        parametrisation: what the output means.
        schedule: the perturbation kernel it was trained on; the DDPM linear grid by default.
        learned_variance: the output has 2C channels, the second half being ``v`` in [-1, 1] of Nichol and Dhariwal's
            learned range.
        value_range: range of the training images.
        channels: C.
        multiple: sides must be divisible by this (2 to the number of downsamplings).
        name: for messages and records.
        card: source, licence, hash, training of the weights.
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
    ) -> None:
        if parametrisation not in get_args(Parametrisation):
            raise ValueError(
                f"parametrisation must be one of {get_args(Parametrisation)}, received {parametrisation!r}"
            )
        self.network = network
        self.parametrisation: Parametrisation = parametrisation
        self.schedule: Schedule = DDPM.linear() if schedule is None else schedule
        self.learned_variance = learned_variance
        self.value_range = value_range
        self.channels = channels
        self.multiple = multiple
        self.name = name
        self.card = {} if card is None else card

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        out = self.network(x_t, torch.full((len(x_t),), t, dtype=x_t.dtype, device=x_t.device))
        fraction = None
        if self.learned_variance:
            out, v = out.chunk(2, dim=1)
            fraction = (v + 1) / 2
        return Prediction(self._clean(x_t, t, out), fraction)

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
