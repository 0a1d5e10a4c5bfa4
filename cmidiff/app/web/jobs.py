"""A run of the page: it can be watched and cancelled at any step, and leaves a folder and an archive.

Runs of different people share the prior, which is only read. A job writes what `cmidiff restore` writes, beside the
measurement and the command that repeats it:

    measurement.safetensors, measurement.png, truth.png    truth where the degradation was simulated
    photo.jpg                                              the photograph, where it was compressed
    result/ or samples/, samples-cmi/                      the folders of the runs, as in `cmidiff.app.folder`
    result.png                                             the restored photograph
    command.txt
"""

from __future__ import annotations

import shlex
import shutil
import sys
import threading
import time
import traceback
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cmidiff.app.folder import Row, Sample, describe_run, open_folder, write_record
from cmidiff.app.problem import JPEG, save_problem
from cmidiff.app.run import compute
from cmidiff.app.settings import ESTIMATE, Settings
from cmidiff.app.speed import Speed
from cmidiff.app.summary import finish
from cmidiff.app.web.controls import Limits
from cmidiff.app.web.inputs import Work
from cmidiff.images import Image, fit_alpha, write_image
from cmidiff.prior.base import Denoiser

MEASUREMENT, TRUTH = Path("measurement.safetensors"), Path("truth.png")
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
        left: seconds, once they can be estimated.
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
    words += [
        "--seed",
        str(settings.seed),
        "--device",
        settings.device,
        "--prior",
        settings.prior,
        *settings.loading.words,
    ]
    words += ["--truth", str(TRUTH)] if work.truth is not None else []
    return shlex.join([*words, "--output", f"{name}-again"])


def source_of(work: Work) -> Path:
    """Return the name of the file that a run restores: the measurement, or the JPEG itself."""
    return MEASUREMENT if work.problem.tables is None else Path("photo").with_suffix(work.photo.suffix)


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
        public = {  # the prior of a file is named without its folder on the server
            name: replace(s, prior=Path(s.prior).name) if Path(s.prior).exists() else s for name, s in runs.items()
        }
        self.commands = {name: command(settings, name, work) for name, settings in public.items()}
        self.archive, self.image = folder.with_suffix(".zip"), folder / "result.png"
        self.steps = next(iter(runs.values())).steps
        self.seen = time.monotonic()  # when a browser last asked for it
        self.view = View(results=tuple(Result(name, settings) for name, settings in public.items()))
        """How it stands; an immutable value that the pool's thread replaces."""
        self._prior, self._speed, self._start = prior, speed, 0.0
        self._cancel, self._over = threading.Event(), threading.Event()
        self._future: Future[None] | None = None

    def start(self, pool: ThreadPoolExecutor) -> None:
        """Run as soon as the pool has a free thread."""
        self._future = pool.submit(self.run)

    def cancel(self) -> None:
        """Ask it to stop at the next step, or do not begin; what is finished stays."""
        self._cancel.set()
        if self._future is not None and self._future.cancel():
            self._change(state="cancelled", doing="cancelled")
            self._over.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for its end, and return whether it came."""
        return self._over.wait(seconds)

    def run(self) -> None:
        """Do the work in this thread."""
        self._start = time.monotonic()
        self._change(state="running", doing="starting")
        state, message = self._compute()
        try:
            if self.folder.exists():
                self._finish()
        except Exception:
            traceback.print_exc(file=sys.stderr)
            state, message = "failed", "The results could not be written: try again later."
        self._change(state=state, doing=state, message=message, left=None)
        self._over.set()

    def _change(self, **changes: Any) -> None:
        self.view = replace(self.view, **changes)

    def _change_result(self, index: int, **changes: Any) -> None:
        results = list(self.view.results)
        results[index] = replace(results[index], **changes)
        self._change(results=tuple(results))

    def _compute(self) -> tuple[State, str]:
        """Compute all results, and return how that ended."""
        try:
            self._stop_if_asked()
            self._write_measurement()
            for index in range(len(self.view.results)):
                self._compute_run(index)
        except Stop:
            if self._cancel.is_set() or time.monotonic() - self.seen > self.limits.away:
                return "cancelled", ""
            advice = "choose a smaller size or fewer steps"
            return "out of time", f"stopped after {self.limits.seconds:.0f} seconds: {advice}"
        except OSError:
            return "failed", "The server cannot store anything at the moment: try again later."
        except ValueError as error:
            return "failed", str(error).replace(f"{self.folder}/", "")
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            if isinstance(error, MemoryError) or "memory" in str(error):
                return "failed", "This does not fit into the memory of the server: choose a smaller size."
            return "failed", "Something went wrong on the server: try other settings."
        return "done", ""

    def _compute_run(self, index: int) -> None:
        result, count, begun = self.view.results[index], len(self.view.results), time.monotonic()

        def watch(fraction: float, doing: str, _: float, x_hat: Tensor | None) -> None:
            done = (index + fraction) / count
            left = (time.monotonic() - self._start) * (1 - done) / max(done, 1e-6)
            seen = None if x_hat is None else x_hat.detach().cpu()
            words = f"{describe_cmi(result)}, {doing}" if count > 1 else doing
            self._change(doing=words, fraction=done, left=left, x_hat=seen)
            self._stop_if_asked()

        problem, folder = self.work.problem, self.folder / result.name
        for one in compute(problem, result.settings, self._prior, folder, watch):
            self._change_result(index, finished=(*self.view.results[index].finished, one))
            if self._speed is not None:
                self._speed.learn(result.settings, problem, one.index, time.monotonic() - begun)
            begun = time.monotonic()

    def _stop_if_asked(self) -> None:
        now = time.monotonic()
        late, left_alone = now - self._start > self.limits.seconds, now - self.seen > self.limits.away
        if self._cancel.is_set() or late or left_alone:
            raise Stop

    def _write_measurement(self) -> None:
        self.folder.mkdir(parents=True)
        save_problem(self.folder / MEASUREMENT, self.work.problem)
        if (source := source_of(self.work)) != MEASUREMENT:
            shutil.copyfile(self.work.photo, self.folder / source)
        write_image(self.folder / "measurement.png", self.work.problem.view())
        if self.work.truth is not None:
            write_image(self.folder / TRUTH, self.work.truth)
        (self.folder / "command.txt").write_text("\n".join(self.commands.values()) + "\n")
        for result in self.view.results:
            open_folder(self.folder / result.name, self._record(result), overwrite=False)

    def _record(self, result: Result) -> dict[str, Any]:
        return describe_run(self.work.problem, result.settings, source_of(self.work), Path(result.name), self._prior)

    def _finish(self) -> None:
        """Write means, uncertainties, records, the result and the archive of what is finished."""
        for index, result in enumerate(self.view.results):
            folder, done = self.folder / result.name, list(result.finished)
            rows = finish(folder, self.work.problem, done, self.work.truth)
            complete = len(done) == len(result.settings.parts)
            write_record(folder, self._record(result), rows, finished=complete)
            self._change_result(index, rows=tuple(rows))
        if (best := self.view.results[0].best) is not None:
            problem = self.work.problem
            whole = Image(best, fit_alpha(problem.alpha, *best.shape[1:]), problem.bits)
            whole = whole if self.work.finish is None else self.work.finish(best)
            write_image(self.image, whole.values, whole.alpha, bits=whole.bits)
        with zipfile.ZipFile(self.archive, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(self.folder.rglob("*")):
                archive.write(path, path.relative_to(self.folder))


def describe_cmi(result: Result) -> str:
    """Return what distinguishes a run from the other one of a comparison."""
    return "with CMI" if result.settings.cmi else "without CMI"
