"""The command line, on a prior whose answers are known: each value is N(0, 0.3^2) in the prior's units."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.main import get_command
from typer.testing import CliRunner, Result

import cmidiff as package
from cmidiff.app import demo, options, problem, settings, speed
from cmidiff.app.cli import app
from cmidiff.app.clues import find_noise
from cmidiff.app.photograph import read_problem
from cmidiff.app.repair import keep_unpainted
from cmidiff.images import encode_image, read_image
from cmidiff.moments import SecondMoments
from cmidiff.physics import TASKS, agree
from cmidiff.prior import PRIORS, NetworkPrior
from cmidiff.prior.base import Denoiser
from cmidiff.prior.known import info_of
from cmidiff.prior.network import Network
from cmidiff.registry import KINDS, SOLVERS
from cmidiff.schedule import DDPM

FAST = ("--steps", "4", "--prior", "gaussian", "--device", "cpu")
VARIANCE = 0.3**2


def gaussian_prior() -> NetworkPrior:
    """``E[eps | x_t] = sigma_t x_t / (alpha_t^2 v + sigma_t^2)`` for ``x_0 ~ N(0, v I)``."""
    schedule = DDPM.linear()

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        alpha_t, sigma_t = schedule(float(t[0]))
        return sigma_t * x_t / (alpha_t**2 * VARIANCE + sigma_t**2)

    return prior_of(network)


def prior_of(network: Network, name: str = "gaussian") -> NetworkPrior:
    """A network as a prior with the second moments of the Gaussian."""
    moments = SecondMoments(torch.zeros(3), torch.full((3, 8, 8), VARIANCE, dtype=torch.float64))
    return NetworkPrior(network, "eps", DDPM.linear(), multiple=8, second_moments=moments, name=name)


@pytest.fixture(autouse=True)
def prior(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Denoiser], None]:
    """Makes the prior named "gaussian" known, and returns what replaces it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gaussian").mkdir()

    def use(denoiser: Denoiser) -> None:
        monkeypatch.setattr(package, "load_prior", lambda name, device: denoiser, raising=False)

    use(gaussian_prior())
    return use


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A colour image of 20x12 pixels: no side is a multiple of the prior's."""
    values = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def cmidiff(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(*arguments: object) -> str:
    """The single line with which a command is refused."""
    result = cmidiff(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_help_names_all_tasks_and_solvers_without_torch() -> None:
    code = "import sys; from cmidiff.app.cli import app; app(['restore', '--help'], standalone_mode=False)"
    code += "; sys.exit('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--noise-std" in shown
    assert all(task in options.RESTORE_HELP for task in (*TASKS, "jpeg"))


@pytest.mark.parametrize("command", ["degrade", "restore", "tune", "evaluate", "serve"])
def test_help_in_a_narrow_terminal_cuts_no_name(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], terminal_width=40)
    assert result.exit_code == 0, result.output
    names = {name for option in get_command(app).commands[command].params for name in option.opts if "--" in name}  # pyright: ignore[reportAttributeAccessIssue]
    assert names <= set(result.stdout.replace(",", " ").replace("/", " ").split())
    assert max(map(len, result.stdout.splitlines())) <= 40


def test_every_solver_name_can_be_built() -> None:
    common: dict[str, Any] = {"eta": None, "prior": "gaussian", "steps": 1, "seed": 0, "batch": 1, "device": "cpu"}
    for name in SOLVERS:
        made = settings.make_settings(solver=name, cmi=None, samples=None, **common)
        json.dumps(made.describe())
        solver = SOLVERS.make(name)
        assert made.samples == (0 if solver.point else solver.default_samples)
        if made.samples and not solver.refuses_cmi:
            assert settings.make_settings(solver=name, cmi=True, samples=2, **common).cmi is not None


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_measurement_file_restores_the_exact_physics(photograph: Path, task: str) -> None:
    own = {"deblur-gaussian": ["--kernel-size", 5, "--std", 1], "deblur-motion": ["--kernel-size", 5]}.get(task, [])
    result = cmidiff("degrade", photograph, "--task", task, "--noise-std", 0.1, "--seed", 3, "-o", "m", *own)
    assert result.exit_code == 0, result.output
    loaded = problem.load_problem(Path("m.safetensors"))
    made = problem.degrade(read_image(photograph), loaded.task, seed=3)
    torch.testing.assert_close(loaded.y, made.y, rtol=0, atol=0)
    x = torch.rand(1, 3, 12, 20, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loaded.physics.A(x), made.physics.A(x), rtol=0, atol=0)
    assert loaded.noise_std == 0.1
    assert Image.open("m.png").size[0] > 0


def test_noise_has_the_stated_strength() -> None:
    Image.fromarray(np.full((200, 200), 128, dtype=np.uint8)).save("gray.png")
    assert cmidiff("degrade", "gray.png", "--task", "denoise", "--noise-std", 0.05, "-o", "m").exit_code == 0
    noise = problem.load_problem(Path("m.safetensors")).y - 128 / 255
    assert float(noise.std()) == pytest.approx(0.05, rel=0.02)
    assert abs(float(noise.mean())) < 0.001


def test_restore_writes_what_it_promises(photograph: Path) -> None:
    assert cmidiff("degrade", photograph, "--task", "inpaint-random", "--hidden", 0.5, "-o", "m").exit_code == 0
    result = cmidiff("restore", "m.safetensors", "-o", "out", "--samples", 3, "--truth", photograph, *FAST)
    assert result.exit_code == 0, result.output
    assert "PSNR" in result.stdout
    out = Path("out")
    floats = [load_file(out / f"sample-0{k}.safetensors")["sample"] for k in range(3)]
    moments = load_file(out / "moments.safetensors")
    torch.testing.assert_close(moments["mean"], torch.stack(floats).mean(0))
    torch.testing.assert_close(moments["std"], torch.stack(floats).std(0))
    for k, values in enumerate(floats):
        shown = read_image(out / f"sample-0{k}.png").values
        torch.testing.assert_close(shown, values.clamp(0, 1), rtol=0, atol=0.51 / 255)
    assert all((out / name).is_file() for name in ("mean.png", "std.png", "comparison.png"))
    estimate = load_file(out / "estimate.safetensors")["sample"]
    torch.testing.assert_close(read_image(out / "restored.png").values, estimate.clamp(0, 1), rtol=0, atol=0.51 / 255)
    record = json.loads((out / "run.json").read_text())
    assert (record["options"]["estimate"]["name"], record["options"]["solver"]["name"]) == ("dpir", "cadps")
    assert record["results"]["finished"]
    assert record["results"]["restored"]["psnr"] is not None
    assert [row["name"] for row in record["results"]["samples"]] == ["sample 0", "sample 1", "sample 2", "mean"]
    mean = record["results"]["samples"][-1]
    error = (moments["mean"].clamp(0, 1) - read_image(photograph).values).square().mean()
    assert mean["psnr"] == pytest.approx(float(-10 * error.log10()), abs=1e-3)


def test_a_solver_that_is_exact_here_finds_the_posterior_mean(photograph: Path) -> None:
    assert cmidiff("degrade", photograph, "--task", "denoise", "--noise-std", 0.2, "-o", "m").exit_code == 0
    arguments = ("--samples", 24, "--batch", 24, "--solver", "pigdm", *FAST, "--steps", 60)
    assert cmidiff("restore", "m.safetensors", "-o", "out", *arguments).exit_code == 0
    y = problem.load_problem(Path("m.safetensors")).y[0]
    exact = 0.5 + (y - 0.5) * VARIANCE / (VARIANCE + (2 * 0.2) ** 2)  # noise_std is of [0, 1] images, v of [-1, 1]
    found = load_file("out/moments.safetensors")["mean"]
    assert float((found - exact).square().mean().sqrt()) < 0.5 * float((y - exact).square().mean().sqrt())


def test_samples_do_not_depend_on_how_they_are_grouped(photograph: Path) -> None:
    cmidiff("degrade", photograph, "--task", "denoise", "-o", "m")
    for folder, batch in (("one", 1), ("two", 2)):
        assert cmidiff("restore", "m.safetensors", "-o", folder, "--samples", 3, "--batch", batch, *FAST).exit_code == 0
    for k in range(3):
        one, two = (load_file(f"{folder}/sample-0{k}.safetensors")["sample"] for folder in ("one", "two"))
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def interrupting(after: int) -> NetworkPrior:
    """The prior of a user who presses Ctrl-C during evaluation ``after``."""
    inner, calls = gaussian_prior().network, []

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        if len(calls) == after:
            raise KeyboardInterrupt
        return inner(x_t, t)

    return prior_of(network)


def test_an_interrupted_run_keeps_what_is_finished_and_goes_on(photograph: Path, prior: Callable[..., None]) -> None:
    cmidiff("degrade", photograph, "--task", "denoise", "-o", "m")
    arguments = ("restore", "m.safetensors", "--samples", 3, *FAST)
    whole = cmidiff(*arguments, "-o", "whole")
    assert whole.exit_code == 0
    prior(interrupting(after=3))
    stopped = cmidiff(*arguments, "-o", "parts")
    assert stopped.exit_code == 130
    assert "stopped: 0 of 3 samples are in parts" in stopped.stderr
    assert not list(Path("parts").glob("*.png"))
    prior(interrupting(after=10))  # four evaluations for the estimate, four for a sample
    stopped = cmidiff(*arguments, "-o", "parts")
    assert stopped.exit_code == 130
    assert "stopped: the estimate and 1 of 3 samples are in parts" in stopped.stderr
    assert sorted(p.name for p in Path("parts").glob("sample-*.png")) == ["sample-00.png"]
    assert Path("parts/mean.png").is_file()
    assert not json.loads(Path("parts/run.json").read_text())["results"]["finished"]
    prior(gaussian_prior())
    finished = [Path(f"parts/{name}.safetensors") for name in ("estimate", "sample-00")]
    times = [file.stat().st_mtime_ns for file in finished]
    again = cmidiff(*arguments, "-o", "parts")
    assert again.exit_code == 0, again.output
    assert [file.stat().st_mtime_ns for file in finished] == times
    for name in ("estimate.safetensors", "sample-01.safetensors", "sample-02.safetensors", "moments.safetensors"):
        one, two = load_file(Path("whole") / name), load_file(Path("parts") / name)
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_diverged_sample_is_reported_and_the_others_are_written(photograph: Path, prior: Callable[..., None]) -> None:
    inner, calls = gaussian_prior().network, []

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return inner(x_t, t) * (torch.nan if len(calls) == 10 else 1.0)

    prior(prior_of(network))
    cmidiff("degrade", photograph, "--task", "denoise", "-o", "m")
    result = cmidiff("restore", "m.safetensors", "-o", "out", "--samples", 3, *FAST)
    assert result.exit_code == 3
    assert "diverged: sample 1;" in result.stderr
    assert "diverged at step 2 of 4" in json.loads(Path("out/run.json").read_text())["results"]["samples"][1]["status"]
    written = sorted(p.name for p in Path("out").glob("sample-*.png"))
    assert written == ["sample-00.png", "sample-02.png"]
    floats = [load_file(f"out/sample-0{k}.safetensors")["sample"] for k in (0, 2)]
    torch.testing.assert_close(load_file("out/moments.safetensors")["mean"], torch.stack(floats).mean(0))


def test_another_run_is_not_overwritten_unasked(photograph: Path) -> None:
    cmidiff("degrade", photograph, "--task", "denoise", "-o", "m")
    assert cmidiff("restore", "m.safetensors", "--samples", 3, *FAST).exit_code == 0
    other = ("restore", "m.safetensors", "--samples", 1, "--solver", "dps", *FAST)
    assert "holds another run (another estimate, solver)" in refused(*other)
    assert cmidiff(*other, "--overwrite").exit_code == 0
    assert len(list(Path("restored").glob("sample-*.png"))) == 1


def test_an_ordinary_image_is_enlarged(photograph: Path) -> None:
    arguments = ("--task", "super-resolution", "--factor", 2, "--noise-std", 0.02)
    result = cmidiff("restore", photograph, *arguments, *FAST)
    assert result.exit_code == 0, result.output
    assert "assumed" not in result.stderr
    assert read_image(Path("restored/restored.png")).values.shape == (3, 24, 40)


def test_a_mask_says_what_is_missing_in_an_image(photograph: Path) -> None:
    mask = np.zeros((12, 20), dtype=np.uint8)
    mask[3:7, 5:9] = 255
    Image.fromarray(mask).save("mask.png")
    Image.fromarray(255 - mask).save("seen.png")
    made = read_problem(photograph, noise_std=0.1, mask=Path("mask.png"))
    seen = torch.from_numpy(mask == 0)
    other = read_problem(photograph, noise_std=0.1, seen=Path("seen.png"))
    assert torch.equal(other.y, made.y)
    torch.testing.assert_close(made.y[0], read_image(photograph).values * seen)
    result = cmidiff("restore", photograph, "--mask", "mask.png", *FAST)
    assert result.exit_code == 0, result.output
    assert "assumed: noise 0.02" in result.stderr
    assert "6.67% of the pixels are hidden; the largest hidden disc is 3 pixels wide" in result.stderr
    shown = read_image("restored/overlay.png").values
    photo = read_image(photograph).values
    torch.testing.assert_close(shown[:, seen], photo[:, seen])
    torch.testing.assert_close(shown[0, ~seen], 0.5 + 0.5 * photo[0, ~seen], rtol=0, atol=0.51 / 255)


def test_a_kernel_says_how_an_image_was_blurred(photograph: Path) -> None:
    Image.fromarray(np.diag([0, 0, 200]).astype(np.uint8)).save("kernel.png")
    made = read_problem(photograph, noise_std=0.1, kernel=Path("kernel.png"))
    x = torch.rand(1, *made.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(made.physics.A(x), x[..., :12, :20], rtol=0, atol=1e-6)  # its surroundings are unknown
    assert "must be written motion:LENGTH,ANGLE" in refused("restore", photograph, "--kernel", "motion:3", *FAST)
    wide = read_problem(photograph, noise_std=0.1, kernel=Path("gaussian:1"))
    x = torch.rand(1, *wide.shape, generator=torch.Generator().manual_seed(1))
    assert float(wide.physics.A(x).std()) < 0.7 * float(x.std())
    result = cmidiff("restore", photograph, "--kernel", "kernel.png", *FAST)
    assert result.exit_code == 0, result.output


def test_grayscale_stays_gray_and_transparency_returns() -> None:
    values = np.random.default_rng(0).integers(0, 256, (10, 9, 4), dtype=np.uint8)
    Image.fromarray(values[..., 0]).save("gray.png")
    Image.fromarray(values).save("clear.png")
    for name, mode in (("gray.png", "L"), ("clear.png", "RGBA")):
        arguments = ("restore", name, "--task", "denoise", "--samples", 2, "-o", f"{name}-out", *FAST)
        result = cmidiff(*arguments)
        assert result.exit_code == 0, result.output
        for written in ("restored.png", "sample-00.png"):
            with Image.open(f"{name}-out/{written}") as shown:
                assert (shown.mode, shown.size) == (mode, (9, 10))
    np.testing.assert_array_equal(np.asarray(Image.open("clear.png-out/mean.png"))[..., 3], values[..., 3])


def test_a_dry_run_prints_the_options_and_writes_nothing(photograph: Path) -> None:
    arguments = ("--eta", 0.5, "--samples", 2, "--prior", "gaussian", "--dry-run")
    result = cmidiff("restore", photograph, "--task", "denoise", *arguments)
    assert result.exit_code == 0, result.output
    resolved = json.loads(result.stdout)
    assert resolved["measurement"]["parameters"]["noise_std"] == 0.02  # too small an image for an estimate
    assert resolved["steps"] is None
    assert resolved["cmi"]["eta"] == 0.5
    assert not Path("restored").exists()


def damaged(change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of m.safetensors with other values."""
    from safetensors import safe_open

    with safe_open("m.safetensors", framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in ("y",)}
    change(tensors)
    save_file(tensors, "damaged.safetensors", metadata=metadata)
    return Path("damaged.safetensors")


def test_damaged_measurements_are_refused(photograph: Path) -> None:
    cmidiff("degrade", photograph, "--task", "denoise", "-o", "m")

    def one_nan(tensors: dict[str, Tensor]) -> None:
        tensors["y"][0, 0, 0, 0] = torch.nan

    def empty(tensors: dict[str, Tensor]) -> None:
        tensors["y"] = tensors["y"][:, :, :0]

    def cut(tensors: dict[str, Tensor]) -> None:
        tensors["y"] = tensors["y"][:, :, 1:].contiguous()

    assert "not finite (NaN or infinity)" in refused("restore", damaged(one_nan), *FAST)
    assert "is empty" in refused("restore", damaged(empty), *FAST)
    assert "(1, 3, 11, 20)" in refused("restore", damaged(cut), *FAST)
    assert "is damaged" in refused("restore", damaged(dict.clear), *FAST)
    save_file({"y": torch.zeros(1)}, "other.safetensors")
    assert "no measurement file" in refused("restore", "other.safetensors", *FAST)
    Path("text.safetensors").write_text("text")
    assert "cannot read text.safetensors" in refused("restore", "text.safetensors", *FAST)


WRONG: dict[str, tuple[tuple[Any, ...], str]] = {
    "a missing image": (("degrade", "absent.png", "--task", "denoise"), "no such file: absent.png"),
    "a missing measurement": (("restore", "absent.safetensors"), "no such file: absent.safetensors"),
    "a folder": (("restore", ".", "--task", "denoise"), ". is no file"),
    "no image": (("degrade", "text.png", "--task", "denoise"), "text.png cannot be read as an image"),
    "an empty file": (("degrade", "empty.png", "--task", "denoise"), "empty.png is empty (0 bytes)"),
    "a truth of another size": (
        ("restore", "photo.png", "--task", "denoise", "--truth", "small.png"),
        "the truth small.png is 2x2 but the restored image is 20x12",
    ),
    "a mask of another size": (("restore", "photo.png", "--mask", "small.png"), "is 2x2 but the image is 20x12"),
    "a mask and a kernel": (("restore", "photo.png", "--mask", "hole.png", "--kernel", "b.png"), "exclude each other"),
    "a mask for blur": (("restore", "photo.png", "--mask", "hole.png", "--task", "denoise"), "is for inpainting"),
    "negative noise": (("degrade", "photo.png", "--task", "denoise", "--noise-std", -1), "received -1"),
    "noise that is no number": (("restore", "photo.png", "--task", "denoise", "--noise-std", "nan"), "received nan"),
    "noise in words": (
        ("degrade", "photo.png", "--task", "denoise", "--noise-std", "much"),
        "must be a number from 0 to 100, received much",
    ),
    "an unknown task": (("degrade", "photo.png", "--task", "denoize"), "did you mean denoise"),
    "an option without its task": (("restore", "photo.png", "--factor", 2), "--factor belongs to a task"),
    "jpeg of an image": (("degrade", "photo.png", "--task", "jpeg"), "save it as JPEG"),
    "jpeg where there is none": (("restore", "photo.png", "--task", "jpeg"), "no sign of JPEG"),
    "CMI without samples": (("restore", "photo.png", "--task", "denoise", "--cmi"), "add --samples 4"),
    "samples of an estimator": (("restore", "photo.png", "--solver", "dpir", "--samples", 2), "leave --solver out"),
    "all of no mask": (("restore", "photo.png", "--restore-all"), "--restore-all is for --mask"),
    "an option of another task": (("degrade", "photo.png", "--task", "denoise", "--factor", 2), "factor"),
    "an unknown option": (("degrade", "photo.png", "--tsk", "denoise"), "--tsk"),
    "a factor that does not divide": (("degrade", "photo.png", "--task", "super-resolution", "--factor", 7), "divide"),
    "no factor": (("restore", "photo.png", "--task", "super-resolution"), "needs --factor"),
    "a zero factor": (("restore", "photo.png", "--task", "super-resolution", "--factor", 0), "received 0"),
    "a hole that is nowhere": (("restore", "photo.png", "--task", "inpaint-box"), "where is the hole?"),
    "pixels that are unknown": (("restore", "photo.png", "--task", "inpaint-random"), "--mask"),
    "a blur that is unknown": (("restore", "photo.png", "--task", "deblur-motion"), "--kernel"),
    "no image to measure": (("restore", "photo.png", "--task", "compressed-sensing"), "cmidiff degrade"),
    "everything hidden": (("degrade", "photo.png", "--task", "inpaint-random", "--hidden", 1.0), "hidden"),
    "a size in words": (("degrade", "photo.png", "--task", "denoise", "--resize", "big"), "received 'big'"),
    "a size of zero": (("degrade", "photo.png", "--task", "denoise", "--resize", "0"), "received '0'"),
    "an unknown solver": (("restore", "photo.png", "--task", "denoise", "--solver", "pgdm"), "did you mean pigdm"),
    "no samples": (("restore", "photo.png", "--solver", "pigdm", "--samples", 0), "draws samples"),
    "no steps": (("restore", "photo.png", "--task", "denoise", "--steps", 0), "'--steps': must be"),
    "eta without CMI": (("restore", "photo.png", "--task", "denoise", "--no-cmi", "--eta", 1), "--no-cmi turns off"),
    "an unknown prior": (("restore", "photo.png", "--task", "denoise", "--prior", "natural-46"), "natural-64?"),
    "an unknown device": (("restore", "photo.png", "--task", "denoise", "--device", "gpu"), "unknown device 'gpu'"),
    "an output that is a file": (("restore", "photo.png", "--task", "denoise", "-o", "text.png"), "is a file"),
    "an output below a file": (("restore", "photo.png", "--task", "denoise", "-o", "text.png/out"), "text.png/out"),
    "a measurement below a file": (("degrade", "photo.png", "--task", "denoise", "-o", "text.png/m"), "cannot write"),
    "another suffix": (("degrade", "photo.png", "--task", "denoise", "-o", "m.npy"), "must end in .safetensors"),
    "an unknown command": (("restor", "photo.png"), "restor"),
    "no training file": (("train", "absent.toml"), "absent.toml"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_ends_in_one_clear_line(photograph: Path, name: str) -> None:
    Path("text.png").write_text("text")
    Path("empty.png").touch()
    Image.fromarray(np.full((2, 2), 255, dtype=np.uint8)).save("small.png")
    hole = np.zeros((12, 20), dtype=np.uint8)
    hole[4, 4:8] = 255
    Image.fromarray(hole).save("hole.png")
    arguments, says = WRONG[name]
    if arguments[0] == "restore" and "--prior" not in arguments:
        arguments = (*arguments, "--prior", "gaussian")
    if arguments[0] == "restore" and "--noise-std" not in arguments and "-o" in arguments:
        arguments = (*arguments, "--noise-std", 0.05)
    assert says in refused(*arguments)


def test_a_measurement_file_needs_no_further_description(photograph: Path) -> None:
    cmidiff("degrade", photograph, "--task", "denoise", "-o", "m")
    line = refused("restore", "m.safetensors", "--task", "denoise", "--noise-std", 0.1, *FAST)
    assert "leave out --task, --noise-std" in line


def test_a_device_that_is_absent_is_refused(photograph: Path) -> None:
    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    arguments = ("restore", photograph, "--task", "denoise", "--prior", "gaussian", "--device", absent)
    assert f"--device {absent} is not available" in refused(*arguments)


def test_the_demo_shows_every_contender_between_measurement_and_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "STEPS", 2)
    result = cmidiff("demo", "-o", "sheet.png", "--prior", "gaussian", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout and scene.title in result.stdout for scene in demo.SCENES for name in scene.runs)
    assert "restored after" in result.stderr
    sheet = np.asarray(Image.open("sheet.png"))
    for file, times in Counter(scene.file for scene in demo.SCENES).items():
        truth = np.asarray(Image.open(demo.ASSETS / file))
        scale = -(-256 // truth.shape[0])
        shown = truth.repeat(scale, 0).repeat(scale, 1)
        side = shown.shape[0]
        places = np.argwhere((sheet == shown[0, 0]).all(-1))
        found = [np.array_equal(sheet[top : top + side, left : left + side], shown) for top, left in places]
        assert sum(found) == times


def test_the_demo_refuses_a_place_that_cannot_be_written(photograph: Path) -> None:
    assert "is a folder" in refused("demo", "-o", ".", "--prior", "gaussian")
    assert "cannot write" in refused("demo", "-o", photograph / "demo.png", "--prior", "gaussian")


@pytest.mark.skipif(info_of("natural-64").where() is None, reason="the weights of natural-64 are not present")
def test_the_embedded_prior_restores_in_a_process_of_its_own() -> None:
    ramp = np.linspace(40, 220, 16)[:, None, None] + np.zeros((16, 16, 3))
    Image.fromarray((ramp + np.random.default_rng(0).normal(0, 25.5, ramp.shape)).astype(np.uint8)).save("ramp.png")
    Image.fromarray(ramp.astype(np.uint8)).save("truth.png")
    code = "import torch; torch.set_num_threads(1); from cmidiff.app.cli import main; main()"
    command = [sys.executable, "-c", code, "restore", "ramp.png", "--task", "denoise", "--noise-std", "0.1"]
    command += ["--truth", "truth.png", "--prior", "natural-64", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    row = json.loads(Path("restored/run.json").read_text())["results"]["restored"]
    assert row["psnr"] > 20 + 3  # the noise alone is 20 dB


def test_solvers_are_listed_by_their_kind() -> None:
    groups = SOLVERS.by_kind()
    assert sorted(name for names in groups.values() for name in names) == sorted(SOLVERS.loadable())
    assert list(groups) == list(KINDS)
    assert [groups[kind] for kind in ("point estimate", "particles")] == [["dpir"], ["tds", "mcgdiff", "fps"]]
    result = cmidiff("solvers")
    assert result.exit_code == 0
    for name in SOLVERS.loadable():
        assert name in result.stdout


def test_priors_are_listed_with_what_is_present() -> None:
    result = cmidiff("priors")
    assert result.exit_code == 0
    for text in ("natural-64", "photo", "drunet", "FFDNet", "Zhang", "MIT", "BSD"):
        assert text in result.stdout


def test_priors_that_are_not_here_say_where_their_file_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMIDIFF_CACHE", "cache")
    shown = cmidiff("priors").stdout
    for info in map(info_of, PRIORS):
        assert (info.where() is None) == (info.name not in ("natural-64", "cats-64", "photo"))
        if info.where() is None:
            assert f"put there: {info.expected}" in shown
            assert str(info.url) in shown


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("hf:x", "hf:OWNER/NAME"),
        ("a/b.pt", "there is no prior at a/b.pt"),
        ("ffhq-265", "did you mean ffhq-256"),
        ("notes.txt", "ends in one of .safetensors, .pt"),
    ],
)
def test_a_prior_that_cannot_be_meant_is_said_before_any_work(photograph: Path, named: str, message: str) -> None:
    Path("notes.txt").write_text("x")
    result = cmidiff("restore", photograph, "--task", "denoise", "--prior", named, "--dry-run")
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("named", ["ffhq-256", "hf:google/ddpm-cat-256"])
def test_a_dry_run_fetches_no_prior(photograph: Path, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMIDIFF_CACHE", "cache")
    result = cmidiff("restore", photograph, "--task", "denoise", "--prior", named, "--dry-run")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["prior"] == named
    assert not Path("cache").exists()


def test_no_command_shows_the_help() -> None:
    result = cmidiff()
    assert result.exit_code == 0
    assert "degrade" in result.stdout
    assert cmidiff("--version").stdout.strip()


def test_photons_are_measured_and_restored(photograph: Path) -> None:
    assert cmidiff("degrade", photograph, "--task", "denoise", "--poisson", 0.01, "-o", "m").exit_code == 0
    made = problem.load_problem(Path("m.safetensors"))
    assert made.photons
    photons = made.y / 0.01
    torch.testing.assert_close(photons, photons.round(), rtol=0, atol=1e-3)
    assert made.noise_std == pytest.approx(0.005**0.5)
    assert cmidiff("restore", "m.safetensors", "--samples", 1, *FAST).exit_code == 0


def test_tasks_that_are_not_linear_are_restored_by_the_solvers_that_can(photograph: Path) -> None:
    for task in ("hdr", "phase-retrieval"):
        assert cmidiff("degrade", photograph, "--task", task, "-o", "m").exit_code == 0
        done = cmidiff("restore", "m.safetensors", "-o", task, *FAST)
        assert done.exit_code == 0, done.output
        assert json.loads(Path(f"{task}/run.json").read_text())["options"]["solver"]["name"] == "dps"
        assert Path(f"{task}/restored.png").is_file()
        other = cmidiff("restore", "m.safetensors", "--solver", "pigdm", "-o", f"{task}-pigdm", *FAST)
        assert other.exit_code == 2
        assert "PiGDM needs a linear physics" in other.stderr.splitlines()[-1]
    line = refused("restore", photograph, "--task", "phase-retrieval", "--solver", "dps", *FAST)
    assert "does not tell the phase-retrieval" in line


def test_tiles_at_the_command_line(photograph: Path) -> None:
    """Pixels are independent under this prior, so tiles change nothing but the record."""
    assert cmidiff("degrade", photograph, "--task", "denoise", "-o", "m").exit_code == 0
    for tile in ("auto", "off", "8"):
        result = cmidiff("restore", "m.safetensors", "--samples", 1, "--tile", tile, "-o", tile, *FAST)
        assert result.exit_code == 0, result.output
    whole, tiled = (load_file(Path(name) / "sample-00.safetensors")["sample"] for name in ("off", "8"))
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)
    assert json.loads((Path("8") / "run.json").read_text())["options"]["tile"] == 8
    assert "multiple of 8" in cmidiff("restore", "m.safetensors", "--tile", 12, "-o", "other", *FAST).stderr
    assert "must be a number of pixels up to" in refused("restore", "m.safetensors", "--tile", "big", *FAST)


def written_photograph(name: str, *, noise: float = 0.0, side: int = 48, **options: Any) -> Tensor:
    """A smooth image with an edge and noise, as a file; (3, side, side) as it was before the noise."""
    ramp = torch.linspace(0.3, 0.7, side)
    clean = torch.stack(
        [ramp + 0 * ramp[:, None], ramp[:, None] + 0 * ramp, 0.5 + 0.1 * (ramp > 0.5) + 0 * ramp[:, None]]
    )
    values = clean + noise * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    Image.fromarray((255 * values.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()).save(name, **options)
    return clean


def said(result: Result, start: str) -> list[str]:
    """The lines on standard error that begin with ``start``."""
    return [line for line in result.stderr.splitlines() if line.startswith(start)]


def test_a_photograph_alone_is_enough() -> None:
    clean = written_photograph("photo.png", noise=0.06)
    result = cmidiff("restore", "photo.png", *FAST)
    assert result.exit_code == 0, result.output
    (line,) = said(result, "assumed: ")
    assert "task denoise" in line
    record = json.loads(Path("restored/run.json").read_text())
    found = record["options"]["measurement"]["parameters"]["noise_std"]
    assert f"noise {found:g} (estimated" in line
    assert found == pytest.approx(0.06, rel=0.2)
    assert record["results"]["samples"] == []
    assert sorted(p.name for p in Path("restored").glob("*.png")) == ["restored.png"]
    stated = cmidiff("restore", "photo.png", "--task", "denoise", "--noise-std", 0.06, "-o", "stated", *FAST)
    assert not said(stated, "assumed")
    error = (read_image("restored/restored.png").values - clean).square().mean().sqrt()
    assert error < 0.06


def test_a_compressed_photograph_is_recognised_and_repaired() -> None:
    written_photograph("photo.jpg", quality=20)
    result = cmidiff("restore", "photo.jpg", *FAST)
    assert result.exit_code == 0, result.output
    assert "task jpeg (quality 20, in its file)" in said(result, "assumed: ")[0]
    record = json.loads(Path("restored/run.json").read_text())
    assert (record["options"]["measurement"]["task"], record["options"]["measurement"]["quality"]) == ("jpeg", 20)
    assert record["options"]["estimate"] == {"name": "jpeg"}
    assert Path("restored/restored.png").is_file()
    assert "gives one estimate" in cmidiff("restore", "photo.jpg", "--samples", 1, "-o", "other", *FAST).stderr
    Image.open("photo.jpg").save("copy.png")
    assert "by its pixels" in cmidiff("restore", "copy.png", "-o", "copy", *FAST).stderr


def test_a_noisy_jpeg_of_high_quality_is_noisy() -> None:
    written_photograph("photo.jpg", noise=0.1, quality=95, subsampling=0)
    result = cmidiff("restore", "photo.jpg", "--dry-run", "--prior", "gaussian")
    assert "task denoise" in said(result, "assumed: ")[0]


def test_a_noisy_jpeg_of_medium_quality_is_noisy() -> None:
    written_photograph("photo.jpg", noise=0.08, side=96, quality=50)
    problem = read_problem(Path("photo.jpg"))
    assert problem.name == "denoise"
    assert problem.noise_std == pytest.approx(0.08, rel=0.15)
    assert "estimated before its compression" in problem.assumed[-1]
    assert read_problem(Path("photo.jpg"), "denoise").noise_std == problem.noise_std


def test_the_pixels_of_a_halved_chroma_do_not_hide_strong_noise() -> None:
    written_photograph("photo.jpg", noise=0.12, side=96, quality=90)
    problem = read_problem(Path("photo.jpg"))
    assert problem.name == "denoise"
    assert problem.noise_std == pytest.approx(0.12, rel=0.15)


def test_a_compressed_photograph_of_ink_and_one_that_was_turned_are_recognised() -> None:
    written_photograph("photo.jpg", side=96, quality=30)
    with Image.open("photo.jpg") as opened:
        opened.convert("CMYK").save("ink.jpg", quality=30)
        upright = opened.crop((0, 0, 91, 84))
    ink = read_problem(Path("ink.jpg")).describe()
    assert (ink["task"], ink["quality"]) == ("jpeg", 30)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        upright.save("turned.jpg", quality=30, exif=exif)
        problem = read_problem(Path("turned.jpg"))
        assert (problem.name, problem.assumed[0]) == ("jpeg", "task jpeg (quality 30, in its file)")
        assert problem.tables is not None
        assert agree(problem.y, problem.tables), "the tables are those of the upright pixels"
        assert not agree(problem.y, replace(problem.tables, offset=(3, 5)))


@pytest.mark.parametrize("bits", [8, 16])
def test_unpainted_pixels_stay_as_they_are(bits: int) -> None:
    values = torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(0))
    Path("photo.png").write_bytes(encode_image(values, bits=bits))
    paint = np.zeros((20, 24), np.uint8)
    paint[6:9, 3:20] = 255
    Image.fromarray(paint).save("mask.png")
    unpainted, photo = torch.from_numpy(paint == 0), read_image("photo.png").values
    for option, kept in ((), True), (("--restore-all",), False):
        folder = Path(f"kept-{kept}")
        arguments = ("--mask", "mask.png", "--noise-std", 0.1, "--samples", 2, "-o", folder, *option)
        result = cmidiff("restore", "photo.png", *arguments, *FAST)
        assert result.exit_code == 0, result.output
        for name in ("restored.png", "sample-00.png", "mean.png"):
            shown = read_image(folder / name).values
            assert torch.equal(shown[:, unpainted], photo[:, unpainted]) == kept
            assert not torch.equal(shown[:, ~unpainted], photo[:, ~unpainted])


def test_a_repair_joins_the_photograph_at_its_border_alone() -> None:
    photo, seen = torch.full((1, 64, 64), 0.5), torch.ones(1, 64, 64)
    seen[:, 16:48, 16:48] = 0
    joined = keep_unpainted(photo + 0.1, photo, seen)
    assert torch.equal(joined[seen > 0], photo[seen > 0])
    torch.testing.assert_close(joined[0, 32, 30:34], torch.full((4,), 0.6))
    assert abs(float(joined[0, 32, 16]) - 0.5) < 0.03
    steps = joined[0, 32].diff().abs()
    assert float(steps.max()) < 0.04


def test_the_restored_image_of_a_solver_is_the_mean_of_its_samples(photograph: Path) -> None:
    cmidiff("degrade", photograph, "--task", "denoise", "-o", "m")
    arguments = ("restore", "m.safetensors", "--solver", "pigdm", *FAST)
    assert cmidiff(*arguments, "-o", "one").exit_code == 0
    assert [p.name for p in Path("one").glob("sample-*.png")] == ["sample-00.png"]
    assert cmidiff(*arguments, "-o", "two", "--samples", 2).exit_code == 0
    mean = torch.stack([load_file(f"two/sample-0{k}.safetensors")["sample"] for k in (0, 1)]).mean(0)
    shown = read_image("two/restored.png").values
    torch.testing.assert_close(shown, mean.clamp(0, 1), rtol=0, atol=0.51 / 255)
    assert not Path("two/estimate.safetensors").exists()


def test_samples_are_added_to_an_estimate(photograph: Path) -> None:
    cmidiff("degrade", photograph, "--task", "denoise", "-o", "m")
    assert cmidiff("restore", "m.safetensors", *FAST).exit_code == 0
    before = Path("restored/restored.png").stat().st_mtime_ns
    more = cmidiff("restore", "m.safetensors", "--samples", 2, *FAST)
    assert more.exit_code == 0, more.output
    assert "the estimate and 0 of 2 samples are in restored finished already" in more.stderr
    assert Path("restored/restored.png").stat().st_mtime_ns == before
    assert Path("restored/comparison.png").is_file()


def test_a_result_that_does_not_explain_the_measurement_says_so(photograph: Path) -> None:
    cmidiff("degrade", photograph, "--task", "denoise", "--noise-std", 0.02, "-o", "m")
    result = cmidiff("restore", "m.safetensors", "--solver", "red-diff", *FAST)
    assert result.exit_code == 0, result.output
    (line,) = said(result, "cmidiff: ")
    assert "does not explain the measurement" in line
    assert "--steps" in line
    row = json.loads(Path("restored/run.json").read_text())["results"]["restored"]
    assert row["misfit"] > 1.5
    assert "does not explain" in row["status"]
    assert "does not explain" in " ".join(result.stdout.split())


def test_a_run_is_not_continued_with_other_weights(photograph: Path, prior: Callable[..., None]) -> None:
    cmidiff("degrade", photograph, "--task", "denoise", "-o", "m")
    assert cmidiff("restore", "m.safetensors", *FAST).exit_code == 0
    prior(prior_of(gaussian_prior().network, name="retrained"))
    assert "holds another run (another weights)" in refused("restore", "m.safetensors", "--samples", 1, *FAST)


def test_a_long_run_is_announced(photograph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = cmidiff("restore", photograph, "--task", "denoise", *FAST)
    assert "on this machine" not in quiet.stderr
    monkeypatch.setattr(speed, "WORTH", 0)
    monkeypatch.setattr(speed, "LONG", 0.0)
    long = cmidiff("restore", photograph, "--task", "denoise", "--samples", 1, *FAST)
    assert "20x12 pixels: about 10 seconds on this machine" in long.stderr
    assert [speed.say_duration(n) for n in (33, 600, 7200)] == [
        "about 30 seconds",
        "about 10 minutes",
        "about 2.0 hours",
    ]


def test_the_time_of_a_large_image_counts_its_tiles() -> None:
    small = NetworkPrior(lambda x_t, t: x_t, size=64)
    assert speed.count_pixels(small, (3, 256, 200), "auto") == 256 * 200
    across, down = -(-(4000 - 32) // 96), -(-(3000 - 32) // 96)  # tiles of 128 that share 32
    assert speed.count_pixels(small, (3, 3000, 4000), "auto") == across * down * 128**2


def test_the_noise_of_a_damaged_photograph_is_that_of_its_intact_pixels() -> None:
    clean = written_photograph("photo.png", noise=0.05, side=64)
    values, seen = read_image("photo.png").values, torch.ones(1, 64, 64)
    seen[:, 20:26, 5:60] = 0
    scratched = torch.where(seen > 0, values, 1.0)
    found, words = find_noise(scratched, seen)
    assert found == pytest.approx(0.05, rel=0.25)
    assert "estimated" in words
    assert find_noise(clean)[0] == pytest.approx(1 / 255, rel=0.01)  # the least that is told
    assert find_noise(scratched, (torch.rand(1, 64, 64) < 0.3).float())[0] == 0.02
