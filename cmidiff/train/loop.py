"""The training loop: an exponential moving average, checkpoints, exact resume, and a cool-down.

The batch, the times and the noise of step n depend on (seed, n) alone; weights, average, optimiser and elapsed time
are in the checkpoint. A run bounded by ``steps`` therefore resumes bit for bit; one bounded by ``seconds`` resumes with
the same data and the clock where it stood.

The learning rate is constant after a warm-up, so a run needs no known end. A cool-down starts from the checkpoint of
the run, lowers the rate to zero within a given number of steps, and exports. It leaves that checkpoint as it is, so
that the run itself can go on at the constant rate.
"""

from __future__ import annotations

import contextlib
import csv
import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from cmidiff.train.checkpoint import State, load, new_state, save
from cmidiff.train.config import TrainConfig
from cmidiff.train.data import Dataset, images, to_tensor
from cmidiff.train.export import export
from cmidiff.train.loss import Network, draw_times, load_teacher, v_loss
from cmidiff.train.validate import LevelLoss, denoising, draw_curve, draw_examples

CHECKPOINT = "checkpoint.pt"
COOL_DOWN = "cool-down"
LOGGED = 50  # steps whose mean loss is one row of loss.csv


@dataclass(frozen=True)
class TrainResult:
    """What a finished (or interrupted) run leaves.

    Attributes:
        folder: the exported prior.
        steps: steps done.
        seconds: wall time over all parts.
        loss: mean training loss of the last logged interval.
        levels: validation by noise level; empty without a validation archive.
        finished: the budget was used up (False: interrupted, resume it).
    """

    folder: Path
    steps: int
    seconds: float
    loss: float
    levels: list[LevelLoss]
    finished: bool


def run(config: TrainConfig, *, resume: bool = False, cool_down: int = 0) -> TrainResult:
    """Train a prior and export it; Ctrl-C and SIGTERM save a checkpoint, export, and return.

    Args:
        config: what to train.
        resume: continue from the checkpoint in ``config.out``.
        cool_down: steps in which the learning rate falls from its present value to zero. They start from the
            checkpoint of the run, or continue an interrupted cool-down, and write to ``config.out/cool-down``.

    Raises:
        FileNotFoundError: if an archive is missing, or there is no checkpoint to resume from.
        FileExistsError: if ``config.out`` already holds a checkpoint and ``resume`` is False.
        ValueError: if the checkpoint is damaged or of another network.
        FloatingPointError: if the loss is not finite.
        OSError: if the disk is full.
    """
    path, continued = config.out / CHECKPOINT, resume or cool_down > 0
    if not continued and path.is_file():
        raise FileExistsError(f"{path} exists; resume that run, or choose another out folder")
    state = _open_state(config, continued=continued)
    if cool_down:
        path = _begin_cool_down(state, config.out, cool_down)
    return _Trainer(config, state, path).train(Dataset(config))


def snapshot(config: TrainConfig) -> TrainResult:
    """Validate and export the average of the last checkpoint, without training."""
    return _Trainer(config, _open_state(config, continued=True), config.out / CHECKPOINT).export()


def _open_state(config: TrainConfig, *, continued: bool) -> State:
    path = config.out / CHECKPOINT
    if continued and not path.is_file():
        raise FileNotFoundError(f"no checkpoint to resume from at {path}; start without resume")
    if config.threads:
        torch.set_num_threads(config.threads)
    state = new_state(config, initial=not continued)
    if continued:
        load(state, path)
    return state


def _begin_cool_down(state: State, out: Path, steps: int) -> Path:
    """Continue an unfinished cool-down, or begin one at the present step."""
    path = out / COOL_DOWN / CHECKPOINT
    path.parent.mkdir(exist_ok=True)
    if path.is_file():
        step = state.step
        load(state, path)
        if state.step < state.cool_to and state.cool_from == step:
            return path
        load(state, out / CHECKPOINT)
    state.cool_from, state.cool_to = state.step, state.step + steps
    return path


def learning_rate(config: TrainConfig, state: State) -> float:
    """Return a linear warm-up, a constant rate, and a linear fall to zero at the end of the budget or cool-down."""
    rise = min(1.0, (state.step + 1) / max(config.warmup, 1))
    length = 1.0 if state.cool_to else max(config.cooldown, 1e-12)
    return config.learning_rate * rise * min(1.0, (1 - progress(config, state)) / length)


def progress(config: TrainConfig, state: State) -> float:
    """Return the fraction of the budget used, in [0, 1]: of steps or of seconds, whichever is further."""
    if state.cool_to:
        return (state.step - state.cool_from) / (state.cool_to - state.cool_from)
    by_steps = state.step / config.steps if config.steps else 0.0
    by_time = state.elapsed / config.seconds if config.seconds else 0.0
    return min(1.0, max(by_steps, by_time))


class _Trainer:
    """One part of a run, from a state to the end of the budget or an interruption."""

    def __init__(self, config: TrainConfig, state: State, path: Path) -> None:
        self.config, self.state, self.path, self.folder = config, state, path, path.parent
        self.compiled: Network = torch.compile(state.network, dynamic=False) if config.compile else state.network
        self.teacher = load_teacher(config.teacher).to(config.device) if config.teacher else None
        self.held_out: Tensor | None = None
        if config.validation is not None:
            pixels = images((config.validation,), config.size, config.cache)[: config.validation_images]
            self.held_out = to_tensor(pixels.copy())
        self.levels: list[LevelLoss] = []
        self.losses: list[float] = []
        self.loss = math.nan
        self.stopped = False

    def train(self, data: Dataset) -> TrainResult:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("loss.csv", "validation.csv"):
            _drop_rows(self.folder / name, self.state.step)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with self._stop_between_steps(), Progress(*columns) as bar:
            self._loop(data, bar)
        save(self.state, self.path)
        return self.export()

    def export(self) -> TrainResult:
        """Validate and export the average."""
        config, state = self.config, self.state
        self._validate()
        export(state.average, config, state.step, state.elapsed, self.levels)
        finished = bool(progress(config, state) >= 1)
        return TrainResult(config.export_to, state.step, state.elapsed, self.loss, self.levels, finished)

    def _loop(self, data: Dataset, bar: Progress) -> None:
        state, config = self.state, self.config
        start = time.monotonic() - state.elapsed
        saved = validated = state.elapsed
        task = bar.add_task("training", total=1.0 if config.steps or config.seconds or state.cool_to else None)
        while progress(config, state) < 1 and not self.stopped:
            self.losses.append(self._step(data))
            state.elapsed = time.monotonic() - start
            if len(self.losses) == LOGGED:
                self._record()
                description = f"step {state.step}  loss {self.loss:.4f}"
                bar.update(task, completed=progress(config, state), description=description)
            if state.elapsed - saved > config.checkpoint_seconds:
                save(state, self.path)
                saved = state.elapsed
            if state.elapsed - validated > config.validation_seconds:
                self._validate()
                validated = state.elapsed
        if self.losses:
            self._record()

    @contextlib.contextmanager
    def _stop_between_steps(self) -> Iterator[None]:
        """End the run at a signal after the current step, never within one, so that weights and optimiser agree.

        A second signal has its usual effect.
        """
        numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        usual = {number: signal.getsignal(number) for number in numbers}

        def stop(*_: object) -> None:
            self.stopped = True
            restore()

        def restore() -> None:
            for number, handler in usual.items():
                signal.signal(number, handler)

        for number in numbers:
            signal.signal(number, stop)
        try:
            yield
        finally:
            restore()

    def _step(self, data: Dataset) -> float:
        state, config = self.state, self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + state.step)
        x_0 = data.batch(state.step).to(config.device)
        t = draw_times(len(x_0), config.uniform_share, config.log_sigma_mean, config.log_sigma_std, generator)
        eps = torch.randn(x_0.shape, generator=generator).to(config.device)
        for group in state.optimiser.param_groups:
            group["lr"] = learning_rate(config, state)
        loss = v_loss(self.compiled, x_0, t, eps, config.bfloat16, self.teacher, config.detail, config.patch_size)
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(state.network.parameters(), config.clip)
        if not math.isfinite(value := loss.item()):
            raise FloatingPointError(
                f"the loss is {value} at step {state.step}; lower learning_rate and resume from the last checkpoint"
            )
        state.optimiser.step()
        state.step += 1
        self._average()
        return value

    @torch.no_grad()
    def _average(self) -> None:
        # An early average forgets faster, or it would remember the weights at the start of the run or the cool-down.
        count = self.state.step - self.state.cool_from
        decay = min(self.config.ema, (1 + count) / (10 + count))
        for average, weight in zip(self.state.average.parameters(), self.state.network.parameters(), strict=True):
            average.lerp_(weight, 1 - decay)

    def _record(self) -> None:
        self.loss = sum(self.losses) / len(self.losses)
        self.losses.clear()
        rate, count = learning_rate(self.config, self.state), self.state.step * self.config.batch
        self._append("loss.csv", images=count, loss=self.loss, learning_rate=rate)

    def _validate(self) -> None:
        """Validate the average and draw the curve and the examples."""
        draw_curve(self.folder)
        if self.held_out is None:
            return
        self.levels = denoising(self.state.average, self.held_out)
        for level in self.levels:
            self._append("validation.csv", **level._asdict())
        figures = ", ".join(f"{level.ratio:g}: {level.psnr:.2f}" for level in self.levels)
        print(f"step {self.state.step}, {self.state.elapsed:.0f} s; PSNR of x_hat by sigma/alpha: {figures}")
        draw_examples(self.state.average, self.held_out, self.folder)

    def _append(self, name: str, **values: float) -> None:
        """Add a row to a file of figures."""
        path, row = self.folder / name, {"step": self.state.step, "seconds": round(self.state.elapsed, 1)} | values
        new = not path.is_file()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)


def _drop_rows(path: Path, step: int) -> None:
    """Remove the rows of steps that a killed run had done after its last checkpoint."""
    if path.is_file():
        header, *rows = path.read_text().splitlines()
        kept = [row for row in rows if row and int(row.split(",")[0]) <= step]
        path.write_text("".join(f"{row}\n" for row in (header, *kept)))
