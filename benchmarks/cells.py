"""What benchmarks share: the five tasks, scores of samples, a file of finished cells, and intervals by a bootstrap."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cmidiff.evaluate.config import load
from cmidiff.metrics import calibration, crps, energy_score, lpips, psnr

TASKS: dict[str, dict[str, Any]] = {task.label: task.parameters for task in load("cats").tasks}
"""The tasks of the presets ``cats`` and ``embedded``, and their parameters."""

BETTER = {"psnr": 1, "mean_psnr": 1, "lpips": -1, "crps": -1, "energy": -1}
TITLES = {"psnr": "PSNR", "mean_psnr": "PSNR of the mean", "lpips": "LPIPS", "crps": "CRPS", "energy": "energy score"}


def score(samples: Tensor, truth: Tensor) -> dict[str, float]:
    """Scores of one image's samples.

    Args:
        samples: (K, 3, H, W) in [0, 1], not clipped; what is not finite counts as mid grey.
        truth: (3, H, W).
    """
    x = samples.detach().cpu().nan_to_num(0.5, 0.5, 0.5)
    several = truth.expand_as(x)
    found = {"psnr": psnr(x, several).mean(), "mean_psnr": psnr(x.mean(0, keepdim=True), truth[None])}
    if min(truth.shape[1:]) >= 32:
        with contextlib.suppress(FileNotFoundError):  # its weights are not at hand
            found["lpips"] = lpips(x, several).mean()
    if len(x) > 1:
        found["crps"] = crps(x[None], truth[None])
        found["energy"] = energy_score(x[None], truth[None])
        found["coverage"] = calibration(x[None], truth[None]).observed[0, -1]
    return {name: float(value) for name, value in found.items()}


class Ledger:
    """Finished cells, one JSON line each: a key and a value. A line that a kill cut short is computed again.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = {}
        lines = path.read_text().splitlines() if path.is_file() else []
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            self.found[_spelled(record["key"])] = record["value"]

    def get(self, key: Mapping[str, Any]) -> Any | None:
        """Return the value of a cell; None if it is not finished."""
        return self.found.get(_spelled(key))

    def once(self, key: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """Return the value of a cell, which is computed where it is not finished."""
        name = _spelled(key)
        if name not in self.found:
            self.found[name] = compute()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
            with self.path.open("a") as file:
                file.write("\n" * torn + json.dumps({"key": dict(key), "value": self.found[name]}) + "\n")
        return self.found[name]


def _spelled(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def bootstrap(figure: Callable[[np.ndarray], float], n: int, draws: int = 1000) -> tuple[float, float, float]:
    """A figure of ``n`` images and its 95% percentile interval over bootstrap samples of them.

    Args:
        figure: of the indices (n,) of images.
        n: how many there are.
        draws: bootstrap samples.
    """
    generator = np.random.default_rng(0)
    found = [figure(generator.integers(0, n, n)) for _ in range(draws)]
    low, high = np.percentile(found, [2.5, 97.5])
    return figure(np.arange(n)), float(low), float(high)
