"""The memory that an evaluation of a network takes, found out without running it.

Torch's fake tensors have shapes and no numbers. A forward pass, and the backward pass of a gradient, run through on
them at the real size. Every storage that is allocated counts until it is freed, and the largest sum is the peak. The
working space of convolutions and weights in another layout are not seen. `SLACK` and `LAYOUTS` allow for them;
docs/cost-256.md compares both with the peaks of real processes.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cmidiff.prior.base import Denoiser, Evaluation
from cmidiff.prior.checkpointed import checkpointed
from cmidiff.prior.network import NetworkPrior, tensors_of

SLACK = 1.3  # times what was counted
LAYOUTS = 0.3  # of the bytes of the weights
STATES = 24  # tensors of the state's shape that a sampler, a guidance and CMI hold at a time
GIB = 2**30
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Need:
    """Bytes of one evaluation.

    Attributes:
        weights: of the network.
        activations: the most that is allocated at a time besides, counted.
        unseen: an allowance for what cannot be counted.
        state: of the sampler around it.
    """

    weights: int
    activations: int
    unseen: int
    state: int

    @property
    def beside(self) -> int:
        """All but the weights."""
        return self.activations + self.unseen + self.state


def estimate_memory(
    prior: Denoiser, shape: tuple[int, ...], batch: int = 1, *, graph: bool = False, twice: bool = False
) -> Need | None:
    """The bytes that one evaluation of a prior takes; with ``graph``, and one gradient through it.

    Args:
        prior: as `load_prior` returns it, with the precision, checkpointing and ``max_batch`` that it has.
        shape: (C, H, W) of the state.
        batch: rows evaluated at once.
        graph: whether ``x_hat`` is differentiated (DPS, MCG, exact covariances).
        twice: whether that gradient is differentiated again (CMI's ``double-backward``).

    Returns:
        The need, the largest of the networks that the prior may evaluate (see `Denoiser.evaluations`); None of a prior
        without networks, or with one that is not a module that runs on shapes alone.
    """
    parts = prior.evaluations(tuple(shape), batch)
    return largest_need(parts, batch * math.prod(shape), graph=graph, twice=twice)


def largest_need(parts: Sequence[Evaluation], numbers: int, *, graph: bool, twice: bool) -> Need | None:
    """The largest need of several evaluations, whose states have so many numbers in all; None if one is not known."""
    needs = [_need(part, numbers, graph or twice, twice) for part in parts]
    known = [need for need in needs if need is not None]
    return max(known, key=lambda need: need.beside) if known and len(known) == len(needs) else None


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where that cannot be known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit = int((CGROUP / "memory.max").read_text()) - int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or no limit
        return free
    return min(free, max(limit, 0))


_NEEDS: WeakKeyDictionary[nn.Module, dict[object, Need | None]] = WeakKeyDictionary()


def _need(part: Evaluation, numbers: int, graph: bool, twice: bool) -> Need | None:
    """The need of one network, computed once for each of its settings."""
    prior = part.prior
    if not isinstance(prior, NetworkPrior) or not isinstance(prior.network, nn.Module):
        return None
    known = _NEEDS.setdefault(prior.network, {})
    again = [module.checkpointing for module in checkpointed(prior.network)]
    key = part.shape, part.batch, numbers, graph, twice, prior.dtype, prior.max_batch, *again
    if key not in known:
        known[key] = _play(prior, prior.network, part, numbers, graph, twice)
    return known[key]


def _play(
    prior: NetworkPrior, network: nn.Module, part: Evaluation, numbers: int, graph: bool, twice: bool
) -> Need | None:
    dtype = prior.dtype or next((p.dtype for p in network.parameters()), torch.float32)
    state = torch.float64 if dtype is torch.float64 else torch.float32
    census = _Census()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), census, torch.set_grad_enabled(graph):
            x_t = torch.empty(part.batch, *part.shape, dtype=state, device=prior.device, requires_grad=graph)
            x_hat = prior(x_t, prior.schedule.grid(2)[0]).mean
            if graph:
                (pulled,) = torch.autograd.grad(x_hat, x_t, torch.empty_like(x_hat), create_graph=twice)
                if twice:
                    torch.autograd.grad(pulled, x_t, torch.empty_like(pulled), allow_unused=True)
    except Exception:  # a network that looks at numbers, in as many ways as there are
        return None
    weights = sum(v.numel() * v.element_size() for v in tensors_of(network))
    unseen = int((SLACK - 1) * census.peak + LAYOUTS * weights)
    return Need(weights, census.peak, unseen, STATES * numbers * state.itemsize)


class _Census(TorchDispatchMode):
    """Counts the bytes of the storages that are allocated under it and not yet freed."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        held = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            # A storage that came in and is not known yet is a weight: counted elsewhere.
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in held | self.known:
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.alive)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.alive += size
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size
