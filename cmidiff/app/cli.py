"""cmidiff at the command line. Torch is imported inside the commands, so that help is instant."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cmidiff.app import options as o
from cmidiff.app.errors import DIVERGED, INTERRUPTED, BadInput, CommandLine, say
from cmidiff.app.show import out, table

app = typer.Typer(
    cls=CommandLine,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
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
    image: o.Picture,
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
    mask: o.MaskFile = None,
    kernel: o.KernelFile = None,
) -> None:
    """Make a measurement of a clean picture: a file for cmidiff restore, and a PNG to look at."""
    from cmidiff.app.pictures import read_picture, resized, write_picture
    from cmidiff.app.problem import check_noise_std, degraded, save_problem, task_of

    check_noise_std(noise_std)
    picture = read_picture(image)
    if resize is not None:
        picture = resized(picture, o.pixel_size(resize))
    given = o.given(factor=factor, size=size, position=position, hidden=hidden, kernel_size=kernel_size, std=std)
    given |= o.given(intensity=intensity, padding=padding, ratio=ratio, noise_std=noise_std)
    channels, height, width = picture.values.shape
    problem = degraded(picture, task_of(task, given, mask, kernel, (channels, height, width), seed), seed)
    path = o.measurement_path(output, image, problem.task)
    written = {path: "the measurement, for cmidiff restore", path.with_suffix(".png"): "the same, to look at"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_problem(path, problem)
        write_picture(path.with_suffix(".png"), problem.view())
        if resize is not None:
            truth = path.with_name(f"{path.stem}-truth.png")
            write_picture(truth, picture.values, picture.alpha)
            written[truth] = "the picture that was measured, for --truth"
    except OSError as error:
        raise BadInput(f"cannot write {path} ({error.strerror or error}): give another --output") from error
    for name, meaning in written.items():
        print(f"{name}  {meaning}")


@app.command()
def restore(
    measurement: o.Measured,
    task: o.TaskName = None,
    noise_std: o.NoiseOrNot = None,
    mask: o.MaskFile = None,
    kernel: o.KernelFile = None,
    factor: o.Factor = None,
    size: o.Size = None,
    position: o.Position = None,
    kernel_size: o.KernelSize = None,
    std: o.Std = None,
    padding: o.Padding = None,
    output: o.Output = Path("restored"),
    samples: o.Samples = 4,
    steps: o.Steps = 100,
    seed: o.Seed = 0,
    solver: o.Solver = "pigdm",
    cmi: o.Cmi = None,
    eta: o.Eta = None,
    prior: o.Prior = "natural-64",
    device: o.Device = "auto",
    batch: o.Batch = 1,
    truth: o.Truth = None,
    overwrite: o.Overwrite = False,
    dry_run: o.DryRun = False,
) -> None:
    """Restore a measurement: posterior samples, their mean, and a map of what is uncertain.

    The same command again keeps the finished samples and goes on.

    Exit codes: 0 done, 2 wrong input, 3 a sample diverged, 130 interrupted; finished samples are always written.
    """
    from cmidiff.app.problem import read_truth
    from cmidiff.app.run import finish, load_prior_of, open_folder, resolved, sample, write_record

    settings = o.settings_of(
        solver=solver,
        cmi=cmi,
        eta=eta,
        prior=prior,
        steps=steps,
        samples=samples,
        seed=seed,
        batch=batch,
        device=device,
    )
    given = o.given(factor=factor, size=size, position=position, kernel_size=kernel_size, std=std, padding=padding)
    problem = o.problem_of(measurement, task, given, mask, kernel, noise_std)
    reference = None if truth is None else read_truth(truth, problem.shape)
    record = resolved(problem, settings, measurement, output)
    for note in problem.notes:
        say(f"note: {note}")
    if dry_run:
        print(json.dumps(record, indent=2))
        return
    network = load_prior_of(settings)
    open_folder(output, record, overwrite=overwrite)
    done, stopped = sample(problem, settings, network, output)
    rows = finish(output, problem, done, reference)
    write_record(output, record, {"finished": not stopped, "samples": [asdict(row) for row in rows]})
    if rows:
        out.print(table(rows, settings.title))
    if stopped:
        say(f"stopped: {len(done)} of {samples} samples are in {output}; the same command goes on from there")
        raise typer.Exit(INTERRUPTED)
    if diverged := [str(s.index) for s in done if not s.ok]:
        say(f"cmidiff: diverged: sample {', '.join(diverged)}; what else there is, is in {output}")
        raise typer.Exit(DIVERGED)
    print(f"written to {output}")


@app.command()
def demo(
    output: o.Output = Path("demo.png"),
    seed: o.Seed = 0,
    prior: o.Prior = "natural-64",
    device: o.Device = "auto",
) -> None:
    """Hide most pixels of a photograph, and restore it with and without CMI."""
    from cmidiff.app.demo import TITLE, run

    o.check_prior(prior)
    rows = run(output, seed=seed, prior=prior, device=o.device_of(device))
    out.print(table(rows, TITLE))
    print(f"written to {output}")


@app.command()
def priors() -> None:
    """What can be loaded, and what is on this machine."""
    from rich.table import Table

    from cmidiff.prior import PRIORS

    listing = Table()
    for name in ("name", "present", "what it is", "licence"):
        listing.add_column(name, overflow="fold")
    for info in PRIORS.values():
        listing.add_row(info.name, "yes" if info.where() else "no", info.description, info.licence)
    out.print(listing)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A TOML file as cmidiff/train/natural-64.toml.", show_default=False)],
) -> None:
    """Train a prior, or go on training it."""
    from cmidiff.train import TrainConfig, run

    try:
        loaded = TrainConfig.load(config)
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from error
    run(loaded)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="The folder that cmidiff evaluate wrote.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the report.", show_default="RUN/report")
    ] = None,
) -> None:
    """Tables, tests and pictures of an evaluation, finished or not: a page, Markdown, LaTeX and CSV."""
    from cmidiff.evaluate.database import RunError
    from cmidiff.evaluate.report import report as write_report
    from cmidiff.evaluate.summary import caveats, verdict

    try:
        comparison, written = write_report(run, output)
    except RunError as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        raise BadInput(f"cannot write the report ({error}): give another --output") from error
    for caveat in caveats(comparison):
        say(f"note: {caveat}")
    print(verdict(comparison))
    for name, meaning in written.items():
        print(f"{name}  {meaning}")


def main() -> None:
    """The console script."""
    # Threads that spin while they wait slow a busy machine down twentyfold; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()
