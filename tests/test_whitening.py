"""``S^-1/2 b`` against dense eigendecompositions: conditioned well and badly, singular, in both precisions."""

from __future__ import annotations

import pytest
import torch

from cmidiff.whitening import inverse_root
from tests.cases import F64, randn


def spectrum(low: float, high: float, count: int = 60) -> torch.Tensor:
    return torch.logspace(torch.log10(torch.tensor(low)), torch.log10(torch.tensor(high)), count, dtype=F64)


def matrices(eigenvalues: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """``S`` and its exact inverse root, zero eigenvalues left out."""
    q = torch.linalg.qr(randn(len(eigenvalues), len(eigenvalues), seed=seed))[0]
    root = torch.where(eigenvalues > 0, eigenvalues.clamp_min(1e-300).rsqrt(), 0.0)
    return (q * eigenvalues) @ q.mT, (q * root) @ q.mT


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.5, 2.0), (1e-2, 1e2), (1e-4, 1.0), (1e5, 1e9)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 2e-8), (torch.float32, 2e-3)])
def test_inverse_root(low: float, high: float, dtype: torch.dtype, tolerance: float) -> None:
    s, root = matrices(spectrum(low, high))
    b = randn(3, 60, seed=7)
    single = s.to(dtype)
    ours = inverse_root(lambda v: v @ single, b.to(dtype), low)
    assert float((ours - b @ root).norm() / (b @ root).norm()) < tolerance


def test_without_a_lower_bound_and_singular() -> None:
    values = torch.cat([torch.zeros(20, dtype=F64), spectrum(1e-3, 1.0, 40)])
    s, root = matrices(values)
    b = randn(2, 60) @ s  # in its range
    ours = inverse_root(lambda v: v @ s, b, 0.0)
    assert float((ours - b @ root).norm() / (b @ root).norm()) < 1e-7


def test_iterations_stop_when_they_have_converged() -> None:
    products = []
    s, _ = matrices(spectrum(0.9, 1.1))
    inverse_root(lambda v: products.append(1) or v @ s, randn(1, 60), 0.9)
    assert len(products) < 25


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    easy, _ = matrices(spectrum(0.5, 1.0))
    hard, root = matrices(spectrum(1e-4, 1e2), seed=1)

    def operator(v: torch.Tensor) -> torch.Tensor:
        rows = [v[:1] @ easy, v[1:2] @ hard, v[2:] @ easy]
        return torch.cat(rows[: len(v)])

    b = torch.cat([randn(2, 60), torch.zeros(1, 60, dtype=F64)])
    together = inverse_root(operator, b, 1e-4)
    torch.testing.assert_close(inverse_root(operator, b[:1], 1e-4), together[:1], rtol=0, atol=1e-13)
    assert float((together[1] - b[1] @ root).norm() / (b[1] @ root).norm()) < 1e-7
    assert not bool(together[2].any())


def test_complex_signals() -> None:
    s, root = matrices(spectrum(1e-2, 1.0))
    b = torch.complex(randn(2, 60), randn(2, 60, seed=1))
    ours = inverse_root(lambda v: v @ s.to(v.dtype), b, 1e-2)
    theirs = b @ root.to(b.dtype)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-7
