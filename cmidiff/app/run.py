"""One restoration in a folder: the best estimate and samples of the posterior, each written as soon as it is finished.

    restored.png           the best estimate; with a solver that draws samples, their mean
    run.json               the resolved options, and at the end what came of the estimate and of every sample
    overlay.png            the image as it was given, with what its mask hides in red
    estimate.safetensors   the estimate as floats, its status, and the misfit by step
    sample-00.png ...      samples of the posterior; sample-00.safetensors likewise
    mean.png, std.png      mean of the samples, and where they disagree
    moments.safetensors    both as floats
    comparison.png         measurement, estimate, samples, mean, uncertainty and truth, side by side

The same run into the same folder keeps what is finished and goes on. The command line and the page both run `compute`.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cmidiff import __version__, files
from cmidiff.app.compressed import restore_compressed
from cmidiff.app.figures import Tile, side_by_side, std_map, std_tile
from cmidiff.app.masks import overlay
from cmidiff.app.problem import Problem
from cmidiff.app.settings import ESTIMATE, Settings
from cmidiff.images import encode, fit_alpha, to_pil, write_image
from cmidiff.metrics import data_misfit, psnr, ssim
from cmidiff.prior.base import Denoiser
from cmidiff.restoration import restore
from cmidiff.result import MISFIT_BOUND, Progress, Restoration, RestorationWarning, Status

SSIM_WINDOW = 11  # pixels: smaller images have no SSIM
COMMAND = "restore"
WRITTEN = re.compile(
    r"run\.json|(restored|mean|std|comparison|overlay)\.png|(moments|estimate)\.safetensors"
    r"|sample-\d+\.(png|safetensors)"
)
POLISH = 0.75  # of the time of an estimate that starts from the mean of samples, what the samples take
MOST_SHOWN = 4  # samples in the comparison
NOT_IDENTITY = ("samples", "batch", "device", "output")  # options that leave the estimate and sample k as they are
Watch = Callable[[float, str, float, Tensor | None], None]
"""Receives which fraction is done, what is being done, the misfit, and the estimate so far (C, H, W) or None."""


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


# the folder


def open_folder(
    folder: Path, record: Mapping[str, Any], *, overwrite: bool, inputs: Iterable[Path | None] = ()
) -> None:
    """Make a folder ready for a run: new, or holding the same run.

    Args:
        record: what identifies the run, from `describe_run`.
        overwrite: whether another run and files of another origin may be replaced.
        inputs: what the run reads, which is never replaced.

    Raises:
        ValueError: it cannot be written, holds another run or files of another origin and ``overwrite`` is off, or an
            input lies in the place of an output.
    """
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
        _write_result(image, sample.values, problem)
    tensors = {"sample": sample.values.contiguous(), "misfit": sample.misfit.contiguous()}
    data = save(tensors, metadata={"status": json.dumps(asdict(sample.status))})
    files.write(path.with_suffix(".safetensors"), data, COMMAND)


def _write_result(path: Path, values: Tensor, problem: Problem) -> None:
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


# the computation


def compute(problem: Problem, settings: Settings, prior: Denoiser, folder: Path, watch: Watch) -> Iterator[Sample]:
    """Compute what a folder lacks, the estimate first, and yield each result once it is written.

    Args:
        watch: what it raises passes through.

    Raises:
        ValueError: what `cmidiff.restore` refuses.
    """
    done = {sample.index for sample in load_samples(folder, settings)}
    missing = [k for k in settings.parts if k not in done]
    for indices in split(missing, settings.batch):
        before = missing.index(indices.start)

        def show(fraction: float, doing: str, misfit: float, x_hat: Tensor | None, n: int = before) -> None:
            watch((n + len(indices) * fraction) / len(missing), doing, misfit, x_hat)  # noqa: B023 - called at once

        for one in restore_part(problem, settings, prior, indices, show):
            save_sample(folder, one, problem)
            yield one


def split(missing: list[int], batch: int) -> Iterator[range]:
    """Split indices into runs of consecutive ones, of at most ``batch`` each; the estimate is alone."""
    start = 0
    for end in range(1, len(missing) + 1):
        alone = missing[end - 1] == ESTIMATE
        if alone or end == len(missing) or missing[end] != missing[end - 1] + 1 or end - start == batch:
            yield range(missing[start], missing[end - 1] + 1)
            start = end


def restore_part(problem: Problem, settings: Settings, prior: Denoiser, indices: range, watch: Watch) -> list[Sample]:
    """Compute the estimate, or the samples ``indices``.

    Raises:
        ValueError: what `cmidiff.restore` refuses.
    """
    if indices.start != ESTIMATE:
        return _draw(problem, settings, prior, indices, watch)
    if problem.tables is not None:
        values, misfit = restore_compressed(problem, prior, settings, watch)
        return [Sample(ESTIMATE, values, misfit, Status(True, misfit=float(misfit[-1])))]
    filled = False

    def show(now: Progress) -> None:
        nonlocal filled
        fraction, doing = now.step / now.steps, "estimate"
        if now.sample >= 0:
            filled, doing, fraction = True, "filling what is hidden", POLISH * fraction
        elif filled:
            fraction = POLISH + (1 - POLISH) * fraction
        watch(fraction, f"{doing}, step {now.step} of {now.steps}", float(now.misfit.median()), now.x_hat[0])

    found = _restore(problem, settings, prior, show, solver=settings.solver)
    misfit = found.stats["misfit"].flatten().cpu()
    return [_finish_sample(problem, ESTIMATE, found.estimate[0], misfit, found.estimate_status[0])]


def _draw(problem: Problem, settings: Settings, prior: Denoiser, indices: range, watch: Watch) -> list[Sample]:
    label = "-".join(str(k + 1) for k in dict.fromkeys((indices.start, indices.stop - 1)))

    def show(now: Progress) -> None:
        doing = f"sample {label} of {settings.samples}, step {now.step} of {now.steps}"
        watch(now.step / now.steps, doing, float(now.misfit.median()), now.x_hat[0])

    options = {"solver": settings.drawer[1], "cmi": settings.cmi, "sampler": settings.sampler}
    options |= {"samples": len(indices), "first_sample": indices.start}
    found = _restore(problem, settings, prior, show, **options)
    samples, misfit, status = found.samples[0], found.stats["misfit"][:, 0].cpu(), found.status[0]
    return [_finish_sample(problem, k, samples[n], misfit[:, n], status[n]) for n, k in enumerate(indices)]


def _restore(
    problem: Problem, settings: Settings, prior: Denoiser, show: Callable[[Progress], None], **options: Any
) -> Restoration:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RestorationWarning)  # it is in the status, which the summary shows
        try:
            return restore(
                problem.y.to(settings.device),
                problem.physics.to(settings.device),
                prior,
                noise_std=None if problem.photons else problem.noise_std,
                tile=settings.tile,
                steps=settings.steps,
                seed=settings.seed,
                callback=show,
                **options,
            )
        except TypeError as error:  # a solver that needs another physics
            raise ValueError(str(error)) from error


def _finish_sample(problem: Problem, index: int, values: Tensor, misfit: Tensor, status: Status) -> Sample:
    """A result with the pixels that belong to the user, and with its misfit in units of a [0, 1] image where there is
    no noise, as all else is."""
    values = values.cpu()
    if problem.noise_std == 0 and status.ok:
        status = replace(status, misfit=_misfit(problem, values))
    return Sample(index, problem.finish(values), misfit, status)


def _misfit(problem: Problem, values: Tensor) -> float:
    """In units of the noise; without noise, the root mean square of the residual."""
    physics = problem.physics.to("cpu")
    return float(data_misfit(values[None], problem.y, physics, noise_std=problem.noise_std or 1.0))


# the summary


def make_row(name: str, values: Tensor, status: Status, truth: Tensor | None) -> Row:
    """Return the line of an image (C, H, W): how it ended, and its quality where the truth is known."""
    if not status.ok:
        return Row(name, status.message)
    words = "ok" if status.explains else status.message
    if truth is None:
        return Row(name, words, status.misfit)
    shown, truth = values.clamp(0, 1)[None], truth[None]
    similarity = float(ssim(shown, truth)) if min(values.shape[1:]) >= SSIM_WINDOW else None
    return Row(name, words, status.misfit, float(psnr(shown, truth)), similarity)


def finish(folder: Path, problem: Problem, done: list[Sample], truth: Tensor | None) -> list[Row]:
    """Write what is made of the finished results, and return the summary, the restored image first.

    Args:
        done: the estimate, if there is one, and the samples.
    """
    rows = [make_row(s.name, s.values, s.status, truth) for s in done]
    samples = [s for s in done if s.index != ESTIMATE]
    good = [s for s in samples if s.ok]
    if not good:
        return rows
    stack = torch.stack([s.values for s in good])
    moments = {"mean": stack.mean(0)}
    status = find_status_of_mean(problem, good, moments["mean"])
    if len(samples) == len(done):
        _write_result(folder / "restored.png", moments["mean"], problem)
        rows.insert(0, make_row("restored", moments["mean"], status, truth))
    _write_result(folder / "mean.png", moments["mean"], problem)
    if len(good) > 1:
        moments["std"] = stack.std(0)
        files.write(folder / "std.png", encode(std_map(moments["std"])), COMMAND)
        rows.append(make_row("mean", moments["mean"], status, truth))
    files.write(folder / "moments.safetensors", save(moments), COMMAND)
    files.write(folder / "comparison.png", encode(_compare(problem, done, moments, truth, rows)), COMMAND)
    return rows


def find_status_of_mean(problem: Problem, good: list[Sample], mean: Tensor) -> Status:
    """Return how the mean of samples stands: as the worst one if its own misfit is above the bound, too."""
    worst = max((s.status for s in good), key=lambda status: status.misfit)
    if problem.keeps or problem.framed:  # its own misfit knows nothing of what `Problem.finish` changed
        return worst
    misfit = _misfit(problem, mean)
    doubtful = not worst.explains and misfit > MISFIT_BOUND
    return replace(worst, misfit=misfit) if doubtful else Status(True, misfit=misfit)


def _compare(
    problem: Problem, done: list[Sample], moments: Mapping[str, Tensor], truth: Tensor | None, rows: list[Row]
) -> Image.Image:
    notes = {row.name: row.note for row in rows}
    good = [s for s in done if s.ok]
    samples = [s for s in good if s.index != ESTIMATE]
    shown = [s for s in good if s.index == ESTIMATE] + samples[:MOST_SHOWN]
    tiles = [Tile(to_pil(problem.view()), "measurement", f"{problem.name}, noise {problem.noise_std:g}")]
    tiles += [Tile(to_pil(s.values), s.name, notes[s.name]) for s in shown]
    if "std" in moments:
        tiles += [Tile(to_pil(moments["mean"]), f"mean of {len(samples)}", notes["mean"]), std_tile(moments["std"])]
    if truth is not None:
        tiles.append(Tile(to_pil(truth), "truth"))
    return side_by_side(tiles)


def count_done(done: list[Sample], settings: Settings) -> str:
    """Return in words what of a run is finished, with the verb."""
    estimate = any(s.index == ESTIMATE for s in done)
    samples = f"{len(done) - estimate} of {settings.samples} samples are"
    if settings.samples:
        return f"the estimate and {samples}" if estimate else samples
    return "the estimate is" if estimate else "nothing is"


def advise(done: list[Sample], problem: Problem, settings: Settings) -> str:
    """Return what to try where a result does not explain the measurement, in one line; "" where all do."""
    doubtful = [s for s in done if s.ok and not s.status.explains]
    if not doubtful:
        return ""
    worst = max(s.status.misfit for s in doubtful)
    which = doubtful[0].name if len(doubtful) == 1 else f"{len(doubtful)} results"
    found = (
        f"misfit {worst:.3g}, at most {MISFIT_BOUND:g} is expected" if problem.noise_std else f"residual {worst:.3g}"
    )
    option = {"mask": "the mask", "kernel": "the kernel"}.get(problem.task.name, f"--task {problem.task.name}")
    more = f"--steps {4 * (settings.steps or settings.drawer[1].default_steps)}"
    return (
        f"cmidiff: {which} does not explain the measurement ({found}): check {option} and its options, state "
        f"--noise-std above {problem.noise_std:g} if the image is noisier, or try {more}"
    )
