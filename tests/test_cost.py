"""What a step costs, counted: evaluations of the network, their graphs, and when they come; no timings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidiff.covariance import Diagonal, Exact, Hybrid, Isotropic, SecondMoments
from cmidiff.covariance.diagonal import of_paper
from cmidiff.information import CMI
from cmidiff.loop import sample
from cmidiff.prior import Denoiser, Prediction, WrappedPrior
from cmidiff.samplers import DDIM, Ancestral, DPMSolver, ProbabilityFlow, Renoise
from cmidiff.solvers import (
    CADPS,
    DDNM,
    DPIR,
    DPS,
    DSG,
    MCG,
    MMPS,
    SITCOM,
    TMPD,
    CADPSReleased,
    DiffPIR,
    PiGDM,
    Solver,
    Unconditional,
    misfit_gradient,
)
from cmidiff.step import Carry, Problem, Sampler, Step
from tests.cases import F64, label, measured, mixture, problem_of, randn, step_at

ROWS, D, M = 3, 6, 2
EVERYWHERE = (0.0, float("inf"))


class Counting(WrappedPrior):
    """A mixture that notes each evaluation: rows, and whether a graph is built."""

    def __init__(self) -> None:
        self.inner: Denoiser = mixture(D, 3)
        self.calls: list[tuple[int, bool]] = []

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        prediction = self.inner(x_t, t)
        self.calls.append((len(x_t), prediction.mean.requires_grad))
        return prediction


def counted(sampler: Sampler | None = None) -> tuple[Counting, Problem]:
    prior = Counting()
    measurement = measured(randn(M, D, seed=1), randn(ROWS, M, seed=2), 0.2)
    return prior, problem_of(prior, measurement, sampler=sampler)


def calls_of_one_step(
    solver: Solver,
    cmi: CMI | None = None,
    sampler: Sampler | None = None,
    times: tuple[float, ...] = (300.0, 200.0, 100.0),
) -> list[tuple[int, bool]]:
    """The evaluations of a run's first step, which is not its last."""
    prior, problem = counted(sampler)
    with torch.no_grad():
        next(sample(problem, solver, times, cmi))
    return prior.calls


GRAPH, BARE = (ROWS, True), (ROWS, False)


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        (Unconditional(), [BARE]),
        (DPIR(), [BARE]),
        (DPS(), [GRAPH]),
        (DPS(0.0), [BARE]),
        (PiGDM(), [GRAPH]),
        (MCG(), [GRAPH]),
        (DSG(), [GRAPH]),
        (CADPS("isotropic"), [GRAPH]),
        (CADPS("exact"), [GRAPH]),
        (CADPS("row-sum"), [GRAPH, BARE]),
        (CADPS("diagonal-paper"), [GRAPH, BARE]),
        (CADPS("diagonal"), [GRAPH, BARE, BARE]),
        (CADPS("moments"), [BARE]),
        (PiGDM(covariance="moments"), [BARE]),
        (CADPS(Hybrid(high=Isotropic(), low=Diagonal(), switch=1e-3)), [GRAPH]),
        (CADPS(Hybrid(high=SecondMoments(), low=Diagonal(), switch=1e-3)), [BARE]),
        (CADPS(Hybrid(high=SecondMoments(), low=of_paper(), switch=1e3)), [GRAPH, BARE]),
        (CADPSReleased(), [GRAPH, BARE]),
        (CADPS("free-hunch"), [BARE]),
        (CADPS("wavelet"), [GRAPH, BARE, BARE]),
        (MMPS(), [GRAPH]),
        (TMPD(), [GRAPH]),
        (DiffPIR(), [BARE]),
        (DDNM(), [BARE]),
        (SITCOM(iterations=4), [GRAPH] * 4),
    ],
    ids=label,
)
def test_evaluations_of_a_solver(solver: Solver, expected: list[tuple[int, bool]]) -> None:
    assert sorted(calls_of_one_step(solver)) == sorted(expected)


@pytest.mark.parametrize("sampler", [DDIM(), DPMSolver(), DPMSolver(1), Renoise(), ProbabilityFlow(1)], ids=label)
def test_a_sampler_of_one_evaluation(sampler: Sampler) -> None:
    assert calls_of_one_step(PiGDM(), sampler=sampler) == [GRAPH]


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
    ids=label,
)
def test_evaluations_of_cmi_on_top_of_dps(options: dict[str, Any], expected: list[tuple[int, bool]]) -> None:
    """By default two rows a sample without a graph, and before the graph of the step exists: they share no memory."""
    assert calls_of_one_step(DPS(), CMI(window=EVERYWHERE, **options)) == expected


def test_cmi_of_every_second_step_costs_nothing_between() -> None:
    prior, problem = counted()
    with torch.no_grad():
        assert len(list(sample(problem, DPS(), [400.0, 300.0, 200.0, 100.0], CMI(window=EVERYWHERE, every=2)))) == 4
    assert prior.calls == [(2 * ROWS, False), GRAPH, GRAPH] * 2


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        (Unconditional(), [BARE, BARE]),
        (DPS(), [GRAPH, BARE]),
        (PiGDM(), [GRAPH, GRAPH]),
        (CADPS("moments"), [BARE, BARE]),
    ],
    ids=label,
)
def test_heun_builds_a_second_graph_only_where_it_is_differentiated(
    solver: Solver, expected: list[tuple[int, bool]]
) -> None:
    assert calls_of_one_step(solver, sampler=ProbabilityFlow()) == expected


@pytest.mark.parametrize("sampler", [Ancestral(), ProbabilityFlow(), ProbabilityFlow(churn=3.0)], ids=label)
@pytest.mark.parametrize(("high", "low"), [(SecondMoments(), Exact()), (Isotropic(), SecondMoments())], ids=label)
def test_a_covariance_that_changes_within_a_step_has_its_graph(sampler: Sampler, high: Any, low: Any) -> None:
    """The switch lies between the levels of ``t`` and ``s``, or between those of ``t`` and the churned ``t``."""
    _, problem = counted(sampler)
    times = [400.0, 300.0, 200.0]
    ratios = [sigma / alpha for alpha, sigma in map(problem.prior.schedule, times)]
    for switch in (1.05 * ratios[1], 0.95 * ratios[1]):
        solver = CADPS(Hybrid(high=high, low=low, switch=switch))
        traces = list(sample(problem, solver, times))
        assert bool(traces[-1].x_s.isfinite().all())
        acting = CMI(contraction="double-backward", window=(1.02 * ratios[1], 10.0))
        assert float(next(sample(problem, Unconditional(), times, acting)).cmi.max()) > 0


def test_a_step_is_evaluated_once_when_it_is_needed_and_its_copies_keep_the_result() -> None:
    prior = Counting()
    measurement = measured(randn(M, D, seed=1), randn(ROWS, M, seed=2), 0.2)
    step = step_at(prior, measurement, randn(ROWS, D), 300.0, 200.0)
    corrected = replace(step, correction=torch.ones(ROWS, D, dtype=F64))
    again = replace(corrected, index=7)
    assert prior.calls == []
    assert not step.denoised.done
    assert step.x_hat is corrected.x_hat is again.x_hat
    assert step.variance_fraction is None
    assert prior.calls == [GRAPH]
    fresh = again.moved(again.x_t, again.t, graph=False)
    assert not fresh.x_hat.requires_grad
    torch.testing.assert_close(fresh.x_hat, step.x_hat.detach(), rtol=0, atol=0)


def test_the_loop_frees_the_graph() -> None:
    """A solver that pulls twice on one step is told, instead of keeping the memory of every solver."""

    class Twice(DPS):
        def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
            misfit_gradient(step)
            return super().step(step, carry)

    _, problem = counted()
    with pytest.raises(RuntimeError, match="second time"):
        list(sample(problem, Twice(), [300.0, 100.0]))


def test_the_graph_is_freed_with_the_last_product_unless_it_is_kept() -> None:
    step = step_at(mixture(D, 3), measured(randn(M, D), randn(ROWS, M), 0.2), randn(ROWS, D), 300.0, 200.0)
    torch.testing.assert_close(misfit_gradient(step), misfit_gradient(step), rtol=0, atol=0)
    once = replace(step, keep_graph=False)
    misfit_gradient(once)
    with pytest.raises(RuntimeError, match="second time"):
        misfit_gradient(once)


def test_two_solvers_pull_on_one_step() -> None:
    """As the documentation of `Step` says of a solver that combines others."""

    class Both(Solver):
        @property
        def needs_graph(self) -> bool:
            return True

        def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
            kept = replace(step, keep_graph=True)
            return 0.5 * (
                DPS(0.002, guard=False).step(kept, None)[0] + DPS(0.004, guard=False).step(kept, None)[0]
            ), carry

    def run(solver: Solver) -> Tensor:
        _, problem = counted(DDIM())
        return [trace.x_s for trace in sample(problem, solver, [300.0, 100.0])][-1]

    one = DPS(0.003, guard=False, grid="schedule")  # from noise, as `Both`
    torch.testing.assert_close(run(Both()), run(one), rtol=1e-12, atol=1e-12)
