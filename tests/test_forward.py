"""Forward-mode products in several threads at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from cmidiff.forward import push_forward


def test_threads_derive_side_by_side() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(4, 30, 30, generator=generator, dtype=torch.float64)
    x, v = torch.randn(2, 30, generator=generator, dtype=torch.float64)

    def derive(matrix: torch.Tensor) -> torch.Tensor:
        return [push_forward(lambda z: torch.tanh(matrix @ z), x, v) for _ in range(200)][-1]

    with ThreadPoolExecutor(4) as pool:
        for matrix, found in zip(matrices, pool.map(derive, matrices), strict=True):
            torch.testing.assert_close(found, (1 - torch.tanh(matrix @ x) ** 2) * (matrix @ v))
