"""Where the jobs run: in this process, or as Ray tasks on one machine or a cluster.

An engine turns jobs into what they leave behind, in any order; it writes nothing. Both engines run the same function on
the same jobs with the same number of threads, so they leave the same behind.

Source of Ray: Moritz et al., Ray: A Distributed Framework for Emerging AI Applications, 2018,
https://arxiv.org/abs/1712.05889.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from cmidiff.evaluate.database import RunError
from cmidiff.evaluate.work import Done, Job, compute, fail
from cmidiff.prior.base import Denoiser


class Engine(Protocol):
    """What runs jobs."""

    def run(self, jobs: Iterable[Job], prior: Denoiser) -> Iterator[Done]:
        """The results of the jobs, as they are finished."""
        ...


@dataclass(frozen=True)
class Local:
    """One job after the other in this process.

    Args:
        device: of torch; the prior must be there.
        threads: of torch on a CPU.
    """

    device: str = "cpu"
    threads: int = 1

    def run(self, jobs: Iterable[Job], prior: Denoiser) -> Iterator[Done]:
        torch.set_num_threads(self.threads)
        for job in jobs:
            yield compute(job, prior, self.device)


@dataclass(frozen=True)
class Ray:
    """Each job is a Ray task; the prior is put into the object store once. A worker that stops costs its task one of
    its retries.

    Args:
        address: ``auto`` for the cluster this machine belongs to, ``ray://HOST:PORT`` for another, None to start one
            on this machine.
        cpus, gpus: what a task takes of them; fractions of a GPU share it.
        threads: of torch in a task.
        retries: of a task whose worker stops.
        ahead: tasks waiting in the cluster at once.
    """

    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    threads: int = 1
    retries: int = 3
    ahead: int = 64

    def run(self, jobs: Iterable[Job], prior: Denoiser) -> Iterator[Done]:
        """
        Raises:
            RunError: Ray is not installed, or there is no cluster at the address.
        """
        if importlib.util.find_spec("ray") is None:
            raise RunError("--engine ray needs the package ray: pip install 'cmidiff[ray]'")
        import ray

        with self._cluster():
            store = [ray.put(prior)]  # in a list, so that a task receives the reference and caches what it fetches
            task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=self.retries)(_remote)
            waiting: dict[Any, Job] = {}
            device = "cuda" if self.gpus else "cpu"
            for job in jobs:
                waiting[task.remote(job, store, device, self.threads)] = job
                if len(waiting) >= self.ahead:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)

    def _cluster(self) -> AbstractContextManager[Any]:
        import ray

        if ray.is_initialized():
            return nullcontext()
        try:
            return ray.init(
                address=self.address, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR
            )
        except (ConnectionError, ValueError) as error:
            raise RunError(
                f"no Ray cluster at --address {self.address} ({error}): start one with ray start --head, "
                "or leave the address out"
            ) from error

    def _next(self, waiting: dict[Any, Job]) -> Done:
        import ray
        from ray.exceptions import RayError

        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        job = waiting.pop(ready)
        try:
            return ray.get(ready)
        except RayError as error:
            return fail(job, f"its worker failed {self.retries + 1} times: {str(error).strip().splitlines()[0]}")


_PRIORS: dict[tuple[str, str], Denoiser] = {}


def _remote(job: Job, store: list[Any], device: str, threads: int) -> Done:
    """In a worker: the prior is fetched and moved to the device once for each process."""
    import ray

    torch.set_num_threads(threads)
    key = (store[0].hex(), device)
    if key not in _PRIORS:
        _PRIORS.clear()
        prior: Any = ray.get(store[0])
        _PRIORS[key] = prior.to(device)
    return compute(job, _PRIORS[key], device)
