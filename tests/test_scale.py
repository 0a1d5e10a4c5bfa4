"""Step sizes that change along the run."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch

from cmidiff import DPS, MCG, Ramp, restore
from cmidiff.solvers import misfit_gradient
from tests.cases import F64, matrix_physics, measured, mixture, randn, rows, step_at

pytestmark = pytest.mark.filterwarnings("ignore::cmidiff.result.RestorationWarning")  # runs of few steps


def the_step(draws_seed: int = 0):
    prior = mixture(6)
    a = randn(3, 6, seed=5)
    measurement = measured(a, randn(2, 3, seed=6), 0.3)
    return step_at(prior, measurement, randn(2, 6, seed=7), 400.0, 350.0, draws=rows(2, draws_seed))


def test_ramp_has_its_ends_and_the_geometric_mean_where_noise_equals_signal() -> None:
    ramp = Ramp(8.0, 0.5)
    assert ramp(0.0) == 0.5
    assert ramp(1e12) == pytest.approx(8.0)
    assert ramp(1.0) == pytest.approx(math.sqrt(8.0 * 0.5))
    assert ramp(math.tan(math.pi / 8)) == pytest.approx(8.0**0.25 * 0.5**0.75)


@pytest.mark.parametrize("solver", [DPS, MCG])
def test_a_function_scales_the_gradient_by_its_value_at_the_noise_level(solver: type[DPS] | type[MCG]) -> None:
    step = the_step()
    zeta = 0.2 + step.ratio
    x_s = solver(lambda ratio: 0.2 + ratio, guard=False).step(step, None)[0]
    assert torch.equal(x_s, solver(zeta, guard=False).step(the_step(), None)[0])
    if solver is DPS:
        torch.testing.assert_close(step.advance()[0] - x_s, zeta * misfit_gradient(step))


def test_a_level_ramp_is_the_constant_in_a_whole_run() -> None:
    y, physics, prior = randn(2, 3, seed=1), matrix_physics(randn(3, 6, seed=5), (6,), 0.3), mixture(6)

    def run(scale: float | Ramp) -> torch.Tensor:
        return restore(y, physics, prior, solver=DPS(scale), steps=8, value_range=None).samples

    torch.testing.assert_close(run(Ramp(2.4e-3, 2.4e-3)), run(2.4e-3), rtol=1e-9, atol=1e-9)
    late, early = run(Ramp(8e-5, 8e-3)), run(Ramp(8e-3, 8e-5))
    assert late.dtype == F64
    assert (late - early).abs().max() > 1e-2


@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, -1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_ramps_that_cannot_be_meant_are_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"(start and end|end) must be (numbers > 0|a number)"):
        Ramp(*ends)


def test_a_solver_is_described_alike_in_every_process():
    """By the name of a function it holds, not by where the function lies in memory: runs are resumed by it."""
    names = "import json; from cmidiff import MCG; from cmidiff.registry import describe"
    code = f"{names}; from cmidiff.solvers.mcg import project; print(json.dumps(describe(MCG(project=project))))"
    texts = {subprocess.check_output([sys.executable, "-c", code], text=True) for _ in range(2)}
    assert [json.loads(text)["project"] for text in texts] == ["cmidiff.solvers.mcg.project"]
