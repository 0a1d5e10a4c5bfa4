"""How much memory an evaluation of a network takes, found out without running it.

Torch's meta device carries out every operation on shapes alone. A forward pass, and the backward pass of a gradient,
are played through there at the real size by a copy of the network without numbers, and every storage that is born is
counted until it dies: the largest sum is the peak. What is not seen, above all what convolutions need for a moment
inside themselves (among it weights in another layout), is allowed for by `SLACK` and `LAYOUTS`, which docs/cost-256.md
sets beside the peaks of real processes.
"""

from __future__ import annotations

import copy
import math
import weakref
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
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
class Setting:
    """What decides how much memory an evaluation takes.

    Attributes:
        batch: rows evaluated at once.
        graph: whether ``x_hat`` is differentiated (DPS, MCG, exact covariances, most of CMI).
        dtype: the network's precision.
        checkpointing: whether activations are computed again for the gradient.
        max_batch: see `NetworkPrior`.
        twice: whether the gradient is differentiated again.
    """

    batch: int
    graph: bool
    dtype: torch.dtype
    checkpointing: bool
    max_batch: int | None
    twice: bool = False


@dataclass(frozen=True)
class Need:
    """Bytes of one evaluation.

    Attributes:
        weights: of the network.
        activations: the most that is alive at a time besides, counted.
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


_NEEDS: WeakKeyDictionary[nn.Module, dict[tuple[tuple[int, ...], Setting], Need | None]] = WeakKeyDictionary()


def estimate_memory(
    prior: Denoiser,
    shape: tuple[int, ...],
    batch: int = 1,
    *,
    graph: bool = False,
    twice: bool = False,
    dtype: torch.dtype | None = None,
    checkpointing: bool | None = None,
    max_batch: int | None = None,
) -> Need | None:
    """What one evaluation of a prior takes, in bytes; with ``graph``, and one gradient through it.

    Args:
        prior: as `load_prior` gives it.
        shape: (C, H, W) of the state.
        batch: rows evaluated at once.
        graph: whether ``x_hat`` is differentiated (DPS, MCG, exact covariances).
        twice: whether that gradient is differentiated again (CMI's ``double-backward``).
        dtype, checkpointing, max_batch: other settings than those the prior has.

    Returns:
        The need, the largest of the networks that the prior may evaluate (see `Denoiser.evaluations`); None of a prior
        without networks, or with one that is not a module that runs on shapes alone.
    """
    other = {"dtype": dtype, "checkpointing": checkpointing, "max_batch": max_batch}
    given = {name: value for name, value in other.items() if value is not None}
    needs: list[Need] = []
    for part in prior.evaluations(tuple(shape), batch):
        known = _setting(part, graph, twice)
        need = None if known is None else _need(known[0], part.shape, replace(known[1], **given))
        if need is None:
            return None
        needs.append(need)
    return max(needs, key=lambda need: need.beside, default=None)


def check_memory(
    prior: Denoiser,
    shape: tuple[int, ...],
    batch: int = 1,
    *,
    graph: bool = False,
    twice: bool = False,
    available: int | None = None,
) -> Need | None:
    """Whether one evaluation of a prior, whose weights are loaded, fits in memory: before any work.

    Args:
        prior, shape, batch, graph, twice: see `estimate_memory`.
        available: free bytes; by default those of the prior's device.

    Returns:
        The need, the largest of the networks that the prior may evaluate; None where it, or what is free, cannot be
        known.

    Raises:
        ValueError: it does not fit; the message names settings that would.
    """
    needs = [_check(part, graph, twice, available) for part in prior.evaluations(tuple(shape), batch)]
    return max((need for need in needs if need is not None), key=lambda need: need.beside, default=None)


def _check(part: Evaluation, graph: bool, twice: bool, available: int | None) -> Need | None:
    """`check_memory` for one network."""
    known = _setting(part, graph, twice)
    if known is None:
        return None
    prior, setting = known
    available = free_memory(prior.device or torch.device("cpu")) if available is None else available
    need = None if available is None else _need(prior, part.shape, setting)
    if need is None or available is None or need.beside <= available:
        return need
    advice = _advice(prior, part.shape, setting, available)
    raise ValueError(
        f"not enough memory: {part.batch} x {part.shape} with {prior.name}"
        f"{' and its gradient' if setting.graph else ''} takes about {need.beside / GIB:.2g} GiB, "
        f"{available / GIB:.2g} GiB are free: "
        f"use {' or '.join(advice) or 'a smaller image or a machine with more memory'}"
    )


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where that cannot be known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _free_of_host() if device.type == "cpu" else None


def _free_of_host() -> int | None:
    """What Linux says is available, or what is left of a container's limit."""
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


def _setting(part: Evaluation, graph: bool, twice: bool) -> tuple[NetworkPrior, Setting] | None:
    """The network of an evaluation and its setting; None of one that is no module."""
    prior = part.prior
    if not isinstance(prior, NetworkPrior) or not isinstance(prior.network, nn.Module):
        return None
    dtype = prior.dtype or next((p.dtype for p in prior.network.parameters()), torch.float32)
    again = any(module.checkpointing for module in checkpointed(prior.network))
    return prior, Setting(part.batch, graph or twice, dtype, again, prior.max_batch, twice)


def _advice(prior: NetworkPrior, shape: tuple[int, ...], setting: Setting, available: int) -> list[str]:
    """Settings that fit: the mildest of each kind, all of them together if none does alone."""
    batches = [setting.batch >> i for i in range(1, setting.batch.bit_length())]
    frugal = replace(setting, dtype=torch.bfloat16, max_batch=1)
    kinds: list[list[tuple[str, Setting]]] = [
        [(f"batches of {b} instead of {setting.batch}", replace(setting, batch=b)) for b in batches],
        [(f"load_prior(..., max_batch={b})", replace(setting, max_batch=b)) for b in batches],
        [("load_prior(..., dtype=torch.bfloat16)", replace(setting, dtype=torch.bfloat16))],
    ]
    assert isinstance(prior.network, nn.Module)
    if setting.graph and checkpointed(prior.network):
        kinds.append([("load_prior(..., checkpointing=True)", replace(setting, checkpointing=True))])
        frugal = replace(frugal, checkpointing=True)
    words = "checkpointing=True, " if frugal.checkpointing else ""
    together = [(f"load_prior(..., {words}dtype=torch.bfloat16, max_batch=1)", frugal)]
    found = [next((text for text, other in kind if _fits(prior, shape, other, available)), None) for kind in kinds]
    return [text for text in found if text] or [t for t, other in together if _fits(prior, shape, other, available)]


def _fits(prior: NetworkPrior, shape: tuple[int, ...], setting: Setting, available: int) -> bool:
    need = _need(prior, shape, setting)
    return need is not None and need.beside <= available


def _need(prior: NetworkPrior, shape: tuple[int, ...], setting: Setting) -> Need | None:
    """The need, played through once for each network and setting."""
    assert isinstance(prior.network, nn.Module)
    known = _NEEDS.setdefault(prior.network, {})
    shape = tuple(shape)
    if (shape, setting) not in known:
        known[shape, setting] = _play(prior, shape, setting)
    return known[shape, setting]


def _play(prior: NetworkPrior, shape: tuple[int, ...], setting: Setting) -> Need | None:
    twin = _without_numbers(prior, setting)
    state = torch.float64 if setting.dtype is torch.float64 else torch.float32
    census = _Census()
    try:
        fused = nullcontext() if setting.twice else _FusedAttention()
        with fused, census, torch.set_grad_enabled(setting.graph):
            x_t = torch.empty(setting.batch, *shape, dtype=state, device="meta", requires_grad=setting.graph)
            x_hat = twin(x_t, prior.schedule.grid(2)[0]).mean
            if setting.graph:
                (pulled,) = torch.autograd.grad(x_hat, x_t, torch.empty_like(x_hat), create_graph=setting.twice)
                if setting.twice:
                    torch.autograd.grad(pulled, x_t, torch.empty_like(pulled), allow_unused=True)
    except (RuntimeError, TypeError, NotImplementedError):  # a network with numbers of its own in its code
        return None
    assert isinstance(twin.network, nn.Module)
    weights = sum(v.numel() * v.element_size() for v in tensors_of(twin.network))
    signal = setting.batch * math.prod(shape) * state.itemsize
    return Need(weights, census.peak, int((SLACK - 1) * census.peak + LAYOUTS * weights), STATES * signal)


def _without_numbers(prior: NetworkPrior, setting: Setting) -> NetworkPrior:
    """A copy of a prior on the meta device, under a setting."""
    assert isinstance(prior.network, nn.Module)
    empty: dict[int, Any] = {}
    for value in tensors_of(prior.network):
        dtype = setting.dtype if value.is_floating_point() else value.dtype
        hollow = torch.empty_like(value, dtype=dtype, device="meta")
        empty[id(value)] = nn.Parameter(hollow, requires_grad=False) if isinstance(value, nn.Parameter) else hollow
    twin = prior.under(setting.dtype, setting.max_batch)
    twin.network = copy.deepcopy(prior.network, empty)
    for module in checkpointed(twin.network):
        module.checkpointing = setting.checkpointing
    return twin


class _Fused(torch.autograd.Function):
    """The memory of a fused attention kernel, which keeps its inputs and its output and no scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(value) for value in ctx.saved_tensors[:3])


class _FusedAttention(TorchFunctionMode):
    """Counts attention as its fused kernels take it: the meta device would carry out the plain one."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func is not scaled_dot_product_attention or options.get("enable_gqa"):
            return func(*args, **options)
        given = [*args[:3], *(options[name] for name in ("query", "key", "value")[len(args) :])]
        return _Fused.apply(*given)


class _Census(TorchDispatchMode):
    """Counts the bytes of the storages that are born under it and still alive."""

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
