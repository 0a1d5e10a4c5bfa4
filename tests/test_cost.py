"""What a step costs, counted: evaluations of the network, their graphs, and when they come; no timings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidiff.guidance import CADPS, DPS, DSG, MCG, Guidance, PiGDM, Unconditional, misfit_gradient
from cmidiff.information import CMI
from cmidiff.prior import Prediction, WrappedPrior
from cmidiff.sampler import DDIM, Ancestral, ProbabilityFlow, sample
from cmidiff.step import Kernel, Step, evaluate
from tests.cases import F64, measured, mixture, randn, rows, step_at

ROWS, D, M = 3, 6, 2
EVERYWHERE = (0.0, float("inf"))


class Counting(WrappedPrior):
    """A mixture that notes each evaluation: rows, and whether a graph is built."""

    def __init__(self) -> None:
        self.inner = mixture(D, 3)
        self.calls: list[tuple[int, bool]] = []

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        prediction = self.inner(x_t, t)
        self.calls.append((len(x_t), prediction.mean.requires_grad))
        return prediction


def calls_of_one_step(
    guidance: Guidance, cmi: CMI | None = None, kernel: Kernel | None = None
) -> list[tuple[int, bool]]:
    """The evaluations of a run's first step, which is not its last."""
    prior = Counting()
    measurement = measured(randn(M, D, seed=1), randn(ROWS, M, seed=2), 0.2)
    times = [300.0, 200.0, 100.0]
    own = Ancestral() if kernel is None else kernel
    run = sample(
        prior, measurement, randn(ROWS, D), times, guidance=guidance, kernel=own, draws=rows(ROWS), cmi=cmi, clip=None
    )
    with torch.no_grad():
        next(run)
    return prior.calls


GRAPH, BARE = (ROWS, True), (ROWS, False)


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [
        (Unconditional(), [BARE]),
        (DPS(), [GRAPH]),
        (DPS(0.0), [BARE]),
        (PiGDM(), [GRAPH]),
        (MCG(), [GRAPH]),
        (DSG(), [GRAPH]),
        (CADPS("isotropic"), [GRAPH]),
        (CADPS("exact"), [GRAPH]),
        (CADPS("diagonal"), [GRAPH, BARE]),
        (CADPS("diagonal", switch=1e-3), [GRAPH]),
        (CADPS("released"), [GRAPH, BARE]),
    ],
    ids=str,
)
def test_evaluations_of_a_solver(guidance: Guidance, expected: list[tuple[int, bool]]) -> None:
    assert sorted(calls_of_one_step(guidance)) == sorted(expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(2 * ROWS, False), GRAPH]),
        ({"eta": 0.0}, [GRAPH]),
        ({"probes": 2}, [(2 * ROWS, False), GRAPH, (2 * ROWS, False)]),
        ({"contraction": "finite-difference"}, [GRAPH, GRAPH, GRAPH]),
        ({"contraction": "double-backward"}, [GRAPH]),
        ({"covariance": "exact"}, [GRAPH, (2 * ROWS, False)]),
        ({"estimator": "two-term"}, [GRAPH] * 5),
    ],
    ids=str,
)
def test_evaluations_of_cmi_on_top_of_dps(options: dict[str, Any], expected: list[tuple[int, bool]]) -> None:
    """By default two rows a sample without a graph, and before the graph of the step exists: they share no memory."""
    assert calls_of_one_step(DPS(), CMI(window=EVERYWHERE, **options)) == expected


def test_cmi_of_every_second_step_costs_nothing_between() -> None:
    prior = Counting()
    measurement = measured(randn(M, D, seed=1), randn(ROWS, M, seed=2), 0.2)
    run = sample(
        prior,
        measurement,
        randn(ROWS, D),
        [400.0, 300.0, 200.0, 100.0],
        guidance=DPS(),
        kernel=Ancestral(),
        draws=rows(ROWS),
        cmi=CMI(window=EVERYWHERE, every=2),
    )
    with torch.no_grad():
        assert len(list(run)) == 4
    assert prior.calls == [(2 * ROWS, False), GRAPH, GRAPH] * 2


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [(Unconditional(), [BARE, BARE]), (DPS(), [GRAPH, BARE]), (PiGDM(), [GRAPH, GRAPH])],
    ids=str,
)
def test_heun_builds_a_second_graph_only_where_it_is_differentiated(
    guidance: Guidance, expected: list[tuple[int, bool]]
) -> None:
    assert calls_of_one_step(guidance, kernel=ProbabilityFlow()) == expected


def test_a_step_is_evaluated_once_and_its_copies_keep_the_result() -> None:
    prior = Counting()
    measurement = measured(randn(M, D, seed=1), randn(ROWS, M, seed=2), 0.2)
    step = step_at(prior, measurement, randn(ROWS, D), 300.0, 200.0)
    assert prior.calls == []
    moved = step.moved(torch.ones(ROWS, D, dtype=F64))
    again = replace(moved, index=7)
    assert prior.calls == [GRAPH]
    assert step.x_hat is moved.x_hat is again.x_hat
    assert step.variance_fraction is None
    assert prior.calls == [GRAPH]
    fresh = evaluate(again, graph=False)
    assert not fresh.x_hat.requires_grad
    torch.testing.assert_close(fresh.x_hat, step.x_hat.detach(), rtol=0, atol=0)


def test_the_graph_is_freed_in_the_loop_unless_it_is_kept() -> None:
    step = step_at(mixture(D, 3), measured(randn(M, D), randn(ROWS, M), 0.2), randn(ROWS, D), 300.0, 200.0)
    torch.testing.assert_close(misfit_gradient(step), misfit_gradient(step), rtol=0, atol=0)
    once = replace(step, keep_graph=False)
    misfit_gradient(once)
    with pytest.raises(RuntimeError, match="second time"):
        misfit_gradient(once)


def test_two_guidances_pull_on_one_step() -> None:
    """As the documentation of `Step` tells a solver that combines others."""

    class Both:
        needs_graph = True

        def __call__(self, step: Step) -> Tensor:
            kept = replace(step, keep_graph=True)
            return 0.5 * (DPS(0.2)(kept) + DPS(0.4)(kept))

    def run(guidance: Guidance) -> Tensor:
        steps = sample(
            mixture(D, 3),
            measured(randn(M, D, seed=1), randn(ROWS, M, seed=2), 0.2),
            randn(ROWS, D),
            [300.0, 100.0],
            guidance=guidance,
            kernel=DDIM(),
            draws=rows(ROWS),
        )
        return [trace.x_s for trace in steps][-1]

    torch.testing.assert_close(run(Both()), run(DPS(0.3)), rtol=1e-12, atol=1e-12)
