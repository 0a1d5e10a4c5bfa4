"""One restoration in a folder: the best estimate and samples of the posterior, each written as soon as it is finished.

    restored.png           the best estimate; with a solver that draws samples, their mean
    run.json               the resolved options, and at the end what came of the estimate and of every sample
    overlay.png            the image as it was given, with what its mask hides in red
    estimate.safetensors   the estimate as floats, its status, and the misfit by step
    sample-00.png ...      samples of the posterior; sample-00.safetensors likewise
    mean.png, std.png      mean of the samples, and where they disagree
    moments.safetensors    both as floats
    comparison.png         measurement, estimate, samples, mean, uncertainty and truth, side by side

The same run into the same folder keeps what is finished and goes on.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from deepinv.physics import LinearPhysics
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cmidiff import __version__, files, load_prior
from cmidiff.app.compressed import repair
from cmidiff.app.errors import BadInput, bad_input, say
from cmidiff.app.figures import Tile, side_by_side, std_map, std_tile
from cmidiff.app.masks import overlay
from cmidiff.app.problem import JPEG, Problem
from cmidiff.app.show import progress
from cmidiff.images import encode, fit_alpha, to_pil, write_image
from cmidiff.information import CMI
from cmidiff.metrics import data_misfit, psnr, ssim
from cmidiff.prior.base import Denoiser
from cmidiff.registry import describe
from cmidiff.restoration import restore
from cmidiff.result import MISFIT_BOUND, Progress, Restoration, RestorationWarning, Status
from cmidiff.solvers import CADPS, DPIR, DPS, Solver
from cmidiff.step import Sampler

SSIM_WINDOW = 11  # pixels: smaller pictures have no SSIM
COMMAND = "restore"
WRITTEN = re.compile(
    r"run\.json|(restored|mean|std|comparison|overlay)\.png|(moments|estimate)\.safetensors"
    r"|sample-\d+\.(png|safetensors)"
)
ESTIMATE = -1  # the index of the best estimate, among those of the samples
MOST_SHOWN = 4  # samples in the comparison
NOT_IDENTITY = ("samples", "batch", "device", "output")  # options that leave the estimate and sample k as they are


@dataclass(frozen=True)
class Settings:
    """The resolved options of a run, apart from the problem.

    Attributes:
        solver_name, solver: the solver, by its name at the command line and as the object; None for the best estimate
            by `DPIR`, and samples by `CADPS`. The task ``jpeg`` has its own name and no object.
        cmi: the CMI correction of the samples, or None.
        prior: name or path of the prior.
        steps: of the solver; None for its default.
        samples: of the posterior.
        seed, batch: of the random numbers; ``batch`` samples are drawn at once.
        device: where.
        sampler: reverse sampler; None for the default.
        tile: side of the tiles in which a large image is seen, None for the whole, or ``auto``.
    """

    solver_name: str | None
    solver: Solver | None
    cmi: CMI | None
    prior: str
    steps: int | None
    samples: int
    seed: int
    batch: int
    device: str
    sampler: Sampler | None = None
    tile: int | Literal["auto"] | None = "auto"

    @property
    def estimator(self) -> tuple[str, Solver] | None:
        """What gives the best estimate; None if it is the mean of the samples."""
        if self.solver is None:
            return self.solver_name or "dpir", DPIR()
        return (str(self.solver_name), self.solver) if self.solver.point else None

    @property
    def drawer(self) -> tuple[str, Solver]:
        """What draws samples."""
        if self.solver is None or self.solver.point:
            return "cadps", CADPS()
        return str(self.solver_name), self.solver

    @property
    def title(self) -> str:
        parts = [] if self.estimator is None else [f"estimate by {self.estimator[0]}"]
        if self.samples:
            parts.append(f"samples by {self.drawer[0]}{' + CMI' if self.cmi else ''}")
        steps = "" if self.steps is None else f", {self.steps} steps"
        return f"{', '.join(parts)}{steps}, seed {self.seed}"

    def describe(self) -> dict[str, Any]:
        names = ("prior", "tile", "steps", "samples", "seed", "batch", "device")
        name, estimator = self.estimator or (None, None)
        estimate = None if name is None else {"name": name} | ({} if name == JPEG else describe(estimator))
        cmi = None if self.cmi is None else describe(self.cmi)
        sampler = None if self.sampler is None else {"name": type(self.sampler).__name__} | describe(self.sampler)
        solver = {"name": self.drawer[0]} | describe(self.drawer[1])
        record = {"estimate": estimate, "solver": solver, "cmi": cmi, "sampler": sampler}
        return record | {name: getattr(self, name) for name in names}


def adapt(settings: Settings, problem: Problem) -> Settings:
    """Return the options for a problem: where the physics is not linear, samples by DPS and their mean.

    Raises:
        BadInput: samples or a solver for a task that has none.
    """
    if problem.name == JPEG and (settings.solver is not None or settings.samples):
        raise BadInput(
            f"the task jpeg gives one estimate: for --solver or --samples use --task denoise --noise-std "
            f"{problem.noise_std:.3g}, a noise as strong as its artefacts"
        )
    if problem.name == JPEG:
        return replace(settings, solver_name=JPEG)
    if settings.solver is None and not isinstance(problem.physics, LinearPhysics):
        return replace(settings, solver_name="dps", solver=DPS(), samples=max(1, settings.samples))
    return settings


def resolved(
    problem: Problem, settings: Settings, source: Path, output: Path, prior: Denoiser | None = None
) -> dict[str, Any]:
    """All options of a run, as they are written to run.json; with the prior, its weights are part of them."""
    measurement = {"file": str(source), "sha256": problem.digest()} | problem.describe()
    record = {"cmidiff": __version__, "measurement": measurement} | settings.describe() | {"output": str(output)}
    return record if prior is None else record | {"weights": prior.fingerprint[:16]}


def load_prior_named(name: str, device: str) -> Denoiser:
    """A prior on its device.

    Raises:
        BadInput: it cannot be loaded.
    """
    try:
        return load_prior(name, device=device)
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
    wanted = {f"{stem_of(k)}.safetensors" for k in range(ESTIMATE, samples)}
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


def stem_of(index: int) -> str:
    """Name of the file of a result, without its ending."""
    return "estimate" if index == ESTIMATE else f"sample-{index:02d}"


def save_sample(folder: Path, sample: Sample, problem: Problem) -> None:
    """Write one finished result; its float file last, since that is the mark that it is complete."""
    path = folder / stem_of(sample.index)
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


def load_sample(folder: Path, index: int) -> Sample | None:
    """A result that an earlier run finished, or None."""
    path = folder / f"{stem_of(index)}.safetensors"
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            status = Status(**json.loads((file.metadata() or {})["status"]))
            return Sample(index, file.get_tensor("sample"), file.get_tensor("misfit"), status)
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError):
        return None


def sample(problem: Problem, settings: Settings, prior: Denoiser, folder: Path) -> tuple[list[Sample], bool]:
    """Compute what the folder lacks, the estimate first, writing each result as it is finished.

    Returns:
        all finished results in their order, and whether the user stopped it.
    """
    first = ESTIMATE if settings.estimator is not None else 0
    found = {k: load_sample(folder, k) for k in range(first, settings.samples)}
    done = [s for s in found.values() if s is not None]
    missing = [k for k, s in found.items() if s is None]
    if done:
        say(f"note: {tell(done, settings)} in {folder} finished already")
    stopped = False
    with progress(max(1, len(missing))) as line:
        try:
            for indices in chunks(missing, settings.batch):
                before = missing.index(indices.start)

                def show(fraction: float, doing: str, misfit: float, before: int = before) -> None:
                    line(before + fraction, doing, misfit)

                for one in compute(problem, settings, prior, indices, show):
                    save_sample(folder, one, problem)
                    done.append(one)
        except KeyboardInterrupt:
            stopped = True
    return sorted(done, key=lambda s: s.index), stopped


def tell(done: list[Sample], settings: Settings) -> str:
    """What of a run is finished, in words, with the verb."""
    estimate = any(s.index == ESTIMATE for s in done)
    count = len(done) - estimate
    if not settings.samples:
        return "the estimate is" if estimate else "nothing is"
    samples = f"{count} of {settings.samples} samples are"
    return f"the estimate and {samples}" if estimate else samples


def chunks(missing: list[int], batch: int) -> Iterator[range]:
    """Runs of consecutive indices, of at most ``batch`` each; the estimate is alone."""
    start = 0
    for end in range(1, len(missing) + 1):
        alone = missing[end - 1] == ESTIMATE
        if alone or end == len(missing) or missing[end] != missing[end - 1] + 1 or end - start == batch:
            yield range(missing[start], missing[end - 1] + 1)
            start = end


def compute(
    problem: Problem,
    settings: Settings,
    prior: Denoiser,
    indices: range,
    show: Callable[[float, str, float], None],
) -> list[Sample]:
    """The estimate or the samples ``indices``.

    Args:
        show: is told which fraction of the work is done, what is being done, and the misfit.

    Raises:
        BadInput: as `posterior`.
    """
    if indices.start == ESTIMATE:
        return [estimate(problem, settings, prior, show)]
    label = str(indices.start) if len(indices) == 1 else f"{indices.start}-{indices.stop - 1}"

    def watch(now: Progress) -> None:
        doing = f"sample {label} of {settings.samples}, step {now.step}/{now.steps}"
        show(len(indices) * now.step / now.steps, doing, float(now.misfit.median()))

    return samples_of(posterior(problem, settings, prior, indices, watch), indices, problem)


def estimate(
    problem: Problem,
    settings: Settings,
    prior: Denoiser,
    show: Callable[[float, str, float], None],
    look: Callable[[Progress], None] | None = None,
) -> Sample:
    """The best estimate.

    Args:
        show: as in `compute`.
        look: is told each step, before ``show``; never for the task ``jpeg``.

    Raises:
        BadInput: as `posterior`.
    """
    if problem.tables is not None:
        values, misfit = repair(problem, prior, settings.device, settings.tile, show)
        status = Status(True, misfit=float(misfit[-1]))
        return Sample(ESTIMATE, values, misfit, status)
    assert settings.estimator is not None, "the estimate of a sampler is the mean of its samples"

    def watch(now: Progress) -> None:
        if look is not None:
            look(now)
        show(now.step / now.steps, f"estimate, step {now.step}/{now.steps}", float(now.misfit.median()))

    restoration = _restore(problem, settings, prior, watch, solver=settings.solver, samples=None)
    values, status = restoration.estimate[0].cpu(), restoration.estimate_status[0]
    return _finished(Sample(ESTIMATE, values, restoration.stats["misfit"].flatten().cpu(), status), problem)


def posterior(
    problem: Problem, settings: Settings, prior: Denoiser, indices: range, callback: Callable[[Progress], None]
) -> Restoration:
    """Samples ``indices`` of the posterior, as `cmidiff.restore` gives them; what the callback raises passes through.

    Raises:
        BadInput: what `cmidiff.restore` refuses, or what does not fit into memory.
    """
    options = {"solver": settings.drawer[1], "cmi": settings.cmi, "sampler": settings.sampler}
    options |= {"samples": len(indices), "first_sample": indices.start}
    return _restore(problem, settings, prior, callback, **options)


def _restore(
    problem: Problem, settings: Settings, prior: Denoiser, callback: Callable[[Progress], None], **options: Any
) -> Restoration:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RestorationWarning)  # it is in the status, which the summary shows
            return restore(
                problem.y.to(settings.device),
                problem.physics.to(settings.device),
                prior,
                noise_std=None if problem.photons else problem.noise_std,
                tile=settings.tile,
                steps=settings.steps,
                seed=settings.seed,
                callback=callback,
                **options,
            )
    except (ValueError, TypeError) as error:
        raise BadInput(str(error)) from error
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        size = f"{problem.shape[2]}x{problem.shape[1]} pixels, {options.get('samples') or 1} at once,"
        raise BadInput(f"{size} do not fit into memory: lower --batch or use a smaller image") from error


def samples_of(restoration: Restoration, indices: range, problem: Problem | None = None) -> list[Sample]:
    """The samples of a restoration, as they are written; with the problem, its person's pixels are put back."""
    samples, misfit = restoration.samples[0].cpu(), restoration.stats["misfit"][:, 0].cpu()
    found = [
        Sample(k, samples[n], misfit[:, n], status)
        for n, (k, status) in enumerate(zip(indices, restoration.status[0], strict=True))
    ]
    return found if problem is None else [_finished(one, problem) for one in found]


def _finished(one: Sample, problem: Problem) -> Sample:
    """A result with the pixels that belong to the person, and with its misfit in units of a [0, 1] image where there is
    no noise, as all else is."""
    status = one.status
    if problem.noise_std == 0 and status.ok:
        status = replace(status, misfit=_misfit(problem, one.values))
    return replace(one, values=problem.finish(one.values), status=status)


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


def row_of(name: str, values: Tensor, status: Status, truth: Tensor | None) -> Row:
    """The line of an image (C, H, W): how it ended, and its quality where the truth is known."""
    if not status.ok:
        return Row(name, status.message)
    said = "ok" if status.explains else status.message
    if truth is None:
        return Row(name, said, status.misfit)
    shown, truth = values.clamp(0, 1)[None], truth[None]
    similarity = float(ssim(shown, truth)) if min(values.shape[1:]) >= SSIM_WINDOW else None
    return Row(name, said, status.misfit, float(psnr(shown, truth)), similarity)


def _misfit(problem: Problem, values: Tensor) -> float:
    """In units of the noise; without noise, the root mean square of the residual."""
    physics = problem.physics.to("cpu")
    return float(data_misfit(values[None], problem.y, physics, noise_std=problem.noise_std or 1.0))


def finish(folder: Path, problem: Problem, done: list[Sample], truth: Tensor | None) -> list[Row]:
    """Write what is made of the finished results, and return the summary, the restored image first.

    Args:
        done: the estimate, if there is one, and the samples.
    """
    rows = [row_of(s.name, s.values, s.status, truth) for s in done]
    samples = [s for s in done if s.index != ESTIMATE]
    good = [s for s in samples if s.ok]
    if not good:
        return rows
    stack = torch.stack([s.values for s in good])
    moments, status = {"mean": stack.mean(0)}, status_of_mean(problem, good, stack.mean(0))
    if len(samples) == len(done):
        _write_result(folder / "restored.png", moments["mean"], problem)
        rows.insert(0, row_of("restored", moments["mean"], status, truth))
    _write_result(folder / "mean.png", moments["mean"], problem)
    if len(good) > 1:
        moments["std"] = stack.std(0)
        files.write(folder / "std.png", encode(std_map(moments["std"])), COMMAND)
        rows.append(row_of("mean", moments["mean"], status, truth))
    files.write(folder / "moments.safetensors", save(moments), COMMAND)
    files.write(folder / "comparison.png", encode(_compare(problem, done, moments, truth, rows)), COMMAND)
    return rows


def results_of(rows: list[Row], *, finished: bool) -> dict[str, Any]:
    """What came of a run, as it is written to run.json."""
    restored = next((asdict(row) for row in rows if row.name == "restored"), None)
    samples = [asdict(row) for row in rows if row.name != "restored"]
    return {"finished": finished, "restored": restored, "samples": samples}


def status_of_mean(problem: Problem, good: list[Sample], mean: Tensor) -> Status:
    """How the mean of finished samples stands: with its own misfit, and their trouble if that is above the bound."""
    worst = max((s.status for s in good), key=lambda status: status.misfit)
    if problem.keeps or problem.framed:  # its own misfit knows nothing of what `Problem.finish` changed
        return worst
    misfit = _misfit(problem, mean)
    trouble = not worst.explains and misfit > MISFIT_BOUND
    return replace(worst, misfit=misfit) if trouble else Status(True, misfit=misfit)


def advice_on(done: list[Sample], problem: Problem, settings: Settings) -> str:
    """What to try where a result does not explain the measurement, in one line; "" where all do."""
    doubtful = [s for s in done if s.ok and not s.status.explains]
    if not doubtful:
        return ""
    worst = max(s.status.misfit for s in doubtful)
    which = doubtful[0].name if len(doubtful) == 1 else f"{len(doubtful)} results"
    seen = f"misfit {worst:.3g}, at most {MISFIT_BOUND:g} is expected" if problem.noise_std else f"residual {worst:.3g}"
    option = {"mask": "the mask", "kernel": "the kernel"}.get(problem.task.name, f"--task {problem.task.name}")
    more = f"--steps {4 * (settings.steps or settings.drawer[1].default_steps)}"
    return (
        f"cmidiff: {which} does not explain the measurement ({seen}): check {option} and its options, state "
        f"--noise-std above {problem.noise_std:g} if the image is noisier, or try {more}"
    )


def _compare(
    problem: Problem, done: list[Sample], moments: Mapping[str, Tensor], truth: Tensor | None, rows: list[Row]
) -> Image.Image:
    notes = {row.name: row.note for row in rows}
    good = [s for s in done if s.ok]
    shown = [s for s in good if s.index == ESTIMATE] + [s for s in good if s.index != ESTIMATE][:MOST_SHOWN]
    tiles = [Tile(to_pil(problem.view()), "measurement", f"{problem.name}, noise {problem.noise_std:g}")]
    tiles += [Tile(to_pil(s.values), s.name, notes[s.name]) for s in shown]
    if "std" in moments:
        count = sum(s.index != ESTIMATE for s in good)
        tiles.append(Tile(to_pil(moments["mean"]), f"mean of {count}", notes["mean"]))
        image, top = std_tile(moments["std"])
        tiles.append(Tile(image, "uncertainty", f"black 0, brightest {top:.3f}"))
    if truth is not None:
        tiles.append(Tile(to_pil(truth), "truth"))
    return side_by_side(tiles)
