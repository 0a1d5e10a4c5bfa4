"""The evaluation at the command line and across processes: kills, Ray, exit codes, features of networks."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner, Result

from cmidiff import load_prior
from cmidiff.app import evaluation
from cmidiff.app.cli import app
from cmidiff.evaluate import run, scores
from cmidiff.evaluate.config import Config, load, override
from cmidiff.evaluate.database import Results
from cmidiff.evaluate.engine import Engine, Local, Ray
from cmidiff.evaluate.run import Options, evaluate
from tests.test_evaluate import contents

pytestmark = pytest.mark.usefixtures("without_weights")
SIDE = 16
FLAGS = ("--tasks", "inpaint-random:hidden=0.5,super-resolution:factor=2", "--solvers", "dps,pigdm", "--steps", "6")
FLAGS = (*FLAGS, "--samples", "2", "--device", "cpu")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in diffusers' format with an untrained network."""
    from diffusers.models.unets.unet_2d import UNet2DModel
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("tiny")
    shape: dict[str, Any] = {
        "sample_size": SIDE,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 1,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    }
    torch.manual_seed(0)
    network = UNet2DModel(**shape)
    (folder / "unet").mkdir()
    (folder / "scheduler").mkdir()
    network.save_config(folder / "unet")
    save_file(network.state_dict(), folder / "unet" / "diffusion_pytorch_model.safetensors")
    scheduler = {"_class_name": "DDPMScheduler", "prediction_type": "v_prediction", "beta_schedule": "linear"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(4):
        values = np.random.default_rng(k).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"im{k}.png")
    return folder


def benchmark(images: Path, tiny: Path, **given: Any) -> Config:
    tasks, solvers = FLAGS[1].split(","), FLAGS[3].split(",")
    fixed = {"images": images, "prior": str(tiny), "tasks": tasks, "solvers": solvers, "steps": (6,), "samples": 2}
    return override(None, fixed | given)


def filled(config: Config, out: Path, engine: Engine | None = None, **options: Any) -> dict[Any, int]:
    return evaluate(config, load_prior(config.prior), engine or Local(), Options(out, **options))


def check_files(folder: Path) -> None:
    """Every recorded image is there, whole."""
    for _, _, path, digest in contents(folder)["output"]:
        assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == digest


# the command line


def cmidiff(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(*arguments: object) -> str:
    result = cmidiff("evaluate", *arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_a_run_from_the_command_line(images: Path, tiny: Path, tmp_path: Path) -> None:
    command = ("evaluate", "--images", images, "--prior", tiny, *FLAGS, "--offset", 2, "--out", tmp_path / "run")
    result = cmidiff(*command)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"16 ok in {tmp_path / 'run'}"
    filled(benchmark(images, tiny, offset=2), tmp_path / "same")
    assert contents(tmp_path / "run") == contents(tmp_path / "same")
    (images / "im3.png").write_bytes(b"corrupt")
    result = cmidiff(*command[:-1], tmp_path / "corrupt")
    assert result.exit_code == 1
    assert "8 units failed" in result.stderr
    assert "im3.png cannot be used" in (tmp_path / "corrupt" / "run.log").read_text()


def test_wrong_input_is_one_clear_line(images: Path, tiny: Path, tmp_path: Path) -> None:
    good = ("--images", images, "--prior", tiny, *FLAGS, "--out", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    assert "unknown solver 'dsp': did you mean" in refused(*good, "--solvers", "dsp")
    assert "unknown task 'deblur': did you mean" in refused(*good, "--tasks", "deblur")
    assert "no configuration 'smok'" in refused(*good, "--config", "smok")
    assert "unknown engine 'rya': did you mean ray" in refused(*good, "--engine", "rya")
    assert "unknown prior" in refused(*good, "--prior", "imagnet")
    assert "holds no image" in refused(*good, "--images", tmp_path / "empty")
    assert "'--steps': each must be a whole number" in refused(*good, "--steps", "ten")
    assert "must be a whole number from 1 to 1000000, received 0" in refused(*good, "--samples", "0")
    assert "'--batch': must be" in refused(*good, "--batch", "0")
    assert "for --engine ray" in refused(*good, "--gpus", "1")
    assert "give --out" in refused(*good[:-2])
    assert "give --images" in refused(*good[2:])
    assert "is a file" in refused(*good[:-1], images / "im0.png")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_shows_the_grid_and_its_cost_and_writes_nothing(images: Path, tiny: Path, tmp_path: Path) -> None:
    arguments = ("--images", images, "--prior", tiny, *FLAGS, "--size", SIDE, "--out", tmp_path / "run", "--dry-run")
    result = cmidiff("evaluate", *arguments)
    assert result.exit_code == 0, result.output
    config, _ = json.JSONDecoder().raw_decode(result.stdout)
    assert config["samples"] == 2
    assert config["cells"]["super-resolution, dps, base, 6 steps"]["solver"]["is"] == "DPS"
    assert "8 cells, 32 units of 2 samples" in result.stdout
    assert "4 images, 1 seed(s)" in result.stdout
    assert not (tmp_path / "run").exists()
    absent = cmidiff("evaluate", "--config", "cmi-paper", "--dry-run")
    assert absent.exit_code == 0, absent.output
    assert "50 cells, 50000 units" in absent.stdout


def test_the_prior_is_loaded_with_the_options_of_the_configuration(images: Path, tiny: Path, tmp_path: Path) -> None:
    """The command line is above the file, option by option; what is recorded is what ran."""
    file = tmp_path / "b.toml"
    file.write_text(f'prior = "{tiny}"\nsolvers = "pigdm"\ntasks = "denoise"\n[prior_options]\nmax_batch = 1\n')
    command = ("evaluate", "--config", file, "--images", images, "--steps", 3, "--cmi", "off", "--dtype", "bfloat16")
    assert (result := cmidiff(*command, "--out", tmp_path / "run")).exit_code == 0, result.output
    with Results(tmp_path / "run") as found:
        stated = found.about()["config"]["prior_options"]
    assert (stated["dtype"], stated["max_batch"]) == ("bfloat16", 1)
    filled(replace(load(file), images=images, steps=(3,), cmi=("off",)), tmp_path / "float32")
    half, full = (contents(tmp_path / name)["output"] for name in ("run", "float32"))
    assert [row[:3] for row in half] == [row[:3] for row in full]
    assert half != full  # another precision, other samples
    assert "bfloat16" in refused(*command[1:-1], "bfloat")
    file.write_text(f'prior = "{tiny}"\nsolvers = "pigdm"\ntasks = "denoise"\n[prior_options]\nmax_batches = 1\n')
    assert "max_batch" in refused("--config", file, "--images", images)


def test_the_smoke_preset_needs_nothing_else() -> None:
    config = load("smoke")
    assert config.images is not None
    assert list(config.images.glob("*.png"))


# kills


def started(images: Path, tiny: Path, out: Path) -> subprocess.Popen[bytes]:
    main = "from cmidiff.app.cli import main; main()"
    command = [sys.executable, "-c", main, "evaluate", "--images", images, "--prior", tiny, *FLAGS, "--out", out]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finished(out: Path) -> int:
    if not (out / "results.sqlite").is_file():
        return 0
    try:
        with Results(out) as results:
            return results.counts()["ok"]
    except (run.RunError, sqlite3.OperationalError):  # it is being created
        return 0


def wait_for(process: subprocess.Popen[bytes], out: Path, number: int) -> None:
    deadline = time.monotonic() + 600  # of a busy machine
    while finished(out) < number:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_sigkill_loses_at_most_the_units_in_flight(images: Path, tiny: Path, tmp_path: Path) -> None:
    """Killed twice at random moments, then resumed: the database is that of a run without interruption."""
    out, chance = tmp_path / "killed", random.Random(time.time_ns())
    config = benchmark(images, tiny)
    filled(config, tmp_path / "whole")
    before = 0
    for low, high in ((1, 10), (12, 24)):
        process = started(images, tiny, out)
        wait_for(process, out, chance.randint(low, high))
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        now = finished(out)
        assert before <= now < 32
        check_files(out)
        before = now
    assert filled(config, out)["ok"] == 32
    with Results(out) as results:
        assert {row.attempts for row in results.units()} == {1}  # nothing finished was repeated
    check_files(out)
    assert contents(out) == contents(tmp_path / "whole")


def test_sigterm_ends_a_run_in_order(images: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminated(config: Config, prior: Any, engine: Engine, options: Options, tell: Any) -> dict[Any, int]:
        def tell_and_terminate(event: run.Event) -> None:
            tell(event)
            if event.doing != "opening the images" and event.done == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        return evaluate(config, prior, engine, options, tell_and_terminate)

    monkeypatch.setattr(evaluation, "evaluate", terminated)
    before = signal.getsignal(signal.SIGTERM)
    result = cmidiff("evaluate", "--images", images, "--prior", tiny, *FLAGS, "--out", tmp_path / "run")
    assert result.exit_code == 130, result.output
    assert result.stderr.splitlines()[-1].startswith("stopped: what is finished is in")
    assert "interrupted" in (tmp_path / "run" / "run.log").read_text()
    assert finished(tmp_path / "run") == 3
    assert signal.getsignal(signal.SIGTERM) == before


# Ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of two workers on this machine."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'cmidiff[ray]'")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40)
    yield ray
    ray.shutdown()


def test_ray_and_local_results_are_identical_although_a_worker_is_killed(
    cluster: Any, images: Path, tiny: Path, tmp_path: Path
) -> None:
    config = benchmark(images, tiny)
    workers: set[int] = set()
    killed: list[int] = []

    def kill_one(event: run.Event) -> None:
        with closing(sqlite3.connect(tmp_path / "ray" / "results.sqlite")) as connection:
            rows = connection.execute("SELECT worker FROM unit WHERE worker != ''").fetchall()
        workers.update(int(worker.rpartition(":")[2]) for (worker,) in rows)
        if event.done >= 6 and not killed:
            killed.append(min(workers))
            os.kill(killed[0], signal.SIGKILL)

    counts = evaluate(config, load_prior(config.prior), Ray(), Options(tmp_path / "ray"), kill_one)
    assert killed
    assert counts == {"pending": 0, "ok": 32, "diverged": 0, "failed": 0}
    assert os.getpid() not in workers
    assert len(workers) >= 2
    filled(config, tmp_path / "local")
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_a_missing_cluster_or_package_is_said(
    images: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(run.RunError, match=r"pip install 'cmidiff\[ray\]'"):
        filled(benchmark(images, tiny), tmp_path / "run", Ray())


# features of networks


class Small(torch.nn.Module):
    """Four features: the mean colour, and how much it varies."""

    num_features = 4

    def forward(self, images: Tensor) -> Tensor:
        values = images.float() / 255
        return torch.cat([values.mean((2, 3)), values.std((1, 2, 3))[:, None]], 1)


def test_fid_of_a_small_network_is_its_formula(images: Path, tiny: Path, tmp_path: Path) -> None:
    filled(benchmark(images, tiny, solvers=["dps"]), tmp_path / "run", features=Small())
    with Results(tmp_path / "run") as results:
        found = results.cell_scores()
        rows = results.units()
        assert {m.name: m.absent for m in results.metrics()}["fid"] is None
    of_fid = [score for score in found if score.metric == "fid"]
    assert len(of_fid) == 4
    base = {score.cell: score.value for score in of_fid if not score.cell.cmi}
    for score in of_fid:
        assert (score.images, score.network) == (4, "Small")
        if score.cell.cmi:
            assert (score.pairs, score.error > 0) == (4, True)
            assert score.difference == pytest.approx(score.value - base[score.cell.base], abs=1e-9)
        restored = [row.images["sample-0"] for row in rows if row.unit.cell == score.cell]
        truth = [f"truth/im{k}.png" for k in range(4)]
        a, b = (_features([tmp_path / "run" / name for name in names]) for names in (restored, truth))
        assert score.value == pytest.approx(_frechet(a, b), rel=1e-3, abs=1e-6)


def _features(paths: list[Path]) -> Tensor:
    return Small()(torch.stack([scores.read_levels(path) for path in paths])).double()


def _frechet(a: Tensor, b: Tensor) -> float:
    """``|m_a - m_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^1/2)``; the root's trace from the eigenvalues of the product."""
    mean = float((a.mean(0) - b.mean(0)).square().sum())
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(cov_a @ cov_b).real.clamp_min(0).sqrt().sum()
    return mean + float(cov_a.trace() + cov_b.trace() - 2 * root)


def test_absent_weights_are_said_in_their_column_and_may_come_later(
    images: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A distance of its own stands for LPIPS, whose weights cannot be had in a test."""
    config = benchmark(images, tiny, limit=2, solvers=["dps"])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "no-weights"))
    monkeypatch.setattr(scores, "LPIPS_LEAST", 1)
    filled(config, tmp_path / "later")
    with Results(tmp_path / "later") as results:
        absent = {metric.name: metric.absent for metric in results.metrics()}
        assert all("lpips" not in row.scores for row in results.units())
        assert results.cell_scores() == []
    assert "LPIPS needs the weights of alexnet" in str(absent["lpips"])
    assert "FID needs" in str(absent["fid"])
    assert absent["psnr"] is None

    def distance(x: Tensor, truth: Tensor, *, net: str) -> Tensor:
        return (x - truth).abs().double().flatten(1).mean(1)

    monkeypatch.setattr(scores, "lpips", distance)
    filled(config, tmp_path / "at-once")
    filled(config, tmp_path / "later")
    with Results(tmp_path / "later") as later, Results(tmp_path / "at-once") as at_once:
        assert {metric.name: metric.absent for metric in later.metrics()}["lpips"] is None
        for row, same in zip(later.units(), at_once.units(), strict=True):
            assert math.isfinite(row.scores["lpips"])
            assert row.scores == pytest.approx(same.scores, abs=1e-9)
