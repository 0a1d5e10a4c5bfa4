"""A run: work of a pool that can be watched and cancelled at any step, its folder and its archive.

Runs of different people share the prior, which is only read. A job writes what `cmidiff restore` writes, with the same
functions, beside the measurement and the command that repeats it:

    measurement.safetensors, measurement.png, truth.png    truth where the degradation was simulated
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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cmidiff.app.errors import BadInput
from cmidiff.app.pictures import Picture, fitted_alpha, write_picture
from cmidiff.app.problem import save_problem
from cmidiff.app.run import (
    Row,
    Sample,
    Settings,
    finish,
    open_folder,
    posterior,
    resolved,
    samples_of,
    save_sample,
    write_record,
)
from cmidiff.app.speed import Speed
from cmidiff.app.web.inputs import Limits, Work
from cmidiff.prior.base import Denoiser
from cmidiff.restoration import Progress

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
        samples: those that are finished.
        rows: the summary.
    """

    name: str
    settings: Settings
    samples: tuple[Sample, ...] = ()
    rows: tuple[Row, ...] = ()

    @property
    def good(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.ok]

    @property
    def mean(self) -> Tensor | None:
        """Mean of the finished samples, (C, H, W)."""
        return torch.stack([sample.values for sample in self.good]).mean(0) if self.good else None


@dataclass(frozen=True)
class View:
    """A job at one moment.

    Attributes:
        state: how it stands.
        doing: what happens now, in words.
        fraction: of all steps.
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


def command(settings: Settings, name: str, truth: bool) -> str:
    """Return the command line that repeats a run in the folder of its measurement, into a folder of its own."""
    words = ["cmidiff", "restore", str(MEASUREMENT), "--solver", settings.solver_name]
    words += ["--no-cmi"] if settings.cmi is None else [f"--eta={settings.cmi.eta!r}"]
    for option in ("steps", "samples", "seed", "device"):
        words += [f"--{option}", str(getattr(settings, option))]
    words += ["--prior", _public(settings.prior)]
    words += ["--truth", str(TRUTH)] if truth else []
    return shlex.join([*words, "--output", f"{name}-again"])


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
        self.commands = {name: command(settings, name, work.truth is not None) for name, settings in runs.items()}
        self.archive, self.picture = folder.with_suffix(".zip"), folder / "result.png"
        self.seen = time.monotonic()  # when a browser last asked for it
        self._runs, self._prior, self._speed = runs, prior, speed
        self._total = sum(settings.samples * settings.steps for settings in runs.values())
        self._view = View(results=tuple(Result(name, settings) for name, settings in runs.items()))
        self._cancel, self._over, self._start = threading.Event(), threading.Event(), 0.0
        self._future: Future[None] | None = None

    @property
    def steps(self) -> int:
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
            write_picture(self.folder / "measurement.png", self.work.problem.view())
            if self.work.truth is not None:
                write_picture(self.folder / TRUTH, self.work.truth)
            (self.folder / "command.txt").write_text("\n".join(self.commands.values()) + "\n")
            for name, settings in self._runs.items():
                open_folder(self.folder / name, self._record(name, settings), overwrite=False)
        except OSError as error:
            raise BadInput("The server cannot store anything at the moment: try again later.") from error

    def _record(self, name: str, settings: Settings) -> dict[str, object]:
        public = replace(settings, prior=_public(settings.prior))
        return resolved(self.work.problem, public, MEASUREMENT, Path(name))

    def _outcome(self) -> tuple[State, str]:
        """Draw all samples, and say how that ended."""
        try:
            self._stop_if_asked()
            self._write_measurement()
            for index in range(len(self._runs)):
                self._run(index)
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

    def _run(self, index: int) -> None:
        result = self._view.results[index]
        start, shape = time.monotonic(), self.work.problem.shape
        for k in range(result.settings.samples):
            watch = self._watch(index, k)
            restoration = posterior(self.work.problem, result.settings, self._prior, range(k, k + 1), watch)
            (one,) = samples_of(restoration, range(k, k + 1))
            save_sample(self.folder / result.name, one, self.work.problem.alpha)
            result = replace(result, samples=(*result.samples, one))
            self._replace(index, result)
        if self._speed is not None:
            self._speed.learn(result.settings, shape, time.monotonic() - start)

    def _replace(self, index: int, result: Result) -> None:
        results = list(self._view.results)
        results[index] = result
        self._view = replace(self._view, results=tuple(results))

    def _watch(self, index: int, k: int) -> Callable[[Progress], None]:
        before = sum(r.settings.samples * r.settings.steps for r in self._view.results[:index])
        settings = self._view.results[index].settings
        of = f"sample {k + 1} of {settings.samples}, " if settings.samples > 1 else ""
        with_cmi = f"{'with' if settings.cmi else 'without'} CMI, " if len(self._runs) > 1 else ""

        def show(now: Progress) -> None:
            fraction = (before + k * now.steps + now.step) / self._total
            left = (time.monotonic() - self._start) * (1 - fraction) / fraction
            doing, x_hat = f"{of}{with_cmi}step {now.step} of {now.steps}", now.x_hat[0].detach().cpu()
            self._view = replace(self._view, doing=doing, fraction=fraction, left=left, x_hat=x_hat)
            self._stop_if_asked()

        return show

    def _stop_if_asked(self) -> None:
        now = time.monotonic()
        late, left_alone = now - self._start > self.limits.seconds, now - self.seen > self.limits.away
        if self._cancel.is_set() or late or left_alone:
            raise Stop

    def _finish(self) -> None:
        """Write means, uncertainties, records, the result and the archive of what is finished."""
        for index, result in enumerate(self._view.results):
            folder, samples = self.folder / result.name, list(result.samples)
            rows = finish(folder, self.work.problem, samples, self.work.truth)
            complete = len(samples) == result.settings.samples
            told = {"finished": complete, "samples": [asdict(row) for row in rows]}
            write_record(folder, self._record(result.name, result.settings), told)
            self._replace(index, replace(result, rows=tuple(rows)))
        if (mean := self._view.results[0].mean) is not None:
            whole = self._whole(mean)
            write_picture(self.picture, whole.values, whole.alpha)
        with zipfile.ZipFile(self.archive, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(self.folder.rglob("*")):
                archive.write(path, path.relative_to(self.folder))

    def _whole(self, mean: Tensor) -> Picture:
        if self.work.finish is not None:
            return self.work.finish(mean)
        return Picture(mean, fitted_alpha(self.work.problem.alpha, *mean.shape[1:]))


@dataclass
class Visit:
    """What the server keeps of one browser window: a folder, a photograph, and the jobs ``result`` and ``samples``.

    Its token is the only way to it; the window keeps the token over a reload.
    """

    folder: Path
    token: str
    photo: Path | None = None
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
