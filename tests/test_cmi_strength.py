"""The measurement of CMI's strength: a cell that is finished is kept, and differences are of the same images."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from cmidiff import CMI, DPS
from cmidiff.images import write_image
from cmidiff.tuning.problem import measure_images, restore_problem
from tests.test_tuning import images, prior

FILE = Path(__file__).resolve().parent.parent / "benchmarks" / "cmi_strength.py"
CHOICES = {"task": "inpaint-random", "solver": "dps", "steps": "4", "eta": "-0.3,0,0.3", "weight": "reverse-sde,snr"}
CHOICES |= {"low": "0", "high": "3.5", "cap": "0.5", "every": "1", "covariance": "isotropic"}
CHOICES |= {"contraction": "finite-difference", "direction": "gradient"}

pytestmark = pytest.mark.usefixtures("without_weights")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("cmi_strength", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "cmi_strength", module)
    spec.loader.exec_module(module)
    return module


def test_the_base_stands_once_and_first(bench: ModuleType) -> None:
    settings = list(bench.grid(**CHOICES))
    assert [(s.eta, s.weight) for s in settings] == [
        (0.0, "reverse-sde"),
        (-0.3, "reverse-sde"),
        (-0.3, "snr"),
        (0.3, "reverse-sde"),
        (0.3, "snr"),
    ]
    assert all(s.base == settings[0] for s in settings)
    assert bench.cmi_of(settings[0]) is None
    expected = CMI(eta=-0.3, weight="snr", window=(0.0, 3.5), cap=0.5, contraction="finite-difference")
    assert bench.cmi_of(settings[2]) == expected
    assert bench.solver_of("dps", 50) == DPS(0.2)


def test_the_control_moves_as_far_and_elsewhere(bench: ModuleType) -> None:
    problem = measure_images(images(2), "inpaint-random", {"hidden": 0.5, "noise_std": 0.1})
    moves: dict[str, Any] = {}
    for direction in ("gradient", "random"):
        *_, setting = bench.grid(**CHOICES | {"eta": "0.3", "weight": "snr", "direction": direction})
        kept = moves.setdefault(direction, [])

        class Watched(DPS):
            """DPS that keeps what CMI has moved."""

            def step(self, step: Any, carry: Any, kept: list[Any] = kept) -> Any:
                kept.append(step.correction)
                return super().step(step, carry)

        restore_problem(problem, prior(), Watched(0.0012), bench.cmi_of(setting), steps=12)
    assert any(move is not None for move in moves["gradient"])
    first, control = (next(m for m in moves[name] if m is not None) for name in ("gradient", "random"))
    torch.testing.assert_close(control.flatten(1).norm(dim=1), first.flatten(1).norm(dim=1))
    assert float(torch.nn.functional.cosine_similarity(control.flatten(1), first.flatten(1)).abs().max()) < 0.2


def test_finished_cells_are_kept_and_a_torn_line_is_not_read(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    for name, truth in zip(images(4).names, images(4).truth, strict=True):
        write_image(tmp_path / "images" / name, truth)
    monkeypatch.setattr("cmidiff.load_prior", lambda name, device: prior(), raising=False)
    ran: list[Any] = []
    run_cell = bench.run_cell

    def counted(setting: Any, *others: Any) -> Any:
        ran.append((setting.eta, others[0].index))
        return run_cell(setting, *others)

    monkeypatch.setattr(bench, "run_cell", counted)
    settings, out = list(bench.grid(**CHOICES | {"weight": "reverse-sde"})), tmp_path / "out" / "figures.csv"

    def run(last: int) -> None:
        bench._run(settings, tmp_path / "images", range(last), 2, "three-images", "cpu", out)

    run(2)
    assert ran == [(0.0, (0, 1)), (-0.3, (0, 1)), (0.3, (0, 1))]
    whole = bench.done(out)
    out.write_bytes(out.read_bytes()[:-30])
    assert len(bench.done(out)) == 5
    ran.clear()
    run(4)
    assert ran == [(0.3, (0, 1)), (0.0, (2, 3)), (-0.3, (2, 3)), (0.3, (2, 3))]
    again = bench.done(out)
    assert len(again) == 12
    for key, figures in whole.items():
        assert again[key]["psnr"] == pytest.approx(figures["psnr"])


def test_differences_are_of_the_images_that_both_have(bench: ModuleType) -> None:
    base, other = list(bench.grid(**CHOICES | {"eta": "0.3", "weight": "snr"}))
    row = {"ssim": 0.5, "crps": 0.05, "lpips": float("nan"), "ok": 1.0}
    figures = {(base, i): row | {"psnr": 20.0 + i} for i in range(4)}
    figures |= {(other, i): row | {"psnr": 21.0 + i} for i in (1, 3, 7)}
    mean, difference = bench.compared(figures, other, "psnr")
    assert (mean, difference.mean, difference.half, difference.n) == (23.0, 1.0, 0.0, 2)
    assert bench.compared(figures, other, "lpips") is None
    assert "| dps | 0.3 | 2 | 23.00 | +1.000 ± 0.000* | 0.500 | +0.0000 ± 0.0000 | 0.0500 |" in bench.report(figures)
    assert "LPIPS" not in bench.report(figures)
