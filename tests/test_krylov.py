"""Conjugate gradients, Lanczos and quadrature against dense solutions in float64."""

import pytest
import torch

from cmidiff.krylov import conjugate_gradient, dot, lanczos, lanczos_apply, per_sample
from tests.cases import F64, randn, spd


def batch(scales=(1e-6, 1.0, 1e6), d=7) -> torch.Tensor:
    return torch.stack([scale * spd(d, seed=i, low=0.1, high=2.0) for i, scale in enumerate(scales)])


def times(matrices: torch.Tensor):
    return lambda v: torch.einsum("bij,bj->bi", matrices, v)


def root(matrix: torch.Tensor, power: float) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values**power) @ vectors.mT


def test_dot_and_per_sample():
    a, b = randn(3, 2, 4), randn(3, 2, 4, seed=1)
    torch.testing.assert_close(dot(a, b), (a * b).sum((1, 2)))
    torch.testing.assert_close(per_sample(dot(a, b), a) * a, dot(a, b)[:, None, None] * a)
    c = torch.complex(a, b)
    torch.testing.assert_close(dot(c, c), (a**2 + b**2).sum((1, 2)))


def test_conjugate_gradient_solves_each_system_at_its_own_scale():
    s, b = batch(), randn(3, 7)
    x = conjugate_gradient(times(s), b, iterations=40, tolerance=1e-13).x
    torch.testing.assert_close(x, torch.linalg.solve(s, b), rtol=1e-9, atol=0)


def test_conjugate_gradient_after_k_steps_is_optimal_in_the_krylov_space():
    s, b, k = batch((1.0,)), randn(1, 7), 3
    krylov = torch.stack([torch.linalg.matrix_power(s[0], i) @ b[0] for i in range(k)], 1)
    q = torch.linalg.qr(krylov)[0]
    best = q @ torch.linalg.solve(q.mT @ s[0] @ q, q.mT @ b[0])
    torch.testing.assert_close(conjugate_gradient(times(s), b, iterations=k).x[0], best, rtol=1e-10, atol=1e-12)


def test_conjugate_gradient_reports_its_residual_and_keeps_to_its_tolerance():
    s, b = batch(d=40), randn(3, 40)
    b[2] = 0.0
    for iterations, tolerance in ((2, 1e-6), (40, 1e-3), (40, 1e-6)):
        found = conjugate_gradient(times(s), b, iterations=iterations, tolerance=tolerance)
        theirs = (b - times(s)(found.x)).norm(dim=1) / b.norm(dim=1).clamp_min(1e-30)
        torch.testing.assert_close(found.residual, theirs, rtol=1e-4, atol=1e-12)
    assert float(conjugate_gradient(times(s), b, iterations=2).residual[0]) > 1e-3
    loose = conjugate_gradient(times(s), b, iterations=40, tolerance=1e-3).residual
    assert float(loose.max()) <= 1e-3
    assert float(loose[0]) > 1e-6


def test_a_preconditioner_changes_the_way_and_not_the_solution():
    """The inverse as the preconditioner needs one iteration; the diagonal fewer than none."""
    scales = torch.logspace(0, 6, 7, dtype=F64)
    s = (scales.sqrt()[:, None] * (spd(7, seed=1, low=0.9, high=1.1)) * scales.sqrt())[None]
    b, inverse = randn(1, 7), torch.linalg.inv(s)
    one = conjugate_gradient(times(s), b, iterations=1, precondition=times(inverse))
    torch.testing.assert_close(one.x, times(inverse)(b), rtol=1e-6, atol=0)
    plain, diagonal = (
        conjugate_gradient(times(s), b, iterations=6, tolerance=1e-12, precondition=p)
        for p in (None, lambda r: r / scales)
    )
    assert float(diagonal.residual) < 1e-4 * float(plain.residual)
    whole = conjugate_gradient(times(s), b, iterations=30, tolerance=1e-13, precondition=lambda r: r / scales)
    torch.testing.assert_close(whole.x, times(inverse)(b), rtol=1e-7, atol=0)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_conjugate_gradient_does_not_see_its_neighbours(position):
    s, b = batch(), randn(3, 7)
    alone = conjugate_gradient(times(s[position : position + 1]), b[position : position + 1], iterations=5).x
    together = conjugate_gradient(times(s), b, iterations=5).x
    torch.testing.assert_close(together[position], alone[0], rtol=1e-12, atol=0)


def test_a_neighbour_that_breaks_down_or_is_not_finite_costs_nothing():
    s, b = batch((1.0, 1.0, 1.0, 1.0)), randn(4, 7)
    s[1] = -s[1]
    s[2] = torch.nan
    b[3] = 0.0
    x = conjugate_gradient(times(s), b, iterations=30, tolerance=1e-13).x
    torch.testing.assert_close(x[0], torch.linalg.solve(s[0], b[0]), rtol=1e-9, atol=1e-12)
    assert bool((x[1:] == 0).all())


def test_an_indefinite_system_keeps_its_last_good_iterate():
    s = torch.diag(torch.tensor([1.0, 1.0, -3.0], dtype=F64))[None]
    b = torch.tensor([[1.0, 1.0, 0.1]], dtype=F64)
    x = conjugate_gradient(times(s), b, iterations=10).x
    first = dot(b, b) / dot(b, times(s)(b))
    torch.testing.assert_close(x, first[:, None] * b)  # one step down, then p^T S p < 0


def test_the_curvature_bound_stops_below_the_noise():
    s = torch.diag(torch.tensor([4.0, 0.5], dtype=F64))[None]
    b = torch.tensor([[1.0, 1.0]], dtype=F64)
    free = conjugate_gradient(times(s), b, iterations=10, tolerance=1e-12).x
    torch.testing.assert_close(free, b / torch.tensor([4.0, 0.5], dtype=F64))
    stopped = conjugate_gradient(times(s), b, iterations=10, curvature=1.0).x
    torch.testing.assert_close(stopped, b * 2 / 4.5)


def test_a_singular_consistent_system_gets_the_least_norm_solution():
    half = randn(4, 7)
    s = (half.mT @ half)[None]
    b = times(s)(randn(1, 7, seed=3))
    x = conjugate_gradient(times(s), b, iterations=30, tolerance=1e-12).x
    torch.testing.assert_close(x[0], torch.linalg.pinv(s[0], rtol=1e-10) @ b[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("power", [-0.5, -1.0, 0.5])
def test_lanczos_applies_a_function_of_the_matrix(power):
    s, z = batch((1e-3, 1.0, 1e5)), randn(3, 7)
    ours = lanczos_apply(times(s), z, lambda w: w**power, iterations=7)
    theirs = torch.stack([root(m, power) @ v for m, v in zip(s, z, strict=True)])
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)


def test_lanczos_keeps_the_shape_and_more_iterations_than_dimensions_change_nothing():
    s, z = batch((1.0, 2.0), d=12), randn(2, 3, 4)

    def operator(v):
        return times(s)(v.flatten(1)).reshape(v.shape)

    ours = lanczos_apply(operator, z, torch.rsqrt, iterations=50)
    theirs = torch.stack([root(m, -0.5) @ v for m, v in zip(s, z.flatten(1), strict=True)])
    torch.testing.assert_close(ours.flatten(1), theirs, rtol=1e-9, atol=1e-12)


def test_lanczos_does_not_see_its_neighbours():
    s, z = batch((1e-4, 1.0, 1e4)), randn(3, 7)
    together = lanczos_apply(times(s), z, torch.rsqrt, iterations=4)
    for i in range(3):
        alone = lanczos_apply(times(s[i : i + 1]), z[i : i + 1], torch.rsqrt, iterations=4)
        torch.testing.assert_close(together[i], alone[0], rtol=1e-9, atol=0)


def test_lanczos_survives_invariant_subspaces_zero_and_non_finite_systems():
    s = torch.stack([3.0 * torch.eye(6, dtype=F64), torch.diag(torch.tensor([1.0, 1, 1, 5, 5, 5], dtype=F64))])
    s = torch.cat([s, spd(6, seed=2)[None], torch.full((1, 6, 6), torch.nan, dtype=F64), spd(6, seed=3)[None]])
    z = randn(5, 6)
    z[2] = 0.0
    out = lanczos_apply(times(s), z, torch.rsqrt, iterations=6)
    for i in (0, 1, 2, 4):
        torch.testing.assert_close(out[i], root(s[i], -0.5) @ z[i], rtol=1e-9, atol=1e-12)


def test_lanczos_quadrature_is_exact_with_all_iterations():
    s, z = batch((1.0, 10.0)), randn(2, 7)
    _, values, vectors = lanczos(times(s), z, 7)
    ours = dot(z, z) * (vectors[:, 0] ** 2 * values.log()).sum(-1)
    logs = [(lambda e: (e[1] * e[0].log()) @ e[1].mT)(torch.linalg.eigh(m)) for m in s]
    theirs = torch.stack([v @ log @ v for v, log in zip(z, logs, strict=True)])
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_k_lanczos_points_integrate_polynomials_of_degree_2k_minus_1():
    s, z, k = batch((1.0,), d=9), randn(1, 9), 3
    _, values, vectors = lanczos(times(s), z, k)
    for degree in range(2 * k):
        ours = dot(z, z) * (vectors[:, 0] ** 2 * values**degree).sum(-1)
        theirs = z[0] @ torch.linalg.matrix_power(s[0], degree) @ z[0]
        torch.testing.assert_close(ours[0], theirs, rtol=1e-11, atol=1e-12)


def test_the_basis_is_orthonormal_and_tridiagonalises():
    s, z = batch((1e3,), d=8), randn(1, 8)
    basis, values, vectors = lanczos(times(s), z, 8)
    q = basis[:, 0]
    torch.testing.assert_close(q @ q.mT, torch.eye(8, dtype=F64), rtol=0, atol=1e-12)
    torch.testing.assert_close((vectors[0] * values[0]) @ vectors[0].mT, q @ s[0] @ q.mT, rtol=0, atol=1e-9)
