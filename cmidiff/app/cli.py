"""cmidiff at the command line. Torch is imported inside the commands, so that help is instant."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from cmidiff.app import options as o
from cmidiff.app import studies
from cmidiff.app.errors import DIVERGED, INTERRUPTED, CommandLine, say
from cmidiff.app.show import out, progress, table
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
@o.task_options(*o.TASK_OPTIONS)
def degrade(
    image: o.ImageFile,
    parameters: dict[str, Any],
    task: o.TaskName = None,
    noise_std: o.Noise = 0.05,
    seed: o.Seed = 0,
    output: Annotated[
        Path | None, o.option("--output", "-o", text="File to write; IMAGE-TASK.safetensors without it.")
    ] = None,
    resize: o.Resize = None,
    mask: o.PaintFile = None,
    seen: o.SeenFile = None,
    kernel: o.KernelFile = None,
    value_range: o.ValueRange = None,
    overwrite: o.Overwrite = False,
) -> None:
    """Make a measurement of a clean image: a file for cmidiff restore, and a PNG to look at."""
    from cmidiff import images as i
    from cmidiff.app import problem as p
    from cmidiff.app.masks import describe_mask
    from cmidiff.app.photograph import Degradation

    clean = i.read_image(image, value_range=value_range)
    if resize is not None:
        clean = i.resize(clean, resize)
    known = Degradation.read(clean, task, parameters, noise_std, mask=mask, seen=seen, kernel=kernel)
    problem = p.degrade(clean, known.make_task(p.shape_of(clean.values), seed), seed)
    path = p.measurement_path(output, image, problem.task.name)
    shown, truth = path.with_suffix(".png"), path.with_name(f"{path.stem}-truth.png")
    written = {path: "the measurement, for cmidiff restore", shown: "the same, to look at"}
    if resize is not None:
        written[truth] = "the image that was measured, for --truth"
    check_outputs(written, (image, mask, seen, kernel), command="degrade", overwrite=overwrite)
    for note in problem.notes:
        say(f"note: {note}")
    if known.seen is not None:
        say(describe_mask(known.seen))
    p.save_problem(path, problem)
    i.write_image(shown, problem.view(), bits=clean.bits, command="degrade")
    if resize is not None:
        i.write_image(truth, clean.values, clean.alpha, bits=clean.bits, command="degrade")
    for name, meaning in written.items():
        print(f"{name}  {meaning}")


@app.command()
@o.loading_options
@o.task_options("factor", "size", "position", "kernel_size", "std", "padding")
def restore(
    measurement: Annotated[
        Path, typer.Argument(help="A file made by cmidiff degrade, or any degraded image.", show_default=False)
    ],
    parameters: dict[str, Any],
    loading: Any,
    task: Annotated[str | None, o.option(text=o.RESTORE_HELP)] = None,
    noise_std: o.NoiseOrNot = None,
    mask: o.PaintFile = None,
    seen: o.SeenFile = None,
    kernel: o.KernelFile = None,
    value_range: o.ValueRange = None,
    restore_all: Annotated[
        bool,
        typer.Option(
            "--restore-all", help="Restore the pixels that --mask leaves unpainted, too; else they are unchanged."
        ),
    ] = False,
    output: o.Output = Path("restored"),
    samples: Annotated[
        int | None,
        o.option(
            text="How many posterior samples to draw; none without it, and 1 with --solver.",
            **o.whole(0, o.MOST),
        ),
    ] = None,
    steps: Annotated[
        int | None, o.option(text="Steps of the solver; its own number without it.", **o.whole(1, o.MOST))
    ] = None,
    seed: o.Seed = 0,
    solver: Annotated[str | None, o.option(text=o.SOLVER_HELP)] = None,
    cmi: Annotated[
        bool | None, o.option("--cmi/--no-cmi", text="Correct every step with the CMI gradient; off unless asked for.")
    ] = None,
    eta: Annotated[float | None, o.option(text="Strength of CMI, which it turns on.", **o.number(-1e6, 1e6))] = None,
    preset: Annotated[
        Path | None, o.option(text="A file of cmidiff tune; what is given beside it replaces what it says.")
    ] = None,
    prior: o.Prior = "photo",
    device: o.Device = "auto",
    batch: Annotated[
        int,
        typer.Option(help="Samples drawn at once: more for a GPU, one is finished soonest.", **o.whole(1, o.MOST)),
    ] = 1,
    tile: o.Tile = "auto",
    truth: Annotated[Path | None, o.option(text="The undegraded image, to measure quality.")] = None,
    overwrite: o.Overwrite = False,
    dry_run: o.DryRun = False,
) -> None:
    """Restore a photograph or a measurement: the best estimate, and with --samples what is uncertain.

    What is not stated about a photograph is found out from it, and said. The same command again keeps what is finished
    and goes on.

    Exit codes: 0 done, 2 wrong input, 3 a result diverged, 130 interrupted; what is finished is always written.
    """
    from cmidiff.app import folder as f
    from cmidiff.app import summary as s
    from cmidiff.app.masks import describe_mask
    from cmidiff.app.photograph import read_problem, read_truth
    from cmidiff.app.run import compute
    from cmidiff.app.settings import adapt, adapt_to_prior, make_settings
    from cmidiff.app.speed import say_prediction
    from cmidiff.tuning.preset import load_preset

    tuned = None if preset is None else load_preset(preset)
    chosen = {"solver": solver, "cmi": cmi, "eta": eta, "prior": prior, "steps": steps, "samples": samples}
    machine = {"seed": seed, "batch": batch, "device": device, "tile": tile}
    settings = make_settings(**chosen, **machine, preset=tuned, loading=loading)
    files = {"mask": mask, "seen": seen, "kernel": kernel}
    stated = {"value_range": value_range, "restore_all": restore_all}
    problem = read_problem(measurement, task, parameters, noise_std, **files, **stated)
    settings = adapt(settings, problem)
    reference = None if truth is None else read_truth(truth, problem.result_shape, value_range)
    for note in problem.notes:
        say(f"note: {note}")
    if tuned is not None and (before := tuned.provenance.get("prior", prior)) != prior:
        say(f"note: the preset was chosen for the prior {before}")
    if problem.assumed:
        say(f"assumed: {', '.join(problem.assumed)}; prior {settings.prior}, device {settings.device}")
    if problem.seen is not None:
        say(describe_mask(problem.seen))
    if dry_run:
        print(json.dumps(f.describe_run(problem, settings, measurement, output), indent=2))
        return
    network = loading.load(settings.prior, settings.device)
    settings = adapt_to_prior(settings, network)
    record = f.describe_run(problem, settings, measurement, output, network)
    inputs = (measurement, *files.values(), truth, preset, Path(settings.prior))
    f.open_folder(output, record, overwrite=overwrite, inputs=inputs)
    f.write_overlay(output, problem)
    say_prediction(problem, settings, network)
    if done := f.load_samples(output, settings):
        say(f"note: {s.count_done(done, settings)} in {output} finished already")
    stopped = False
    try:
        with progress(1.0) as move:

            def show(fraction: float, doing: str, misfit: float, _: Any) -> None:
                move(fraction, f"{doing}, misfit {misfit:.2f}")

            for one in compute(problem, settings, network, output, show):
                done.append(one)
    except KeyboardInterrupt:
        stopped = True
    done.sort(key=lambda one: one.index)
    rows = s.finish(output, problem, done, reference)
    f.write_record(output, record, rows, finished=not stopped)
    if rows:
        out.print(table(rows, settings.title))
    if stopped:
        say(f"stopped: {s.count_done(done, settings)} in {output}; the same command goes on from there")
        raise typer.Exit(INTERRUPTED)
    if advice := s.advise(done, problem, settings):
        say(advice)
    if diverged := [one.name for one in done if not one.ok]:
        say(f"cmidiff: diverged: {', '.join(diverged)}; what else there is, is in {output}")
        raise typer.Exit(DIVERGED)
    print(f"written to {output if settings.samples else output / 'restored.png'}")


@app.command()
def demo(
    output: o.Output = Path("demo.png"),
    seed: o.Seed = 0,
    prior: o.Prior = "photo",
    device: o.Device = "auto",
    overwrite: o.Overwrite = False,
) -> None:
    """Hide most pixels of a photograph and of a cat's face, restore them, and show what is uncertain, with and without
    CMI.

    The prior is that of the photograph.
    """
    from cmidiff.app.demo import run

    check_outputs([output], [Path(prior)], command="demo", overwrite=overwrite)
    for title, rows in run(output, seed=seed, prior=prior, device=device):
        out.print(table(rows, title))
    print(f"written to {output}")


@app.command()
def solvers() -> None:
    """The solvers, grouped by their kind."""
    import inspect

    from rich.table import Table

    from cmidiff.registry import SOLVERS

    listing = Table()
    for name in ("kind", "--solver", "steps", "CMI", "what it is"):
        listing.add_column(name, overflow="fold")
    for kind, names in SOLVERS.by_kind().items():
        for name in names:
            solver = SOLVERS.make(name)
            what = (inspect.getdoc(SOLVERS[name]) or "").split("\n\n")[0].replace("\n", " ").replace("`", "")
            guided = "no" if solver.point or solver.refuses_cmi else "yes"
            listing.add_row(kind, name, str(solver.default_steps), guided, what.partition(". ")[0].rstrip("."))
        listing.add_section()
    out.print(listing)
    print("docs/solvers has a page for each; --cmi adds conditional mutual information guidance")


@app.command()
def priors(
    moments: Annotated[
        Path | None, typer.Option(help="Measure the second moments of these images (folder, archive).")
    ] = None,
    prior: Annotated[str, typer.Option(help="With --moments: the folder or file of your prior.")] = "",
    device: o.Device = "auto",
    overwrite: o.Overwrite = False,
) -> None:
    """What can be loaded, and what is on this machine; with --moments, second moments for a prior of yours."""
    if moments is not None:
        from cmidiff.app.moments import write_moments
        from cmidiff.app.settings import find_device

        print(write_moments(prior, moments, device=find_device(device), overwrite=overwrite))
        return
    if prior:
        raise ValueError("--prior goes with --moments: without it all priors are listed")
    from rich.table import Table

    from cmidiff.prior.hub import LATENT_PRIORS
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
    print("latent priors of the hub (those with text: pip install 'cmidiff[latent]'; docs/latent.md):")
    latent = Table()
    for name in ("--prior", "present", "download, about", "what it is", "licence"):
        latent.add_column(name, overflow="fold")
    for entry in LATENT_PRIORS:
        latent.add_row(entry.name, "yes" if entry.present else "no", entry.download, entry.description, entry.licence)
    out.print(latent)
    print("also: hf:OWNER/NAME, a folder of diffusers, a .pt or .safetensors file (docs/priors.md)")


@app.command()
@o.loading_options
def serve(
    loading: Any,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any that is free.", **o.whole(0, 65535))] = 7860,
    open_browser: Annotated[bool, typer.Option("--open", help="Open a browser.")] = False,
    prior: o.Priors = None,
    device: o.Device = "auto",
    jobs: Annotated[int, typer.Option(help="Restorations at a time; further visitors wait.", **o.whole(1, 1024))] = 1,
    seconds: Annotated[int, typer.Option(help="Time limit of one restoration.", **o.whole(1, o.MOST))] = 300,
    side: Annotated[
        int, typer.Option(help="Largest longer side of what is computed, in pixels.", **o.whole(64, o.WIDEST))
    ] = 1024,
    megabytes: Annotated[int, typer.Option(help="Largest upload.", **o.whole(1, 10_000))] = 20,
    megapixels: Annotated[int, typer.Option(help="Largest image.", **o.whole(1, 10_000))] = 25,
) -> None:
    """Restore photographs in the browser; the page is for this machine alone unless --host is given."""
    from cmidiff.app.settings import check_prior, find_device
    from cmidiff.app.web.controls import Limits
    from cmidiff.app.web.server import serve as run

    for name in prior or ():
        check_prior(name)
    limits = Limits(megabytes * 2**20, megapixels * 10**6, side, seconds=seconds, jobs=jobs)
    place = {"host": host, "port": port, "open_browser": open_browser}
    run(limits, priors=prior or (), device=find_device(device), loading=loading, **place)


for command in (studies.tune, studies.evaluate, studies.report, studies.validate, studies.train):
    app.command()(command)


def main() -> None:
    """The console script."""
    # Threads that spin while they wait slow a busy machine down twentyfold; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()
