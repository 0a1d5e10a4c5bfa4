"""The wrappers of other packages: their units and schedules, tried where the posterior is known, and the search."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cmidiff import GaussianMixture
from cmidiff.evaluate.work import Counted
from cmidiff.tuning.problem import Images, measure_images

pytest.importorskip("azula")
SHAPE = (3, 8, 8)
pytestmark = [
    pytest.mark.usefixtures("without_weights"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture
def peers(load_benchmark: Callable[[str], Any]) -> Any:
    return load_benchmark("peers")


class OfImages(GaussianMixture):
    """A mixture whose states are images in [-1, 1]."""

    value_range = (-1.0, 1.0)


def gaussian() -> GaussianMixture:
    """Pixels N(0.2, 0.3^2)."""
    mean = torch.full((1, *SHAPE), 0.2)
    return OfImages(torch.ones(1), mean, torch.full((1, *SHAPE), 0.09))


def images(count: int = 2) -> Images:
    x = 0.2 + 0.3 * torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))
    return Images(tuple(f"{i}.png" for i in range(count)), tuple(range(count)), (x + 1) / 2)


def case(peers: Any, task: str = "inpaint-random", evaluations: int = 6, **parameters: Any) -> Any:
    parameters = parameters or {"hidden": 0.5}
    problem = measure_images(images(1), task, parameters | {"noise_std": 0.1})
    return peers.Case(Counted(gaussian()), problem, evaluations, 2)


def test_azula_sees_the_same_posterior_mean(peers: Any) -> None:
    """MMPS is exact for a Gaussian prior and enough iterations: units, noise and schedule are right together."""
    own = case(peers)
    flat = peers.Flat(own)
    covariance = peers.IsotropicCovariance(torch.tensor(flat.noise_std**2))
    guided = peers.MMPSDenoiser(flat.denoiser, flat.y, flat.A, covariance, iterations=8)
    t = torch.tensor(0.4)
    alpha, sigma = own.prior.schedule(1000 * 0.4 - 1)  # the times of the prior go from 999 to -1
    assert [float(v) for v in flat.denoiser.schedule(t)] == pytest.approx([alpha, sigma])
    x_t = torch.randn(2, 192, generator=torch.Generator().manual_seed(1))
    mask = own.problem.physics.mask.expand(1, *SHAPE).flatten()
    y = 2 * own.problem.y.flatten() - mask  # of images in [-1, 1], with twice the noise
    precision = 1 / 0.09 + alpha**2 / sigma**2 + mask / 0.04
    expected = (0.2 / 0.09 + alpha * x_t / sigma**2 + mask * y / 0.04) / precision
    torch.testing.assert_close(guided(x_t, t).mean, expected, atol=1e-4, rtol=1e-4)


def test_deepinv_sees_the_same_denoiser(peers: Any) -> None:
    x, sigma = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1)), 0.25
    found = peers.DeepinvDenoiser(gaussian())(x, torch.tensor([sigma]))
    expected = (x / sigma**2 + 0.6 / 0.15**2) / (1 / sigma**2 + 1 / 0.15**2)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


def test_the_noise_levels_of_deepinv_are_those_of_the_prior(peers: Any) -> None:
    sde, schedule = peers.VariancePreservingDiffusion(alpha=1.0, dtype=torch.float32), gaussian().schedule
    for t in (0.2, 0.5, 1.0):
        alpha, sigma = schedule(1000 * t - 1)
        assert float(sde.sigma_t(t)) == pytest.approx(sigma / alpha, rel=0.04)


OURS = ["cmidiff pigdm", "cmidiff mmps"]
AZULA = [f"azula {name}" for name in ("DPS", "PGDM", "MMPS", "TMPD", "DiffPIR", "TDS")]
DEEPINV = [f"deepinv {name}" for name in ("DPS", "PiGDM", "DiffPIR", "DDRM")]


@pytest.mark.parametrize("name", OURS + AZULA + DEEPINV)
def test_every_method_restores_within_its_budget(peers: Any, name: str) -> None:
    method, problem = peers.METHODS[name], case(peers).problem
    values = peers.propose(method.free, 1)[0]
    found = peers.run(method, gaussian(), problem, 12, 2, **values)
    assert "error" not in found, found
    assert 10 <= found["evaluations"] <= 12
    assert found["psnr"] > 8
    again = peers.run(method, gaussian(), problem, 12, 2, **values)
    assert again["crps"] == found["crps"]


def test_what_a_method_refuses_is_said(peers: Any) -> None:
    def refuse(case: Any) -> torch.Tensor:
        raise ValueError("needs another image\nand more")

    found = peers.run(peers.Method("x", refuse), gaussian(), case(peers).problem, 4, 2)
    assert found == {"error": "ValueError: needs another image"}


def test_every_search_has_the_same_budget_and_starts_at_the_own_values(peers: Any) -> None:
    for method in peers.METHODS.values():
        points = peers.propose(method.free, 5)
        assert len(points) == (5 if method.free else 1)
        for name, (start, low, high) in method.free.items():
            assert points[0][name] == start
            assert all(low <= point[name] <= high for point in points)
    assert peers.propose(peers.METHODS["azula DPS"].free, 5) == peers.propose(peers.METHODS["azula DPS"].free, 5)


def test_finished_cells_are_kept_and_a_torn_line_is_computed_again(peers: Any, tmp_path: Path) -> None:
    path, calls = tmp_path / "cells.jsonl", []

    def compute(i: int) -> int:
        calls.append(i)
        return i

    for i in (0, 1, 1):
        assert peers.Ledger(path).once({"i": i}, lambda i=i: compute(i)) == i
    assert calls == [0, 1]
    path.write_bytes(path.read_bytes()[:-5])
    assert peers.Ledger(path).once({"i": 1}, lambda: compute(7)) == 7
    assert [json.loads(line)["value"] for line in path.read_text().splitlines() if line.endswith("}")] == [0, 7]


def test_the_report_takes_the_best_values_of_other_images(peers: Any, tmp_path: Path) -> None:
    bench = peers.Bench(peers.Ledger(tmp_path / "cells.jsonl"), gaussian(), images(3), 0.1, 2)
    peers.TASKS["inpaint-random"] = {"hidden": 0.5}
    chosen = bench.best("inpaint-random", "azula DPS", 4, 3, range(1))
    scores = {
        zeta["zeta"]: bench.cell("inpaint-random", "azula DPS", 4, zeta, 0)["crps"]
        for zeta in peers.propose(peers.METHODS["azula DPS"].free, 3)
    }
    assert chosen["zeta"] == min(scores, key=lambda zeta: scores[zeta])
