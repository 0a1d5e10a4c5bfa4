"""cmidiff at the command line. Torch is imported inside the commands, so that help is instant."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from cmidiff.app import options as o
from cmidiff.app.errors import DIVERGED, FAILED, INTERRUPTED, UNWRITABLE, BadInput, CommandLine, bad_input, say
from cmidiff.app.show import out, table
from cmidiff.files import check_outputs

app = typer.Typer(
    cls=CommandLine,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut names in a narrow terminal
    context_settings={"terminal_width": min(shutil.get_terminal_size().columns, 100)},
    help="Restore images from noisy measurements with a diffusion prior and conditional mutual information (CMI).",
)


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    if version:
        from cmidiff import __version__

        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def degrade(
    image: o.ImageFile,
    task: o.TaskName = None,
    noise_std: o.Noise = 0.05,
    seed: o.Seed = 0,
    output: o.OutputOrNot = None,
    resize: o.Resize = None,
    factor: o.Factor = None,
    size: o.Size = None,
    position: o.Position = None,
    hidden: o.Hidden = None,
    kernel_size: o.KernelSize = None,
    std: o.Std = None,
    intensity: o.Intensity = None,
    padding: o.Padding = None,
    ratio: o.Ratio = None,
    poisson: o.Photons = None,
    mask: o.MaskFile = None,
    seen: o.SeenFile = None,
    kernel: o.KernelFile = None,
    value_range: o.ValueRange = None,
    overwrite: o.Overwrite = False,
) -> None:
    """Make a measurement of a clean image: a file for cmidiff restore, and a PNG to look at."""
    from cmidiff import images as i
    from cmidiff.app.masks import describe_mask, seen_of
    from cmidiff.app.problem import degraded, save_problem, task_of

    clean = i.read_image(image, value_range=value_range)
    if resize is not None:
        clean = i.resize(clean, o.pixel_size(resize))
    given = o.given(factor=factor, size=size, position=position, hidden=hidden, kernel_size=kernel_size, std=std)
    given |= o.given(intensity=intensity, padding=padding, ratio=ratio, noise_std=noise_std, poisson=poisson)
    measured = seen_of(mask, seen, clean)
    channels, height, width = clean.values.shape
    problem = degraded(clean, task_of(task, given, measured, kernel, (channels, height, width), seed), seed)
    path = o.measurement_path(output, image, problem.task)
    shown, truth = path.with_suffix(".png"), path.with_name(f"{path.stem}-truth.png")
    written = {path: "the measurement, for cmidiff restore", shown: "the same, to look at"}
    if resize is not None:
        written[truth] = "the image that was measured, for --truth"
    check_outputs(written, (image, mask, seen, kernel), command="degrade", overwrite=overwrite)
    for note in problem.notes:
        say(f"note: {note}")
    if measured is not None:
        say(describe_mask(measured))
    save_problem(path, problem)
    i.write_image(shown, problem.view(), bits=clean.bits, command="degrade")
    if resize is not None:
        i.write_image(truth, clean.values, clean.alpha, bits=clean.bits, command="degrade")
    for name, meaning in written.items():
        print(f"{name}  {meaning}")


@app.command()
def restore(
    context: typer.Context,
    measurement: o.Measured,
    task: o.RestoreTask = None,
    noise_std: o.NoiseOrNot = None,
    mask: o.MaskFile = None,
    seen: o.SeenFile = None,
    kernel: o.KernelFile = None,
    value_range: o.ValueRange = None,
    factor: o.Factor = None,
    size: o.Size = None,
    position: o.Position = None,
    kernel_size: o.KernelSize = None,
    std: o.Std = None,
    padding: o.Padding = None,
    restore_all: o.RestoreAll = False,
    output: o.Output = Path("restored"),
    samples: o.Samples = None,
    steps: o.StepsOrNot = None,
    seed: o.Seed = 0,
    solver: o.SolverOrNot = None,
    cmi: o.Cmi = None,
    eta: o.Eta = None,
    preset: o.PresetFile = None,
    prior: o.Prior = "photo",
    device: o.Device = "auto",
    batch: o.Batch = 1,
    tile: o.Tile = "auto",
    truth: o.Truth = None,
    overwrite: o.Overwrite = False,
    dry_run: o.DryRun = False,
) -> None:
    """Restore a photograph or a measurement: the best estimate, and with --samples what is uncertain.

    What is not stated about a photograph is found out from it, and said. The same command again keeps what is finished
    and goes on.

    Exit codes: 0 done, 2 wrong input, 3 a result diverged, 130 interrupted; what is finished is always written.
    """
    from cmidiff.app.duration import announce
    from cmidiff.app.masks import describe_mask
    from cmidiff.app.problem import read_truth
    from cmidiff.app.run import (
        adapt,
        advice_on,
        finish,
        load_prior_named,
        open_folder,
        resolved,
        results_of,
        sample,
        tell,
        write_overlay,
        write_record,
    )

    tuned = o.preset_of(preset)
    settings = o.settings_of(
        preset=tuned,
        explicit=o.explicit(context),
        solver=solver,
        cmi=cmi,
        eta=eta,
        prior=prior,
        steps=steps,
        samples=samples,
        seed=seed,
        batch=batch,
        device=device,
        tile=tile,
    )
    given = o.given(factor=factor, size=size, position=position, kernel_size=kernel_size, std=std, padding=padding)
    problem = o.problem_of(
        measurement, task, given, mask, kernel, noise_std, seen, value_range, restore_all=restore_all
    )
    settings = adapt(settings, problem)
    reference = None if truth is None else read_truth(truth, problem.shape, value_range)
    for note in (*problem.notes, *o.notes_on(tuned, settings.prior)):
        say(f"note: {note}")
    if problem.assumed:
        say(f"assumed: {', '.join(problem.assumed)}; prior {settings.prior}, device {settings.device}")
    if problem.seen is not None:
        say(describe_mask(problem.seen))
    if dry_run:
        print(json.dumps(resolved(problem, settings, measurement, output), indent=2))
        return
    network = load_prior_named(settings.prior, settings.device)
    record = resolved(problem, settings, measurement, output, network)
    inputs = (measurement, mask, seen, kernel, truth, preset, Path(settings.prior))
    open_folder(output, record, overwrite=overwrite, inputs=inputs)
    write_overlay(output, problem)
    announce(problem, settings, network, output)
    done, stopped = sample(problem, settings, network, output)
    rows = finish(output, problem, done, reference)
    write_record(output, record, results_of(rows, finished=not stopped))
    if rows:
        out.print(table(rows, settings.title))
    if stopped:
        say(f"stopped: {tell(done, settings)} in {output}; the same command goes on from there")
        raise typer.Exit(INTERRUPTED)
    if advice := advice_on(done, problem, settings):
        say(advice)
    if diverged := [s.name for s in done if not s.ok]:
        say(f"cmidiff: diverged: {', '.join(diverged)}; what else there is, is in {output}")
        raise typer.Exit(DIVERGED)
    image = output / "restored.png"
    print(f"written to {image if settings.samples == 0 else output}")


@app.command()
def tune(
    task: Annotated[str, typer.Argument(help=o.TASK_HELP, show_default=False)],
    images: Annotated[Path, typer.Option("--images", help="Clean images: a folder or a tar archive.")],
    count: Annotated[
        int, typer.Option("--count", help="How many; half tune, half check what was found.", **o.whole(1, o.MOST))
    ] = 16,
    offset: Annotated[
        int, typer.Option("--offset", help="The first one, in the order of their names.", **o.whole(0, o.MOST))
    ] = 0,
    side: Annotated[
        int | None,
        typer.Option(
            "--side",
            help="Crop the middle square and shrink it to this side.",
            show_default=False,
            **o.whole(1, o.WIDEST),
        ),
    ] = None,
    noise_std: o.Noise = 0.05,
    factor: o.Factor = None,
    size: o.Size = None,
    hidden: o.Hidden = None,
    kernel_size: o.KernelSize = None,
    std: o.Std = None,
    intensity: o.Intensity = None,
    padding: o.Padding = None,
    ratio: o.Ratio = None,
    solver: o.Solver = "pigdm",
    prior: o.Prior = "natural-64",
    steps: o.Steps = 50,
    trials: Annotated[int, typer.Option("--trials", help="Settings to try in all.", **o.whole(1, o.MOST))] = 40,
    seed: o.Seed = 0,
    metric: Annotated[str, typer.Option("--metric", help="What to improve: psnr, ssim, lpips or crps.")] = "psnr",
    most_eta: Annotated[
        float,
        typer.Option("--most-eta", help="The largest strength of CMI, of either sign.", **o.number(0, 1e6)),
    ] = 1.0,
    batch: Annotated[int, typer.Option("--batch", help="Images restored at once.", **o.whole(1, o.MOST))] = 4,
    device: o.Device = "auto",
    output: o.Output = Path("preset.toml"),
    study: Annotated[
        Path | None, typer.Option("--study", help="File of the search; OUTPUT.study.db without it.", show_default=False)
    ] = None,
    overwrite: o.Overwrite = False,
    dry_run: o.DryRun = False,
) -> None:
    """Find the strengths of guidance and CMI for a prior, a task and a solver, on a handful of clean images.

    The same command again goes on where the search stopped; more --trials extend it. The preset is for cmidiff restore
    --preset, and it is the solver alone where nothing was better on the images held out.
    """
    import shlex
    import sys

    from cmidiff.app import tune as t
    from cmidiff.tuning import save_preset

    o.check_prior(prior)
    file = output.with_suffix(".study.db") if study is None else study
    if not dry_run:
        inputs = (images, file, Path(prior))
        check_outputs([output], inputs, command="tune", overwrite=overwrite)
    given = o.given(factor=factor, size=size, hidden=hidden, kernel_size=kernel_size, std=std, intensity=intensity)
    given |= o.given(padding=padding, ratio=ratio, noise_std=noise_std)
    search, network = t.searched(
        images,
        count=count,
        offset=offset,
        side=side,
        task=task,
        parameters=given,
        solver=solver,
        most_eta=most_eta,
        prior=prior,
        steps=steps,
        metric=t.checked_metric(metric),
        trials=trials,
        group=batch,
        seed=seed,
        device=o.device_of(device),
    )
    record = t.described(search, images, prior)
    if dry_run:
        print(json.dumps(record, indent=2))
        return
    try:
        outcome = t.run(search, network, file)
    except KeyboardInterrupt:
        say(f"stopped: the search is in {file}; the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    out.print(t.table(outcome))
    save_preset(output, t.preset_of(search, outcome, record, shlex.join(["cmidiff", *sys.argv[1:]])))
    print(f"{outcome.verdict}\nwritten to {output}")


@app.command(name="evaluate")
def evaluate_(
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="A TOML file, or a preset: cmi-paper, embedded, smoke.")
    ] = None,
    images: Annotated[Path | None, typer.Option("--images", help="A folder or a tar archive of clean images.")] = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", help="With commas; options as super-resolution:factor=4,inpaint-box."),
    ] = None,
    solvers: Annotated[
        str | None, typer.Option("--solvers", help="With commas; options as dps:scale=4:label=dps-4,pigdm.")
    ] = None,
    cmi: Annotated[str | None, typer.Option("--cmi", help="off, on, or off,on.")] = None,
    eta: Annotated[str | None, typer.Option("--eta", help="Strengths of CMI, with commas.")] = None,
    steps: Annotated[str | None, typer.Option("--steps", help="Steps of the sampler; several, with commas.")] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Posterior samples of each unit.", **o.whole(1, o.MOST))
    ] = None,
    seed: Annotated[str | None, typer.Option("--seed", help="Seeds, with commas: each is a unit of its own.")] = None,
    prior: Annotated[str | None, typer.Option("--prior", help="Name (see cmidiff priors) or folder.")] = None,
    noise_std: o.NoiseOrNot = None,
    size: Annotated[
        int | None,
        typer.Option("--size", help="Crop and shrink images to squares of this side.", **o.whole(1, o.WIDEST)),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="The first so many images, by name.", **o.whole(1, o.MOST))
    ] = None,
    offset: Annotated[
        int | None, typer.Option("--offset", help="Leave out so many images before.", **o.whole(0, o.MOST))
    ] = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Sweep steps (20, 50, 100, 250, 1000, or --steps) and eta.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--out", "--output", "-o", help="Folder of the run.")] = None,
    engine: Annotated[str, typer.Option("--engine", help="local, or ray: all cores, or a cluster.")] = "local",
    address: Annotated[str | None, typer.Option("--address", help="ray: auto, or ray://HOST:PORT.")] = None,
    cpus: Annotated[float, typer.Option("--cpus", help="ray: CPUs of a worker.", **o.number(0, 1024))] = 1.0,
    gpus: Annotated[
        float | None, typer.Option("--gpus", help="ray: GPUs of a worker, as 1 or 0.25.", **o.number(0, 1024))
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", help="Threads of a worker; results differ by rounding.", **o.whole(1, 1024))
    ] = 1,
    device: o.Device = "auto",
    batch: Annotated[
        int, typer.Option("--batch", help="Images restored together: more for a GPU.", **o.whole(1, o.MOST))
    ] = 1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Repeat the units that failed.")] = False,
    extend: Annotated[bool, typer.Option("--extend", help="Add images, cells or seeds to a run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print configuration, grid and cost; stop.")] = False,
) -> None:
    """Restore many images by many solvers, with and without CMI, and measure how well; cmidiff report shows it.

    The same command again keeps what is finished and goes on.

    Exit codes: 0 done, 1 some units failed, 2 wrong input, 4 the folder cannot be written, 130 interrupted.
    """
    from cmidiff.app import evaluation as e
    from cmidiff.evaluate.run import Options, Unwritable

    benchmark = e.benchmark(
        config,
        curve,
        images=images,
        tasks=e.words(tasks),
        solvers=e.words(solvers),
        cmi=None if cmi is None else tuple(e.words(cmi) or ()),
        eta=e.numbers("--eta", eta, o.number(-1e6, 1e6)["parser"]),
        steps=e.numbers("--steps", steps, o.whole(1, o.MOST)["parser"]),
        samples=samples,
        seeds=e.numbers("--seed", seed, o.whole(0, 2**63 - 1)["parser"]),
        prior=prior,
        noise_std=noise_std,
        size=size,
        limit=limit,
        offset=offset,
    )
    machine = e.Machine(engine, address, device, cpus, gpus, threads, batch)
    if dry_run:
        e.show_plan(benchmark, machine)
        return
    if output is None:
        raise BadInput("where to? give --out with the folder of a new run, or of one to go on with")
    try:
        counts = e.run(benchmark, machine, Options(output, batch, retry_failed, extend))
    except KeyboardInterrupt:
        say(f"stopped: what is finished is in {output}; the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    except Unwritable as error:
        say(f"cmidiff: {error}")
        raise typer.Exit(UNWRITABLE) from error
    print(e.summary(counts, output))
    if counts["failed"]:
        say(f"cmidiff: {counts['failed']} units failed, {output / 'run.log'} says why; --retry-failed repeats them")
        raise typer.Exit(FAILED)


@app.command()
def demo(
    output: o.Output = Path("demo.png"),
    seed: o.Seed = 0,
    prior: o.Prior = "photo",
    device: o.Device = "auto",
    overwrite: o.Overwrite = False,
) -> None:
    """Hide most pixels of a photograph, restore it, and show what is uncertain, with and without CMI."""
    from cmidiff.app.demo import TITLE, run

    o.check_prior(prior)
    check_outputs([output], [Path(prior)], command="demo", overwrite=overwrite)
    rows = run(output, seed=seed, prior=prior, device=o.device_of(device))
    out.print(table(rows, TITLE))
    print(f"written to {output}")


@app.command()
def priors() -> None:
    """What can be loaded, and what is on this machine."""
    from rich.table import Table

    from cmidiff.prior.known import info_of
    from cmidiff.registry import PRIORS

    infos = [info_of(name) for name in PRIORS.loadable()]
    listing = Table()
    for name in ("name", "present", "what it is", "licence"):
        listing.add_column(name, overflow="fold")
    for info in infos:
        listing.add_row(info.name, "yes" if info.where() else "no", info.description, info.licence)
    out.print(listing)
    for info in infos:
        if info.where() is None:
            print(f"{info.name} {info.remedy}")
    print("also: hf:OWNER/NAME, a folder of diffusers, a .pt or .safetensors file (docs/priors.md)")


@app.command()
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

    try:
        loaded = TrainConfig.load(config)
        result = snapshot(loaded) if export else run(loaded, resume=resume, cool_down=cool_down)
    except (ValueError, OSError, FloatingPointError) as error:
        raise bad_input(error) from error
    print(result.folder)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="The folder that cmidiff evaluate wrote.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the report.", show_default="RUN/report")
    ] = None,
    overwrite: o.Overwrite = False,
) -> None:
    """Tables, tests and images of an evaluation, finished or not: a page, Markdown, LaTeX and CSV."""
    from cmidiff.evaluate.database import RunError
    from cmidiff.evaluate.report import report as write_report
    from cmidiff.evaluate.summary import caveats, verdict

    try:
        comparison, written = write_report(run, output, overwrite=overwrite)
    except RunError as error:
        raise BadInput(str(error)) from error
    for caveat in caveats(comparison):
        say(f"note: {caveat}")
    print(verdict(comparison))
    for name, meaning in written.items():
        print(f"{name}  {meaning}")


@app.command()
def validate(
    output: o.Output = Path("validation"),
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="gradient, difference, symmetry, posterior or trajectory; may be repeated."),
    ] = None,
    seed: o.Seed = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A few of everything, to see that it works.")] = False,
    workers: Annotated[
        int, typer.Option("--workers", help="Processes for the known posteriors.", **o.whole(1, 1024))
    ] = 2,
    pictures: Annotated[
        Path | None,
        typer.Option("--pictures", help="Folder or tar file of images for the embedded prior; without it, the demo's."),
    ] = None,
    overwrite: o.Overwrite = False,
) -> None:
    """Measure CMI and every solver against exact answers: tables, CSV and plots.

    Finished sections are kept; the same command again does the others.
    """
    from cmidiff.app.validate import run
    from cmidiff.laboratory import Settings

    run(output, Settings(seed, quick, workers, pictures), only or [], overwrite=overwrite)


@app.command()
def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0: any that is free.", **o.whole(0, 65535))] = 7860,
    open_browser: Annotated[bool, typer.Option("--open", help="Open a browser.")] = False,
    prior: o.Prior = "photo",
    device: o.Device = "auto",
    jobs: Annotated[
        int, typer.Option("--jobs", help="Restorations at a time; further visitors wait.", **o.whole(1, 1024))
    ] = 1,
    seconds: Annotated[
        int, typer.Option("--seconds", help="Time limit of one restoration.", **o.whole(1, o.MOST))
    ] = 300,
    side: Annotated[
        int, typer.Option("--side", help="Largest longer side of what is computed, in pixels.", **o.whole(64, o.WIDEST))
    ] = 1024,
    megabytes: Annotated[int, typer.Option("--megabytes", help="Largest upload.", **o.whole(1, 10_000))] = 20,
    megapixels: Annotated[int, typer.Option("--megapixels", help="Largest image.", **o.whole(1, 10_000))] = 25,
) -> None:
    """Restore photographs in the browser; the page is for this machine alone unless --host is given."""
    from cmidiff.app.web.inputs import Limits
    from cmidiff.app.web.server import serve as run

    o.check_prior(prior)
    limits = Limits(megabytes * 2**20, megapixels * 10**6, side, seconds=seconds, jobs=jobs)
    run(limits, prior=prior, device=o.device_of(device), host=host, port=port, open_browser=open_browser)


def main() -> None:
    """The console script."""
    # Threads that spin while they wait slow a busy machine down twentyfold; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()
