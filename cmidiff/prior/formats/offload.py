"""Networks whose large weights stay on the CPU: each layer copies its own to the device of its input, call by call.

The copies are new tensors, so that a gradient sees what the forward pass saw. Without a gradient, or with
checkpointing, one layer's weights are on the device at a time. The module itself does not change during a call: runs
may share it.
"""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

from torch import Tensor, nn

LARGE = (nn.Conv2d, nn.Linear)  # other layers, as norms and codebooks, have small weights and stay on the device


def offload(network: nn.Module) -> nn.Module:
    """Keep the weights of convolutions and linear layers on the CPU, also when the network is moved to a device."""
    for layer in network.modules():
        if isinstance(layer, LARGE):
            layer.to("cpu")
            layer.forward = MethodType(_visit, layer)
            layer._apply = MethodType(_stay, layer)
    return network


def _visit(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's output, by a copy of the layer on the device of ``x``."""
    visitor = copy.copy(layer)
    del visitor.__dict__["forward"]
    visitor._parameters = {name: None if p is None else p.to(x.device) for name, p in layer._parameters.items()}  # pyright: ignore[reportAttributeAccessIssue]
    return visitor(x)


def _stay(layer: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    return layer
