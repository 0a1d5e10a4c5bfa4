"""What the papers' 256x256 networks cost: memory and time of a step, and what each setting buys.

Memory is counted exactly, by playing an evaluation through on shapes (`cmidiff.prior.memory`), at the real size; beside
it stands the peak that a process had in fact, at the size that was run. Time is measured on the ImageNet network with
random weights (their values cost the same) at ``--side``, and carried to 256x256 by the ratio of floating-point
operations, which are counted exactly too. A step of a solver is counted as evaluations of the network, on the small
embedded prior.

On a GPU nothing is carried over: ``--device cuda --side 256`` measures the real thing.

    python benchmarks/network_cost.py --output docs/cost-256.md
"""

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cmidiff import CMI, DPS, measure, restore
from cmidiff.information import contract
from cmidiff.physics import inpaint_random
from cmidiff.prior import NetworkPrior, estimate_memory, load_network
from cmidiff.prior.formats.adm import ADMConfig, ADMUNet
from cmidiff.prior.formats.card import Fields
from cmidiff.prior.formats.guided_diffusion import stated_config
from cmidiff.prior.known import info_of
from cmidiff.samplers import Ancestral
from cmidiff.step import Problem, Step

GIB, SIDE, T = 2**30, 256, 500.0


@dataclass(frozen=True)
class Setting:
    """How a network is evaluated."""

    title: str
    graph: bool = True
    batch: int = 1
    dtype: torch.dtype = torch.float32
    checkpointing: bool = False
    channels_last: bool = False
    max_batch: int | None = None


FORWARD = Setting("forward alone", graph=False)
GRADIENT = Setting("forward and gradient")
BF16 = Setting("... bfloat16", dtype=torch.bfloat16)
SETTINGS = (
    FORWARD,
    GRADIENT,
    Setting("... channels last", channels_last=True),
    Setting("... checkpointing", checkpointing=True),
    BF16,
    replace(BF16, title="... bfloat16, channels last", channels_last=True),
    replace(BF16, title="... bfloat16, checkpointing", checkpointing=True),
    Setting("... 4 at once", batch=4),
    Setting("... 4 at once, max_batch 1", batch=4, max_batch=1),
)


def config_of(name: str) -> ADMConfig:
    return stated_config(Fields(info_of(name).card["architecture"], name))


def prior_of(name: str, setting: Setting, device: str) -> NetworkPrior:
    """The network with random weights, or without any on the meta device."""
    with torch.device(device):
        network = ADMUNet(config_of(name), checkpointing=setting.checkpointing).requires_grad_(False)
    network = network.to(setting.dtype)
    if setting.channels_last:
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    prior = NetworkPrior(network, learned_variance=True, multiple=32, name=name, dtype=setting.dtype)
    prior.max_batch = setting.max_batch
    return prior


def once(prior: NetworkPrior, setting: Setting, side: int, device: str) -> None:
    """One evaluation, with its gradient if the setting has one."""
    x_t = torch.empty(setting.batch, 3, side, side, device=device).normal_().requires_grad_(setting.graph)
    with torch.set_grad_enabled(setting.graph):
        x_hat = prior(x_t, T).mean
        if setting.graph:
            x_hat.backward(torch.ones_like(x_hat))


def operations(name: str, setting: Setting, side: int) -> float:
    """Floating-point operations of one evaluation."""
    with FlopCounterMode(display=False) as counter:
        once(prior_of(name, setting, "meta"), setting, side, "meta")
    return float(counter.get_total_flops())


def counted(name: str, setting: Setting, side: int) -> tuple[float, float, float]:
    """GiB of weights, of all else that is alive at a time, and of this with its allowance."""
    prior = prior_of(name, setting, "meta")
    need = estimate_memory(prior, (3, side, side), setting.batch, graph=setting.graph)
    assert need is not None
    return need.weights / GIB, need.activations / GIB, (need.activations + need.unseen) / GIB


def measured(name: str, setting: Setting, side: int, device: str, repeats: int) -> tuple[float, float]:
    """Seconds, and GiB above the weights, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure, (name, setting, side, device, repeats))


def _measure(name: str, setting: Setting, side: int, device: str, repeats: int) -> tuple[float, float]:
    torch.set_num_threads(1)
    prior = prior_of(name, setting, device)
    if device.startswith("cuda"):
        return _measure_on_gpu(prior, setting, side, device, repeats)
    held, seconds = _resident(), []
    for _ in range(repeats):
        start = time.process_time()
        once(prior, setting, side, device)
        seconds.append(time.process_time() - start)
    return min(seconds), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held) / GIB


def _measure_on_gpu(prior: NetworkPrior, setting: Setting, side: int, device: str, repeats: int) -> tuple[float, float]:
    once(prior, setting, side, device)
    held, seconds = torch.cuda.memory_allocated(), []
    torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        once(prior, setting, side, device)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), (torch.cuda.max_memory_allocated() - held) / GIB


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def evaluations(cmi: CMI | None, steps: int = 100) -> tuple[float, float]:
    """Rows a step that are evaluated without and with a gradient, counted on the embedded prior."""
    prior, plain, graphs = load_network("natural-64"), [0], [0]
    inner: Callable[..., Tensor] = prior.network

    def watched(x_t: Tensor, t: Tensor) -> Tensor:
        out = inner(x_t, t)
        if out.requires_grad:
            out.register_hook(lambda _: graphs.__setitem__(0, graphs[0] + len(x_t)))
        else:
            plain[0] += len(x_t)
        return out

    prior.network = watched
    physics = inpaint_random((3, 16, 16), hidden=0.8, noise_std=0.05)
    y = measure(torch.rand(1, 3, 16, 16), physics, seed=0)
    restore(y, physics, prior, solver=DPS(), cmi=cmi, steps=steps)
    return plain[0] / steps, graphs[0] / steps


def half_precision() -> dict[str, float]:
    """What bfloat16 does to a trained network: relative errors on the embedded prior, t = 300."""
    found = {}
    steps = [_step(dtype) for dtype in (torch.float32, torch.bfloat16)]
    full, half = (step.x_hat.detach() for step in steps)
    found["x_hat"] = float((half - full).norm() / full.norm())
    direction = torch.randn(full.shape, generator=torch.Generator().manual_seed(1))
    pulled = [step.vjp(direction) for step in steps]
    found["its gradient"] = float((pulled[1] - pulled[0]).norm() / pulled[0].norm())
    for how in ("double-backward", "finite-difference", "second-difference"):
        a = direction.sign()
        moves = [contract(step, a, a, how) for step in steps]
        found[f"CMI's contraction, {how}"] = float((moves[1] - moves[0]).norm() / moves[0].norm())
    return found


def _step(dtype: torch.dtype) -> Step:
    prior = load_network("natural-64", dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.rand(1, 3, 8, 8, generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3) * 2 - 1
    alpha, sigma = prior.schedule(300.0)
    x_t = alpha * x_0 + sigma * torch.randn(x_0.shape, generator=generator)
    unused: Any = None
    return Step.at(Problem(prior, unused, Ancestral(), unused, (0,)), x_t, 300.0, 290.0, graph=True)


def memory_table() -> list[str]:
    """Bytes at 256x256, of both networks."""
    lines = ["| 256x256 | FFHQ: weights | all else | ImageNet: weights | all else |", "|---|---|---|---|---|"]
    for setting in SETTINGS:
        if setting.channels_last:
            continue
        cells = [f"{gib:.2f}" for name in ("ffhq-256", "imagenet-256") for gib in counted(name, setting, SIDE)[:2]]
        lines.append(f"| {setting.title} | {' | '.join(cells)} |")
    return lines


def time_table(name: str, side: int, device: str, repeats: int, settings: tuple[Setting, ...]) -> tuple[list[str], Any]:
    """Seconds and peaks of a network at a size, and the seconds by setting."""
    lines = [
        f"| {name}, {side}x{side} | seconds | over the plain one | peak GiB beside weights | counted | allowed for |",
        "|---|---|---|---|---|---|",
    ]
    seconds = {}
    for setting in settings:
        took, peak = measured(name, setting, side, device, repeats)
        seconds[setting.title] = took
        plain = seconds.get(GRADIENT.title, took) * setting.batch
        ratio = f"{took / plain:.2f}" if setting.graph else "-"
        _, least, allowed = counted(name, setting, side)
        lines.append(f"| {setting.title} | {took:.2f} | {ratio} | {peak:.2f} | {least:.2f} | {allowed:.2f} |")
        typer.echo(lines[-1], err=True)
    return lines, seconds


def step_table(seconds: dict[str, float], side: int) -> list[str]:
    """Seconds of a step and of a run at 256x256, carried over by operations."""
    name = "imagenet-256"
    work = {s.title: operations(name, s, SIDE) for s in (FORWARD, GRADIENT)}
    here = {s.title: operations(name, s, side) for s in (FORWARD, GRADIENT)}
    at = {title: seconds[title] * work[title] / here[title] for title in work}
    lines = [
        "| step on ImageNet 256x256 | forwards | with gradient | TFLOP | seconds here | 1000 of them | at 50 TFLOP/s |",
        "|---|---|---|---|---|---|---|",
    ]
    finite = CMI(0.1, contraction="finite-difference")
    contests = {"DPS": None, "CMI (second-difference) + DPS": CMI(0.1), "CMI (finite-difference) + DPS": finite}
    for title, cmi in contests.items():
        plain, graphs = evaluations(cmi)
        took = plain * at[FORWARD.title] + graphs * at[GRADIENT.title]
        flop = plain * work[FORWARD.title] + graphs * work[GRADIENT.title]
        lines.append(
            f"| {title} | {plain:.1f} | {graphs:.1f} | {flop / 1e12:.2f} | {took:.0f} | {took / 3.6:.0f} h | "
            f"{flop / 5e13 * 1000:.0f} ms |"
        )
    return lines


def main(
    side: Annotated[int, typer.Option(help="Pixels of the measured runs, a multiple of 32.")] = 128,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    repeats: Annotated[int, typer.Option(help="Of each measurement; the best counts on a CPU.")] = 2,
    output: Annotated[Path | None, typer.Option(help="Where the tables go; without it, to the screen.")] = None,
) -> None:
    """Measure, and write the tables."""
    settings = tuple(s for s in SETTINGS if s.batch == 1)
    large, seconds = time_table("imagenet-256", side, device, repeats, settings)
    small, _ = time_table("ffhq-256", side, device, repeats, SETTINGS)
    rounding = [f"| {what} | {error:.1e} |" for what, error in half_precision().items()]
    machine = (
        torch.cuda.get_device_name() if device.startswith("cuda") else "one thread of a CPU shared with other work"
    )
    text = "\n".join(
        [
            "# The papers' networks at 256x256\n",
            "Written by `python benchmarks/network_cost.py "
            f"--side {side} --device {device} --output docs/cost-256.md`; torch {torch.__version__}, {machine}. "
            "Weights are random, which costs the same.\n",
            "## Memory, in GiB, counted on shapes\n",
            *memory_table(),
            "\n## Time, and peaks that were seen\n",
            "Seconds of CPU time. A gradient in parts of one (`max_batch`) computes each part's forward pass again. "
            "`check_memory` compares the last column with what is free.\n",
            *large,
            "",
            *small,
            "\n## A step, carried to 256x256\n",
            f"Seconds at {side}x{side} times the ratio of floating-point operations. Evaluations are "
            "rows a step, on average over a restoration of 100 steps with the embedded prior; CMI acts in its window "
            "only.\n",
            *step_table(seconds, side),
            "\n## What bfloat16 does to a trained network\n",
            "Relative errors on the embedded prior at t = 300, the state in float32.\n",
            "| | relative error |\n|---|---|",
            *rounding,
            "",
        ]
    )
    if output is None:
        typer.echo(text)
    else:
        output.write_text(text)


if __name__ == "__main__":
    typer.run(main)
