"""The training loop: AdamW on the v loss, an exponential moving average, checkpoints, exact resume.

The batch, the times and the noise of step n depend on (seed, n) alone; weights, average, optimiser and elapsed time
are in the checkpoint. A run bounded by ``steps`` therefore resumes bit for bit; one bounded by ``seconds`` resumes with
the same data and the clock where it stood.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim import AdamW

from cmidiff.prior.patch import PatchUNet
from cmidiff.train.config import TrainConfig
from cmidiff.train.data import Dataset, images, to_tensor
from cmidiff.train.export import export
from cmidiff.train.network import build
from cmidiff.train.noise import draw_times, kernel, time_of
from cmidiff.train.validate import LevelLoss, clean, denoising, draw

CHECKPOINT = "checkpoint.pt"
Network = Callable[[Tensor, Tensor], Tensor]


@dataclass
class State:
    """All that a checkpoint holds.

    Attributes:
        network: the weights being trained.
        average: their exponential moving average, the result.
        optimiser: AdamW.
        step: steps done; the data position follows from it.
        elapsed: seconds trained, over all parts.
    """

    network: PatchUNet
    average: PatchUNet
    optimiser: AdamW
    step: int = 0
    elapsed: float = 0.0


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


def run(config: TrainConfig, *, resume: bool = False) -> TrainResult:
    """Trains a prior and exports it; Ctrl-C saves a checkpoint, exports, and returns.

    Args:
        config: what to train.
        resume: continue from the checkpoint in ``config.out``.

    Raises:
        FileNotFoundError: an archive is missing, or there is no checkpoint to resume from.
        FileExistsError: ``config.out`` already holds a checkpoint and ``resume`` is False.
        ValueError: the checkpoint is of another network.
        FloatingPointError: the loss is not finite.
    """
    path = config.out / CHECKPOINT
    if resume and not path.is_file():
        raise FileNotFoundError(f"no checkpoint to resume from at {path}; start without resume")
    if not resume and path.is_file():
        raise FileExistsError(f"{path} exists; resume that run, or choose another out folder")
    if config.threads:
        torch.set_num_threads(config.threads)
    config.out.mkdir(parents=True, exist_ok=True)
    data, held_out = Dataset(config), _held_out(config)
    state = new_state(config)
    if resume:
        load(state, path)
    return _Trainer(config, data, held_out, state).train()


def new_state(config: TrainConfig) -> State:
    """Fresh weights, average and optimiser."""
    network = build(config).to(config.device)
    optimiser = AdamW(
        network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )
    return State(network, copy.deepcopy(network).requires_grad_(False), optimiser)


def save(state: State, path: Path) -> None:
    """Writes a checkpoint; the old one stays until the new one is whole."""
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "network": state.network.state_dict(),
            "average": state.average.state_dict(),
            "optimiser": state.optimiser.state_dict(),
            "step": state.step,
            "elapsed": state.elapsed,
        },
        partial,
    )
    partial.replace(path)


def load(state: State, path: Path) -> None:
    """Fills ``state`` from a checkpoint; only tensors and numbers are read, no code is run.

    Raises:
        ValueError: the checkpoint is of another network.
    """
    saved = torch.load(path, weights_only=True, map_location=next(state.network.parameters()).device)
    try:
        state.network.load_state_dict(saved["network"])
        state.average.load_state_dict(saved["average"])
    except RuntimeError as error:
        raise ValueError(
            f"{path} holds another network than the configuration describes; use the configuration it was made with"
        ) from error
    state.optimiser.load_state_dict(saved["optimiser"])
    state.step, state.elapsed = saved["step"], saved["elapsed"]


def learning_rate(config: TrainConfig, step: int, elapsed: float) -> float:
    """Linear warm-up, then half a cosine to zero at the end of the budget."""
    return (
        config.learning_rate
        * min(1.0, (step + 1) / max(config.warmup, 1))
        * 0.5
        * (1 + math.cos(math.pi * progress(config, step, elapsed)))
    )


def progress(config: TrainConfig, step: int, elapsed: float) -> float:
    """Fraction of the budget used, in [0, 1]: of steps or of seconds, whichever is further."""
    by_steps = step / config.steps if config.steps else 0.0
    by_time = elapsed / config.seconds if config.seconds else 0.0
    return min(1.0, max(by_steps, by_time))


def v_loss(network: Network, x_0: Tensor, t: Tensor, eps: Tensor, bfloat16: bool) -> Tensor:
    """``|v_theta(x_t, t) - v|^2`` averaged over the batch: a scalar.

    Args:
        network: ``(x_t, t) -> v``.
        x_0: images (B, 3, H, W) in [-1, 1].
        t: real times (B,), on the CPU.
        eps: standard normal noise, the shape of ``x_0``.
        bfloat16: run the network in bfloat16 autocast.
    """
    alpha_t, sigma_t = (k.float()[:, None, None, None].to(x_0.device) for k in kernel(t))
    with torch.autocast(x_0.device.type, torch.bfloat16, enabled=bfloat16):
        v = network(alpha_t * x_0 + sigma_t * eps, t.float().to(x_0.device))
    return (v.float() - (alpha_t * eps - sigma_t * x_0)).square().mean()


class _Trainer:
    """One part of a run, from a state to the end of the budget or an interruption."""

    def __init__(self, config: TrainConfig, data: Dataset, held_out: Tensor | None, state: State) -> None:
        self.config, self.data, self.held_out, self.state = config, data, held_out, state
        self.compiled: Network = torch.compile(state.network) if config.compile else state.network
        self.levels: list[LevelLoss] = []
        self.loss = math.nan
        self.stopped = False
        self.console = Console()

    def train(self) -> TrainResult:
        with self._between_steps():
            self._loop()
        finished = progress(self.config, self.state.step, self.state.elapsed) >= 1
        save(self.state, self.config.out / CHECKPOINT)
        self._look()
        export(self.state.average, self.config, self.state.step, self.state.elapsed, self.levels)
        return TrainResult(self.config.export_to, self.state.step, self.state.elapsed, self.loss, self.levels, finished)

    def _loop(self) -> None:
        state, config = self.state, self.config
        start = time.monotonic() - state.elapsed
        saved = looked = state.elapsed
        losses: list[float] = []
        with self._bar() as advance:
            while progress(config, state.step, state.elapsed) < 1 and not self.stopped:
                losses.append(self._step())
                state.elapsed = time.monotonic() - start
                if len(losses) == 50:
                    self._record(losses)
                    losses.clear()
                    advance(self.loss)
                if state.elapsed - saved > config.checkpoint_seconds:
                    save(state, config.out / CHECKPOINT)
                    saved = state.elapsed
                if state.elapsed - looked > config.validation_seconds:
                    self._look()
                    looked = state.elapsed
            if losses:
                self._record(losses)

    @contextlib.contextmanager
    def _between_steps(self) -> Iterator[None]:
        """Ctrl-C ends the run after the current step, never within one, so that weights and optimiser agree."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        usual = signal.getsignal(signal.SIGINT)

        def stop(*_: object) -> None:
            self.stopped = True
            signal.signal(signal.SIGINT, usual)

        signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, usual)

    def _step(self) -> float:
        state, config = self.state, self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + state.step)
        t = draw_times(config.batch, config.uniform_share, config.log_sigma_mean, config.log_sigma_std, generator)
        x_0 = self.data.batch(state.step).to(config.device)
        eps = torch.randn(x_0.shape, generator=generator).to(config.device)
        for group in state.optimiser.param_groups:
            group["lr"] = learning_rate(config, state.step, state.elapsed)
        loss = v_loss(self.compiled, x_0, t, eps, config.bfloat16)
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(state.network.parameters(), config.clip)
        state.optimiser.step()
        self._average()
        state.step += 1
        if not math.isfinite(value := loss.item()):
            raise FloatingPointError(
                f"the loss is {value} at step {state.step}; lower learning_rate and resume from the last checkpoint"
            )
        return value

    @torch.no_grad()
    def _average(self) -> None:
        # An early average forgets faster, or it would remember the initial weights.
        decay = min(self.config.ema, (1 + self.state.step) / (10 + self.state.step))
        for average, weight in zip(self.state.average.parameters(), self.state.network.parameters(), strict=True):
            average.lerp_(weight, 1 - decay)

    def _record(self, losses: list[float]) -> None:
        self.loss = sum(losses) / len(losses)
        path, state = self.config.out / "loss.csv", self.state
        rate = learning_rate(self.config, state.step, state.elapsed)
        row = [state.step, round(state.elapsed, 1), state.step * self.config.batch, self.loss, rate]
        _append(path, ["step", "seconds", "images", "loss", "learning_rate"], row)

    def _look(self) -> None:
        """Validates the average and draws the curve and the pictures."""
        curve(self.config.out)
        if self.held_out is None:
            return
        self.levels = denoising(self.state.average, self.held_out)
        for level in self.levels:
            row = [self.state.step, round(self.state.elapsed, 1), *level]
            _append(self.config.out / "validation.csv", ["step", "seconds", *LevelLoss._fields], row)
        figures = ", ".join(f"{level.ratio:g}: {level.psnr:.2f}" for level in self.levels)
        self.console.print(
            f"step {self.state.step}, {self.state.elapsed:.0f} s; PSNR of x_hat by sigma/alpha: {figures}"
        )
        pictures(self.state.average, self.held_out, self.config)

    @contextlib.contextmanager
    def _bar(self) -> Iterator[Callable[[float], None]]:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task("training", total=1.0)

            def advance(loss: float) -> None:
                text = f"step {self.state.step}  loss {loss:.4f}"
                bar.update(task, completed=progress(self.config, self.state.step, self.state.elapsed), description=text)

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


def curve(folder: Path) -> None:
    """Draws ``loss.png`` from ``loss.csv`` of a run's folder."""
    from matplotlib.figure import Figure

    if not (path := folder / "loss.csv").is_file():
        return
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([int(row["step"]) for row in rows], [float(row["loss"]) for row in rows], linewidth=0.8)
    axes.set(xlabel="step", ylabel="training loss (v, mean square)", yscale="log", title="Training")
    figure.savefig(folder / "loss.png", dpi=120)


def pictures(network: PatchUNet, held_out: Tensor, config: TrainConfig) -> None:
    """Writes ``denoised.png`` (truth, then noisy and denoised by level) and ``samples.png`` of the current average."""
    truth = held_out[:8]
    rows = [truth]
    for ratio in (0.2, 1.0, 5.0):
        rows.extend(_example(network, truth, ratio))
    _tile(torch.stack(rows), config.out / "denoised.png")
    _tile(draw(network, 16, config.size, steps=100).unflatten(0, (2, 8)), config.out / "samples.png")


@torch.no_grad()
def _example(network: PatchUNet, x_0: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    t = time_of(torch.full((len(x_0),), ratio))
    alpha_t, sigma_t = (k.float()[:, None, None, None] for k in kernel(t))
    x_t = alpha_t * x_0 + sigma_t * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1))
    return x_t / alpha_t, clean(network, x_t, t)


def _tile(rows: Tensor, path: Path) -> None:
    pixels = ((rows.clamp(-1, 1) + 1) * 127.5).round().byte()
    image = Image.fromarray(pixels.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy())
    image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST).save(path)
