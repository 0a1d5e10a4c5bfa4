"""The noise schedule of a pipeline of diffusers, from the configuration of its scheduler.

A scheduler is a sampler; its configuration also states the betas that the network was trained with and what the network
predicts. The schedulers of `KNOWN` do. What a configuration leaves out has the default of its class, as in diffusers.
Options that belong to the sampler alone (spacing of the steps, variance, order) have no meaning here.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmidiff.prior.formats.card import Fields, grid_of_betas
from cmidiff.prior.network import Parametrisation
from cmidiff.schedule import DDPM, Schedule, ShiftedFlow

KNOWN = (
    *("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler"),
    *("PNDMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler"),
    *("DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "SASolverScheduler", "LMSDiscreteScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "RePaintScheduler"),
)
FLOW = "FlowMatchEulerDiscreteScheduler"  # x_t = (1 - t) x_0 + t z; its configuration states no betas
ASSUMED = "DDPMScheduler"  # where the configuration does not name its class
PREDICTIONS: dict[str, Parametrisation] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
LAST = 0.25  # of the level before: abar of the last level of a schedule that ends without any image


@dataclass(frozen=True)
class Noise:
    """What a scheduler's configuration says of a network.

    Attributes:
        schedule: its levels.
        parametrisation: what it predicts.
        clip: whether samplers clip ``x_hat`` to the range of the images.
        assumed: what the configuration does not state.
        time_scale: the network's own time is this times that of the schedule.
    """

    schedule: Schedule
    parametrisation: Parametrisation
    clip: bool
    assumed: tuple[str, ...] = ()
    time_scale: float = 1.0


def read_scheduler(config: Fields, tokens: int | None = None) -> Noise:
    """The levels and the parametrisation in a scheduler's configuration. The shift of a flow may depend on the
    tokens that a training image has in the network."""
    name = str(config.values.get("_class_name", ASSUMED))
    if name == FLOW:
        return _flow(config, tokens)
    if name not in KNOWN:
        raise config.wrong(
            "_class_name",
            f"{FLOW} or a known scheduler with betas (DDPMScheduler, DDIMScheduler, ...: see docs/priors.md; for "
            "other networks use cmidiff.prior.from_callable)",
        )
    fields = Fields(_defaults(name) | {k: v for k, v in config.values.items() if v is not None}, config.where)
    for option in ("thresholding", "use_flow_sigmas"):
        if fields.flag(option, False):
            raise fields.wrong(option, "false: it is not known here")
    clip = fields.flag("clip_sample", True)
    if clip and fields.number("clip_sample_range", 1.0) != 1.0:
        raise fields.wrong("clip_sample_range", "1, the range of the images, or clip_sample false")
    parametrisation: Parametrisation = fields.choice("prediction_type", PREDICTIONS, "epsilon")
    betas = _betas(fields)
    if fields.flag("rescale_betas_zero_snr", False):
        if parametrisation == "eps":
            raise fields.wrong("rescale_betas_zero_snr", "false with prediction_type epsilon: x_hat has no meaning")
        schedule = _without_image_at_the_end(betas, config.where)
    else:
        schedule = grid_of_betas(betas, config.where)
    assumed = () if "_class_name" in config else (f"scheduler = {ASSUMED}",)
    return Noise(schedule, parametrisation, clip, assumed)


def _flow(config: Fields, tokens: int | None) -> Noise:
    """A flow. Options of the sampler alone (Karras' spacing and others) have no meaning here."""
    fields = Fields(_defaults(FLOW) | {k: v for k, v in config.values.items() if v is not None}, config.where)
    if fields.flag("invert_sigmas", False):
        raise fields.wrong("invert_sigmas", "false: a flow from noise at 0 is not known here")
    if "shift_terminal" in fields:
        raise fields.wrong("shift_terminal", "absent: it is not known here")
    levels = fields.integer("num_train_timesteps", 1000, low=1, high=100_000)
    if not fields.flag("use_dynamic_shifting", False):
        shift = fields.number("shift", 1.0)
        if not shift > 0:
            raise fields.wrong("shift", "a number > 0")
        least = shift / levels / (1 + (shift - 1) / levels)  # diffusers shifts the last level of a grid twice
        return Noise(ShiftedFlow(shift=shift, least=least), "flow", False, time_scale=float(levels))
    low, high = (fields.integer(f"{end}_image_seq_len", low=1) for end in ("base", "max"))
    first, last = fields.number("base_shift"), fields.number("max_shift")
    if tokens is None or not low < high:
        raise fields.wrong("use_dynamic_shifting", "false where the size of the training images is not stated")
    mu = first + (tokens - low) / (high - low) * (last - first)
    kinds = {"exponential": math.exp, "linear": float}
    shift = fields.choice("time_shift_type", kinds, "exponential")(mu)
    if not shift > 0:
        raise fields.wrong("base_shift", f"such that the shift is positive, which is {shift:.3g}")
    return Noise(ShiftedFlow(shift=shift), "flow", False, time_scale=float(levels))


def _defaults(name: str) -> dict[str, Any]:
    """What a scheduler's class takes for options that are not stated."""
    import diffusers

    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.default is not None}


def _betas(fields: Fields) -> np.ndarray:
    if "trained_betas" in fields:
        return np.asarray(fields.numbers("trained_betas"), dtype=np.float64)
    levels = fields.integer("num_train_timesteps", 1000, low=1, high=100_000)
    first, last = fields.number("beta_start", 1e-4), fields.number("beta_end", 0.02)
    if not 0 < first <= last < 1:
        raise fields.wrong("beta_start", f"between 0 and beta_end = {last}, which is below 1")
    kinds = {
        "linear": lambda: np.linspace(first, last, levels),
        "scaled_linear": lambda: np.linspace(first**0.5, last**0.5, levels) ** 2,
        "squaredcos_cap_v2": lambda: DDPM.cosine(levels).betas,
        "sigmoid": lambda: first + (last - first) / (1 + np.exp(-np.linspace(-6.0, 6.0, levels))),
    }
    return fields.choice("beta_schedule", kinds, "linear")()


def _without_image_at_the_end(betas: np.ndarray, where: str) -> DDPM:
    """The grid with ``sqrt(abar)`` shifted and scaled so that it keeps its first value and ends at zero. The last level
    keeps a trace of the image here, since ``sigma / alpha`` has to be finite.

    Source: Lin, Liu, Li, Yang, "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023,
        https://arxiv.org/abs/2305.08891
    """
    root = np.sqrt(grid_of_betas(betas, where).alphas_cumprod)
    if len(root) < 3:
        raise ValueError(f"{where}: rescale_betas_zero_snr needs at least 3 levels, received {len(root)}")
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    abar = root**2
    abar[-1] = LAST * abar[-2]
    return DDPM(abar)
