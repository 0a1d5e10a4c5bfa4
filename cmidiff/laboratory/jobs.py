"""The parts of a section: computed once, several at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

from cmidiff import files
from cmidiff.laboratory.settings import Settings

Job = TypeVar("Job")
Found = TypeVar("Found")


def compute_once(settings: Settings, name: str, work: Callable[[], Found]) -> Found:
    """Return what a part gives, as JSON holds it; what an interrupted run has left is not computed again."""
    if settings.scratch is None:
        return work()
    path = settings.scratch / f"{name.replace(' ', '_').replace(',', '')}.json"
    if path.is_file():
        return json.loads(path.read_text())
    found = work()
    files.write(path, json.dumps(found).encode())
    return found


def compute_all(compute: Callable[[Job], Found], jobs: Sequence[Job], workers: int) -> list[Found]:
    """Return what each job gives, in order, computed in so many processes."""
    if min(workers, len(jobs)) <= 1:
        return [compute(job) for job in jobs]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(compute, jobs))
