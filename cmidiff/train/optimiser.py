"""Muon for the matrices of a network, AdamW for its other weights, in one optimiser with one state.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum M of a matrix by the nearest
semi-orthogonal matrix, computed with five Newton-Schulz iterations. The kernel of a convolution is the matrix of its
output channels by all others. The factor ``0.2 sqrt(max(rows, columns))`` gives the update the size of one of AdamW, so
both take the same learning rate (Liu et al. 2025, https://arxiv.org/abs/2502.16982). `torch.optim.Muon` accepts
matrices only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.optimizer import Optimizer

MOMENTUM = 0.95
BETAS = (0.9, 0.99)
QUINTIC = (3.4445, -4.7750, 2.0315)  # maps singular values from (0, 1] into about [0.7, 1.2] in five iterations


class MuonAdamW(AdamW):
    """Apply Muon to the groups marked ``muon``, AdamW to the others.

    Args:
        network: its kernels and matrices, except those of the first and the last layer, are Muon's.
        lr: learning rate of both.
        weight_decay: decoupled, of both.
    """

    def __init__(self, network: nn.Module, lr: float, weight_decay: float) -> None:
        ends = ("conv_in", "conv_out")
        inner = {n for n, p in network.named_parameters() if p.ndim > 1 and not any(end in n for end in ends)}
        matrices = [p for n, p in network.named_parameters() if n in inner]
        others = [p for n, p in network.named_parameters() if n not in inner]
        super().__init__(
            [{"params": others, "muon": False}, {"params": matrices, "muon": True}],
            lr=lr,
            betas=BETAS,
            weight_decay=weight_decay,
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step; ``closure`` must be None."""
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                for weight in group["params"]:
                    self._orthogonal_step(weight, group["lr"], group["weight_decay"])
        self.param_groups = [group for group in groups if not group["muon"]]
        super().step()
        self.param_groups = groups

    def _orthogonal_step(self, weight: Tensor, lr: float, decay: float) -> None:
        if weight.grad is None:
            return
        state = self.state[weight]
        if "momentum" not in state:
            state["step"] = torch.zeros(())  # AdamW expects it of every weight when it loads a state
            state["momentum"] = torch.zeros_like(weight)
        momentum = state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)
        matrix = weight.grad.lerp(momentum, MOMENTUM).flatten(1)
        size = 0.2 * max(matrix.shape) ** 0.5
        weight.mul_(1 - lr * decay).sub_(orthogonalise(matrix).view(weight.shape), alpha=lr * size)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return about ``U V^T`` of ``matrix = U S V^T``, shape (m, n): five quintic Newton-Schulz iterations."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-12)
    a, b, c = QUINTIC
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def make_optimiser(name: str, network: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """Return ``muon`` or ``adamw`` for the weights of a network."""
    if name == "muon":
        return MuonAdamW(network, lr, weight_decay)
    return AdamW(network.parameters(), lr=lr, betas=BETAS, weight_decay=weight_decay)
