"""What one step costs: every solver, and CMI on top of DPS, as multiples of the bare network.

Network: the embedded prior at 64x64. Two measures of it alone: (a) a forward without gradient, (b) a forward with the
gradient with respect to its input. Every other figure is divided by (b) or by DPS of the same round: contestants take
turns, each a few steps of a run at noise levels where CMI acts, and the median over the rounds is shown with the
central half of them. "In a run" are means over all steps of a run: CMI works inside its window only, and the solver
named cadps takes its diagonal below a noise level only. On the CPU the time is that of the process on one thread, so
that a busy machine delays a round without changing it; on a GPU, wall time between synchronisations.

Memory is the peak of what the allocator held above the weights: on the CPU the sum of its own events, on a GPU
``max_memory_allocated``.

glibc gives freed memory back to the system after every step and fetches it again page by page, about a tenth of the
time at batch 8; it is told not to, for all contestants alike.

    python benchmarks/step_cost.py                             the tables of steps and of variance
    python benchmarks/step_cost.py --networks                  compiled and half-precision networks too
    python benchmarks/step_cost.py --rounds 0 --data tiny-imagenet/val.tar

The last one restores images with the network in bfloat16, and with CA-DPS's covariance below a noise level alone.
"""

import ctypes
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from deepinv.physics import LinearPhysics
from rich.console import Console
from torch import Tensor
from torch.nn.functional import interpolate
from torch.profiler import ProfilerActivity, profile

from cmidiff import CADPS, CMI, DPS, DSG, MCG, GaussianMixture, NetworkPrior, PiGDM, measure, restore
from cmidiff import physics as tasks
from cmidiff.draws import SeededDraws
from cmidiff.images import read_image
from cmidiff.information import Contraction, Estimator
from cmidiff.loop import Trace, sample
from cmidiff.measurement import Measurement
from cmidiff.metrics import psnr
from cmidiff.prior import load_network
from cmidiff.registry import SOLVERS
from cmidiff.samplers import Ancestral
from cmidiff.solvers import CADPSReleased, Solver
from cmidiff.sources import list_sources, read_source
from cmidiff.step import Problem, Step

NOISE_STD = 0.05  # of images in [0, 1]
SHAPE = (3, 64, 64)
PHOTOGRAPH = Path(__file__).resolve().parent.parent / "cmidiff" / "assets" / "plane.png"
TASKS = {
    "inpaint-random": lambda: tasks.inpaint_random(SHAPE, hidden=0.9, noise_std=NOISE_STD),
    "super-resolution": lambda: tasks.super_resolution(SHAPE, noise_std=NOISE_STD),
    "deblur-gaussian": lambda: tasks.deblur_gaussian(SHAPE, std=2.0, noise_std=NOISE_STD),
}
EVERYWHERE = (0.0, math.inf)
STEPS, EVERY = 2, 4  # of a turn, and of one with CMI's every
OTHERS = (  # timed in a run
    *("cadps", "cadps-paper", "dpir", "daps", "pnp-dm", "ddrm", "repaint", "red-diff", "tds", "mcgdiff", "fps"),
    *("psld", "resample", "unconditional"),
)
REFERENCES = ("(b) forward and gradient", "DPS")  # what the others are divided by
RUN = 10  # steps of a whole run, even in t as those of a longer one
LEVELS = (0.5, 1.0, 3.0)  # sigma_t / alpha_t at which variances are measured


@dataclass(frozen=True)
class Turn:
    """What a contestant does when it is its turn.

    Attributes:
        work: a few steps.
        steps: how many.
    """

    work: Callable[[], object]
    steps: int = STEPS


console = Console(stderr=True)


def keep_freed_memory() -> None:
    """Tell glibc's allocator to keep what is freed; elsewhere nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            mallopt(option, 2**30)


# contestants


@dataclass(frozen=True)
class Bench:
    """The network and a measurement for it."""

    prior: NetworkPrior
    measurement: Measurement
    batch: int
    device: torch.device

    @property
    def times(self) -> list[float]:
        """Four times of a turn, then one more: the last step of a run takes no noise and no CMI."""
        return self.prior.schedule.grid(100)[50:55]

    def forward(self, network: Callable[[Tensor, Tensor], Tensor], gradient: bool) -> Turn:
        x = torch.randn(self.batch, *SHAPE, device=self.device)
        t = torch.full((self.batch,), 500.0, device=self.device)

        def work() -> None:
            for _ in range(STEPS):
                x_t = x.clone().requires_grad_(gradient)
                with torch.set_grad_enabled(gradient):
                    out = network(x_t, t)
                if gradient:
                    torch.autograd.grad(out, x_t, torch.ones_like(out, memory_format=torch.contiguous_format))

        return Turn(work)

    def run(self, solver: Solver, cmi: CMI | None = None) -> Turn:
        """A few steps, enough for ``every`` to come round."""
        steps = STEPS if cmi is None else max(STEPS, cmi.every)

        def work() -> None:
            for _ in zip(range(steps), self.traces(self.times, solver, cmi), strict=False):
                pass

        return Turn(work, steps)

    def whole_run(self, solver: Solver, cmi: CMI | None = None) -> Turn:
        """From noise to the image."""
        return Turn(lambda: list(self.traces(self.prior.schedule.grid(RUN), solver, cmi)), RUN)

    def traces(self, times: Sequence[float], solver: Solver, cmi: CMI | None) -> Iterator[Trace]:
        draws = SeededDraws([(0, k) for k in range(self.batch)])
        problem = Problem(self.prior, self.measurement, Ancestral(), draws, tuple(range(self.batch)), (-1.0, 1.0))
        with torch.no_grad():
            yield from sample(problem, solver, times, cmi)


def bench(batch: int, task: str, device: torch.device) -> Bench:
    physics = TASKS[task]().to(device)
    truth = read_photograph(device).expand(batch, *SHAPE)
    y = measure((truth + 1) / 2, physics)
    inside = 2 * y - physics.A(torch.ones_like(truth))
    return Bench(
        load_network("natural-64", device),
        Measurement(inside, physics, 2 * NOISE_STD, SHAPE, SHAPE),
        batch,
        device,
    )


def read_photograph(device: torch.device) -> Tensor:
    """The photograph of the demo, (1, 3, 64, 64) in [-1, 1]."""
    values = read_image(PHOTOGRAPH).values[None]
    return (2 * interpolate(values, SHAPE[1:], mode="area") - 1).to(device)


def corrections() -> dict[str, CMI]:
    """CMI in each of its ways, by name; what a name leaves out is the default."""
    finite: dict[str, Any] = {"contraction": "finite-difference"}
    ways = {
        "": {},
        f"every={EVERY}": {"every": EVERY},
        "probes=4": {"probes": 4},
        "covariance=diagonal": {"covariance": "diagonal"},
        "covariance=exact": {"covariance": "exact"},
        "finite-difference": finite,
        "double-backward": {"contraction": "double-backward"},
        "reverse-over-forward": {"contraction": "reverse-over-forward"},
        "measurement, finite-difference": {"estimator": "measurement", **finite},
        "shared-probe, finite-difference": {"estimator": "shared-probe", **finite},
        "two-term, finite-difference": {"estimator": "two-term", **finite},
        "two-term, double-backward": {"estimator": "two-term", "contraction": "double-backward"},
    }
    return {name: CMI(window=EVERYWHERE, **options) for name, options in ways.items()}


def contestants(b: Bench) -> dict[str, Turn]:
    rows: dict[str, Turn] = {
        "(a) forward": b.forward(b.prior.network, gradient=False),
        "(b) forward and gradient": b.forward(b.prior.network, gradient=True),
        "DPS": b.run(DPS()),
        "PiGDM": b.run(PiGDM()),
        "MCG": b.run(MCG()),
        "DSG": b.run(DSG()),
        "CA-DPS isotropic": b.run(CADPS("isotropic")),
        "CA-DPS diagonal": b.run(CADPS("diagonal")),
        "CA-DPS exact": b.run(CADPS("exact")),
        "CA-DPS released": b.run(CADPSReleased()),
        **{name: b.run(SOLVERS.make(name)) for name in ("free-hunch", "mmps", "tmpd", "diffpir", "ddnm", "sitcom")},
        "DPS, in a run": b.whole_run(DPS()),
        **{f"{name}, in a run": b.whole_run(SOLVERS.make(name)) for name in OTHERS},
        "DPS + CMI, in a run": b.whole_run(DPS(), CMI()),
    }
    rows |= {f"DPS + CMI {name}".strip(): b.run(DPS(), cmi) for name, cmi in corrections().items()}
    return rows | deepinv_rows(b) | azula_rows(b)


# other libraries on the same network


def deepinv_rows(b: Bench) -> dict[str, Turn]:
    from deepinv.sampling import DPS as DeepinvDPS

    prior, physics = b.prior, b.measurement.physics
    y = (b.measurement.y + b.measurement.A(torch.ones_like(b.measurement.At(b.measurement.y)))) / 2

    class Adapter(torch.nn.Module):
        """deepinv's denoiser: an image in [0, 1] with Gaussian noise of standard deviation sigma."""

        def forward(self, x: Tensor, sigma: Any, *_: Any, **__: Any) -> Tensor:
            t = prior.schedule.time(2 * float(torch.as_tensor(sigma).flatten()[0]))
            x_t = prior.schedule(t)[0] * (2 * x - 1)
            return (prior(x_t, t).mean + 1) / 2

    solver = DeepinvDPS(cast(Any, Adapter()), num_steps=STEPS + 1, device=b.device, dtype=torch.float32)
    return {"deepinv's DPS": Turn(lambda: solver(y, physics, x_init=(b.batch, *SHAPE), seed=0, denoise_output=False))}


def azula_rows(b: Bench) -> dict[str, Turn]:
    try:
        from azula.denoise import Denoiser, DiracPosterior  # pyright: ignore[reportMissingImports]
        from azula.guidance.dps import DPSSampler  # pyright: ignore[reportMissingImports]
        from azula.guidance.mmps import MMPSDenoiser  # pyright: ignore[reportMissingImports]
        from azula.linalg.covariance import IsotropicCovariance  # pyright: ignore[reportMissingImports]
        from azula.noise import Schedule  # pyright: ignore[reportMissingImports]
        from azula.sample import DDPMSampler  # pyright: ignore[reportMissingImports]
    except ImportError:
        console.print("azula is not installed and therefore not compared: pip install azula")
        return {}
    prior, physics, last = b.prior, b.measurement.physics, b.prior.schedule.grid(2)[0]

    class Levels(Schedule):
        """The prior's own schedule on azula's times in [0, 1]."""

        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            alpha, sigma = prior.schedule(float(t) * last)
            return torch.tensor(alpha, device=b.device), torch.tensor(sigma, device=b.device)

    class Adapter(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = Levels()

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            return DiracPosterior(mean=prior(x_t, float(t) * last).mean)

    y, A, denoiser = b.measurement.y, physics.A, Adapter()
    flat = MMPSDenoiser(  # one system per image: azula takes the last axis for a vector
        denoiser, y.flatten(1), lambda x: A(x).flatten(1), IsotropicCovariance(b.measurement.noise_std**2)
    )
    options = {"start": 0.5, "stop": 0.45, "steps": STEPS, "silent": True}
    dps = DPSSampler(denoiser, y=y, A=A, zeta=2.0, **options)
    mmps = DDPMSampler(flat, **options)
    x = torch.randn(b.batch, *SHAPE, device=b.device)
    return {"azula's DPS": Turn(lambda: dps(x)), "azula's MMPS": Turn(lambda: mmps(x))}


# time and memory


def seconds(turn: Turn, device: torch.device) -> float:
    """Of a step, the mean over a turn."""
    if device.type == "cpu":
        begin = time.process_time()
        turn.work()
        return (time.process_time() - begin) / turn.steps
    torch.cuda.synchronize()
    begin = time.perf_counter()
    turn.work()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / turn.steps


def take_turns(rows: dict[str, Turn], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of a step of each contestant in each round; a first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in rows}
    for k in range(rounds + 1):
        for name, turn in rows.items():
            s = seconds(turn, device)
            if k > 0:
                taken[name].append(s)
        console.print(f"round {k} of {rounds}")
    return taken


def ratios(taken: dict[str, list[float]], name: str, to: str) -> list[float]:
    """Of a step of one contestant to a step of another, round by round."""
    return [a / b for a, b in zip(taken[name], taken[to], strict=True)]


def peak(work: Callable[[], object], device: torch.device) -> int:
    """Bytes at the most, above what was held before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
        work()
    results = cast(Any, events.profiler).kineto_results.events()
    moves = sorted((e.start_ns(), e.nbytes()) for e in results if e.name() == "[memory]")
    return int(np.max(np.cumsum([size for _, size in moves])))


def shown(values: Sequence[float]) -> str:
    """The median, and the central half."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def step_table(b: Bench, task: str, rounds: int, only: Sequence[str] = ()) -> dict[str, float]:
    """Print the table of one batch size; medians of time over DPS."""
    rows = {name: turn for name, turn in contestants(b).items() if not only or name in (*REFERENCES, *only)}
    taken = take_turns(rows, rounds, b.device)
    most = {name: peak(turn.work, b.device) for name, turn in rows.items()}
    lines = []
    for name in rows:
        over_b, over_dps = (shown(ratios(taken, name, to)) for to in REFERENCES)
        memory = f"{most[name] / 2**20:.1f} | {most[name] / most['DPS']:.2f}"
        lines.append((name, over_b, over_dps, *memory.split(" | ")))
    table(
        f"{task}, batch {b.batch}, {describe(b.device)}, {rounds} rounds",
        ("a step of", "time / (b)", "time / DPS", "peak MiB", "peak / DPS"),
        lines,
    )
    return {name: statistics.median(ratios(taken, name, "DPS")) for name in rows}


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"CPU, {torch.get_num_threads()} thread, torch {torch.__version__}"


# variance


def one_probe(step: Step, cmi: CMI) -> Tensor:
    """The estimate of the gradient that one probe gives, for each row."""
    whole = replace(cmi, eta=1.0, weight="constant", cap=math.inf, window=EVERYWHERE)
    correction = whole(step).correction
    assert correction is not None
    return step.coefficients[1] * correction


def variance(step: Step, cmi: CMI, probes: int) -> float:
    """``E |g - E g|^2`` of one probe at the state of the first row, all rows being this state."""
    rows = len(step.x_t)
    drawn = []
    for k in range(-(-probes // rows)):
        draws = SeededDraws([(1, k * rows + row) for row in range(rows)])
        drawn.append(
            one_probe(replace(step, problem=replace(step.problem, draws=draws)), cmi).detach().flatten(1).double().cpu()
        )
    return float(torch.cat(drawn).var(0).sum())


def mixture_steps() -> list[Step]:
    """A mixture of 4 Gaussians in 12 dimensions, 6 of them measured, at three noise levels."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(4, 12, 12, generator=generator, dtype=torch.float64))[0]
    spectrum = torch.linspace(0.05, 0.6, 12, dtype=torch.float64)
    means = 0.5 * torch.randn(4, 12, generator=generator, dtype=torch.float64)
    prior = GaussianMixture(torch.ones(4, dtype=torch.float64), means, (basis * spectrum) @ basis.mT)
    matrix = torch.randn(6, 12, generator=generator, dtype=torch.float64) / math.sqrt(12)
    physics = LinearPhysics(A=lambda x: x @ matrix.mT, A_adjoint=lambda y: y @ matrix)
    x_0 = prior.sample(1, generator)
    measurement = Measurement(physics.A(x_0).expand(64, 6), physics, 0.1, (12,), (12,))
    return [standing(prior, measurement, x_0, ratio, 64) for ratio in LEVELS]


def standing(prior: Any, measurement: Measurement, x_0: Tensor, ratio: float, rows: int) -> Step:
    """A step at one state, ``rows`` times, at the noise level ``sigma_t / alpha_t = ratio``."""
    t = prior.schedule.time(ratio)
    alpha_t, sigma_t = prior.schedule(t)
    draws = SeededDraws([(0, 0)])
    x_t = (alpha_t * x_0 + sigma_t * draws.normal("start", 0, x_0)).expand(rows, *x_0.shape[1:])
    problem = Problem(prior, measurement, Ancestral(), SeededDraws([(0, 0)] * rows), (0,) * rows)
    return Step.at(problem, x_t, t, t - 1, graph=True, steps=10)


ESTIMATORS: dict[str, tuple[Estimator, Contraction]] = {
    "": ("measurement-symmetric", "second-difference"),
    "finite-difference": ("measurement-symmetric", "finite-difference"),
    "measurement, finite-difference": ("measurement", "finite-difference"),
    "shared-probe, finite-difference": ("shared-probe", "finite-difference"),
    "two-term, finite-difference": ("two-term", "finite-difference"),
}


def variance_table(b: Bench, task: str, cost: dict[str, float], probes: int) -> None:
    """Cost at equal variance relative to the default: the ratio of cost times variance, with the network's cost."""
    x_0 = read_photograph(b.device)
    steps = mixture_steps() + [standing(b.prior, b.measurement, x_0, ratio, b.batch) for ratio in LEVELS]
    counts = [20_000] * 3 + [probes] * 3
    lines, reference = [], [0.0] * len(steps)
    for name in ESTIMATORS:
        price = cost[f"DPS + CMI {name}".strip()] - 1
        work = [price * variance(step, corrections()[name], n) for step, n in zip(steps, counts, strict=True)]
        if not name:
            reference = work
        times = [f"{w / r:.3g}" for w, r in zip(work, reference, strict=True)]
        lines.append((name or "default", f"{price:.2f}", *times))
    heads = [f"{what}, {ratio}" for what in ("mixture", task) for ratio in LEVELS]
    table(
        "Cost at equal variance over the default's; the columns name sigma_t / alpha_t",
        ("CMI", "cost of one probe / DPS", *heads),
        lines,
    )


# networks


def network_table(b: Bench, rounds: int) -> None:
    """The bare network in other forms, over itself."""
    plain = b.prior.network
    last = cast(torch.nn.Module, load_network("natural-64", b.device).network).to(memory_format=torch.channels_last)

    def half(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(b.device.type, torch.bfloat16):
            return plain(x, t).float()

    compiled = torch.compile(cast(torch.nn.Module, load_network("natural-64", b.device).network))
    forms = {"as it is": plain, "weights channels-last": last, "bfloat16 autocast": half, "compiled": compiled}
    for gradient in (False, True):
        rows = {name: b.forward(network, gradient) for name, network in forms.items()}
        taken = take_turns(rows, rounds, b.device)
        what = "forward and gradient" if gradient else "forward"
        lines = [(name, shown(ratios(taken, name, "as it is"))) for name in rows]
        table(f"{what}, batch {b.batch}, {describe(b.device)}", ("network", "time / as it is"), lines)


# restorations


def quality_table(archive: Path, task: str, count: int, steps: int, device: torch.device) -> None:
    """PSNR of the cheaper settings on the same images, masks, noise and seeds, paired with the dearer ones."""
    truth = read_images(archive, count).to(device)
    prior = load_network("natural-64", device)

    def half() -> AbstractContextManager[Any]:
        return torch.autocast(device.type, torch.bfloat16)

    variants: dict[str, tuple[Solver, Callable[[], AbstractContextManager[Any]]]] = {
        "DPS": (DPS(), nullcontext),
        "DPS, bfloat16": (DPS(), half),
        "CA-DPS diagonal": (SOLVERS.make("cadps-diagonal"), nullcontext),
        "CA-DPS hybrid": (SOLVERS.make("cadps"), nullcontext),
        "CA-DPS isotropic": (SOLVERS.make("cadps-isotropic"), nullcontext),
    }
    physics = TASKS[task]().to(device)
    y = measure(truth, physics, seed=list(range(count)))
    lines, scores = [], {}
    for name, (solver, context) in variants.items():
        with context():
            restored = restore(y, physics, prior, solver=solver, steps=steps, seed=list(range(count)))
        scores[name] = psnr(restored.mean.float().clamp(0, 1), truth).flatten().cpu()
        gap = scores[name] - scores["DPS" if name.startswith("DPS") else "CA-DPS diagonal"]
        error = float(gap.std()) / math.sqrt(count)
        lines.append((name, f"{float(scores[name].mean()):.2f}", f"{float(gap.mean()):+.2f} +- {error:.2f}"))
        console.print(*lines[-1])
    table(f"{task}, {count} images, {steps} steps", ("setting", "PSNR dB", "against the first of its kind"), lines)


def read_images(archive: Path, count: int) -> Tensor:
    """``count`` images evenly over the sorted names, (count, 3, 64, 64) in [0, 1]."""
    found = list_sources(archive)
    return torch.stack([read_source(one) for one in found[:: len(found) // count][:count]])


def main(
    task: Annotated[str, typer.Option(help=f"One of {', '.join(TASKS)}.")] = "super-resolution",
    batches: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,8",
    rounds: Annotated[int, typer.Option(help="Turns of each contestant; 0 for no table of steps.")] = 9,
    probes: Annotated[int, typer.Option(help="Probes of each variance on the network.")] = 64,
    networks: Annotated[bool, typer.Option(help="Compare other forms of the network.")] = False,
    data: Annotated[Path | None, typer.Option(help="Archive of 64x64 images: compare restorations.")] = None,
    images: Annotated[int, typer.Option(help="How many of them.")] = 16,
    only: Annotated[str, typer.Option(help="Rows of the table, separated by semicolons; all without.")] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    where = torch.device(device)
    torch.manual_seed(0)
    sizes = [int(size) for size in batches.split(",")]
    for size in sizes if rounds > 0 else []:
        b = bench(size, task, where)
        cost = step_table(b, task, rounds, [name.strip() for name in only.split(";") if name.strip()])
        if size == sizes[-1] and not only:
            variance_table(b, task, cost, probes)
    if networks:
        for size in sizes:
            network_table(bench(size, task, where), max(rounds, 5))
    if data is not None:
        quality_table(data, task, images, 100, where)


if __name__ == "__main__":
    typer.run(main)
