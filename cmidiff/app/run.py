"""One run of a solver into a folder, its samples written as they are finished.

    overlay.png            the image as it was given, with what its mask hides in red
    run.json               the resolved options, and at the end the result of every sample
    sample-00.png ...      posterior samples; sample-00.safetensors holds the floats, the status, the misfit by step
    mean.png, std.png      mean of the samples, and where they disagree
    moments.safetensors    both as floats
    comparison.png         measurement, samples, mean, uncertainty and truth, side by side

The same run into the same folder keeps the finished samples and goes on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cmidiff import __version__, files, load_prior
from cmidiff.app.errors import BadInput, bad_input, say
from cmidiff.app.figures import Tile, side_by_side, std_map, std_tile
from cmidiff.app.masks import overlay
from cmidiff.app.problem import Problem
from cmidiff.app.show import Line, progress
from cmidiff.images import encode, fit_alpha, to_pil, write_image
from cmidiff.information import CMI
from cmidiff.metrics import data_misfit, psnr, ssim
from cmidiff.prior.base import Denoiser
from cmidiff.registry import describe
from cmidiff.restoration import restore as sample_posterior
from cmidiff.result import Progress, Restoration
from cmidiff.solvers import Solver
from cmidiff.step import Sampler

SSIM_WINDOW = 11  # pixels: smaller pictures have no SSIM
COMMAND = "restore"
WRITTEN = re.compile(r"run\.json|(mean|std|comparison|overlay)\.png|moments\.safetensors|sample-\d+\.(png|safetensors)")
MOST_SHOWN = 4  # samples in the comparison
NOT_IDENTITY = ("samples", "batch", "device", "output")  # options that leave sample k of a seed as it is


@dataclass(frozen=True)
class Settings:
    """The resolved options of a run, apart from the problem.

    Attributes:
        solver_name, solver: the solver, by its name at the command line and as the object.
        cmi: the CMI correction, or None.
        prior: name or path of the prior.
        steps, samples, seed, batch: of the sampler; ``batch`` samples are drawn at once.
        device: where.
        sampler: reverse sampler; None for the default.
        tile: side of the tiles in which a large picture is seen, None for the whole, or ``auto``.
    """

    solver_name: str
    solver: Solver
    cmi: CMI | None
    prior: str
    steps: int
    samples: int
    seed: int
    batch: int
    device: str
    sampler: Sampler | None = None
    tile: int | Literal["auto"] | None = "auto"

    @property
    def title(self) -> str:
        return f"{self.solver_name}{' + CMI' if self.cmi else ''}, {self.steps} steps, seed {self.seed}"

    def describe(self) -> dict[str, Any]:
        names = ("prior", "tile", "steps", "samples", "seed", "batch", "device")
        cmi = None if self.cmi is None else describe(self.cmi)
        sampler = None if self.sampler is None else {"name": type(self.sampler).__name__} | describe(self.sampler)
        return {"solver": {"name": self.solver_name} | describe(self.solver), "cmi": cmi, "sampler": sampler} | {
            name: getattr(self, name) for name in names
        }


def resolved(problem: Problem, settings: Settings, source: Path, output: Path) -> dict[str, Any]:
    """All options of a run, as they are written to run.json."""
    measurement = {"file": str(source), "sha256": problem.digest()} | problem.describe()
    return {"cmidiff": __version__, "measurement": measurement} | settings.describe() | {"output": str(output)}


def load_prior_of(settings: Settings) -> Denoiser:
    """The prior on its device.

    Raises:
        BadInput: it cannot be loaded.
    """
    try:
        return load_prior(settings.prior, device=settings.device)
    except (ValueError, OSError) as error:
        raise bad_input(error) from error


def open_folder(
    folder: Path, options: Mapping[str, Any], *, overwrite: bool, inputs: Iterable[Path | None] = ()
) -> None:
    """Make a folder ready for a run: new, or holding the same run.

    Args:
        options: what identifies the run, from `resolved`.
        overwrite: whether another run and files of another origin may be replaced.
        inputs: what the run reads, which is never replaced.

    Raises:
        ValueError: it cannot be written, holds another run or files of another origin and ``overwrite`` is off, or an
            input lies in the place of an output.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--output {folder} is a file: give a folder")
    if not overwrite and (difference := _difference(folder, options)):
        raise BadInput(f"{folder} holds another run ({difference}): give another --output, or --overwrite")
    there = [path for path in sorted(folder.glob("*")) if WRITTEN.fullmatch(path.name)]
    files.check_outputs([*there, folder / "run.json"], inputs, command=COMMAND, overwrite=overwrite)
    if overwrite:
        _clear(there, int(options["samples"]))
    write_record(folder, options, {})


def _clear(there: Iterable[Path], samples: int) -> None:
    """Remove what an earlier run wrote, and what this one would take for finished samples."""
    wanted = {f"sample-{k:02d}.safetensors" for k in range(samples)}
    for path in there:
        if path.name in wanted or files.is_own(path, COMMAND):
            path.unlink()


def _difference(folder: Path, options: Mapping[str, Any]) -> str:
    """What tells the run in a folder from this one; "" if it is the same run, or none."""
    path = folder / "run.json"
    if not path.is_file():
        return ""
    try:
        before = json.loads(path.read_text())["options"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return "its run.json cannot be read"
    now = json.loads(json.dumps(options))
    keys = [key for key in {**before, **now} if key not in NOT_IDENTITY and before.get(key) != now.get(key)]
    return f"another {', '.join(keys)}" if keys else ""


def write_record(folder: Path, options: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Write run.json."""
    text = json.dumps({"options": options, "results": results}, indent=2) + "\n"
    files.write(folder / "run.json", text.encode(), COMMAND)


def write_overlay(folder: Path, problem: Problem) -> None:
    """Write overlay.png, where the user gave a mask."""
    if problem.seen is not None and problem.original is not None:
        write_image(folder / "overlay.png", overlay(problem.original, problem.seen), command=COMMAND)


@dataclass(frozen=True)
class Sample:
    """One finished sample.

    Attributes:
        index: k.
        values: (C, H, W) in units of a [0, 1] image, not clipped.
        misfit: by step, in units of the noise.
        failure: why and where it diverged, or "".
    """

    index: int
    values: Tensor
    misfit: Tensor
    failure: str = ""

    @property
    def ok(self) -> bool:
        return not self.failure


def save_sample(folder: Path, sample: Sample, problem: Problem) -> None:
    """Write one finished sample; its float file last, since that is the mark that it is complete."""
    stem = folder / f"sample-{sample.index:02d}"
    if sample.ok:
        _write_result(stem.with_suffix(".png"), sample.values, problem)
    tensors = {"sample": sample.values.contiguous(), "misfit": sample.misfit.contiguous()}
    files.write(stem.with_suffix(".safetensors"), save(tensors, metadata={"failure": sample.failure}), COMMAND)


def _write_result(path: Path, values: Tensor, problem: Problem) -> None:
    """Write a restored image with the transparency and the depth of the degraded one."""
    alpha = fit_alpha(problem.alpha, *values.shape[1:])
    write_image(path, values, alpha, bits=problem.bits, command=COMMAND)


def load_sample(folder: Path, index: int) -> Sample | None:
    """A sample that an earlier run finished, or None."""
    path = folder / f"sample-{index:02d}.safetensors"
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            failure = (file.metadata() or {}).get("failure", "")
            return Sample(index, file.get_tensor("sample"), file.get_tensor("misfit"), failure)
    except SafetensorError:
        return None


def sample(problem: Problem, settings: Settings, prior: Denoiser, folder: Path) -> tuple[list[Sample], bool]:
    """Draw the samples that the folder lacks, writing each as it is finished.

    Returns:
        all finished samples in their order, and whether the user stopped it.
    """
    found = [load_sample(folder, k) for k in range(settings.samples)]
    done = [s for s in found if s is not None]
    missing = [k for k, s in enumerate(found) if s is None]
    if done:
        say(f"note: {len(done)} of {settings.samples} samples in {folder} are finished already")
    stopped = False
    with progress(max(1, len(missing)) * settings.steps) as line:
        try:
            for indices in chunks(missing, settings.batch):
                for one in draw(problem, settings, prior, indices, missing.index(indices.start), line):
                    save_sample(folder, one, problem)
                    done.append(one)
        except KeyboardInterrupt:
            stopped = True
    return sorted(done, key=lambda s: s.index), stopped


def chunks(missing: list[int], batch: int) -> Iterator[range]:
    """Runs of consecutive sample numbers, of at most ``batch`` each."""
    start = 0
    for end in range(1, len(missing) + 1):
        if end == len(missing) or missing[end] != missing[end - 1] + 1 or end - start == batch:
            yield range(missing[start], missing[end - 1] + 1)
            start = end


def draw(
    problem: Problem, settings: Settings, prior: Denoiser, indices: range, before: int, line: Line
) -> list[Sample]:
    """Samples ``indices`` of the posterior, ``before`` others being drawn already.

    Raises:
        BadInput: as `posterior`.
    """
    label = str(indices.start) if len(indices) == 1 else f"{indices.start}-{indices.stop - 1}"

    def show(now: Progress) -> None:
        doing = f"sample {label} of {settings.samples}, step {now.step}/{now.steps}"
        line(before * now.steps + now.step * len(indices), doing, float(now.misfit.median()))

    return samples_of(posterior(problem, settings, prior, indices, show), indices)


def posterior(
    problem: Problem, settings: Settings, prior: Denoiser, indices: range, callback: Callable[[Progress], None]
) -> Restoration:
    """Samples ``indices`` of the posterior, as `cmidiff.restore` gives them; what the callback raises passes through.

    Raises:
        BadInput: what `cmidiff.restore` refuses at its door, or what does not fit into memory.
    """
    try:
        return sample_posterior(
            problem.y.to(settings.device),
            problem.physics.to(settings.device),
            prior,
            solver=settings.solver,
            cmi=settings.cmi,
            sampler=settings.sampler,
            noise_std=None if problem.photons else problem.noise_std,
            tile=settings.tile,
            steps=settings.steps,
            samples=len(indices),
            first_sample=indices.start,
            seed=settings.seed,
            callback=callback,
        )
    except (ValueError, TypeError) as error:
        raise BadInput(str(error)) from error
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        size = f"{problem.shape[2]}x{problem.shape[1]} pixels, {len(indices)} at once,"
        raise BadInput(f"{size} do not fit into memory: lower --batch or use a smaller picture") from error


def samples_of(restoration: Restoration, indices: range) -> list[Sample]:
    """The samples of a restoration, as they are written."""
    samples, misfit = restoration.samples[0].cpu(), restoration.stats["misfit"][:, 0].cpu()
    failures = ["" if status.ok else status.message for status in restoration.status[0]]
    return [Sample(k, samples[n], misfit[:, n], failures[n]) for n, k in enumerate(indices)]


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


def judged(problem: Problem, name: str, values: Tensor, truth: Tensor | None) -> Row:
    """Data misfit of an image (C, H, W), and its quality where the truth is known."""
    misfit = _misfit(problem, values)
    if truth is None:
        return Row(name, "ok", misfit)
    shown, truth = values.clamp(0, 1)[None], truth[None]
    similarity = float(ssim(shown, truth)) if min(values.shape[1:]) >= SSIM_WINDOW else None
    return Row(name, "ok", misfit, float(psnr(shown, truth)), similarity)


def _misfit(problem: Problem, values: Tensor) -> float:
    """In units of the noise; without noise, the root mean square of the residual."""
    physics = problem.physics.to("cpu")
    return float(data_misfit(values[None], problem.y, physics, noise_std=problem.noise_std or 1.0))


def finish(folder: Path, problem: Problem, samples: list[Sample], truth: Tensor | None) -> list[Row]:
    """Write mean, uncertainty and comparison of the finished samples, and return the summary."""
    rows = [
        judged(problem, f"sample {s.index}", s.values, truth) if s.ok else Row(f"sample {s.index}", s.failure)
        for s in samples
    ]
    good = [s for s in samples if s.ok]
    if not good:
        return rows
    stack = torch.stack([s.values for s in good])
    moments = {"mean": stack.mean(0)}
    _write_result(folder / "mean.png", moments["mean"], problem)
    if len(good) > 1:
        moments["std"] = stack.std(0)
        files.write(folder / "std.png", encode(std_map(moments["std"])), COMMAND)
        rows.append(judged(problem, "mean", moments["mean"], truth))
    files.write(folder / "moments.safetensors", save(moments), COMMAND)
    files.write(folder / "comparison.png", encode(_compare(problem, good, moments, truth, rows)), COMMAND)
    return rows


def _compare(
    problem: Problem, good: list[Sample], moments: Mapping[str, Tensor], truth: Tensor | None, rows: list[Row]
) -> Image.Image:
    notes = {row.name: row.note for row in rows}
    tiles = [Tile(to_pil(problem.view()), "measurement", f"{problem.task.name}, noise {problem.noise_std:g}")]
    tiles += [Tile(to_pil(s.values), f"sample {s.index}", notes[f"sample {s.index}"]) for s in good[:MOST_SHOWN]]
    if "std" in moments:
        tiles.append(Tile(to_pil(moments["mean"]), f"mean of {len(good)}", notes["mean"]))
        image, top = std_tile(moments["std"])
        tiles.append(Tile(image, "uncertainty", f"black 0, brightest {top:.3f}"))
    if truth is not None:
        tiles.append(Tile(to_pil(truth), "truth"))
    return side_by_side(tiles)
