"""A run: work of a pool that can be watched and cancelled at any step, its folder and its archive.

Runs of different people share the prior, which is only read. A job writes what `cmidiff restore` writes, with the same
functions, beside the measurement and the command that repeats it:

    measurement.safetensors, measurement.png, truth.png    truth where the degradation was simulated
    photo.jpg                                              the photograph, where it was compressed
    result/ or samples/, samples-cmi/                      the folders of the runs, as `cmidiff.app.run` describes them
    result.png                                             the restored photograph
    command.txt
"""

from __future__ import annotations

import secrets
import shlex
import shutil
import sys
import threading
import time
import traceback
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cmidiff.app.errors import BadInput
from cmidiff.app.problem import JPEG, save_problem
from cmidiff.app.run import (
    ESTIMATE,
    Row,
    Sample,
    Settings,
    estimate,
    finish,
    open_folder,
    posterior,
    resolved,
    results_of,
    samples_of,
    save_sample,
    write_record,
)
from cmidiff.app.speed import Speed
from cmidiff.app.web.inputs import Limits, Work
from cmidiff.images import Image, fit_alpha, write_image
from cmidiff.prior.base import Denoiser
from cmidiff.result import Progress

MEASUREMENT, TRUTH = Path("measurement.safetensors"), Path("truth.png")
KEEP = 7200.0  # seconds after which the files of a person who has left are removed
BUSY = "Too many runs are waiting already, so nothing was started: try again in a minute."
State = Literal["waiting", "running", "done", "cancelled", "out of time", "failed"]


class Stop(Exception):
    """Raised in the callback of a run to end it."""


@dataclass(frozen=True)
class Result:
    """What there is of one run.

    Attributes:
        name: of its folder.
        settings: its options.
        finished: the estimate and the samples that are finished.
        rows: the summary.
    """

    name: str
    settings: Settings
    finished: tuple[Sample, ...] = ()
    rows: tuple[Row, ...] = ()

    @property
    def samples(self) -> list[Sample]:
        return [sample for sample in self.finished if sample.index != ESTIMATE]

    @property
    def good(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.ok]

    @property
    def mean(self) -> Tensor | None:
        """Mean of the finished samples, (C, H, W)."""
        return torch.stack([sample.values for sample in self.good]).mean(0) if self.good else None

    @property
    def best(self) -> Tensor | None:
        """The estimate, or else the mean of the samples, (C, H, W)."""
        estimates = [one.values for one in self.finished if one.index == ESTIMATE and one.ok]
        return estimates[0] if estimates else self.mean


@dataclass(frozen=True)
class View:
    """A job at one moment.

    Attributes:
        state: how it stands.
        doing: what happens now, in words.
        fraction: of the work.
        left: seconds, once they can be told.
        x_hat: the estimate so far, (C, H, W), in [0, 1].
        results: of the runs.
        message: why it failed, or why it stopped.
    """

    state: State = "waiting"
    doing: str = "waiting for its turn"
    fraction: float = 0.0
    left: float | None = None
    x_hat: Tensor | None = None
    results: tuple[Result, ...] = ()
    message: str = ""

    @property
    def over(self) -> bool:
        return self.state not in ("waiting", "running")


def command(settings: Settings, name: str, work: Work) -> str:
    """Return the command line that repeats a run in the folder of its measurement, into a folder of its own."""
    words = ["cmidiff", "restore", str(source_of(work))]
    if work.problem.tables is not None:
        words += ["--task", JPEG, "--noise-std", repr(work.problem.noise_std)]
    elif settings.solver is not None:
        words += ["--solver", str(settings.solver_name)]
    if settings.samples:
        words += ["--samples", str(settings.samples)]
        words += ["--no-cmi"] if settings.cmi is None else [f"--eta={settings.cmi.eta!r}"]
    words += [] if settings.steps is None else ["--steps", str(settings.steps)]
    words += ["--seed", str(settings.seed), "--device", settings.device, "--prior", _public(settings.prior)]
    words += ["--truth", str(TRUTH)] if work.truth is not None else []
    return shlex.join([*words, "--output", f"{name}-again"])


def parts_of(settings: Settings) -> range:
    """Return the indices of what a run computes: the estimate, if the solver gives one, and the samples."""
    return range(0 if settings.estimator is None else ESTIMATE, settings.samples)


def source_of(work: Work) -> Path:
    """Return the name of the file that a run restores: the measurement, or the JPEG itself."""
    return MEASUREMENT if work.problem.tables is None else Path("photo").with_suffix(work.photo.suffix)


def _public(prior: str) -> str:
    """The name of a prior; of a file, without its folder on the server."""
    return Path(prior).name if Path(prior).exists() else prior


class Job:
    """One run, or two to compare.

    Args:
        work: what is restored.
        runs: settings of what is run, one after the other, by name.
        prior: on the device of the settings.
        folder: a folder of its own that does not exist yet.
        limits: of its time.
        speed: learns from it, or None.
    """

    def __init__(
        self,
        work: Work,
        runs: dict[str, Settings],
        prior: Denoiser,
        folder: Path,
        limits: Limits,
        speed: Speed | None = None,
    ) -> None:
        self.work, self.folder, self.limits = work, folder, limits
        self.commands = {name: command(settings, name, work) for name, settings in runs.items()}
        self.archive, self.image = folder.with_suffix(".zip"), folder / "result.png"
        self.seen = time.monotonic()  # when a browser last asked for it
        self._runs, self._prior, self._speed = runs, prior, speed
        self._view = View(results=tuple(Result(name, settings) for name, settings in runs.items()))
        self._cancel, self._over, self._start = threading.Event(), threading.Event(), 0.0
        self._future: Future[None] | None = None

    @property
    def steps(self) -> int | None:
        return next(iter(self._runs.values())).steps

    @property
    def view(self) -> View:
        """How it stands; an immutable value that the pool's thread replaces."""
        return self._view

    def start(self, pool: ThreadPoolExecutor) -> None:
        """Run as soon as the pool has a free thread."""
        self._future = pool.submit(self.run)

    def cancel(self) -> None:
        """Ask it to stop at the next step, or do not begin; what is finished stays."""
        self._cancel.set()
        if self._future is not None and self._future.cancel():
            self._view = replace(self._view, state="cancelled", doing="cancelled")
            self._over.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for its end, and return whether it came."""
        return self._over.wait(seconds)

    def run(self) -> None:
        """Do the work in this thread."""
        self._start = time.monotonic()
        self._view = replace(self._view, state="running", doing="starting")
        state, message = self._outcome()
        try:
            if self.folder.exists():
                self._finish()
        except Exception:
            traceback.print_exc(file=sys.stderr)
            state, message = "failed", "The results could not be written: try again later."
        self._view = replace(self._view, state=state, doing=state, message=message, left=None)
        self._over.set()

    def _write_measurement(self) -> None:
        try:
            self.folder.mkdir(parents=True)
            save_problem(self.folder / MEASUREMENT, self.work.problem)
            if (source := source_of(self.work)) != MEASUREMENT:
                shutil.copyfile(self.work.photo, self.folder / source)
            write_image(self.folder / "measurement.png", self.work.problem.view())
            if self.work.truth is not None:
                write_image(self.folder / TRUTH, self.work.truth)
            (self.folder / "command.txt").write_text("\n".join(self.commands.values()) + "\n")
            for name, settings in self._runs.items():
                open_folder(self.folder / name, self._record(name, settings), overwrite=False)
        except OSError as error:
            raise BadInput("The server cannot store anything at the moment: try again later.") from error

    def _record(self, name: str, settings: Settings) -> dict[str, object]:
        public = replace(settings, prior=_public(settings.prior))
        return resolved(self.work.problem, public, source_of(self.work), Path(name), self._prior)

    def _outcome(self) -> tuple[State, str]:
        """Compute all results, and say how that ended."""
        try:
            self._stop_if_asked()
            self._write_measurement()
            parts = [(index, k) for index, s in enumerate(self._runs.values()) for k in parts_of(s)]
            for done, (index, k) in enumerate(parts):
                self._run(index, k, done / len(parts), (done + 1) / len(parts))
        except Stop:
            if self._cancel.is_set() or time.monotonic() - self.seen > self.limits.away:
                return "cancelled", ""
            return (
                "out of time",
                f"stopped after {self.limits.seconds:.0f} seconds: choose a smaller size or fewer steps",
            )
        except BadInput as error:
            return "failed", str(error).replace(f"{self.folder}/", "")
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return "failed", "Something went wrong on the server: try other settings."
        return "done", ""

    def _run(self, index: int, k: int, before: float, after: float) -> None:
        """Compute one result, which takes the work from one fraction to another."""
        result, problem, start = self._view.results[index], self.work.problem, time.monotonic()
        settings = result.settings

        def show(fraction: float, doing: str, _: float) -> None:
            self._show(before + (after - before) * fraction, doing)

        if k == ESTIMATE:
            one = estimate(problem, settings, self._prior, show, self._look)
        else:
            watch = self._watch(index, k, show)
            (one,) = samples_of(posterior(problem, settings, self._prior, range(k, k + 1), watch), range(k, k + 1))
        save_sample(self.folder / result.name, one, problem)
        self._replace(index, replace(result, finished=(*result.finished, one)))
        if self._speed is not None:
            self._speed.learn(settings, problem, k, time.monotonic() - start)

    def _replace(self, index: int, result: Result) -> None:
        results = list(self._view.results)
        results[index] = result
        self._view = replace(self._view, results=tuple(results))

    def _watch(self, index: int, k: int, show: Callable[[float, str, float], None]) -> Callable[[Progress], None]:
        settings = self._view.results[index].settings
        of = f"sample {k + 1} of {settings.samples}, " if settings.samples > 1 else ""
        with_cmi = f"{'with' if settings.cmi else 'without'} CMI, " if len(self._runs) > 1 else ""

        def watch(now: Progress) -> None:
            self._look(now)
            show(now.step / now.steps, f"{of}{with_cmi}step {now.step} of {now.steps}", 0.0)

        return watch

    def _look(self, now: Progress) -> None:
        """Keep the estimate so far, (C, H, W), in [0, 1]."""
        self._view = replace(self._view, x_hat=now.x_hat[0].detach().cpu())

    def _show(self, fraction: float, doing: str) -> None:
        left = (time.monotonic() - self._start) * (1 - fraction) / max(fraction, 1e-6)
        self._view = replace(self._view, doing=doing, fraction=fraction, left=left)
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        now = time.monotonic()
        late, left_alone = now - self._start > self.limits.seconds, now - self.seen > self.limits.away
        if self._cancel.is_set() or late or left_alone:
            raise Stop

    def _finish(self) -> None:
        """Write means, uncertainties, records, the result and the archive of what is finished."""
        for index, result in enumerate(self._view.results):
            folder, done = self.folder / result.name, list(result.finished)
            rows = finish(folder, self.work.problem, done, self.work.truth)
            complete = len(done) == len(parts_of(result.settings))
            write_record(folder, self._record(result.name, result.settings), results_of(rows, finished=complete))
            self._replace(index, replace(result, rows=tuple(rows)))
        if (best := self._view.results[0].best) is not None:
            whole = self._whole(best)
            write_image(self.image, whole.values, whole.alpha, bits=whole.bits)
        with zipfile.ZipFile(self.archive, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(self.folder.rglob("*")):
                archive.write(path, path.relative_to(self.folder))

    def _whole(self, best: Tensor) -> Image:
        if self.work.finish is not None:
            return self.work.finish(best)
        return Image(best, fit_alpha(self.work.problem.alpha, *best.shape[1:]), self.work.problem.bits)


@dataclass
class Visit:
    """What the server keeps of one browser window: a folder, a photograph, and the jobs ``result`` and ``samples``;
    and whether its last wish was refused.

    Its token is the only way to it; the window keeps the token over a reload.
    """

    folder: Path
    token: str
    photo: Path | None = None
    refused: bool = False
    jobs: dict[str, Job] = field(default_factory=dict)
    used: float = field(default_factory=time.monotonic)

    def new_folder(self) -> Path:
        """Return a name that nothing has yet, in the folder of the visit."""
        return self.folder / secrets.token_hex(8)

    def drop(self, *names: str) -> None:
        """Cancel jobs and remove their files."""
        for job in [self.jobs.pop(name) for name in names if name in self.jobs]:
            job.cancel()
            threading.Thread(target=_remove, args=(job,), daemon=True).start()


def _remove(job: Job) -> None:
    job.wait()
    shutil.rmtree(job.folder, ignore_errors=True)
    job.archive.unlink(missing_ok=True)


class Visits:
    """All visits, and the pool in which their jobs run.

    Args:
        root: the folder in which each visit has one.
        limits: of the jobs.
    """

    def __init__(self, root: Path, limits: Limits) -> None:
        self._root, self._limits = root, limits
        self._pool = ThreadPoolExecutor(limits.jobs, thread_name_prefix="restoration")
        self._visits, self._lock, self._closed = dict[str, Visit](), threading.Lock(), threading.Event()
        threading.Thread(target=self._sweep_often, daemon=True).start()

    def open(self, token: object) -> Visit:
        """Return the visit of a token, or a new one."""
        with self._lock:
            visit = self._visits.get(token) if isinstance(token, str) else None
            if visit is None:
                name = secrets.token_hex(16)  # nobody can guess it
                visit = self._visits[name] = Visit(self._root / name, name)
                visit.folder.mkdir(parents=True)
            visit.used = time.monotonic()
            return visit

    def sweep(self) -> None:
        """Remove the visits that nobody has used for long."""
        with self._lock:
            for old in [visit for visit in self._visits.values() if time.monotonic() - visit.used > KEEP]:
                self._visits.pop(old.token)
                old.drop(*old.jobs)
                shutil.rmtree(old.folder, ignore_errors=True)

    def _sweep_often(self) -> None:
        while not self._closed.wait(60):
            self.sweep()

    def submit(self, visit: Visit, name: str, job: Job) -> None:
        """Queue a job in the place of the one before, which is cancelled.

        Raises:
            BadInput: too many wait already.
        """
        with self._lock:
            visit.drop(*visit.jobs if name == "result" else (name,))
            unfinished = sum(not j.view.over for v in self._visits.values() for j in v.jobs.values())
            if unfinished >= self._limits.jobs + self._limits.waiting:
                raise BadInput(BUSY)
            visit.jobs[name] = job
            job.start(self._pool)

    def close(self) -> None:
        """Cancel all jobs and wait for their end."""
        self._closed.set()
        for visit in list(self._visits.values()):
            for job in visit.jobs.values():
                job.cancel()
        self._pool.shutdown(cancel_futures=True)
