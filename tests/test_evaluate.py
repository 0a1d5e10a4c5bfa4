"""The evaluation: what a run computes, and that nothing finished is lost whatever happens to it."""

from __future__ import annotations

import errno
import importlib.metadata
import math
import os
import re
import shutil
import sqlite3
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cmidiff import files
from cmidiff.config import build
from cmidiff.evaluate import config as configuration
from cmidiff.evaluate import estimate, scores
from cmidiff.evaluate.config import Config, load, override
from cmidiff.evaluate.database import Results, RunError, Writer
from cmidiff.evaluate.engine import Engine, Local
from cmidiff.evaluate.grid import open_image
from cmidiff.evaluate.records import Unit
from cmidiff.evaluate.run import Options, Unwritable, evaluate
from cmidiff.evaluate.setup import compare, list_cells, resolve, setup
from cmidiff.evaluate.work import Done, Job, compute, make_seed
from cmidiff.images import encode_image
from cmidiff.metrics import psnr
from cmidiff.moments import SecondMoments
from cmidiff.prior import NetworkPrior
from cmidiff.prior.base import Denoiser
from cmidiff.schedule import DDPM
from cmidiff.sources import list_sources

pytestmark = pytest.mark.usefixtures("without_weights")
SIDE = 16
SCHEDULE = DDPM.linear()
GRID: dict[str, Any] = {
    "tasks": ["inpaint-random:hidden=0.5", "super-resolution:factor=2"],
    "solvers": ["dps", "pigdm"],
    "steps": (4,),
    "samples": 3,
}
UNITS_PER_IMAGE = 8


def gaussian(x_t: Tensor, t: Tensor) -> Tensor:
    """``E[eps | x_t]`` for pixels N(0, 0.25)."""
    alpha_t, sigma_t = SCHEDULE(float(t[0]))
    return sigma_t * x_t / (alpha_t**2 / 4 + sigma_t**2)


def exploding(x_t: Tensor, t: Tensor) -> Tensor:
    return gaussian(x_t, t) + math.inf


def prior_of(network: Callable[[Tensor, Tensor], Tensor] = gaussian) -> NetworkPrior:
    moments = SecondMoments(torch.zeros(3), torch.full((3, 16, 16), 0.25, dtype=torch.float64))
    return NetworkPrior(network, "eps", SCHEDULE, second_moments=moments)


def write_noise(path: Path, seed: int, side: int = SIDE) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for k in range(3):
        write_noise(tmp_path / "images" / f"im{k}.png", k)
    return tmp_path / "images"


def benchmark(images: Path, **given: Any) -> Config:
    return override(None, {"images": images, **GRID, **given})


def filled(config: Config, out: Path, prior: Denoiser | None = None, engine: Engine | None = None, **options: Any):
    return evaluate(config, prior or prior_of(), engine or Local(), Options(out, **options))


@dataclass
class Spy:
    """The local engine, which remembers its jobs and may stop before one of them."""

    stop_before: int = 10**9

    def run(self, jobs: Iterable[Job], prior: Denoiser) -> Iterator[Done]:
        self.units: list[Unit] = []
        for number, job in enumerate(jobs):
            if number == self.stop_before:
                raise KeyboardInterrupt
            self.units += job.units
            yield compute(job, prior, "cpu")


def contents(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All tables of a run that two runs of one configuration share, whatever was interrupted: sorted, less timing,
    attempts, the time of creation and the machine."""
    found = {}
    with closing(sqlite3.connect(folder / "results.sqlite")) as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            names = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            left_out = {"seconds", "finished", "worker", "attempts"} if table == "unit" else set()
            where = "WHERE key NOT IN ('created', 'machine')" if table == "run" else ""
            columns = ", ".join(name for name in names if name not in left_out)
            found[table] = sorted(database.execute(f"SELECT {columns} FROM {table} {where}"), key=repr)
    return found


# configuration


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "benchmark.toml"
    path.write_text(text)
    return path


TABLES = '[[tasks]]\ntask = "denoise"\n[[solvers]]\nsolver = "dps"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sampels = 2\n" + TABLES, "the configuration has no option 'sampels': did you mean samples"),
        ('samples = "2"\n' + TABLES, "samples must be a whole number, received '2'"),
        ("steps = [1.5]\n" + TABLES, "steps must be a whole number, received 1.5"),
        ("seeds = [0, 0]\n" + TABLES, "need values, each once"),
        ('cmi = ["maybe"]\n' + TABLES, "cmi must be 'off' or 'on', received 'maybe'"),
        ("eta = 0.0\n" + TABLES, "eta must be finite and not 0"),
        ("tasks = 3", "tasks must be tables"),
        ("[[tasks]]\nfactor = 4\n", "an entry of [[tasks]]: task is missing"),
        (TABLES + TABLES, "task denoise is there twice: give one of them another label"),
        (TABLES + '[[settings]]\ntask = "denoise"\nsolver = "mcg"\n', "the run has no such pair"),
        ('[[tasks]]\ntask = "denoise"\n', "no solver: give --solvers"),
        ("steps = = 3", "not valid TOML"),
    ],
)
def test_a_configuration_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": ["super-resolutoin"]}, "did you mean super-resolution?"),
        ({"tasks": ["denoise:factor=3"]}, "task denoise has no parameter 'factor'"),
        ({"solvers": ["dsp"]}, "unknown solver 'dsp': did you mean"),
        ({"solvers": ["dps:rate=1"]}, "has no option 'rate': choose one of scale"),
        ({"solvers": ["dps:scale=-1"]}, "scale"),
        ({"cmi_options": {"prob": 1}}, "[cmi_options] has no option 'prob': did you mean probe"),
    ],
)
def test_unknown_names_are_refused_before_anything_is_written(
    images: Path, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        filled(benchmark(images, **given), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_most_particular_setting_counts() -> None:
    config = build(
        Config,
        {
            "eta": 0.5,
            "tasks": [{"task": "denoise"}, {"task": "super-resolution"}],
            "solvers": [{"solver": "dps", "scale": 3}, {"solver": "mcg", "eta": [0.2, 0.3]}],
            "settings": [{"task": "denoise", "solver": "dps", "scale": 7, "eta": 0.1}],
        },
        "the configuration",
        Path(),
    )
    found = {(c.task, c.solver, c.eta): setup(config, c) for c in list_cells(config)}
    assert [key[2] for key in found if key[:2] == ("denoise", "dps")] == [0.0, 0.1]
    assert [key[2] for key in found if key[:2] == ("super-resolution", "dps")] == [0.0, 0.5]
    assert [key[2] for key in found if key[:2] == ("denoise", "mcg")] == [0.0, 0.2, 0.3]
    assert found["denoise", "dps", 0.1].solver.scale == 7  # pyright: ignore[reportAttributeAccessIssue]
    assert found["super-resolution", "dps", 0.5].solver.scale == 3  # pyright: ignore[reportAttributeAccessIssue]
    assert found["denoise", "dps", 0.0].correction is None
    assert found["denoise", "dps", 0.1].correction.eta == 0.1  # pyright: ignore[reportOptionalMemberAccess]


def test_a_tuned_preset_is_a_solver(tmp_path: Path, images: Path) -> None:
    from cmidiff import CMI, DDIM, DPS
    from cmidiff.tuning.preset import Preset, save_preset

    save_preset(tmp_path / "dps.toml", Preset(DPS(6.5), CMI(-0.25, every=2), DDIM(1.0), 4))
    text = 'steps = 4\n[[tasks]]\ntask = "denoise"\n[[solvers]]\nsolver = "dps"\npreset = "dps.toml"\n'
    config = load(written(tmp_path, text))
    before = resolve(config)
    save_preset(tmp_path / "dps.toml", Preset(DPS(9.0), CMI(-0.5), DDIM(0.5), 4))
    assert resolve(config) == before, "an edit during the run changes nothing"
    base, corrected = (setup(config, c) for c in list_cells(config))
    assert base == (DPS(6.5), None, DDIM(1.0))
    assert corrected == (DPS(6.5), CMI(-0.25, every=2), DDIM(1.0))
    with pytest.raises(ValueError, match="at 4 steps, the run takes DPS at \\[5\\]"):
        resolve(override(config, {"steps": (5,)}))
    with pytest.raises(ValueError, match="preset must be a path"):
        load(written(tmp_path, text.replace('"dps.toml"', "3")))


def test_the_paper_s_table() -> None:
    config = load("presets/cmi-paper")
    tasks = {t["label"]: t for t in resolve(config)["tasks"]}
    assert tasks["inpaint-box"]["size"] == 128
    assert tasks["inpaint-random"]["hidden"] == 0.9
    assert tasks["super-resolution"]["factor"] == 4
    assert (tasks["deblur-gaussian"]["kernel_size"], tasks["deblur-gaussian"]["std"]) == (61, 5.0)
    assert (tasks["deblur-motion"]["kernel_size"], tasks["deblur-motion"]["intensity"]) == (61, 0.5)
    assert all(task["noise_std"] == 0.05 for task in tasks.values())
    assert config.solver_labels == ["dps", "pigdm", "mcg", "dsg", "cadps"]
    assert (config.size, config.limit, config.steps, config.cmi) == (256, 1000, (1000,), ("off", "on"))
    assert len(list_cells(config)) == 5 * 5 * 2
    assert {(c.task, c.solver, c.cmi) for c in list_cells(load("embedded"))} == {
        (c.task, c.solver, c.cmi) for c in list_cells(config)
    }


def test_a_difference_names_what_differs(images: Path) -> None:
    before, now = (resolve(benchmark(images, samples=n, solvers=[f"dps:scale={n}"])) for n in (1, 2))
    lines = compare(before, now)
    assert "samples: 1 -> 2" in lines
    assert "cells.super-resolution, dps, base, 4 steps.solver.scale: 1 -> 2" in lines
    assert compare(before, before | {"images": "elsewhere"}) == []


# images


def test_images_of_an_archive_are_those_of_the_folder(images: Path, tmp_path: Path) -> None:
    write_noise(images / "sub" / "im9.png", 9)
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for path in sorted(images.rglob("*.png"), reverse=True):
            tar.add(path, path.relative_to(images).as_posix())
    from_folder, from_tar = ([open_image(s, SIDE) for s in list_sources(p)] for p in (images, tmp_path / "images.tar"))
    assert [row for row, _ in from_folder] == [row for row, _ in from_tar]
    assert [row.name for row, _ in from_folder] == ["im0", "im1", "im2", "sub/im9"]
    for (_, a), (_, b) in zip(from_folder, from_tar, strict=True):
        assert a is not None
        assert b is not None
        assert np.array_equal(a, b)
    assert [s.name for s in list_sources(images, offset=1, limit=2)] == ["im1", "im2"]


def test_an_image_is_its_middle_square_shrunk(tmp_path: Path) -> None:
    values = np.zeros((8, 24, 3), dtype=np.uint8)
    values[:, 8:16] = 200
    Image.fromarray(values).save(tmp_path / "wide.png")
    ((row, pixels),) = (open_image(s, 4) for s in list_sources(tmp_path))
    assert (row.width, row.height) == (4, 4)
    assert pixels is not None
    assert torch.equal((pixels * 255).round(), torch.full((3, 4, 4), 200.0))
    ((row, pixels),) = (open_image(s, 9) for s in list_sources(tmp_path))
    assert pixels is None
    assert row.error == "the image wide.png cannot be used: it has 24x8 pixels, less than the size 9"


def test_images_that_cannot_be_told_apart_or_found_are_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no image"):
        list_sources(tmp_path / "empty")
    with pytest.raises(ValueError, match="does not exist"):
        list_sources(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither a folder nor a tar archive"):
        list_sources(images / "im0.png")
    with pytest.raises(ValueError, match="holds 3 images, not 2 after the first 2: ask for fewer"):
        list_sources(images, offset=2, limit=2)
    shutil.copy(images / "im1.png", images / "IM1.jpg")
    with pytest.raises(ValueError, match=r"two images in .* \(im1.png and IM1.jpg\)|\(IM1.jpg and im1.png\)"):
        list_sources(images)


# scores


def test_lpips_sees_the_levels_that_are_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Halfway between two levels, float32 and float64 can round apart; the file must say what was scored."""
    image = ((torch.arange(243) + 0.5) / 255).reshape(1, 3, 9, 9)
    seen: list[Tensor] = []

    def distance(x: Tensor, truth: Tensor, *, net: str) -> Tensor:
        seen.append(x)
        return torch.zeros(len(x))

    monkeypatch.setattr(scores, "lpips", distance)
    scores.compute_lpips(image, image, "alex")
    (tmp_path / "saved.png").write_bytes(encode_image(image[0]))
    assert torch.equal((seen[0][0] * 255).round().byte(), scores.read_levels(tmp_path / "saved.png"))


# units


def test_a_unit_is_the_same_alone_in_a_batch_and_in_another_order(images: Path, tmp_path: Path) -> None:
    config = benchmark(images)
    filled(config, tmp_path / "all")
    filled(replace(config, offset=1, limit=1, solvers=config.solvers[::-1]), tmp_path / "one")
    filled(config, tmp_path / "batch", batch=3)
    with Results(tmp_path / "all") as every, Results(tmp_path / "one") as one, Results(tmp_path / "batch") as batch:
        expected = {row.unit: row for row in every.units()}
        assert len(expected) == 3 * UNITS_PER_IMAGE
        assert len(one.units()) == UNITS_PER_IMAGE
        for row in one.units():
            assert row.scores == expected[row.unit].scores
        for row in batch.units():
            assert row.scores == pytest.approx(expected[row.unit].scores, rel=1e-4)
            assert row.evaluations == expected[row.unit].evaluations
    path = "restored/super-resolution/pigdm-4steps/im1-seed0/mean.png"
    assert (tmp_path / "all" / path).read_bytes() == (tmp_path / "one" / path).read_bytes()


def test_base_and_cmi_share_problem_and_random_numbers(images: Path, tmp_path: Path) -> None:
    """With a vanishing strength CMI is its base; units that differ in the image, task or seed share nothing."""
    filled(benchmark(images, eta=(1e-9,), seeds=(0, 1)), tmp_path / "run")
    with Results(tmp_path / "run") as results:
        by_unit = {row.unit: row.scores for row in results.units()}
    for unit, found in by_unit.items():
        base = by_unit[unit._replace(cmi=False, eta=0.0)]
        assert found == pytest.approx(base, rel=1e-4)
        other = by_unit[unit._replace(seed=1 - unit.seed)]
        assert abs(other["psnr"] - found["psnr"]) > 1e-3
    units = list(by_unit)
    for what in ("physics", "noise", "sampler"):
        problems = {(u.image, u.task, u.seed) for u in units}
        assert len({make_seed(what, u) for u in units}) == len(problems)


def test_scores_are_those_of_the_images(images: Path, tmp_path: Path) -> None:
    """Recomputed from the PNG files, up to their eight bits."""
    filled(benchmark(images, limit=1), tmp_path / "run")
    truth = scores.read_levels(tmp_path / "run" / "truth" / "im0.png").double() / 255
    assert torch.equal(
        (truth * 255).byte(), torch.from_numpy(np.array(Image.open(images / "im0.png"))).permute(2, 0, 1)
    )
    with Results(tmp_path / "run") as results:
        for row in results.units():
            samples = (
                torch.stack([scores.read_levels(tmp_path / "run" / row.images[f"sample-{k}"]) for k in range(3)]) / 255
            )
            several = truth.expand(3, -1, -1, -1)
            assert row.scores["psnr"] == pytest.approx(float(psnr(samples.double(), several).mean()), abs=0.05)
            assert row.scores["mean_psnr"] == pytest.approx(
                float(psnr(samples.double().mean(0)[None], truth[None])), abs=0.05
            )
            inside = (samples.min(0).values <= truth) & (truth <= samples.max(0).values)
            assert row.scores["coverage"] == pytest.approx(float(inside.double().mean()), abs=0.02)
            std = torch.from_numpy(np.array(Image.open(tmp_path / "run" / row.images["std"])).astype(float)) / 65535
            assert row.scores["diversity"] == pytest.approx(float(std.mean()), abs=1e-4)


def test_a_diverged_unit_is_a_result(images: Path, tmp_path: Path) -> None:
    counts = filled(benchmark(images, limit=1), tmp_path / "run", prior_of(exploding))
    assert counts == {"pending": 0, "ok": 0, "diverged": UNITS_PER_IMAGE, "failed": 0}
    with Results(tmp_path / "run") as results:
        for row in results.units():
            assert "diverged" in str(row.error)
            assert (row.diverged, row.scores, row.images) == (3, {}, {})


def test_costs_are_counted_as_they_happen(images: Path, tmp_path: Path) -> None:
    config = benchmark(images, limit=1, solvers=["dps", "cadps", "unconditional"])
    filled(config, tmp_path / "run")
    expected = estimate.count_costs(config, SCHEDULE)
    with Results(tmp_path / "run") as results:
        found = {row.unit.cell: row for row in results.units()}
    for cell, cost in expected.items():
        assert (found[cell].evaluations, found[cell].gradients) == (cost.evaluations, cost.gradients)
    at = {(cell.solver, cell.cmi): cost for cell, cost in expected.items()}
    assert at["unconditional", False] == estimate.Cost(4, 0)
    assert at["dps", False] == estimate.Cost(4, 4)
    assert at["dps", True].evaluations > 4


def test_a_curve_sweeps_steps_and_eta(images: Path, tmp_path: Path) -> None:
    config = configuration.as_curve(benchmark(images, limit=1, solvers=["dps"]), (2, 4), (0.1, 0.2))
    filled(config, tmp_path / "run")
    with Results(tmp_path / "run") as results:
        found = {(r.unit.steps, r.unit.eta): r for r in results.units() if r.unit.task == "super-resolution"}
    assert sorted(found) == [(n, eta) for n in (2, 4) for eta in (0.0, 0.1, 0.2)]
    assert [found[n, 0.0].evaluations for n in (2, 4)] == [2, 4]
    assert configuration.as_curve(config, None, None).steps == (20, 50, 100, 250, 1000)


# runs that are stopped, repeated, changed


def test_an_interrupted_run_goes_on_where_it_stopped(images: Path, tmp_path: Path) -> None:
    config = benchmark(images)
    filled(config, tmp_path / "whole")
    first, second = Spy(stop_before=5), Spy()
    with pytest.raises(KeyboardInterrupt):
        filled(config, tmp_path / "parts", engine=first)
    with Results(tmp_path / "parts") as results:
        assert results.counts() == {"pending": 19, "ok": 5, "diverged": 0, "failed": 0}
    filled(config, tmp_path / "parts", engine=second)
    assert len(first.units) == 5
    assert set(first.units).isdisjoint(second.units)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    third = Spy()
    filled(config, tmp_path / "parts", engine=third)
    assert third.units == []


def test_another_configuration_is_refused_with_the_difference(images: Path, tmp_path: Path) -> None:
    config = benchmark(images)
    filled(config, tmp_path / "run")
    before = contents(tmp_path / "run")
    other_prior = NetworkPrior(torch.nn.Identity(), "eps", SCHEDULE)
    for change, prior, message in (
        (benchmark(images, samples=2), None, "samples: 3 -> 2"),
        (
            benchmark(images, tasks=["denoise"]),
            None,
            "tasks without inpaint-random, super-resolution; tasks with denoise",
        ),
        (benchmark(images, noise_std=0.1), None, "noise_std: 0.05 -> 0.1"),
        (config, other_prior, "prior: natural-64"),
        (benchmark(images, limit=2), None, "limit: None -> 2"),
    ):
        with pytest.raises(RunError) as caught:
            filled(change, tmp_path / "run", prior)
        assert message in str(caught.value)
    write_noise(images / "im1.png", 77)
    with pytest.raises(RunError, match="im1 has changed"):
        filled(config, tmp_path / "run")
    (images / "im1.png").unlink()
    with pytest.raises(RunError, match="im1 is gone"):
        filled(config, tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_another_version_is_refused(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the run says of itself stays."""
    config = benchmark(images)
    filled(config, tmp_path / "run")
    before = contents(tmp_path / "run")
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.1" if name == "deepinv" else version(name))
    for extend in (False, True):
        with pytest.raises(RunError, match=rf"deepinv: version {version('deepinv')} -> 99.1"):
            filled(config, tmp_path / "run", extend=extend)
    assert contents(tmp_path / "run") == before


def test_a_run_can_grow(images: Path, tmp_path: Path) -> None:
    small, large = (
        benchmark(images, limit=2, solvers=["dps"], eta=(0.1,)),
        benchmark(images, seeds=(0, 1), eta=(0.1, 0.3)),
    )
    filled(small, tmp_path / "grown")
    spy = Spy()
    with pytest.raises(RunError, match="samples: 3 -> 2"):
        filled(replace(large, samples=2), tmp_path / "grown", extend=True)
    with pytest.raises(RunError, match="--extend"):
        filled(large, tmp_path / "grown")
    filled(large, tmp_path / "grown", engine=spy, extend=True)
    filled(large, tmp_path / "whole")
    assert len(spy.units) == 3 * 2 * 12 - 2 * 4
    with Results(tmp_path / "grown") as grown, Results(tmp_path / "whole") as whole:
        assert {r.unit: r.scores for r in grown.units()} == {r.unit: r.scores for r in whole.units()}


def test_failures_cost_the_others_nothing_and_are_repeated_on_demand(images: Path, tmp_path: Path) -> None:
    broken = True

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        if broken and len(x_t) == 3 and bool(x_t.requires_grad):  # dps and pigdm need a graph
            raise RuntimeError("the network is out of order")
        return gaussian(x_t, t)

    config = benchmark(images, solvers=["dps", "unconditional"], cmi=("off",))
    counts = filled(config, tmp_path / "run", prior_of(network))
    assert counts == {"pending": 0, "ok": 6, "diverged": 0, "failed": 6}
    with Results(tmp_path / "run") as results:
        errors = {row.error for row in results.units() if row.unit.solver == "dps"}
    assert errors == {"RuntimeError: the network is out of order"}
    assert "Traceback" in (tmp_path / "run" / "run.log").read_text()
    broken = False
    assert filled(config, tmp_path / "run", prior_of(network))["failed"] == 6
    assert filled(config, tmp_path / "run", prior_of(network), retry_failed=True)["ok"] == 12
    filled(config, tmp_path / "whole", prior_of(network))
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    with Results(tmp_path / "run") as results:
        assert {row.unit.solver: row.attempts for row in results.units()} == {"dps": 2, "unconditional": 1}


def test_one_image_of_a_batch_that_fails_costs_the_others_nothing(images: Path, tmp_path: Path) -> None:
    config = benchmark(images, tasks=["compressed-sensing"])  # its signs do not go into a batch
    assert filled(config, tmp_path / "batch", batch=3)["ok"] == 12
    filled(config, tmp_path / "single")
    assert contents(tmp_path / "batch") == contents(tmp_path / "single")


def test_a_corrupt_image_fails_by_name_and_can_be_mended(images: Path, tmp_path: Path) -> None:
    good = (images / "im1.png").read_bytes()
    (images / "im1.png").write_bytes(good[: len(good) // 2])
    (images / "im2.png").write_bytes(b"")
    config = benchmark(images)
    assert filled(config, tmp_path / "run") == {"pending": 0, "ok": 8, "diverged": 0, "failed": 16}
    with Results(tmp_path / "run") as results:
        assert {row.name for row in results.images() if row.error} == {"im1", "im2"}
        for row in results.units():
            assert (row.status == "failed") == (row.unit.image != "im0")
            assert row.error is None or f"{row.unit.image}.png cannot be used" in row.error
    (images / "im1.png").write_bytes(good)
    write_noise(images / "im2.png", 2)
    assert filled(config, tmp_path / "run", retry_failed=True)["ok"] == 24
    filled(config, tmp_path / "whole")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    for path in images.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(RunError, match=r"none of the 3 images can be used; the first: the image im0\.png"):
        filled(config, tmp_path / "none")


def test_a_task_that_suits_no_image_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="task inpaint-box does not suit the images"):
        filled(benchmark(images, tasks=["inpaint-box:size=128"]), tmp_path / "run")


def test_there_is_one_writer(images: Path, tmp_path: Path) -> None:
    with Writer(tmp_path / "run"), pytest.raises(RunError, match="another process is writing"):
        filled(benchmark(images), tmp_path / "run")
    filled(benchmark(images, limit=1), tmp_path / "run")
    with Writer(tmp_path / "run") as writer, Results(tmp_path / "run") as results:
        assert results.units() == writer.units()


def test_other_databases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        Results(tmp_path)
    Writer(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "results.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    for open_it in (Results, Writer):
        with pytest.raises(RunError, match="schema 99, this version of cmidiff reads schema 3"):
            open_it(tmp_path)
    (tmp_path / "results.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(RunError, match="is no database of a run"):
        Results(tmp_path)


# a full disk


def test_a_full_disk_keeps_what_is_finished(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = benchmark(images)
    filled(config, tmp_path / "whole")
    written, write = 0, files.write

    def full(path: Path, data: bytes, command: str = "") -> None:
        nonlocal written
        written += 1
        if written > 40:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data, command)

    monkeypatch.setattr(files, "write", full)
    with pytest.raises(Unwritable, match=r"the disk is full\. Finished units remain"):
        filled(config, tmp_path / "run")
    with Results(tmp_path / "run") as results:
        assert 0 < results.counts()["ok"] < 24
        _check_files(tmp_path / "run")
    monkeypatch.setattr(files, "write", write)
    filled(config, tmp_path / "run")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def _check_files(folder: Path) -> None:
    """Every recorded image is there, whole."""
    import hashlib

    for _, _, path, digest in contents(folder)["output"]:
        assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == digest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode != 0:
        pytest.skip("a small tmpfs cannot be mounted here (it needs root)")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_tmpfs_keeps_what_is_finished(images: Path, tmp_path: Path, small_disk: Path) -> None:
    config = benchmark(images)
    filled(config, tmp_path / "whole")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(190 * 1024))
    with pytest.raises(Unwritable, match="the disk is full"):
        filled(config, small_disk / "run")
    with Results(small_disk / "run") as results:
        assert 0 < results.counts()["ok"] < 24
    _check_files(small_disk / "run")
    ballast.unlink()
    shutil.copytree(small_disk / "run", tmp_path / "moved")
    filled(config, tmp_path / "moved")
    assert contents(tmp_path / "moved") == contents(tmp_path / "whole")
