"""One visitor's run: a thread that can be watched and cancelled at any step, its folder, and its archive.

Nothing is shared between visitors but the prior, which is only read. A job writes what `cmidiff restore` writes, with
the same functions, beside the measurement and the command that repeats it:

    measurement.safetensors, measurement.png, truth.png    truth where the degradation was simulated
    base/, cmi/                                            the folders of the runs, as `cmidiff.app.run` describes them
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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cmidiff.app.errors import BadInput
from cmidiff.app.problem import Problem, save_problem
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
from cmidiff.app.web.inputs import Photograph
from cmidiff.images import write_image
from cmidiff.prior.base import Denoiser
from cmidiff.result import Progress

MEASUREMENT, TRUTH = Path("measurement.safetensors"), Path("truth.png")
State = Literal["running", "done", "cancelled", "out of time", "failed"]


class Stop(Exception):
    """Raised in the callback of a run to end it."""


@dataclass(frozen=True)
class Result:
    """What there is of one run.

    Attributes:
        name: ``base`` or ``cmi``.
        samples: those that are finished.
        cmi: by step, the norm of the CMI move, for each of them.
        rows: the summary.
    """

    name: str
    settings: Settings
    samples: tuple[Sample, ...] = ()
    cmi: tuple[Tensor, ...] = ()
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
        fraction: of all steps.
        left: seconds, once they can be told.
        x_hat: the estimate so far, (C, H, W), in [0, 1].
        message: why it failed, or what a visitor should know.
    """

    state: State = "running"
    doing: str = "starting"
    fraction: float = 0.0
    left: float | None = None
    x_hat: Tensor | None = None
    results: tuple[Result, ...] = ()
    message: str = ""


def command(settings: Settings, name: str, truth: bool) -> str:
    """The command line that repeats a run in the folder of its measurement, into a folder of its own."""
    words = ["cmidiff", "restore", str(MEASUREMENT), "--solver", settings.solver_name]
    words += ["--no-cmi"] if settings.cmi is None else [f"--eta={settings.cmi.eta!r}"]
    for option in ("steps", "samples", "seed", "prior", "device"):
        words += [f"--{option}", str(getattr(settings, option))]
    words += ["--truth", str(TRUTH)] if truth else []
    return shlex.join([*words, "--output", f"{name}-again"])


class Job:
    """A run, or two to compare.

    Args:
        runs: what is run, one after the other, by name.
        prior: on the device of the settings.
        truth: the clean picture (C, H, W), or None.
        folder: an empty folder of its own.
        seconds: after which it is stopped.
    """

    def __init__(
        self,
        problem: Problem,
        runs: dict[str, Settings],
        prior: Denoiser,
        truth: Tensor | None,
        folder: Path,
        seconds: float,
    ) -> None:
        self.problem, self.truth, self.folder, self.seconds = problem, truth, folder, seconds
        self.commands = {name: command(settings, name, truth is not None) for name, settings in runs.items()}
        self.archive = folder.with_suffix(".zip")
        self._runs, self._prior = runs, prior
        self._total = sum(settings.samples * settings.steps for settings in runs.values())
        self._view = View(results=tuple(Result(name, settings) for name, settings in runs.items()))
        self._cancel, self._start = threading.Event(), 0.0
        self._thread = threading.Thread(target=self._work, name="restoration", daemon=True)

    @property
    def view(self) -> View:
        """How it stands; an immutable value that the thread replaces."""
        return self._view

    def start(self) -> None:
        """Write the measurement and start the thread.

        Raises:
            BadInput: the folder cannot be written.
        """
        try:
            self._write_measurement()
            for name, settings in self._runs.items():
                open_folder(self.folder / name, self._record(name, settings), overwrite=False)
        except OSError as error:
            raise BadInput("The server cannot store anything at the moment: try again later.") from error
        self._start = time.monotonic()
        self._thread.start()

    def cancel(self) -> None:
        """Ask it to stop at the next step; what is finished stays."""
        self._cancel.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for its end, and say whether it came."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _write_measurement(self) -> None:
        self.folder.mkdir(parents=True)
        save_problem(self.folder / MEASUREMENT, self.problem)
        write_image(self.folder / "measurement.png", self.problem.view())
        if self.truth is not None:
            write_image(self.folder / TRUTH, self.truth)
        (self.folder / "command.txt").write_text("\n".join(self.commands.values()) + "\n")

    def _record(self, name: str, settings: Settings) -> dict[str, object]:
        return resolved(self.problem, settings, MEASUREMENT, Path(name))

    def _work(self) -> None:
        state, message = self._ended()
        try:
            self._finish()
        except Exception:
            traceback.print_exc(file=sys.stderr)
            state, message = "failed", "The results could not be written: try again later."
        doing = {"done": "finished", "failed": "failed"}.get(state, "stopped")
        self._view = replace(self._view, state=state, doing=doing, message=message, left=None)

    def _ended(self) -> tuple[State, str]:
        """Draw all samples, and say how that ended."""
        try:
            for index in range(len(self._runs)):
                self._run(index)
        except Stop:
            if self._cancel.is_set():
                return "cancelled", ""
            return "out of time", f"stopped after {self.seconds:.0f} seconds: take fewer steps or a smaller picture"
        except BadInput as error:
            return "failed", str(error)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return "failed", "Something went wrong on the server: try other settings."
        return "done", ""

    def _run(self, index: int) -> None:
        result = self._view.results[index]
        for k in range(result.settings.samples):
            restoration = posterior(self.problem, result.settings, self._prior, range(k, k + 1), self._watch(index, k))
            (one,) = samples_of(restoration, range(k, k + 1))
            save_sample(self.folder / result.name, one, self.problem)
            move = restoration.stats["cmi"][:, 0, 0].cpu()
            result = replace(result, samples=(*result.samples, one), cmi=(*result.cmi, move))
            self._replace(index, result)

    def _replace(self, index: int, result: Result) -> None:
        results = list(self._view.results)
        results[index] = result
        self._view = replace(self._view, results=tuple(results))

    def _watch(self, index: int, k: int) -> Callable[[Progress], None]:
        before = sum(r.settings.samples * r.settings.steps for r in self._view.results[:index])
        settings = self._view.results[index].settings
        of = f" {'with' if settings.cmi else 'without'} CMI" if len(self._runs) > 1 else ""

        def show(now: Progress) -> None:
            fraction = (before + k * now.steps + now.step) / self._total
            elapsed = time.monotonic() - self._start
            doing = f"sample {k + 1} of {settings.samples}{of}, step {now.step} of {now.steps}"
            left = elapsed * (1 - fraction) / fraction
            self._view = replace(
                self._view, doing=doing, fraction=fraction, left=left, x_hat=now.x_hat[0].detach().cpu()
            )
            if self._cancel.is_set() or elapsed > self.seconds:
                raise Stop

        return show

    def _finish(self) -> None:
        """Write means, uncertainties, records and the archive of what is finished."""
        for index, result in enumerate(self._view.results):
            folder, samples = self.folder / result.name, list(result.samples)
            rows = finish(folder, self.problem, samples, self.truth)
            complete = len(samples) == result.settings.samples
            told = {"finished": complete, "samples": [asdict(row) for row in rows]}
            write_record(folder, self._record(result.name, result.settings), told)
            self._replace(index, replace(result, rows=tuple(rows)))
        with zipfile.ZipFile(self.archive, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(self.folder.rglob("*")):
                archive.write(path, path.relative_to(self.folder))


@dataclass
class Visit:
    """What the server keeps of one visitor: a folder, a photograph, a job. It is in the session's state alone."""

    folder: Path
    photograph: Photograph | None = None
    job: Job | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def begin(cls, root: Path) -> Visit:
        """A visit with a folder that nobody can guess."""
        folder = root / secrets.token_hex(16)
        folder.mkdir(parents=True)
        return cls(folder)

    def new_folder(self) -> Path:
        """A name that nothing has yet, in the visitor's folder."""
        return self.folder / secrets.token_hex(8)

    def take(self, job: Job) -> None:
        """Put a job in the place of the one before, which is cancelled and whose files go."""
        with self._lock:
            before, self.job = self.job, job
        if before is not None:
            _discard(before)

    def end(self) -> None:
        """Cancel what runs, and remove the folder."""
        if self.job is not None:
            self.job.cancel()
            self.job.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)


def _discard(job: Job) -> None:
    job.cancel()
    job.wait(60)
    shutil.rmtree(job.folder, ignore_errors=True)
    job.archive.unlink(missing_ok=True)
