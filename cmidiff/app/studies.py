"""The commands that study many images: tune, evaluate, report, validate and train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cmidiff.app import options as o
from cmidiff.app.errors import FAILED, INTERRUPTED, UNWRITABLE, say
from cmidiff.app.show import out
from cmidiff.files import check_outputs


@o.task_options("factor", "size", "hidden", "kernel_size", "std", "intensity", "padding", "ratio")
@o.loading_options
def tune(
    task: Annotated[str, typer.Argument(help=o.TASK_HELP, show_default=False)],
    images: Annotated[Path, typer.Option(help="Clean images: a folder or a tar archive.")],
    parameters: dict[str, Any],
    loading: Any,
    count: Annotated[
        int, typer.Option(help="How many; half tune, half check what was found.", **o.whole(1, o.MOST))
    ] = 16,
    offset: Annotated[int, typer.Option(help="The first one, in the order of their names.", **o.whole(0, o.MOST))] = 0,
    side: Annotated[
        int | None,
        o.option(text="Crop the middle square and shrink it to this side.", **o.whole(1, o.WIDEST)),
    ] = None,
    noise_std: o.Noise = 0.05,
    solver: Annotated[str, typer.Option(help=f"{', '.join(o.SOLVERS)}.")] = "pigdm",
    prior: o.Prior = "natural-64",
    steps: o.Steps = 50,
    trials: Annotated[int, typer.Option(help="Settings to try in all.", **o.whole(1, o.MOST))] = 40,
    seed: o.Seed = 0,
    metric: Annotated[str, typer.Option(help="What to improve: psnr, ssim, lpips or crps.")] = "psnr",
    most_eta: Annotated[
        float, typer.Option(help="The largest strength of CMI, of either sign.", **o.number(0, 1e6))
    ] = 1.0,
    only_eta: Annotated[
        bool, typer.Option("--only-eta", help="Search the strength of CMI alone; the guidance stays as it is.")
    ] = False,
    batch: Annotated[int, typer.Option(help="Images restored at once.", **o.whole(1, o.MOST))] = 4,
    device: o.Device = "auto",
    output: o.Output = Path("preset.toml"),
    study: Annotated[Path | None, o.option(text="File of the search; OUTPUT.study.db without it.")] = None,
    overwrite: o.Overwrite = False,
    dry_run: o.DryRun = False,
) -> None:
    """Find the strengths of guidance and CMI for a prior, a task and a solver, on a handful of clean images.

    The same command again goes on where the search stopped; more --trials extend it. The preset is for cmidiff restore
    --preset, and it is the solver alone where nothing was better on the images held out.
    """
    from cmidiff.app import tune as t
    from cmidiff.app.settings import check_prior, find_device
    from cmidiff.tuning import Search, Space, read_images, save_preset

    check_prior(prior)
    file = output.with_suffix(".study.db") if study is None else study
    if not dry_run:
        check_outputs([output], (images, file, Path(prior)), command="tune", overwrite=overwrite)
    t.check_metric(metric)
    clean = read_images(images, count=count, offset=offset, size=side)
    space = Space(o.SOLVERS.make(solver), most_eta, only_eta)
    device = find_device(device)
    network = loading.load(prior, device)
    weights = f"{network.name}, weights {network.fingerprint[:16]}"
    parameters = parameters | {"noise_std": noise_std}
    search = Search(clean, task, parameters, space, weights, steps, metric, trials, batch, seed, device)
    search.problems(held_out=False)  # what the task or the solver refuses, before the search begins
    record = t.describe_search(search, images, prior, loading)
    if dry_run:
        print(json.dumps(record, indent=2))
        return
    try:
        outcome = t.run(search, network, file)
    except KeyboardInterrupt:
        say(f"stopped: the search is in {file}; the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    out.print(t.table(outcome))
    save_preset(output, t.make_preset(search, outcome, record))
    print(f"{outcome.verdict}\nwritten to {output}")


@o.loading_options
def evaluate(
    loading: Any,
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="A TOML file, or a preset: cats, cmi-paper, embedded, smoke.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="A folder or a tar archive of clean images.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="With commas; options as super-resolution:factor=4,inpaint-box.")
    ] = None,
    solvers: Annotated[str | None, typer.Option(help="With commas; options as dps:scale=4:label=dps-4,pigdm.")] = None,
    cmi: Annotated[str | None, typer.Option(help="off, on, or off,on.")] = None,
    eta: Annotated[Any, typer.Option(help="Strengths of CMI, with commas.", **o.numbers(o.number(-1e6, 1e6)))] = None,
    steps: Annotated[
        Any,
        typer.Option(help="Steps of the sampler; several, with commas.", **o.numbers(o.whole(1, o.MOST))),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Posterior samples of each unit.", **o.whole(1, o.MOST))] = None,
    seed: Annotated[
        Any,
        typer.Option(help="Seeds, with commas: each is a unit of its own.", **o.numbers(o.whole(0, 2**63 - 1))),
    ] = None,
    prior: Annotated[str | None, typer.Option(help="Name (see cmidiff priors) or folder.")] = None,
    noise_std: Annotated[
        float | None, typer.Option(help="Noise of the measurements; black to white is 1.", **o.number(0, 1e3))
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Crop and shrink images to squares of this side.", **o.whole(1, o.WIDEST)),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="The first so many images, by name.", **o.whole(1, o.MOST))] = None,
    offset: Annotated[int | None, typer.Option(help="Leave out so many images before.", **o.whole(0, o.MOST))] = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Sweep steps (20, 50, 100, 250, 1000, or --steps) and eta.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--out", "--output", "-o", help="Folder of the run.")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: all cores, or a cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="ray: auto, or ray://HOST:PORT.")] = None,
    cpus: Annotated[float, typer.Option(help="ray: CPUs of a worker.", **o.number(0, 1024))] = 1.0,
    gpus: Annotated[
        float | None, typer.Option(help="ray: GPUs of a worker, as 1 or 0.25.", **o.number(0, 1024))
    ] = None,
    threads: Annotated[
        int, typer.Option(help="Threads of a worker; results differ by rounding.", **o.whole(1, 1024))
    ] = 1,
    device: o.Device = "auto",
    batch: Annotated[int, typer.Option(help="Images restored together: more for a GPU.", **o.whole(1, o.MOST))] = 1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Repeat the units that failed.")] = False,
    extend: Annotated[bool, typer.Option("--extend", help="Add images, cells or seeds to a run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print configuration, grid and cost; stop.")] = False,
) -> None:
    """Restore many images by many solvers, with and without CMI, and measure how well; cmidiff report shows it.

    The same command again keeps what is finished and goes on.

    Exit codes: 0 done, 1 some units failed, 2 wrong input, 4 the folder cannot be written, 130 interrupted.
    """
    from cmidiff.app import evaluation as e
    from cmidiff.app.settings import find_device
    from cmidiff.evaluate.run import Options, Unwritable

    asked = {"images": images, "prior": prior, "noise_std": noise_std, "size": size, "limit": limit, "offset": offset}
    asked |= {"tasks": e.split(tasks), "solvers": e.split(solvers), "cmi": e.split(cmi), "eta": eta, "steps": steps}
    benchmark = e.make_benchmark(config, curve, asked | {"samples": samples, "seeds": seed}, loading)
    worker = e.make_engine(engine, find_device(device), address, cpus, gpus, threads)
    if dry_run:
        e.show_plan(benchmark, find_device(device), threads)
        return
    if output is None:
        raise ValueError("where to? give --out with the folder of a new run, or of one to go on with")
    try:
        counts = e.run(benchmark, worker, Options(output, batch, retry_failed, extend, device=find_device(device)))
    except KeyboardInterrupt:
        say(f"stopped: what is finished is in {output}; the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    except Unwritable as error:
        say(f"cmidiff: {error}")
        raise typer.Exit(UNWRITABLE) from error
    print(f"{', '.join(f'{n} {status}' for status, n in counts.items() if n) or 'no units'} in {output}")
    if counts["failed"]:
        say(f"cmidiff: {counts['failed']} units failed, {output / 'run.log'} says why; --retry-failed repeats them")
        raise typer.Exit(FAILED)


def train(
    config: Annotated[Path, typer.Argument(help="A TOML file as cmidiff/train/natural-64.toml.", show_default=False)],
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    cool_down: Annotated[
        int, typer.Option(min=0, help="Lower the rate to zero in this many steps from the last checkpoint, and export.")
    ] = 0,
    export: Annotated[bool, typer.Option("--export", help="Export the last checkpoint without training.")] = False,
) -> None:
    """Train a prior, resume a run, or export its last checkpoint."""
    from cmidiff.train import TrainConfig, run, snapshot

    loaded = TrainConfig.load(config)
    result = snapshot(loaded) if export else run(loaded, resume=resume, cool_down=cool_down)
    print(result.folder)


def report(
    run: Annotated[Path, typer.Argument(help="The folder that cmidiff evaluate wrote.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the report.", show_default="RUN/report")
    ] = None,
    overwrite: o.Overwrite = False,
) -> None:
    """Tables, tests and images of an evaluation, finished or not: a page, Markdown, LaTeX and CSV."""
    from cmidiff.evaluate.report import write_report
    from cmidiff.evaluate.summary import list_caveats, state_verdict

    comparison, written = write_report(run, output, overwrite=overwrite)
    for caveat in list_caveats(comparison):
        say(f"note: {caveat}")
    print(state_verdict(comparison))
    for name, meaning in written.items():
        print(f"{name}  {meaning}")


def validate(
    output: o.Output = Path("validation"),
    only: Annotated[
        list[str] | None,
        typer.Option(help="gradient, difference, symmetry, posterior, particles, levy or trajectory; may be repeated."),
    ] = None,
    seed: o.Seed = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A few of everything, to see that it works.")] = False,
    workers: Annotated[int, typer.Option(help="Processes for the known posteriors.", **o.whole(1, 1024))] = 2,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder or tar file of images for the embedded prior; without it, the demo's."),
    ] = None,
    overwrite: o.Overwrite = False,
) -> None:
    """Measure CMI and every solver against exact answers: tables, CSV and plots.

    Finished sections are read again; the same command does the others.
    """
    from cmidiff.app.validate import run
    from cmidiff.laboratory import Settings

    run(output, Settings(seed, quick, workers, images), only or [], overwrite=overwrite)
