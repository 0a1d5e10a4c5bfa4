"""What the server stores of each browser window, and the pool in which its jobs run."""

from __future__ import annotations

import re
import secrets
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from cmidiff.app.web.controls import Limits
from cmidiff.app.web.jobs import Job

KEEP = 7200.0  # seconds after which the files of a person who has left are removed
BUSY = "Too many runs are waiting already, so nothing was started: try again in a minute."


@dataclass
class Visit:
    """What the server keeps of one browser window: a folder, a photograph, and the jobs ``result`` and ``samples``.

    Its token is the only way to it; the window makes the token and keeps it over a reload.

    Attributes:
        substitute: name of the image that is shown in place of a photograph that browsers do not show.
        refused: whether the last wish was refused.
    """

    folder: Path
    token: str
    photo: Path | None = None
    substitute: str = ""
    refused: bool = False
    jobs: dict[str, Job] = field(default_factory=dict)
    used: float = field(default_factory=time.monotonic)

    def new_folder(self) -> Path:
        """Return an unused name in the folder of the window."""
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
    """All browser windows, and the pool in which their jobs run.

    Args:
        root: the folder in which each window has one.
        limits: of the jobs.
    """

    def __init__(self, root: Path, limits: Limits) -> None:
        self._root, self._limits = root, limits
        self._pool = ThreadPoolExecutor(limits.jobs, thread_name_prefix="restoration")
        self._visits, self._lock, self._closed = dict[str, Visit](), threading.Lock(), threading.Event()
        threading.Thread(target=self._sweep_often, daemon=True).start()

    def open(self, token: object) -> Visit:
        """Return the window of a token; a new one without a valid token of 32 hexadecimal digits."""
        valid = isinstance(token, str) and re.fullmatch("[0-9a-f]{32}", token)
        name = str(token) if valid else secrets.token_hex(16)
        with self._lock:
            if name not in self._visits:
                self._visits[name] = Visit(self._root / name, name)
                self._visits[name].folder.mkdir(parents=True, exist_ok=True)
            visit = self._visits[name]
            visit.used = time.monotonic()
            return visit

    def sweep(self) -> None:
        """Remove the windows that were not used for long."""
        with self._lock:
            for old in [visit for visit in self._visits.values() if time.monotonic() - visit.used > KEEP]:
                self._visits.pop(old.token)
                old.drop(*old.jobs)
                shutil.rmtree(old.folder, ignore_errors=True)

    def _sweep_often(self) -> None:
        while not self._closed.wait(60):
            self.sweep()

    def submit(self, visit: Visit, name: str, job: Job) -> None:
        """Queue a job in the place of the one before, which is cancelled."""
        with self._lock:
            visit.drop(*visit.jobs if name == "result" else (name,))
            unfinished = sum(not j.view.over for v in self._visits.values() for j in v.jobs.values())
            if unfinished >= self._limits.jobs + self._limits.waiting:
                raise ValueError(BUSY)
            visit.jobs[name] = job
            job.start(self._pool)

    def close(self) -> None:
        """Cancel all jobs and wait for their end."""
        self._closed.set()
        for visit in list(self._visits.values()):
            for job in visit.jobs.values():
                job.cancel()
        self._pool.shutdown(cancel_futures=True)
