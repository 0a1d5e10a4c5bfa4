"""The search for settings, on a prior whose samples cost nothing; the files it reads and writes."""

from __future__ import annotations

import io
import json
import math
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import cmidiff
from cmidiff import (
    CADPS,
    CMI,
    DDIM,
    DPIR,
    DPS,
    DSG,
    MCG,
    Ancestral,
    GaussianMixture,
    PiGDM,
    ProbabilityFlow,
    Ramp,
    restore,
)
from cmidiff.app.cli import app
from cmidiff.covariance import Diagonal, Exact, Hybrid, Isotropic
from cmidiff.images import write_image
from cmidiff.metrics import crps, psnr
from cmidiff.samplers import DPMSolver, Renoise
from cmidiff.solvers import CADPSReleased, Solver, Unconditional
from cmidiff.statistics import estimate
from cmidiff.step import Sampler
from cmidiff.tuning import Images, Outcome, Preset, Search, Space, load_preset, read_images, save_preset, tune
from cmidiff.tuning.problem import measure_images, restore_problem, score_images
from cmidiff.tuning.space import Setting
from cmidiff.tuning.study import OtherSearch, Row
from tests.cases import three_images

pytestmark = pytest.mark.filterwarnings("ignore::cmidiff.result.RestorationWarning")  # runs of few steps
SHAPE = (3, 12, 12)


def prior() -> GaussianMixture:
    exact = three_images(SHAPE)
    means = exact.means.reshape(-1, *SHAPE).float()
    return GaussianMixture(exact.weights.float(), means, torch.full_like(means, 0.01))


def images(count: int, offset: int = 0) -> Images:
    truth = prior().sample(count, torch.Generator().manual_seed(7)).clamp(0, 1)
    index = tuple(range(offset, offset + count))
    return Images(tuple(f"{i}.png" for i in index), index, truth)


def search(**changes: Any) -> Search:
    base = Search(
        images(8),
        "inpaint-random",
        {"hidden": 0.7, "noise_std": 0.1},
        Space(DPS(0.0018)),
        "three-images",
        steps=6,
        trials=6,
        group=2,
        seed=3,
    )
    return replace(base, **changes)


def trials(path: Path) -> list[dict[str, Any]]:
    """The trials of a study that ended, as values that can be compared."""
    study = optuna.load_study(study_name="cmidiff", storage=f"sqlite:///{path}")
    ended = [t for t in study.trials if t.state.name in ("COMPLETE", "PRUNED")]
    return [{"params": t.params, "state": t.state.name, "steps": t.intermediate_values} for t in ended]


def test_a_search_of_eta_alone_leaves_the_rest() -> None:
    space = Space(DPS(0.0018), 0.5, only_eta=True)
    assert space.first() == [{"cmi": False}, {"cmi": True, "u": pytest.approx(math.sqrt(0.2))}]
    found = space.propose(optuna.trial.FixedTrial({"cmi": True, "u": -0.6}))
    assert found == Setting(DPS(0.0018), CMI(eta=-0.18))
    assert Space(Unconditional(), only_eta=True).propose(optuna.trial.FixedTrial({"cmi": False})).cmi is None
    assert search(space=space).identity() != search().identity()


# images


def test_images_are_read_in_order_from_a_folder_and_an_archive_alike(tmp_path: Path) -> None:
    folder, archive = tmp_path / "images", tmp_path / "images.tar"
    folder.mkdir()
    values = np.random.default_rng(0).integers(0, 256, (5, 16, 20, 3), dtype=np.uint8)
    with tarfile.open(archive, "w") as tar:
        for number in (3, 0, 4, 1, 2):
            buffer = io.BytesIO()
            Image.fromarray(values[number]).save(buffer, "PNG")
            (folder / f"{number}.png").write_bytes(buffer.getvalue())
            info = tarfile.TarInfo(f"deep/{number}.png")
            info.size = len(buffer.getvalue())
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    (folder / "notes.txt").write_text("no image")
    for source in (folder, archive):
        read = read_images(source, count=3, offset=1)
        assert read.index == (1, 2, 3)
        assert [Path(name).name for name in read.names] == ["1.png", "2.png", "3.png"]
        expected = torch.from_numpy(values[1:4]).permute(0, 3, 1, 2) / 255
        torch.testing.assert_close(read.truth, expected)
    squared = read_images(folder, count=1, size=16).truth
    torch.testing.assert_close(squared, torch.from_numpy(values[:1, :, 2:18]).permute(0, 3, 1, 2) / 255)


def test_images_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    Image.new("RGB", (16, 12)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ValueError, match=r"a.png is 16x16, b.png is 16x12; give a size"):
        read_images(tmp_path, count=2)
    with pytest.raises(ValueError, match=r"c.png cannot be used: it cannot be read as an image"):
        read_images(tmp_path, count=1, offset=2)
    with pytest.raises(ValueError, match=r"holds 3 images, not 4 after the first 0"):
        read_images(tmp_path, count=4)
    with pytest.raises(ValueError, match=r"a.png cannot be used: it has 16x16 pixels, less than the size 64"):
        read_images(tmp_path, count=1, size=64)
    with pytest.raises(ValueError, match=r"nowhere does not exist"):
        read_images(tmp_path / "nowhere", count=1)


# problems


def test_an_image_has_the_same_mask_noise_and_sample_in_every_batch() -> None:
    whole, parameters = images(4), {"hidden": 0.5, "noise_std": 0.1}
    together = measure_images(whole, "inpaint-random", parameters)
    alone = measure_images(whole.part(2, 4), "inpaint-random", parameters)
    assert torch.equal(together.y[2:], alone.y)
    assert not torch.equal(together.y[2] == 0, together.y[3] == 0)
    samples = [restore_problem(p, prior(), DPS(0.0015), CMI(eta=0.5), steps=5).samples for p in (together, alone)]
    torch.testing.assert_close(samples[0][2:], samples[1], rtol=1e-4, atol=1e-4)


def test_a_sample_that_diverged_scores_as_grey() -> None:
    problem = measure_images(images(2), "inpaint-random", {"hidden": 0.5, "noise_std": 0.1})
    wild = restore_problem(problem, prior(), DPS(lambda ratio: 1e12, guard=False), None, steps=5)
    assert not wild.ok.any()
    expected = -10 * (problem.images.truth - 0.5).square().flatten(1).mean(1).log10()
    torch.testing.assert_close(
        score_images(wild, problem.images.truth, "psnr"), expected.double(), rtol=1e-5, atol=1e-5
    )


def test_the_metric_of_several_samples_draws_them_and_takes_all() -> None:
    batch = images(2)
    problem = measure_images(batch, "denoise", {"noise_std": 0.3})
    restoration = restore_problem(problem, prior(), DPS(), None, steps=4, samples=2)
    torch.testing.assert_close(
        score_images(restoration, batch.truth, "crps"), crps(restoration.samples, batch.truth), rtol=0, atol=0
    )
    both = [psnr(restoration.samples[:, k], batch.truth) for k in range(2)]
    torch.testing.assert_close(score_images(restoration, batch.truth, "psnr"), (both[0] + both[1]) / 2)


# the search


ALONE = [DPS(1 / 3), MCG(0.2), PiGDM(), PiGDM(data_variance=0.4), CADPS(), CADPSReleased(), DSG()]


@pytest.mark.parametrize("solver", ALONE)
def test_the_first_trial_is_the_solver_alone(solver: Solver) -> None:
    space = Space(solver)
    alone, with_cmi = (space.propose(optuna.trial.FixedTrial(p)) for p in space.first())
    assert (alone.solver, alone.cmi) == (solver, None)
    assert with_cmi.solver == solver
    assert with_cmi.cmi is not None
    assert with_cmi.cmi.eta == pytest.approx(CMI().eta)


def test_scale_and_tilt_are_the_ends_of_a_ramp() -> None:
    point = {"scale": 0.6, "tilt": 4.0, "cmi": True, "u": -0.5, "weight": "snr", "window": 2.0}
    setting = Space(DPS(0.3), most=2.0).propose(optuna.trial.FixedTrial(point))
    assert setting.solver == DPS(Ramp(1.2, 0.3))
    assert setting.cmi == replace(CMI(), eta=-0.5, weight="snr", window=(0.0, 2.0))


def test_a_search_is_never_below_the_solver_alone_and_is_judged_on_other_images(tmp_path: Path) -> None:
    outcome = tune(
        search(space=Space(DPS(1.2e-4, guard=False, grid="schedule")), trials=10), prior(), tmp_path / "study.db"
    )
    alone = outcome.rows[0]
    assert alone.setting.solver == DPS(1.2e-4, guard=False, grid="schedule")
    assert sum(outcome.best.tuning) >= sum(alone.tuning)
    problem = search().problems(held_out=True)[0]
    assert problem.images.index == (4, 5)
    sample = restore_problem(problem, prior(), outcome.best.setting.solver, outcome.best.setting.cmi, steps=6)
    expected = score_images(sample, problem.images.truth, "psnr")
    torch.testing.assert_close(torch.tensor(outcome.best.held_out["psnr"][:2]).double(), expected)
    # a step size fifty times too small leaves much to gain, on any image
    assert outcome.is_better
    assert outcome.gain.low is not None
    assert outcome.gain.low > 0
    assert outcome.chosen == outcome.best.setting
    assert "4 hold-out images: better beyond its 95% interval" in outcome.verdict


def test_what_is_not_better_on_the_hold_out_images_is_not_taken() -> None:
    alone = Row("the solver alone", Setting(DPS(0.3)), [20.0, 20.0], {"psnr": [20.0, 21.0]})
    lucky = Row("best with CMI", Setting(DPS(0.3), CMI()), [25.0, 25.0], {"psnr": [19.0, 21.5]})
    outcome = Outcome([alone, lucky], lucky, estimate([19.0, 21.5], [20.0, 21.0]), "psnr", 5, 0)
    assert not outcome.is_better
    assert outcome.chosen == alone.setting
    assert "not better than the solver alone, which the preset therefore holds" in outcome.verdict


class Stopped(Exception):
    """What ends a search in the middle."""


def test_a_search_that_stopped_anywhere_ends_as_one_that_did_not(tmp_path: Path) -> None:
    straight = tune(search(), prior(), tmp_path / "straight.db")
    assert straight.trials == 6
    for number in (1, 4, 6, 4):
        count = 0

        def stop(_: Any, number: int = number) -> None:
            nonlocal count
            count += 1
            if count == number:
                raise Stopped

        with pytest.raises(Stopped):
            tune(search(), prior(), tmp_path / "broken.db", stop)
    resumed = tune(search(), prior(), tmp_path / "broken.db")
    assert trials(tmp_path / "broken.db") == trials(tmp_path / "straight.db")
    assert resumed == straight


def test_a_killed_search_loses_one_trial_at_most(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.test_tuning import *\n"
        "tune(search(trials=50), prior(), Path(sys.argv[1]), lambda report: print(report.number, flush=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "killed.db")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdout is not None
    while (line := process.stdout.readline()) and int(line) < 4:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(trials(tmp_path / "killed.db")) >= 3
    tune(search(), prior(), tmp_path / "killed.db")
    tune(search(), prior(), tmp_path / "straight.db")
    assert trials(tmp_path / "killed.db") == trials(tmp_path / "straight.db")


def test_a_study_of_another_search_is_refused_with_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(search(trials=1), prior(), tmp_path / "study.db")
    with pytest.raises(OtherSearch, match=r"steps 6, now 7; seed 3, now 4"):
        tune(search(steps=7, seed=4), prior(), tmp_path / "study.db")
    more = tune(search(trials=2), prior(), tmp_path / "study.db")
    assert more.trials == 2
    monkeypatch.setattr("cmidiff.tuning.study.__version__", "9.9")
    with pytest.raises(OtherSearch, match=r"cmidiff .*, now '9\.9'"):
        tune(search(trials=2), prior(), tmp_path / "study.db")
    (tmp_path / "text.db").write_text("no database" * 100)
    with pytest.raises(OtherSearch, match="cannot be used as a study"):
        tune(search(), prior(), tmp_path / "text.db")


def test_searches_that_cannot_be_meant_are_refused() -> None:
    for changes, message in (
        ({"metric": "beauty"}, "metric must be one of psnr, ssim, lpips, crps, received 'beauty'"),
        ({"images": images(3)}, "at least 4 images"),
        ({"trials": 0}, "trials must be a whole number >= 1, received 0"),
        ({"space": Space(Unconditional())}, "has no strength to tune"),
        ({"space": Space(DPS(Ramp(1.0, 2.0)))}, "starts from a step size that is a number"),
    ):
        with pytest.raises(ValueError, match=message):
            search(**changes)
    with pytest.raises(ValueError, match=r"largest \|eta\|"):
        Space(DPS(), most=0.0)


# presets

SOLVERS = [
    *(DPS(Ramp(6.0, 2.5)), DPS(), MCG(0.5), PiGDM(data_variance=0.2), PiGDM(covariance=Exact(3)), DSG(0.1, 2)),
    *(CADPS(), CADPS("exact"), CADPS(Diagonal(3, floor=0.2), guard=False), CADPSReleased(), DPIR(0.3), Unconditional()),
    CADPS(Hybrid(high=Isotropic(0.5), low=Exact(8), switch=1.0), 0.9),
]
CMIS = [
    *(None, CMI(), CMI(covariance=Isotropic(0.4))),
    CMI(eta=-0.3, weight="snr", window=(0.1, math.inf), every=2, probe="gaussian"),
]
REVERSE = [Ancestral("large"), DDIM(0.5), ProbabilityFlow(1, churn=2.0), DPMSolver(sde=True), Renoise()]


MIXED = [(solver, CMIS[i % len(CMIS)], REVERSE[i % len(REVERSE)]) for i, solver in enumerate(SOLVERS)]


@pytest.mark.parametrize(("solver", "cmi", "sampler"), MIXED, ids=lambda thing: type(thing).__name__)
def test_a_preset_comes_back_as_it_was(solver: Solver, cmi: CMI | None, sampler: Sampler, tmp_path: Path) -> None:
    provenance = {"prior": 'a "quoted" nàme\n', "scores": [1.5, -2.0], "more": {"odd key": True}}
    preset = Preset(solver, cmi, sampler, 37, provenance)
    save_preset(tmp_path / "preset.toml", preset)
    assert load_preset(tmp_path / "preset.toml") == preset


def test_a_preset_restores_as_its_parts_do(tmp_path: Path) -> None:
    problem = measure_images(images(2), "inpaint-random", {"hidden": 0.5, "noise_std": 0.1})
    save_preset(tmp_path / "preset.toml", Preset(DPS(Ramp(3e-3, 5e-4)), CMI(eta=-0.2), DDIM(1.0), 5))
    options = load_preset(tmp_path / "preset.toml").options
    given = {"solver": DPS(Ramp(3e-3, 5e-4)), "cmi": CMI(eta=-0.2), "sampler": DDIM(1.0), "steps": 5}
    a, b = (restore(problem.y, problem.physics, prior(), **o).samples for o in (options, given))
    assert torch.equal(a, b)


def test_fields_left_out_of_a_preset_are_those_of_the_name(tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text('format = "cmidiff preset 1"\n[solver]\nname = "pigdm"\n[cmi]\neta = -1\n')
    preset = load_preset(tmp_path / "short.toml")
    assert (preset.solver, preset.cmi, preset.steps) == (PiGDM(), CMI(eta=-1.0), 25)


HEAD = 'format = "cmidiff preset 1"\n[solver]\nname = "dps"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format = 1", r"format must be 'cmidiff preset 1', received 1"),
        ("[solver", r"not valid TOML"),
        ("speed = 3", r"the file has no option 'speed'"),
        ('format = "cmidiff preset 1"', r"the file: solver is missing: add it"),
        ('format = "cmidiff preset 1"\nsteps = 0\n[solver]\nname = "dps"', r"steps must be greater than or equal to 1"),
        ('format = "cmidiff preset 1"\n[solver]\nname = "dbs"', r"unknown solver 'dbs': did you mean"),
        ('format = "cmidiff preset 1"\n[solver]\nscale = 1', r"a solver needs a name, one of dpir"),
        ('format = "cmidiff preset 1"\nsolver = "dps"', r"solver must be a table, received 'dps'"),
        (HEAD + "zeta = 1", r"'dps' has no option 'zeta': choose one of scale, guard, through_clip"),
        (HEAD + 'scale = "much"', r"scale must be a number or a ramp \{ start = ..., end = ... \}, received 'much'"),
        (HEAD + "scale = { start = 1 }", r"a ramp, with start and end"),
        (HEAD + "scale = { start = 1, end = -1 }", r"Ramp: start and end must be numbers > 0"),
        (HEAD + "scale = -1", r"DPS: scale must be a number >= 0"),
        (HEAD + 'through_clip = "yes"', r"through_clip must be true or false, received 'yes'"),
        (HEAD + "scale = true", r"scale must be a number or a ramp"),
        (HEAD + "[cmi]\nwindow = [1.0]", r"window must be longer, received \(1.0,\)"),
        (HEAD + '[cmi]\nweight = "none"', r"weight must be .*'reverse-sde'.*, received 'none'"),
        (HEAD + "[cmi]\neta = inf", r"eta must be finite"),
        (HEAD + "[cmi]\nprobes = 1.5", r"probes must be a whole number, received 1.5"),
        (HEAD + '[sampler]\nname = "euler"', r"unknown sampler 'euler': choose one of ancestral, ddim"),
        (HEAD + '[kernel]\nname = "ddim"', r"the file has no option 'kernel'"),
        (HEAD.replace("dps", "cadps") + 'covariance = "exat"', r"unknown covariance 'exat': did you mean exact"),
        (HEAD.replace("dps", "cadps") + "covariance = { iterations = 3 }", r"a covariance, with a name"),
        (HEAD.replace("dps", "cadps") + 'covariance = { name = "exact", probes = 3 }', r"has no option 'probes'"),
        (HEAD.replace("dps", "cadps") + "covariance = 3", r"covariance must be an instance of Covariance or a text"),
        (HEAD.replace("dps", "mcg") + 'project = "mine"', r"'mcg' has no option 'project'"),
    ],
)
def test_presets_that_cannot_be_meant_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "preset.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_preset(tmp_path / "preset.toml")


def test_what_no_file_can_hold_is_not_written(tmp_path: Path) -> None:
    for preset, message in (
        (Preset(DPS(lambda ratio: ratio)), "scale cannot be stored"),
        (Preset(MCG(project=lambda step, x: x)), "project cannot be stored"),
        (Preset(DPS(), CMI(weight=lambda ratio: 1.0)), "weight cannot be stored"),
    ):
        with pytest.raises(ValueError, match=message):
            save_preset(tmp_path / "preset.toml", preset)
        assert not (tmp_path / "preset.toml").exists()
    with pytest.raises(ValueError, match="cannot read the preset"):
        load_preset(tmp_path / "nowhere.toml")


# the command line


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images, a measurement of one of them, and a prior for them called "three-images"."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "three-images").mkdir()
    (tmp_path / "images").mkdir()
    for name, truth in zip(images(6).names, images(6).truth, strict=True):
        write_image(tmp_path / "images" / name, truth)
    monkeypatch.setattr(cmidiff, "load_prior", lambda name, device: prior(), raising=False)
    result = CliRunner().invoke(app, ["degrade", "images/0.png", "--task", "inpaint-random", "-o", "y.safetensors"])
    assert result.exit_code == 0, result.output
    return tmp_path


TUNE = ["tune", "inpaint-random", "--images", "images", "--count", "6", "--prior", "three-images", "--steps", "4"]
TUNE += ["--solver", "dps", "--trials", "3", "--device", "cpu", "-o", "found.toml"]


def dry(*options: str) -> dict[str, Any]:
    command = ["restore", "y.safetensors", "--prior", "three-images", "--dry-run", *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_tune_writes_a_preset_that_restore_takes_and_goes_on(desk: Path) -> None:
    result = CliRunner().invoke(app, TUNE)
    assert result.exit_code == 0, result.output
    assert "the solver alone" in result.stdout
    preset = load_preset("found.toml")
    assert preset.steps == 4
    assert preset.provenance["task"] == "inpaint-random"
    assert preset.provenance["verdict"] in " ".join(result.stdout.split())
    assert len(trials(desk / "found.study.db")) == 3
    assert CliRunner().invoke(app, [*TUNE, "--trials", "4"]).exit_code == 0
    assert len(trials(desk / "found.study.db")) == 4
    command = ["restore", "y.safetensors", "--preset", "found.toml", "--prior", "three-images", "--samples", "1"]
    result = CliRunner().invoke(app, [*command, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    record = json.loads((desk / "restored" / "run.json").read_text())["options"]
    assert record["steps"] == 4
    assert record["solver"]["name"] == "dps"


def test_explicit_options_replace_those_of_a_preset(desk: Path) -> None:
    cmi = CMI(eta=-0.4, weight="snr", every=2)
    save_preset("mine.toml", Preset(DPS(Ramp(2.0, 1.0)), cmi, DDIM(0.5), 12, {"prior": "three-images"}))
    plain = dry("--preset", "mine.toml")
    ramp = {"class": "Ramp", "start": 2.0, "end": 1.0}
    assert plain["solver"] == {"name": "dps", "scale": ramp, "guard": True, "through_clip": False, "grid": "even"}
    assert (plain["steps"], plain["sampler"]) == (12, {"name": "DDIM", "eta": 0.5})
    assert (plain["cmi"]["eta"], plain["cmi"]["weight"], plain["cmi"]["every"]) == (-0.4, "snr", 2)
    assert dry("--preset", "mine.toml", "--no-cmi")["cmi"] is None
    weaker = dry("--preset", "mine.toml", "--eta", "0.2", "--steps", "100")
    assert (weaker["cmi"]["eta"], weaker["cmi"]["weight"], weaker["steps"]) == (0.2, "snr", 100)
    other = dry("--preset", "mine.toml", "--solver", "pigdm")  # the default, yet asked for
    assert (other["solver"]["name"], other["cmi"]["eta"]) == ("pigdm", -0.4)
    assert dry()["solver"]["name"] == "cadps"
    save_preset("base.toml", Preset(DPS(), None, steps=12))
    assert dry("--preset", "base.toml")["cmi"] is None
    assert dry("--preset", "base.toml", "--cmi")["cmi"]["eta"] == CMI().eta


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([*TUNE, "--metric", "beauty"], "--metric must be one of psnr, ssim, lpips, crps, received 'beauty'"),
        ([*TUNE, "--count", "9"], "images holds 6 images, not 9 after the first 0: ask for fewer"),
        ([*TUNE, "--solver", "unconditional"], "choose dps, pigdm, mcg, dsg or cadps"),
        ([*TUNE, "--hidden", "2"], "'--hidden': must be a number from 0 to 1, received 2"),
        ([*TUNE, "--factor", "2"], "unknown parameter of the task inpaint-random 'factor'"),
        ([*TUNE, "--output", "images"], "images would replace the input images"),
        ([*TUNE, "--most-eta", "0"], "the largest |eta| must be a number > 0"),
        ([*TUNE, "--study", "images/0.png"], "images/0.png cannot be used as a study"),
        (["tune", "blur", *TUNE[2:]], "unknown task 'blur'"),
        (["restore", "y.safetensors", "--preset", "none.toml"], "cannot read the preset none.toml"),
    ],
)
def test_what_tune_cannot_do_is_one_line(command: list[str], message: str, desk: Path) -> None:
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_preset_for_another_prior_is_noted(desk: Path) -> None:
    save_preset("other.toml", Preset(DPS(), provenance={"prior": "natural-64"}))
    command = ["restore", "y.safetensors", "--preset", "other.toml", "--prior", "three-images", "--dry-run"]
    assert "note: the preset was chosen for the prior natural-64" in CliRunner().invoke(app, command).stderr
