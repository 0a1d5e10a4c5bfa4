"""The controls of CMI: what a temperature multiplies, and that verdicts are paired and of other images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmidiff import CMI, DDIM, Ancestral, PiGDM
from cmidiff.samplers import Renoise
from cmidiff.solvers import Unconditional
from cmidiff.tuning.problem import measure_images, restore_problem
from tests.test_tuning import images, prior

pytestmark = [
    pytest.mark.usefixtures("without_weights"),
    pytest.mark.filterwarnings("ignore::cmidiff.result.RestorationWarning"),
]


@pytest.fixture
def controls(load_benchmark: Callable[[str], Any]) -> Any:
    return load_benchmark("cmi_controls")


@pytest.mark.parametrize("inner", [Ancestral(), DDIM(eta=1.0), Renoise()])
def test_a_temperature_multiplies_the_noise_and_nothing_else(controls: Any, inner: Any) -> None:
    problem = measure_images(images(1), "inpaint-random", {"hidden": 0.5, "noise_std": 0.1})

    def last(sampler: Any) -> torch.Tensor:
        return restore_problem(problem, prior(), Unconditional(), None, steps=3, sampler=sampler).samples

    torch.testing.assert_close(last(controls.Tempered(inner, 1.0)), last(inner))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watched(controls.Tempered):
        def advance(self, step: Any, estimate: Any, carry: Any) -> Any:
            x_s, carry = super().advance(step, estimate, carry)
            seen.append((x_s - step.mean(estimate(step)), inner.std(step) * step.z))
            return x_s, carry

    restore_problem(problem, prior(), Unconditional(), None, steps=4, sampler=Watched(inner, 1.3))
    assert len(seen) == 4
    for tempered, plain in seen:
        torch.testing.assert_close(tempered, 1.3 * plain, atol=1e-5, rtol=1e-4)
    assert any(float(plain.abs().max()) > 0.01 for _, plain in seen)


def test_variants_are_what_they_say(controls: Any) -> None:
    assert controls.Variant("cmi", -0.3).cmi == CMI(eta=-0.3)
    assert controls.Variant("none").cmi is None
    moments = controls.Variant("cmi, moments", 0.1).cmi
    assert type(moments.sigma.choose(1.0)).__name__ == "SecondMoments"
    assert type(moments.sigma.choose(0.3)).__name__ == "Isotropic"
    assert controls.Variant("noise", 1.1).sampler(PiGDM()) == controls.Tempered(Ancestral(), 1.1)
    assert str(controls.Variant("churn", 5.0)) == "churn 5"


def rows(psnr: np.ndarray, energy: np.ndarray) -> list[dict[str, float]]:
    return [{"psnr": float(p), "energy": float(e)} for p, e in zip(psnr, energy, strict=True)]


def test_verdicts_see_a_gain_that_a_temperature_explains(controls: Any) -> None:
    """CMI trades PSNR for energy at the rate of the noise: it helps, and not more than the noise."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1, 40)  # images differ far more than variants
    v = controls.Variant

    def at(shift: float) -> list[dict[str, float]]:
        jitter = rng.normal(0, 0.001, (2, 40))
        return rows(25 + hard - shift + jitter[0], 4 + 0.3 * hard - 0.2 * shift + jitter[1])

    found = {v("none"): at(0), v("cmi", 0.1): at(0.3), v("cmi", 0.3): at(0.5), v("cmi, moments", 0.1): at(-0.2)}
    found |= {v("noise", f): at(s) for f, s in ((0.95, -0.5), (1.05, 1.0))} | {v("steps", 75): at(0.5)}
    said = {(name, question): controls.word(gap) for name, question, gap in controls.verdicts(found)}
    assert said["cmi 0.3", "distribution"] == "better"
    assert said["cmi, moments 0.1", "distribution"] == "worse"
    gaps = {(name, question): gap for name, question, gap in controls.verdicts(found)}
    assert gaps["cmi 0.3", "temperature"][0] == pytest.approx(0, abs=2e-3)
    assert gaps["cmi 0.3", "cost"][0] == pytest.approx(0, abs=2e-3)
    better = found | {v("cmi", 0.3): rows(*np.array([[r["psnr"], r["energy"] - 0.05] for r in at(0.5)]).T)}
    assert {(n, q): controls.word(g) for n, q, g in controls.verdicts(better)}["cmi 0.3", "temperature"] == "better"


def test_more_steps_cost_what_cmi_costs(controls: Any, tmp_path: Path) -> None:
    controls.TASKS["inpaint-random"] = {"hidden": 0.5}
    bench = controls.Bench(controls.Ledger(tmp_path / "c.jsonl"), prior(), images(2), 0.1, 6, 2)
    found = bench.compute("inpaint-random", "pigdm", [0.1], [1.05], [2.0])
    spent = {v: row[0]["evaluations"] for v, row in found.items()}
    (more,) = (v for v in found if v.kind == "steps")
    assert spent[more] == pytest.approx(spent[controls.Variant("cmi", 0.1)], abs=1)
    again = controls.Bench(controls.Ledger(tmp_path / "c.jsonl"), prior(), images(2), 0.1, 6, 2)
    lines = (tmp_path / "c.jsonl").read_text()
    assert again.compute("inpaint-random", "pigdm", [0.1], [1.05], [2.0]) == found
    assert (tmp_path / "c.jsonl").read_text() == lines
