"""Denoisers ``D(x, sigma)`` as priors: networks trained to remove noise up to some level.

For ``x = x_0 + sigma z`` such a network estimates ``E[x_0 | x]``, so it is a prior on the variance-exploding schedule
``alpha_t = 1, sigma_t = t``. Image priors have the range (-1, 1) here; a network for images in [low, high] is evaluated
through the affine map between the ranges,

    x_hat(x_t, t) = g D((x_t - o) / g, t / g) + o,    g = 2 / (high - low),   o = -1 - g low.

Most of these networks are trained up to a limit, far below pure noise: `cmidiff.prior.Composite` adds a prior above it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Unpack

from torch import Tensor, nn

from cmidiff.prior.network import Facts, NetworkPrior, tensors_of, try_prior
from cmidiff.schedule import VE, Limited, Schedule

SigmaFunction = Callable[[Tensor, Tensor], Tensor]
LEAST = 0.005  # the cleanest level of the grid, in units of the range of the images, where the network has no limit


class SigmaNetwork(nn.Module):
    """``D(x, sigma)`` as a network ``(x_t, t)`` on another range, with ``t`` the level of the noise there.

    Args:
        fn: the denoiser, ``(x, sigma) -> x_hat``.
        gain, offset: ``x_t = gain x + offset``.
        per_row: ``sigma`` has shape (B,) instead of ().
    """

    def __init__(self, fn: SigmaFunction, gain: float = 1.0, offset: float = 0.0, *, per_row: bool = False) -> None:
        super().__init__()
        self.fn = fn
        self.gain, self.offset, self.per_row = gain, offset, per_row

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """``x_hat`` of ``x_t``, shape (B, ...), at the levels ``t``, shape (B,), which are equal."""
        sigma = (t if self.per_row else t[0]).to(x_t) / self.gain
        return self.gain * self.fn((x_t - self.offset) / self.gain, sigma) + self.offset


def from_denoiser(
    fn: SigmaFunction,
    max_sigma: float,
    *,
    min_sigma: float = 0.0,
    value_range: tuple[float, float] | None = (0.0, 1.0),
    sigma_per_row: bool = False,
    shape: tuple[int, ...] | None = None,
    **facts: Unpack[Facts],
) -> NetworkPrior:
    """A prior from a denoiser ``D(x, sigma)``.

    Args:
        fn: ``(x, sigma) -> x_hat``, differentiable in ``x`` of shape (B, ...); ``sigma`` is a tensor. A module is set
            to evaluation mode.
        max_sigma, min_sigma: the noise that it removes, as standard deviations in units of ``x``.
        value_range: range of its images; the prior's own range is then (-1, 1). For signals other than images,
            ``value_range=None, channels=None`` and their ``variance``: the prior has the units of ``fn``.
        sigma_per_row: ``fn`` takes ``sigma`` of shape (B,); by default of shape ().
        shape: of one signal, (C, H, W) or any other; if given, ``fn`` is tried on zeros and its output checked.
        facts: ``channels``, ``multiple``, ``size``, ``smooth``, ``dtype``, ``max_batch``, ``variance``, ``name`` and
            ``card`` of `NetworkPrior`. ``smooth`` is False by default, since most denoisers are piecewise linear
            (ReLU). ``dtype`` is by default that of the parameters of ``fn``, or of ``x_t`` without any.

    Returns:
        A prior on the levels ``sigma_t / alpha_t`` between ``min_ratio`` and ``max_ratio``, which are ``min_sigma`` and
        ``max_sigma`` in its own units.

    Raises:
        TypeError: ``fn`` cannot be called.
        ValueError: noise levels or a range that make no sense; an output of another shape, or one that is not finite.
    """
    if not callable(fn):
        raise TypeError(f"fn must be a function (x, sigma) -> x_hat, received {type(fn).__name__}")
    if isinstance(fn, nn.Module):
        fn.eval()
        own = next((value.dtype for value in tensors_of(fn) if value.is_floating_point()), None)
        facts = {"dtype": own, **facts}
    gain, offset = affine(value_range)
    prior = NetworkPrior(
        SigmaNetwork(fn, gain, offset, per_row=sigma_per_row),
        "x0",
        levels_between(min_sigma, max_sigma, value_range),
        value_range=None if value_range is None else (-1.0, 1.0),
        min_ratio=gain * min_sigma,
        max_ratio=gain * max_sigma,
        **{"smooth": False, "name": "denoiser", **facts},
    )
    if shape is not None:
        try_prior(prior, shape)
    return prior


def from_deepinv(model: nn.Module, max_sigma: float, *, min_sigma: float = 0.0, **facts: Unpack[Facts]) -> NetworkPrior:
    """A prior from a denoiser of deepinv, called as ``model(x, sigma)`` with images in [0, 1].

    Args:
        model: e.g. ``deepinv.models.DRUNet()`` or ``deepinv.models.DnCNN()``; it is set to evaluation mode.
        max_sigma, min_sigma: the noise that it was trained on, in units of images in [0, 1]. deepinv states it in its
            list of weights: 50/255 for DRUNet, 2/255 for DnCNN.
        facts: see `from_denoiser`; ``name`` is by default that of its class.

    Raises:
        TypeError: it is no module.
        ValueError: see `from_denoiser`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a denoiser of deepinv.models, received {type(model).__name__}")
    facts = {"name": type(model).__name__, **facts}
    return from_denoiser(model, max_sigma, min_sigma=min_sigma, sigma_per_row=True, **facts)


def affine(value_range: tuple[float, float] | None) -> tuple[float, float]:
    """``(gain, offset)`` of the map from ``value_range`` to (-1, 1); the identity without a range.

    Raises:
        ValueError: no range.
    """
    if value_range is None:
        return 1.0, 0.0
    low, high = value_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value_range must be (low, high) with low < high, or None, received {value_range}")
    gain = 2.0 / (high - low)
    return gain, -1.0 - gain * low


def levels_between(min_sigma: float, max_sigma: float, value_range: tuple[float, float] | None) -> Schedule:
    """The schedule of a denoiser, in units of the prior.

    Raises:
        ValueError: levels that are no range.
    """
    if not (math.isfinite(max_sigma) and 0 <= min_sigma < max_sigma):
        raise ValueError(
            f"need 0 <= min_sigma < max_sigma < infinity, received {min_sigma} and {max_sigma}: pass the standard "
            "deviations of the noise that the network was trained on, in units of its images"
        )
    gain, _ = affine(value_range)
    scale = max_sigma if value_range is None else value_range[1] - value_range[0]
    least = min(LEAST * scale, max_sigma / 10) if min_sigma == 0 else min_sigma
    return Limited(VE(gain * least, gain * max_sigma), gain * least, gain * max_sigma)
