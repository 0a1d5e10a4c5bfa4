"""All that a run needs to continue: the network, its average and the optimiser, in one file. The file is replaced only
when the new one is whole."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import nn
from torch.optim.optimizer import Optimizer

from cmidiff.files import write
from cmidiff.prior.formats.patch import PatchUNet
from cmidiff.train.config import TrainConfig
from cmidiff.train.export import read
from cmidiff.train.optimiser import make_optimiser

MODULES, NUMBERS = ("network", "average", "optimiser"), ("step", "elapsed", "cool_from", "cool_to")


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


def make_network(config: TrainConfig) -> PatchUNet:
    """Return diffusers' ``UNet2DModel`` behind a pixel-unshuffle, with attention at its coarsest level only.

    Its weights are drawn from ``config.seed``; the output layer starts at zero. It takes any size divisible by
    ``patch_size * 2^(levels - 1)``.
    """
    coarser = len(config.channels) - 1
    wide = 3 * config.patch_size**2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        unet = UNet2DModel(
            sample_size=config.size // config.patch_size,
            in_channels=wide,
            out_channels=wide,
            block_out_channels=config.channels,
            layers_per_block=config.layers,
            down_block_types=("DownBlock2D",) * coarser + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * coarser,
            attention_head_dim=min(32, config.channels[-1]),
            norm_num_groups=config.groups,
        )
    nn.init.zeros_(unet.conv_out.weight)
    return PatchUNet(cast(UNet2DModel, nn.Module.to(unet, memory_format=torch.channels_last)), config.patch_size)


def new_state(config: TrainConfig, *, initial: bool = True) -> State:
    """Return random or initial weights, their average and a new optimiser. Without ``initial`` the weights are
    random where the configuration names others, for a checkpoint to replace."""
    network, folder = make_network(config), config.initial
    if initial and folder is not None:
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(
                f"initial names {folder}, which is no exported prior; give a folder of cmidiff train"
            )
        try:
            network.load_state_dict(read(folder).state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"{folder} holds another network than the configuration describes; change channels and layers, or "
                "initial"
            ) from error
    network = network.to(config.device)
    optimiser = make_optimiser(config.optimiser, network, config.learning_rate, config.weight_decay)
    return State(network, copy.deepcopy(network).requires_grad_(False), optimiser)


def save(state: State, path: Path) -> None:
    """Write a checkpoint; the old one stays until the new one is on the disk."""
    buffer = io.BytesIO()
    modules = {name: getattr(state, name).state_dict() for name in MODULES}
    torch.save(modules | {name: getattr(state, name) for name in NUMBERS}, buffer)
    try:
        write(path, buffer.getvalue())
    except OSError as error:
        size = len(buffer.getbuffer()) / 2**20
        raise OSError(
            f"the checkpoint {path} of {size:.0f} MiB cannot be written ({error.strerror}): make room there and resume "
            "from the last one"
        ) from error


def load(state: State, path: Path) -> None:
    """Fill ``state`` from a checkpoint; only tensors and numbers are read, no code is run."""
    try:
        saved = torch.load(path, weights_only=True, map_location=next(state.network.parameters()).device)
        parts = {name: saved[name] for name in (*MODULES, *NUMBERS[:2])}
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no checkpoint of cmidiff train, or is damaged; delete it and start again"
        ) from error
    try:
        for name in MODULES:
            getattr(state, name).load_state_dict(parts[name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is of another network or optimiser than the configuration describes; use the configuration it was "
            "made with, or another out folder"
        ) from error
    for name in NUMBERS:
        setattr(state, name, saved.get(name, 0))
