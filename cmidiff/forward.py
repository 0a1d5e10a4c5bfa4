"""Forward-mode derivatives, by one thread at a time: torch has one stack of their levels for the whole process.

Two threads that derive at once, as two runs of the page, remove each other's level.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock

import torch
from torch import Tensor

_LOCK = RLock()  # a function may itself derive


def push_forward(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """Return the Jacobian product ``df/dx v`` at ``x``, shape of ``f(x)``; ``v`` as ``x``."""
    with _LOCK:
        return torch.func.jvp(function, (x,), (v,))[1]
