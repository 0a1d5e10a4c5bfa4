"""The search: Optuna's TPE over a `Space`, on the first half of the images; the verdict on the second half.

A trial restores the tuning images group by group. It is stopped after a group where its mean is below the median of the
finished trials. These saw the same images, so the comparison is paired. The first trial is the solver alone, so what is
found is never worse than it on the tuning images. The best of many trials is partly luck. It is therefore tried on the
hold-out images, which no trial saw, and taken only if it is better there too.

The study is one SQLite file: the same search again goes on where it stopped. The sampler is seeded anew for each trial
from the seed and the number of trials before it. A search that was killed therefore ends as one that was not.

Bergstra, Bardenet, Bengio, Kegl, "Algorithms for Hyper-Parameter Optimization", 2011 (TPE),
https://papers.nips.cc/paper/4443; Akiba et al., "Optuna", 2019, https://arxiv.org/abs/1907.10902
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sqlite3
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cmidiff import __version__
from cmidiff.prior.base import Denoiser
from cmidiff.statistics import Estimate, estimate
from cmidiff.tuning.problem import METRICS, SAMPLES, Images, Problem, measure_images, restore_problem, score_images
from cmidiff.tuning.space import Setting, Space

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

IDENTITY = "search"  # attribute of a study: what it is a search for
FINISHED = "hold-out"  # prefix of its attributes with figures of the hold-out images


class OtherSearch(ValueError):
    """A study file that holds another search."""


@dataclass(frozen=True)
class Search:
    """What is searched, and on what.

    Attributes:
        images: all images; the first half tunes, the second is held out.
        task, parameters: as in `cmidiff.tuning.problem.measure_images`.
        space: the solver and the ranges.
        prior_name: of the prior, for the record.
        steps: of the sampler.
        metric: a name of ``METRICS``.
        trials: how many in all.
        group: images restored at once.
        seed: of the search.
        device: where.
    """

    images: Images
    task: str
    parameters: Mapping[str, Any]
    space: Space
    prior_name: str
    steps: int = 50
    metric: str = "psnr"
    trials: int = 40
    group: int = 8
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, received {self.metric!r}")
        if len(self.images) < 4:
            raise ValueError(
                f"tuning needs at least 4 images, half of them to check it on, received {len(self.images)}"
            )
        for name in ("steps", "trials", "group"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number >= 1, received {getattr(self, name)}")
        self.space.first()  # refuses a solver without a strength

    @property
    def half(self) -> int:
        return len(self.images) // 2

    def identity(self) -> dict[str, Any]:
        """What makes two searches the same: also the version, and not the number of trials and the device."""
        truth = self.images.truth.mul(255).round().to(torch.uint8).numpy().tobytes()
        return {
            "images": hashlib.sha256(truth).hexdigest()[:16],
            "offset": self.images.index[0],
            "task": self.task,
            "parameters": dict(self.parameters),
            "solver": str(self.space.base),
            "most": self.space.most,
            "only_eta": self.space.only_eta,
            "prior": self.prior_name,
            "steps": self.steps,
            "metric": self.metric,
            "group": self.group,
            "seed": self.seed,
            "cmidiff": __version__,
        }

    def problems(self, held_out: bool) -> list[Problem]:
        """The measurements of one half, in groups."""
        half = self.images.part(self.half, len(self.images)) if held_out else self.images.part(0, self.half)
        parts = [half.part(i, i + self.group) for i in range(0, len(half), self.group)]
        return [measure_images(part, self.task, self.parameters, self.device) for part in parts]


@dataclass(frozen=True)
class Report:
    """Where a search stands: trial ``number`` of ``trials``, in words, and the best score so far."""

    number: int
    trials: int
    doing: str
    best: float | None


@dataclass(frozen=True)
class Row:
    """A setting on both halves.

    Attributes:
        name: what it is among those compared.
        setting: the setting.
        tuning, held_out: metric by metric, one value for each image.
    """

    name: str
    setting: Setting
    tuning: list[float]
    held_out: Mapping[str, list[float]]


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        rows: the solver alone first, then the best without CMI, then the best with it; those that were tried.
        best: of ``rows``, the highest on the tuning images.
        gain: of ``best`` over the solver alone on the hold-out images, positive if better; 0 for the solver alone.
        metric: that it was chosen by.
        trials, pruned: how many there were, and how many of them were given up early.
    """

    rows: list[Row]
    best: Row
    gain: Estimate
    metric: str
    trials: int
    pruned: int

    @property
    def is_better(self) -> bool:
        """Whether the best is also better on the hold-out images; otherwise the solver alone is taken."""
        return self.best is not self.rows[0] and self.gain.mean > 0

    @property
    def chosen(self) -> Setting:
        return (self.best if self.is_better else self.rows[0]).setting

    @property
    def verdict(self) -> str:
        """The outcome in one sentence."""
        if self.best is self.rows[0]:
            return "no setting was better than the solver alone on the tuning images: the preset is the solver alone"
        figures = f"{self.gain.mean:+.3g} ± {math.inf if self.gain.half is None else self.gain.half:.2g}"
        where = f"{self.metric} gained {figures} on {self.gain.n} hold-out images"
        if not self.is_better:
            return f"{where}: not better than the solver alone, which the preset therefore holds"
        sure = (self.gain.low or 0) > 0
        return f"{where}: " + ("better beyond its 95% interval" if sure else "better, but within its 95% interval of 0")


def tune(
    search: Search, prior: Denoiser, path: Path, progress: Callable[[Report], None] = lambda report: None
) -> Outcome:
    """Run a search, or go on with it.

    Args:
        search: what is searched.
        prior: the denoiser.
        path: the SQLite file of the study.
        progress: called before each group of images.

    Raises:
        OtherSearch: ``path`` holds another search.
        ModuleNotFoundError: Optuna is not installed.
    """
    study = open_study(search, path)
    problems = search.problems(held_out=False)
    while (before := len(_done(study))) < search.trials:
        _run_trial(study, search, prior, problems, before, progress)
    return _conclude(study, search, prior, progress)


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("tuning needs Optuna, which is not installed: pip install 'cmidiff[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_study(search: Search, path: Path) -> optuna.Study:
    """The study of a search: a new one, or what there is of it."""
    optuna = _optuna()
    if path.exists() and not _is_study(path):
        raise OtherSearch(f"{path} cannot be used as a study (it holds something else): give another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            storage=f"sqlite:///{path.absolute()}",
            study_name="cmidiff",
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=0),
            load_if_exists=True,
        )
    except Exception as error:  # Optuna lets every exception of its database through
        raise OtherSearch(f"{path} cannot be used as a study ({type(error).__name__}): give another file") from error
    identity = json.loads(json.dumps(search.identity()))
    before = study.user_attrs.get(IDENTITY)
    if before is None:
        study.set_user_attr(IDENTITY, identity)
    elif before != identity:
        keys = [key for key in identity if before.get(key) != identity[key]]
        changes = "; ".join(f"{key} {before.get(key)!r}, now {identity[key]!r}" for key in keys)
        raise OtherSearch(f"{path} holds another search ({changes}): give another file, or delete it")
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # a kill cut it short; it is run again
    return study


def _is_study(path: Path) -> bool:
    """Whether a file is a database of Optuna's, looked at without writing to it."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            return bool(database.execute("SELECT 1 FROM sqlite_master WHERE name = 'studies'").fetchall())
    except sqlite3.Error:
        return False


def _done(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that ended, given up or not, in their order."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _run_trial(
    study: optuna.Study,
    search: Search,
    prior: Denoiser,
    problems: list[Problem],
    before: int,
    progress: Callable[[Report], None],
) -> None:
    import optuna
    from optuna.samplers import PartialFixedSampler, TPESampler
    from optuna.trial import TrialState

    sampler = TPESampler(seed=int(hashlib.sha256(f"{search.seed} {before}".encode()).hexdigest()[:8], 16))
    first, sign = search.space.first(), METRICS[search.metric][1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = PartialFixedSampler(first[before], sampler) if before < len(first) else sampler
    trial = study.ask()
    setting = search.space.propose(trial)
    best = max((_value(t) for t in _done(study) if t.state == TrialState.COMPLETE), default=None)
    scores: list[float] = []
    for number, problem in enumerate(problems, 1):
        doing = f"{setting}, images {number}/{len(problems)}"
        progress(Report(before + 1, search.trials, doing, None if best is None else sign * best))
        scores += _score(problem, prior, setting, search)[search.metric]
        trial.report(sign * sum(scores) / len(scores), number)
        if before >= len(first) and number < len(problems) and trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return
    trial.set_user_attr("scores", scores)
    study.tell(trial, sign * sum(scores) / len(scores))


def _score(problem: Problem, prior: Denoiser, setting: Setting, search: Search) -> dict[str, list[float]]:
    """PSNR, SSIM where the images are large enough for it, and the metric of the search, image by image."""
    samples = SAMPLES.get(search.metric, 1)
    restoration = restore_problem(problem, prior, setting.solver, setting.cmi, steps=search.steps, samples=samples)
    names = {search.metric, "psnr"} | ({"ssim"} if min(problem.images.truth.shape[-2:]) >= 11 else set())
    return {name: score_images(restoration, problem.images.truth, name).tolist() for name in sorted(names)}


def _conclude(study: optuna.Study, search: Search, prior: Denoiser, progress: Callable[[Report], None]) -> Outcome:
    """The solver alone and the best settings, on the hold-out images, each computed once."""
    from optuna.trial import FixedTrial, TrialState

    done, problems = _done(study), search.problems(held_out=True)
    complete = [t for t in done if t.state == TrialState.COMPLETE]
    compared = {"the solver alone": complete[0]}
    for name, cmi in (("best without CMI", False), ("best with CMI", True)):
        top = max((t for t in complete if t.params["cmi"] == cmi), key=_value, default=complete[0])
        if top is not complete[0]:
            compared[name] = top
    rows = []
    for name, trial in compared.items():
        setting, key = search.space.propose(FixedTrial(trial.params)), f"{FINISHED} {trial.number}"
        if key not in study.user_attrs:
            found: dict[str, list[float]] = {}
            for number, problem in enumerate(problems, 1):
                doing = f"hold-out: {name}, images {number}/{len(problems)}"
                progress(Report(search.trials, search.trials, doing, None))
                for metric, values in _score(problem, prior, setting, search).items():
                    found.setdefault(metric, []).extend(values)
            study.set_user_attr(key, found)
        rows.append(Row(name, setting, trial.user_attrs["scores"], study.user_attrs[key]))
    best = max(zip(compared.values(), rows, strict=True), key=lambda pair: _value(pair[0]))[1]
    sign, metric = METRICS[search.metric][1], search.metric
    gain = estimate(*([sign * value for value in row.held_out[metric]] for row in (best, rows[0])))
    return Outcome(rows, best, gain, metric, len(done), sum(t.state == TrialState.PRUNED for t in done))


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value
