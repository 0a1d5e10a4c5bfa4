"""The training loop: the v loss, an exponential moving average, checkpoints, exact resume, and a cool-down.

The batch, the times and the noise of step n depend on (seed, n) alone; weights, average, optimiser and elapsed time
are in the checkpoint. A run bounded by ``steps`` therefore resumes bit for bit; one bounded by ``seconds`` resumes with
the same data and the clock where it stood.

The learning rate is constant after a warm-up, so a run needs no known end. A cool-down branches off: it starts from the
checkpoint of the run, lowers the rate to zero within a given number of steps, exports, and leaves that checkpoint as it
is, so that the run itself can go on at the constant rate.
"""

from __future__ import annotations

import contextlib
import csv
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from cmidiff.train.checkpoint import State, load, new_state, save
from cmidiff.train.config import TrainConfig
from cmidiff.train.data import Dataset, images, to_tensor
from cmidiff.train.export import export
from cmidiff.train.figures import draw_curve, draw_examples
from cmidiff.train.noise import draw_times, kernel
from cmidiff.train.teacher import Teacher, load_teacher, teach
from cmidiff.train.validate import LevelLoss, denoising

CHECKPOINT = "checkpoint.pt"
COOL_DOWN = "cool-down"
Network = Callable[[Tensor, Tensor], Tensor]


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
    path = config.out / CHECKPOINT
    _check(path, resume or cool_down > 0)
    _set_threads(config)
    data, held_out = Dataset(config), _held_out(config)
    config.out.mkdir(parents=True, exist_ok=True)
    continued = resume or cool_down > 0
    state = new_state(config, initial=not continued)
    if continued:
        load(state, path)
    if cool_down:
        path = _begin_cool_down(state, config.out, cool_down)
    return _Trainer(config, data, held_out, state, path).train()


def snapshot(config: TrainConfig) -> TrainResult:
    """Validate and export the average of the last checkpoint, without training.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if the checkpoint is damaged or of another network.
    """
    path = config.out / CHECKPOINT
    _check(path, True)
    _set_threads(config)
    state = new_state(config, initial=False)
    load(state, path)
    return _Trainer(config, None, _held_out(config), state, path).export()


def _check(path: Path, continued: bool) -> None:
    if continued and not path.is_file():
        raise FileNotFoundError(f"no checkpoint to resume from at {path}; start without resume")
    if not continued and path.is_file():
        raise FileExistsError(f"{path} exists; resume that run, or choose another out folder")


def _set_threads(config: TrainConfig) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)


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
    if state.cool_to:
        fall = (state.cool_to - state.step) / (state.cool_to - state.cool_from)
    else:
        fall = min(1.0, (1 - progress(config, state)) / max(config.cooldown, 1e-12))
    return config.learning_rate * rise * fall


def progress(config: TrainConfig, state: State) -> float:
    """Return the fraction of the budget used, in [0, 1]: of steps or of seconds, whichever is further."""
    if state.cool_to:
        return (state.step - state.cool_from) / (state.cool_to - state.cool_from)
    by_steps = state.step / config.steps if config.steps else 0.0
    by_time = state.elapsed / config.seconds if config.seconds else 0.0
    return min(1.0, max(by_steps, by_time))


def v_loss(
    network: Network,
    x_0: Tensor,
    t: Tensor,
    eps: Tensor,
    bfloat16: bool,
    teacher: Teacher | None = None,
    detail: float = 0.0,
    patch_size: int = 2,
) -> Tensor:
    """Return ``|e|^2 + detail sigma_t^2 |e - mean of e over its block|^2`` with ``e = v_theta(x_t, t) - v``: a scalar.

    The second term does not move the minimum, which is the posterior mean. It raises the price of patterns with the
    period of the pixel-shuffle: they are visible at high noise, although their share of the squared error is small.

    Args:
        network: ``(x_t, t) -> v``.
        x_0: images (B, 3, H, W) in [-1, 1].
        t: real times (B,), on the CPU.
        eps: standard normal noise, the shape of ``x_0``.
        bfloat16: run the network in bfloat16 autocast.
        teacher: its output replaces ``x_0`` in the target where it is the better one.
        detail: weight of the second term.
        patch_size: side of the blocks.
    """
    alpha_t, sigma_t = (k.float()[:, None, None, None].to(x_0.device) for k in kernel(t))
    x_t = alpha_t * x_0 + sigma_t * eps
    target = x_0 if teacher is None else teach(teacher, x_0, x_t / alpha_t, (sigma_t / alpha_t).flatten())
    with torch.autocast(x_0.device.type, torch.bfloat16, enabled=bfloat16):
        v = network(x_t, t.float().to(x_0.device))
    error = v.float() - (alpha_t * x_t - target) / sigma_t
    loss = error.square().mean()
    if detail:
        within = error - interpolate(avg_pool2d(error, patch_size), scale_factor=float(patch_size))
        loss = loss + detail * (sigma_t * within).square().mean()
    return loss


class _Trainer:
    """One part of a run, from a state to the end of the budget or an interruption."""

    def __init__(
        self, config: TrainConfig, data: Dataset | None, held_out: Tensor | None, state: State, path: Path
    ) -> None:
        self.config, self.data, self.held_out, self.state, self.path = config, data, held_out, state, path
        self.compiled: Network = torch.compile(state.network, dynamic=False) if config.compile else state.network
        self.folder = path.parent
        self.teacher = load_teacher(config.teacher).to(config.device) if config.teacher else None
        self.levels: list[LevelLoss] = []
        self.loss = math.nan
        self.stopped = False
        self.console = Console()

    def train(self) -> TrainResult:
        _drop_rows(self.folder / "loss.csv", self.state.step)
        _drop_rows(self.folder / "validation.csv", self.state.step)
        with self._between_steps():
            self._loop()
        save(self.state, self.path)
        return self.export()

    def export(self) -> TrainResult:
        """Validate and export the average."""
        config, state = self.config, self.state
        self._look()
        export(state.average, config, state.step, state.elapsed, self.levels)
        finished = bool(progress(config, state) >= 1)
        return TrainResult(config.export_to, state.step, state.elapsed, self.loss, self.levels, finished)

    def _loop(self) -> None:
        state, config = self.state, self.config
        start = time.monotonic() - state.elapsed
        saved = looked = state.elapsed
        losses: list[float] = []
        with self._bar() as advance:
            while progress(config, state) < 1 and not self.stopped:
                losses.append(self._step())
                state.elapsed = time.monotonic() - start
                if len(losses) == 50:
                    self._record(losses)
                    losses.clear()
                    advance(self.loss)
                if state.elapsed - saved > config.checkpoint_seconds:
                    save(state, self.path)
                    saved = state.elapsed
                if state.elapsed - looked > config.validation_seconds:
                    self._look()
                    looked = state.elapsed
            if losses:
                self._record(losses)

    @contextlib.contextmanager
    def _between_steps(self) -> Iterator[None]:
        """End the run at a signal after the current step, never within one, so that weights and optimiser agree."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def restore() -> None:
            for number, handler in usual.items():
                signal.signal(number, handler)

        def stop(*_: object) -> None:
            self.stopped = True
            restore()

        for number in usual:
            signal.signal(number, stop)
        try:
            yield
        finally:
            restore()

    def _step(self) -> float:
        state, config = self.state, self.config
        assert self.data is not None
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + state.step)
        x_0 = self.data.batch(state.step).to(config.device)
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

    def _record(self, losses: list[float]) -> None:
        self.loss = sum(losses) / len(losses)
        path, state = self.folder / "loss.csv", self.state
        rate = learning_rate(self.config, state)
        row = [state.step, round(state.elapsed, 1), state.step * self.config.batch, self.loss, rate]
        _append(path, ["step", "seconds", "images", "loss", "learning_rate"], row)

    def _look(self) -> None:
        """Validate the average and draw the curve and the examples."""
        draw_curve(self.folder)
        if self.held_out is None:
            return
        self.levels = denoising(self.state.average, self.held_out)
        for level in self.levels:
            row = [self.state.step, round(self.state.elapsed, 1), *level]
            _append(self.folder / "validation.csv", ["step", "seconds", *LevelLoss._fields], row)
        figures = ", ".join(f"{level.ratio:g}: {level.psnr:.2f}" for level in self.levels)
        self.console.print(
            f"step {self.state.step}, {self.state.elapsed:.0f} s; PSNR of x_hat by sigma/alpha: {figures}"
        )
        draw_examples(self.state.average, self.held_out, self.folder)

    @contextlib.contextmanager
    def _bar(self) -> Iterator[Callable[[float], None]]:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console) as bar:
            limited = self.config.steps or self.config.seconds or self.state.cool_to
            task = bar.add_task("training", total=1.0 if limited else None)

            def advance(loss: float) -> None:
                text = f"step {self.state.step}  loss {loss:.4f}"
                bar.update(task, completed=progress(self.config, self.state), description=text)

            yield advance


def _held_out(config: TrainConfig) -> Tensor | None:
    if config.validation is None:
        return None
    return to_tensor(images((config.validation,), config.size, config.cache)[: config.validation_images].copy())


def _append(path: Path, header: list[str], row: list[object]) -> None:
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(header)
        writer.writerow(row)


def _drop_rows(path: Path, step: int) -> None:
    """Remove the rows of steps that a killed run had done after its last checkpoint."""
    if not path.is_file():
        return
    with path.open(newline="") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *(row for row in rows if row and int(row[0]) <= step)])
