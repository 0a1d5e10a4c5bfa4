"""Another package, built as a wheel and installed, adds a solver, a prior and a task everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULE = '''
from dataclasses import dataclass
from typing import ClassVar

import torch
from deepinv.physics import GaussianNoise, Inpainting

from cmidiff.prior import NetworkPrior
from cmidiff.solvers import PosteriorMean


@dataclass(frozen=True)
class Landweber(PosteriorMean):
    """One gradient step on |y - A x|^2 from the denoised image."""

    scale: float = 0.5
    needs_linear: ClassVar[bool] = True

    def estimate(self, step):
        x = step.x_hat.detach()
        return x + self.scale * step.measurement.At(step.measurement.residual(x))


class Shrink(torch.nn.Module):
    """The denoiser of independent pixels of variance 0.3."""

    def __init__(self):
        super().__init__()
        self.schedule = NetworkPrior(lambda x, t: x).schedule

    def forward(self, x, t):
        alpha, sigma = self.schedule(float(t[0]))
        return alpha * 0.3 / (alpha**2 * 0.3 + sigma**2) * x


def pixels():
    """Independent pixels."""
    return NetworkPrior(Shrink(), "x0", name="pixels")


def every_other(shape, *, gap=2, noise_std=0.05, dtype=torch.float32, device="cpu"):
    """Every second column is measured."""
    mask = torch.zeros(1, 1, *shape[1:], dtype=dtype)
    mask[..., ::gap] = 1
    physics = Inpainting(tuple(shape), mask=mask, noise_model=GaussianNoise(noise_std))
    return physics.to(device=device, dtype=dtype)
'''
POINTS = """[cmidiff.solvers]
landweber = landweber:Landweber
broken = landweber:Nothing
[cmidiff.priors]
pixels = landweber:pixels
lost = no_such_module:prior
[cmidiff.tasks]
every-other = landweber:every_other
"""
SCRIPT = """
import json, sys, warnings
from pathlib import Path

import torch
from typer.testing import CliRunner

import landweber
from cmidiff import restore, load_prior
from cmidiff.app.cli import app
from cmidiff.images import write_image
from cmidiff.physics import TASKS, Task, measure
from cmidiff.registry import PRIORS, SOLVERS

warnings.simplefilter("ignore")
found = {}
shape = (3, 16, 16)
physics = TASKS["every-other"](shape, noise_std=0.1)
x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
y = measure(x, physics)
options = {"steps": 4, "seed": 3}
named = restore(y, physics, "pixels", solver="landweber", **options)
made = restore(y, physics, load_prior("pixels"), solver=landweber.Landweber, **options)
found["python"] = bool(named.ok.all()) and torch.equal(named.samples, made.samples)
found["stored"] = SOLVERS.spell(landweber.Landweber(0.25)) == {"name": "landweber", "scale": 0.25}
task = Task.draw("every-other", shape, {"gap": 4})
found["task"] = task.parameters == {"gap": 4, "noise_std": 0.05}

images = Path("images")
images.mkdir()
for k in range(4):
    write_image(images / f"{k}.png", torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(k)))


def run(name, *arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    found[name] = result.exit_code if result.exit_code == 0 else result.output + str(result.exception)
    return result.output


run("degrade", "degrade", images / "0.png", "--task", "every-other", "-o", "y.safetensors")
common = ["--solver", "landweber", "--prior", "pixels", "--steps", "3"]
run("restore", "restore", "y.safetensors", *common, "-o", "restored", "--device", "cpu")
record = json.loads(Path("restored/run.json").read_text())["options"]
found["record"] = [record["solver"]["name"], record["prior"], record["measurement"]["task"]]
run("evaluate", "evaluate", "--images", images, "--tasks", "every-other:gap=4", "--solvers", "landweber",
    "--cmi", "off", "--prior", "pixels", "--steps", "3", "--size", "32", "--device", "cpu", "-o", "run")
run("tune", "tune", "every-other", "--images", images, "--solver", "landweber", "--prior", "pixels", "--steps", "3",
    "--count", "4", "--trials", "2", "--device", "cpu", "-o", "preset.toml")
found["listed"] = "pixels" in run("priors", "priors")

from cmidiff.app.web.controls import EXPERIMENTS, Ask, Limits
from cmidiff.app.web.layout import samplers

found["page"] = "every-other" in EXPERIMENTS and "landweber" in samplers() and "broken" not in samplers()
values = {"case": "experiment", "experiment": "every-other", "noise": "", "steps": "3", "strength": 1, "side": 64}
ask = Ask.read(values | {"whole": False, "solver": "landweber", "seed": 0}, Limits())
found["asked"] = [ask.case, ask.solver]
print(json.dumps(found))
"""


def wheel(folder: Path) -> Path:
    """The package as a wheel."""
    path = folder / "landweber-1.0-py3-none-any.whl"
    info = "landweber-1.0.dist-info"
    files = {
        "landweber.py": MODULE,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: landweber\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": POINTS,
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_an_installed_package_adds_a_solver_a_prior_and_a_task_everywhere(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    pytest.importorskip("optuna")
    target = tmp_path / "site"
    install = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(target)]
    subprocess.run([sys.executable, *install, str(wheel(tmp_path))], check=True)
    paths = os.pathsep.join([str(target), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {
        **dict.fromkeys(("python", "stored", "task", "listed", "page"), True),
        **dict.fromkeys(("degrade", "restore", "evaluate", "tune", "priors"), 0),
        "record": ["landweber", "pixels", "every-other"],
        "asked": ["every-other", "landweber"],
    }
