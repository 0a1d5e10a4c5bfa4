"""All that a run needs to continue, in one file that is replaced only when the new one is whole."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.optim.optimizer import Optimizer

from cmidiff.files import write
from cmidiff.prior.patch import PatchUNet
from cmidiff.train.config import TrainConfig
from cmidiff.train.export import read
from cmidiff.train.network import build
from cmidiff.train.optimiser import make_optimiser


@dataclass
class State:
    """What a checkpoint holds.

    Attributes:
        network: the weights being trained.
        average: their exponential moving average, the result.
        optimiser: with its moments.
        step: number of steps done; the images and the noise of the next step follow from it.
        elapsed: seconds trained, over all parts.
        cool_from: the step at which the cool-down began.
        cool_to: the step at which the cool-down ends; 0 outside a cool-down.
    """

    network: PatchUNet
    average: PatchUNet
    optimiser: Optimizer
    step: int = 0
    elapsed: float = 0.0
    cool_from: int = 0
    cool_to: int = 0


def new_state(config: TrainConfig, *, initial: bool = True) -> State:
    """Return random or initial weights, their average and a new optimiser.

    Args:
        config: names the network and the optimiser.
        initial: start from ``config.initial``; False leaves the random weights, for a checkpoint to replace.

    Raises:
        FileNotFoundError: if ``config.initial`` is no exported prior.
        ValueError: if ``config.initial`` holds another network.
    """
    network = build(config)
    if initial and config.initial is not None:
        _start(network, config.initial)
    network = network.to(config.device)
    optimiser = make_optimiser(config.optimiser, network, config.learning_rate, config.weight_decay)
    return State(network, copy.deepcopy(network).requires_grad_(False), optimiser)


def _start(network: PatchUNet, folder: Path) -> None:
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"initial names {folder}, which is no exported prior; give a folder of cmidiff train")
    try:
        network.load_state_dict(read(folder).state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"{folder} holds another network than the configuration describes; change channels and layers, or initial"
        ) from error


def save(state: State, path: Path) -> None:
    """Write a checkpoint; the old one stays until the new one is on the disk.

    Raises:
        OSError: if the file cannot be written; the old checkpoint stays.
    """
    buffer = io.BytesIO()
    torch.save(
        {
            "network": state.network.state_dict(),
            "average": state.average.state_dict(),
            "optimiser": state.optimiser.state_dict(),
            "step": state.step,
            "elapsed": state.elapsed,
            "cool_from": state.cool_from,
            "cool_to": state.cool_to,
        },
        buffer,
    )
    try:
        write(path, buffer.getvalue())
    except OSError as error:
        size = len(buffer.getbuffer()) / 2**20
        raise OSError(
            f"the checkpoint {path} of {size:.0f} MiB cannot be written ({error.strerror}): make room there and resume "
            "from the last one"
        ) from error


def load(state: State, path: Path) -> None:
    """Fill ``state`` from a checkpoint; only tensors and numbers are read, no code is run.

    Raises:
        ValueError: if the file is no checkpoint, or one of another network or optimiser.
    """
    try:
        saved = torch.load(path, weights_only=True, map_location=next(state.network.parameters()).device)
        parts = [saved[name] for name in ("network", "average", "optimiser")]
        numbers = [saved["step"], saved["elapsed"], saved.get("cool_from", 0), saved.get("cool_to", 0)]
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no checkpoint of cmidiff train, or is damaged; delete it and start again"
        ) from error
    try:
        state.network.load_state_dict(parts[0])
        state.average.load_state_dict(parts[1])
        state.optimiser.load_state_dict(parts[2])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is of another network or optimiser than the configuration describes; use the configuration it was "
            "made with, or another out folder"
        ) from error
    state.step, state.elapsed, state.cool_from, state.cool_to = numbers
