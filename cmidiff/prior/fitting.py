"""Whether an evaluation fits in memory, and which setting makes it fit: by estimates with other settings."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from cmidiff.prior.base import Denoiser, Evaluation
from cmidiff.prior.checkpointed import checkpointed
from cmidiff.prior.memory import GIB, Need, estimate_memory, free_memory, largest_need
from cmidiff.prior.network import NetworkPrior, tensors_of
from cmidiff.prior.tiles import fitted

LEAST = 64  # side of the smallest tile that is tried, pixels
ADVICE = (
    "use a smaller image; max_batch=1, checkpointing=True and dtype=torch.bfloat16 of load_prior, and smaller tiles, "
    "are not enough"
)


@dataclass(frozen=True)
class _Setting:
    """Options of `load_prior` and of `restore` that take less memory."""

    one: bool = False
    checkpointing: bool = False
    half: bool = False
    tile: int | None = None

    @property
    def words(self) -> str:
        stated = [("max_batch=1", self.one), ("checkpointing=True", self.checkpointing)]
        stated.append(("dtype=torch.bfloat16", self.half))
        loading = ", ".join(word for word, on in stated if on)
        parts = [f"load_prior(..., {loading})"] if loading else []
        parts += [] if self.tile is None else [f"restore(..., tile={self.tile})"]
        return " and ".join(parts)


def check_memory(
    prior: Denoiser,
    shape: tuple[int, ...],
    batch: int = 1,
    *,
    graph: bool = False,
    twice: bool = False,
    available: int | None = None,
) -> Need | None:
    """Check that one evaluation of a prior, whose weights are loaded, fits in memory: before any work.

    Args:
        prior, shape, batch, graph, twice: see `estimate_memory`.
        available: free bytes; by default those of the prior's device.

    Returns:
        The need; None where it, or what is free, cannot be known.

    Raises:
        ValueError: it does not fit.
    """
    if available is None:
        available = free_memory(prior.device or torch.device("cpu"))
    need = None if available is None else estimate_memory(prior, shape, batch, graph=graph, twice=twice)
    if need is not None and available is not None and need.beside > available:
        setting = name_setting(prior, shape, batch, available, graph=graph or twice, twice=twice)
        raise ValueError(
            f"not enough memory: {batch} x {tuple(shape)} with {prior.name}{' and its gradient' if graph else ''} "
            f"takes about {need.beside / GIB:.2g} GiB, {available / GIB:.2g} GiB are free: {setting or ADVICE}"
        )
    return need


def name_setting(
    prior: Denoiser, shape: tuple[int, ...], batch: int, available: int, *, graph: bool, twice: bool
) -> str | None:
    """The first setting with which an evaluation fits into ``available`` bytes, in words; None where no setting
    does."""
    for setting in _settings(prior, shape, batch, graph=graph, twice=twice):
        tiled = prior if setting.tile is None else fitted(prior, shape, setting.tile)
        parts = [_changed(part, setting) for part in tiled.evaluations(tuple(shape), batch)]
        need = largest_need(parts, batch * math.prod(shape), graph=graph, twice=twice)
        if need is None:
            continue
        counted = (need.activations + need.unseen) // (2 if setting.half else 1)
        if counted + need.state <= available:
            return f"{setting.words} takes about {(counted + need.state) / GIB:.2g} GiB"
    return None


def _settings(prior: Denoiser, shape: tuple[int, ...], batch: int, *, graph: bool, twice: bool) -> Iterator[_Setting]:
    """Settings that change something, from those that cost least."""
    one, half = batch > 1, prior.dtype is torch.float32
    yield from [_Setting(one=True)] if one else []
    yield from [_Setting(checkpointing=True)] if graph else []
    yield from [_Setting(half=True)] if half else []
    yield (least := _Setting(one, graph, half))
    factor = prior.multiple * (1 if prior.decoder is None else prior.decoder.factor)
    tile = max(shape[1:], default=0) * factor // prior.multiple
    while not twice and (tile := tile // 2 // factor * factor) >= LEAST:
        yield _Setting(True, least.checkpointing, least.half, tile)


def _changed(part: Evaluation, setting: _Setting) -> Evaluation:
    """The evaluation with a setting; its network is a copy that shares the weights."""
    if not isinstance(part.prior, NetworkPrior) or not isinstance(part.prior.network, nn.Module):
        return part
    prior = copy.copy(part.prior)
    prior._modules = dict(prior._modules)  # a copy of a module shares them
    if setting.one:
        prior.max_batch = 1
    if setting.checkpointing:
        network = copy.deepcopy(part.prior.network, {id(value): value for value in tensors_of(part.prior.network)})
        for module in checkpointed(network):
            module.checkpointing = True
        prior.network = network
    return part._replace(prior=prior)
