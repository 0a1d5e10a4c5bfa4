"""A device without hardware: tensors that say they are on it and compute on the CPU, numbers included.

Under `Device` an operation fails as it does on the device itself: a type that the device lacks (float64, as on Apple's
GPUs), or a tensor of the CPU that meets one of the device. `strict`, it fails wherever a tensor of the CPU is made at
all, and counts how often the CPU waits for a number of the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = torch.device("meta")  # the only one that torch accepts without hardware; these tensors have numbers
MISSING = (torch.float64, torch.complex128)
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)


class OnDevice(Tensor):
    """A tensor of the device; ``inner`` holds its numbers on the CPU."""

    inner: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        made: Any = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, device=NAME, requires_grad=False
        )
        made.inner = inner.detach()
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.inner.tolist()


class Device(TorchDispatchMode):
    """Checks every operation; see the module.

    Args:
        strict: whether a tensor of the CPU may not be made.
    """

    def __init__(self, *, strict: bool = False) -> None:
        super().__init__()
        self.strict, self.waits = strict, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = run(func, args, kwargs or {})
        self.waits += func in WAITS
        for value in tree_leaves(out):
            if self.strict and isinstance(value, Tensor) and value.ndim > 0 and not isinstance(value, OnDevice):
                raise RuntimeError(f"{func}: a tensor of the CPU, shape {tuple(value.shape)}, is made in a step")
        return out


class Single(TorchFunctionMode):
    """Fails where a function of torch gives a type that the device lacks; for forward-mode products, during which any
    `TorchDispatchMode` crashes torch 2."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and value.dtype in MISSING:
                raise TypeError(f"{func}: the device has no {value.dtype}")
        return out


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation, on the device if it names the device or one of its tensors is there."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [t for t in tensors if isinstance(t, OnDevice)]
    target = kwargs.get("device")
    here = bool(ours) if target is None else torch.device(target).type == NAME.type
    foreign = [t for t in tensors if not isinstance(t, OnDevice) and t.ndim > 0]
    if ours and foreign and func not in COPIES:
        raise RuntimeError(f"{func}: a tensor of the CPU, shape {tuple(foreign[0].shape)}, meets one of the device")
    plain_args, plain_kwargs = tree_map_only(OnDevice, lambda t: t.inner, (args, kwargs))
    if here and target is not None:
        plain_kwargs = plain_kwargs | {"device": "cpu"}
    out = func(*plain_args, **plain_kwargs)
    return tree_map_only(Tensor, lambda value: _wrapped(func, value, ours), out) if here else out


def _wrapped(func: Any, value: Tensor, ours: list[OnDevice]) -> Tensor:
    if value.dtype in MISSING:
        raise TypeError(f"{func}: the device has no {value.dtype}")
    return next((t for t in ours if t.inner is value), OnDevice(value))


def moved(module: nn.Module) -> nn.Module:
    """A module with its parameters and buffers on the device, but for layers that stay where they are."""
    for part in module.modules():
        if "_apply" in vars(part):
            continue
        for name, value in part._buffers.items():
            part._buffers[name] = None if value is None else OnDevice(value)
        for name, parameter in part._parameters.items():
            part._parameters[name] = None if parameter is None else nn.Parameter(OnDevice(parameter.data), False)
    return module
