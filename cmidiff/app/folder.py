"""The folder of a restoration: what is written, each file as a whole.

restored.png           the best estimate; with a solver that draws samples, their mean
run.json               the resolved options, and at the end what came of the estimate and of every sample
overlay.png            the image as it was given, with what its mask hides in red
estimate.safetensors   the estimate as floats, its status, and the misfit by step
sample-00.png ...      samples of the posterior; sample-00.safetensors likewise
mean.png, std.png      mean of the samples, and where they disagree
moments.safetensors    both as floats
comparison.png         measurement, estimate, samples, mean, uncertainty and truth, side by side

"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cmidiff import __version__, files
from cmidiff.app.masks import overlay
from cmidiff.app.problem import Problem
from cmidiff.app.settings import ESTIMATE, Settings
from cmidiff.images import fit_alpha, write_image
from cmidiff.prior.base import Denoiser
from cmidiff.result import Status

COMMAND = "restore"
WRITTEN = re.compile(
    r"run\.json|(restored|mean|std|comparison|overlay)\.png|(moments|estimate)\.safetensors"
    r"|sample-\d+\.(png|safetensors)"
)
NOT_IDENTITY = ("samples", "batch", "device", "output")  # options that leave the estimate and sample k as they are


@dataclass(frozen=True)
class Sample:
    """One finished result: the best estimate, or a sample of the posterior.

    Attributes:
        index: k; `ESTIMATE` for the estimate.
        values: (C, H, W) in units of a [0, 1] image, not clipped.
        misfit: by step, in units of the noise.
        status: how it ended.
    """

    index: int
    values: Tensor
    misfit: Tensor
    status: Status = field(default_factory=lambda: Status(True))

    @property
    def ok(self) -> bool:
        return self.status.ok

    @property
    def name(self) -> str:
        return "restored" if self.index == ESTIMATE else f"sample {self.index}"


@dataclass(frozen=True)
class Row:
    """A line of the summary; quality is None without a truth, and all figures are for a diverged sample."""

    name: str
    status: str
    misfit: float | None = None
    psnr: float | None = None
    ssim: float | None = None

    @property
    def note(self) -> str:
        """The figures, short."""
        quality = "" if self.psnr is None else f"{self.psnr:.1f} dB"
        misfit = "" if self.misfit is None else f"misfit {self.misfit:.2f}"
        return ", ".join(filter(None, (quality, misfit)))

    def figures(self, with_truth: bool) -> list[str]:
        """Return misfit, and with a truth PSNR and SSIM, as a table shows them."""
        shown = [(self.misfit, 2), (self.psnr, 2), (self.ssim, 3)][: 3 if with_truth else 1]
        return ["-" if value is None else f"{value:.{digits}f}" for value, digits in shown]


def describe_run(
    problem: Problem, settings: Settings, source: Path, output: Path, prior: Denoiser | None = None
) -> dict[str, Any]:
    """Return all options of a run, as they are written to run.json; with the prior, its weights are part of them."""
    measurement = {"file": str(source), "sha256": problem.digest()} | problem.describe()
    record = {"cmidiff": __version__, "measurement": measurement} | settings.describe() | {"output": str(output)}
    return record if prior is None else record | {"weights": prior.fingerprint[:16]}


def open_folder(
    folder: Path, record: Mapping[str, Any], *, overwrite: bool, inputs: Iterable[Path | None] = ()
) -> None:
    """Make a folder ready for a run: new, or holding the same ``record`` of `describe_run`. With ``overwrite``,
    another run and files of another origin are replaced; ``inputs`` never are."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder} is a file: give a folder")
    if not overwrite and (difference := _compare_with_folder(folder, record)):
        raise ValueError(f"{folder} holds another run ({difference}): give another --output, or --overwrite")
    there = [path for path in sorted(folder.glob("*")) if WRITTEN.fullmatch(path.name)]
    files.check_outputs([*there, folder / "run.json"], inputs, command=COMMAND, overwrite=overwrite)
    if overwrite:  # remove what an earlier run wrote, and what this one would read as finished samples
        results = {f"{_stem(k)}.safetensors" for k in range(ESTIMATE, int(record["samples"]))}
        for path in there:
            if path.name in results or files.is_own(path, COMMAND):
                path.unlink()
    _write_json(folder, record, {})


def _compare_with_folder(folder: Path, record: Mapping[str, Any]) -> str:
    """What differs between the run in a folder and this one; "" if it is the same run, or none."""
    path = folder / "run.json"
    if not path.is_file():
        return ""
    try:
        before = json.loads(path.read_text())["options"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return "its run.json cannot be read"
    now = json.loads(json.dumps(record))
    keys = [key for key in {**before, **now} if key not in NOT_IDENTITY and before.get(key) != now.get(key)]
    return f"another {', '.join(keys)}" if keys else ""


def write_record(folder: Path, record: Mapping[str, Any], rows: list[Row], *, finished: bool) -> None:
    """Write run.json with what came of the run."""
    restored = next((asdict(row) for row in rows if row.name == "restored"), None)
    samples = [asdict(row) for row in rows if row.name != "restored"]
    _write_json(folder, record, {"finished": finished, "restored": restored, "samples": samples})


def _write_json(folder: Path, record: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    text = json.dumps({"options": record, "results": results}, indent=2) + "\n"
    files.write(folder / "run.json", text.encode(), COMMAND)


def write_overlay(folder: Path, problem: Problem) -> None:
    """Write overlay.png, where the user gave a mask."""
    if problem.seen is not None and problem.original is not None:
        write_image(folder / "overlay.png", overlay(problem.original, problem.seen), command=COMMAND)


def _stem(index: int) -> str:
    """Name of the file of a result, without its ending."""
    return "estimate" if index == ESTIMATE else f"sample-{index:02d}"


def save_sample(folder: Path, sample: Sample, problem: Problem) -> None:
    """Write one finished result; its float file last, since that is the mark that it is complete."""
    path = folder / _stem(sample.index)
    if sample.ok:
        image = folder / "restored.png" if sample.index == ESTIMATE else path.with_suffix(".png")
        write_result(image, sample.values, problem)
    tensors = {"sample": sample.values.contiguous(), "misfit": sample.misfit.contiguous()}
    data = save(tensors, metadata={"status": json.dumps(asdict(sample.status))})
    files.write(path.with_suffix(".safetensors"), data, COMMAND)


def write_result(path: Path, values: Tensor, problem: Problem) -> None:
    """Write a restored image with the transparency and the depth of the degraded one."""
    alpha = fit_alpha(problem.alpha, *values.shape[1:])
    write_image(path, values, alpha, bits=problem.bits, command=COMMAND)


def load_samples(folder: Path, settings: Settings) -> list[Sample]:
    """Read the results that an earlier run finished."""
    found = []
    for index in settings.parts:
        try:
            with safe_open(folder / f"{_stem(index)}.safetensors", framework="pt") as file:
                status = Status(**json.loads((file.metadata() or {})["status"]))
                found.append(Sample(index, file.get_tensor("sample"), file.get_tensor("misfit"), status))
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError):
            continue  # not there, or not whole
    return found
