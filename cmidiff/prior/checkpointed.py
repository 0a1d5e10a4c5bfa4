"""Networks that can compute their activations again for a gradient, instead of keeping them.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, https://arxiv.org/abs/1604.06174
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Checkpointed(nn.Module):
    """A network made of parts that are computed again for a gradient while ``checkpointing`` is set.

    Parts are what a subclass gives to `run`, and the blocks of diffusers inside it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._again = False

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again for a gradient."""
        return self._again

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self._again = on
        blocks: list[Any] = [module for module in self.modules() if hasattr(module, "gradient_checkpointing")]
        for block in blocks:  # of diffusers
            block.gradient_checkpointing, block._gradient_checkpointing_func = on, recompute

    def run(self, part: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """``part(*inputs)``; with ``checkpointing``, only the inputs are stored for its gradient."""
        if self.checkpointing and torch.is_grad_enabled():
            return recompute(part, *inputs)
        return part(*inputs)


def recompute(part: Callable[..., Any], *inputs: Any) -> Any:
    """``part(*inputs)``, computed again for a gradient: only the inputs are stored."""
    return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)


def checkpointed(network: nn.Module) -> list[Checkpointed]:
    """The parts of a network that can be checkpointed; empty if it has none."""
    return [module for module in network.modules() if isinstance(module, Checkpointed)]
