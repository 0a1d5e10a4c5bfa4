"""The page: what is on it, and what happens when a visitor does something.

All that the server knows of a visitor is the `Visit` in the session's state.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components.base import server
from gradio.components.image_editor import AcceptBlobs, EditorData
from PIL import Image

from cmidiff.app.errors import BadInput
from cmidiff.app.options import settings_of
from cmidiff.app.problem import Problem
from cmidiff.app.run import Settings
from cmidiff.app.web.inputs import (
    CASES,
    DEGRADED,
    EXPERIMENTS,
    Ask,
    Case,
    Limits,
    checked,
    painted,
    photograph,
    problem_of,
)
from cmidiff.app.web.jobs import Job, Result, Visit
from cmidiff.app.web.shown import (
    comparison,
    curves,
    enlarge,
    figures,
    moments,
    name_of,
    refusal,
    shown,
    status,
    summary,
    told,
)
from cmidiff.information import CMI
from cmidiff.prior.base import Denoiser
from cmidiff.registry import SOLVERS

SAMPLE = Path(__file__).parents[2] / "assets" / "plane.png"
PERIOD = 0.4  # seconds between two looks at a run
SIDES = (64, 96, 128, 192, 256, 384, 512)
SIDE, STEPS, SAMPLES = 128, 25, 2  # a photograph within a minute on two cores
LAYERS, PAINTINGS = 4, 100  # of one painting; paintings that wait for their run
CMI_CHOICES = [("off", "off"), ("on", "on"), ("compare both, same seed", "compare")]
TITLE = "Restore a photograph"
INTRODUCTION = (
    "Nothing you give leaves this server, and it is deleted after your visit. A diffusion model imagines pictures that "
    "agree with what is left of yours: **several**, because what is lost can only be guessed."
)
ARCHIVE = (
    "The archive holds the measurement, the samples and their mean, as pictures and as numbers. Unpack it; in its "
    "folder, this repeats the run:"
)
READY = gr.update(interactive=True)
WAITING = told("Waiting for its turn")
BUSY = "Too many visitors are waiting already: nothing was started. Try again in a minute."


def unopened(upload: gr.Image) -> gr.Image:
    """The component, which hands on the path of an upload: what opens the file knows the limits.

    An instance is changed, not its class: Gradio writes a stub beside the source of every class derived from its own.
    """
    upload.preprocess = lambda payload: None if payload is None else payload.path
    return upload


def layers_only(editor: gr.ImageEditor) -> gr.ImageEditor:
    """The component, which hands on the layers of paint alone, unopened, and keeps no more than it must."""
    store, accept = editor.blob_storage, editor.accept_blobs

    @server
    def accept_blobs(data: AcceptBlobs) -> None:
        if data.data["type"] == "layer" and int(data.data["index"] or 0) in range(LAYERS):
            while len(store) >= PAINTINGS:
                store.pop(next(iter(store)))
            accept(data)

    def preprocess(payload: EditorData | None) -> Any:
        if payload is None:
            return []
        if payload.id is None:
            return [Path(layer.path) for layer in payload.layers[:LAYERS]]
        blobs = store.pop(payload.id, None)
        return [] if blobs is None else [layer for layer in blobs.layers if layer]

    editor.accept_blobs, editor.preprocess = accept_blobs, preprocess
    return editor


@dataclass(frozen=True)
class Shop:
    """What all visitors share: limits, the prior, and the folder under which each has one."""

    limits: Limits
    prior: Denoiser
    prior_name: str
    device: str
    root: Path

    def settings(self, solver: str, cmi: str, eta: float, steps: int, samples: int, seed: int) -> dict[str, Settings]:
        """The runs that the controls ask for, by name.

        Raises:
            BadInput: as `cmidiff.app.options.settings_of`.
        """
        names = {"off": ("base",), "on": ("cmi",), "compare": ("base", "cmi")}[cmi]
        return {
            name: settings_of(
                solver=solver,
                cmi=name == "cmi",
                eta=eta if name == "cmi" else None,
                prior=self.prior_name,
                steps=steps,
                samples=samples,
                seed=seed,
                batch=1,
                device=self.device,
            )
            for name in names
        }


class Page:
    """The page of a shop: its components, and what happens when a visitor does something."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        with gr.Blocks(title="cmidiff", analytics_enabled=False, delete_cache=(600, 7200)) as self.blocks:
            self.visit = gr.State(None, time_to_live=7200, delete_callback=_end)
            gr.Markdown(f"# {TITLE}\n{INTRODUCTION}")
            with gr.Row():
                with gr.Column(scale=5, min_width=300):
                    self._questions()
                with gr.Column(scale=6, min_width=300, elem_id="answers"):
                    self._answers()
            self._events()

    def _questions(self) -> None:
        self.photo = unopened(
            gr.Image(label="Photograph", sources=["upload", "clipboard"], height=300, elem_id="photo")
        )
        self.note = gr.HTML(visible=False, elem_id="note")
        self.try_it = gr.Button("No picture at hand? Take this one", size="sm", elem_id="sample")
        gr.Markdown("**What is wrong with it?**")
        with gr.Row():
            self.presets = {
                "scratches": gr.Button("Old photo with scratches", size="sm", min_width=90, elem_id="preset-scratches"),
                "blurred": gr.Button("Blurred", size="sm", min_width=90, elem_id="preset-blurred"),
                "small": gr.Button("Enlarge 4x", size="sm", min_width=90, elem_id="preset-small"),
            }
        self.mode = gr.Radio(
            [("it is degraded: restore it", "restore"), ("nothing: degrade it, as an experiment", "simulate")],
            value="simulate",
            show_label=False,
            container=False,
            elem_id="mode",
        )
        first = "inpaint-random"
        self.case = gr.Dropdown(
            _choices(EXPERIMENTS), value=first, label="What happened to it", filterable=False, elem_id="case"
        )
        self.hint = gr.Markdown(visible=False)
        with gr.Column(visible=False) as self.paint_box:
            editor = gr.ImageEditor(
                label="Paint over what is lost",
                show_label=False,
                sources=(),
                transforms=(),
                layers=False,
                brush=gr.Brush(default_size=16, colors=["#e11d48"], color_mode="fixed"),
                elem_id="paint",
            )
            self.paint = layers_only(editor)
        with gr.Column(visible=False) as self.blur_box:
            self.blur = unopened(gr.Image(label="Picture of the blur", sources=["upload"], height=200, elem_id="blur"))
        self.strength = gr.Slider(**_slider(CASES[first]), elem_id="strength")
        self.noise = gr.Slider(
            0, 0.5, CASES[first].noise_std, step=0.01, label="Noise (black to white is 1)", elem_id="noise"
        )
        with gr.Accordion("Settings", open=False):
            self._settings()
        with gr.Row():
            self.start = gr.Button("Restore", variant="primary", elem_id="start", min_width=120)
            self.cancel = gr.Button("Cancel", variant="stop", elem_id="cancel", min_width=90)
        self.status = gr.HTML(told(""), elem_id="status")

    def _settings(self) -> None:
        limits = self.shop.limits
        sides = [side for side in SIDES if side <= limits.side] or [limits.side]
        side = max(n for n in sides if n <= max(SIDE, sides[0]))
        with gr.Row():
            self.side = gr.Dropdown(
                [(f"{n} pixels", n) for n in sides],
                value=side,
                label="Longer side of the result",
                info="Time grows with its square.",
                filterable=False,
                min_width=140,
                elem_id="side",
            )
            self.solver = gr.Dropdown(
                list(SOLVERS), value="pigdm", label="Solver", info="How the measurement pulls.", min_width=140
            )
        with gr.Row():
            self.steps = gr.Slider(
                2, limits.steps, min(STEPS, limits.steps), step=1, label="Steps", min_width=140, elem_id="steps"
            )
            self.samples = gr.Slider(
                1, limits.samples, min(SAMPLES, limits.samples), step=1, label="Samples", min_width=140
            )
        self.cmi = gr.Radio(CMI_CHOICES, value="off", label="CMI guidance", elem_id="cmi")
        with gr.Row():
            self.eta = gr.Slider(-1, 1, CMI().eta, step=0.05, label="Strength of CMI", min_width=140)
            self.seed = gr.Number(0, precision=0, minimum=0, maximum=2**31 - 1, label="Seed", min_width=140)

    def _answers(self) -> None:
        self.live = gr.Image(
            label="The estimate so far",
            interactive=False,
            buttons=[],
            height=420,
            elem_id="live",
        )
        with gr.Column(visible=False) as self.results, gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Compare"):
                self.slider = gr.HTML(elem_id="slider")
                self.versus = gr.HTML(visible=False, elem_id="versus")
            with gr.Tab("Samples"):
                gr.Markdown("Each is a possible answer; where they differ, the measurement does not tell.")
                self.gallery = gr.HTML(elem_id="samples")
            with gr.Tab("Uncertainty"):
                self.moments = gr.HTML(elem_id="moments")
            with gr.Tab("Curves"):
                self.figures = gr.Markdown(elem_id="figures")
                self.misfit = gr.LinePlot(
                    x="step", y="misfit", color="sample", title="Data misfit (units of the noise)", height=240
                )
                self.moved = gr.LinePlot(x="step", y="move", color="sample", title="Length of the CMI move", height=240)
            with gr.Tab("Download"):
                self.download = gr.DownloadButton("Download everything (zip)", elem_id="download")
                gr.Markdown(ARCHIVE)
                self.command = gr.Code(
                    language="shell", label="Command", wrap_lines=True, lines=2, max_lines=8, elem_id="command"
                )

    def _events(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private"}
        quick = private | {"show_progress": "hidden", "concurrency_limit": 4, "concurrency_id": "quick"}
        shape = [self.case, self.hint, self.strength, self.noise, self.paint_box, self.blur_box]
        taken = [self.visit, self.photo, self.note, self.paint, self.start]
        refused = private | {"queue": False, "show_progress": "hidden"}
        held = "() => ({ __type__: 'update', interactive: false })"  # until the photograph that is shown has been read
        given = self.photo.upload(None, None, self.start, js=held, **refused)
        given = given.then(self._take, [self.photo, self.visit], taken, **quick)
        given.failure(self._busy, None, [self.note, self.start], **refused)
        self.photo.clear(self._drop, [self.visit], taken, **quick)
        self.try_it.click(self._take_sample, [self.visit], taken, **quick)
        self.mode.input(self._mode, [self.mode], shape, **quick)
        self.case.input(self._case, [self.case], shape, **quick)
        settings = [self.solver, self.steps, self.samples, self.cmi]
        for name, button in self.presets.items():
            button.click(lambda name=name: self._preset(name), None, [self.mode, *shape, *settings], **quick)
        asked = [self.visit, self.case, self.strength, self.noise, self.paint, self.blur, self.side]
        asked += [self.solver, self.cmi, self.eta, self.steps, self.samples, self.seed]
        shows = [self.visit, self.status, self.live, self.results, self.slider, self.versus, self.gallery]
        shows += [self.moments, self.figures, self.misfit, self.moved, self.download, self.command]
        waits = f"() => {json.dumps(WAITING)}"  # said by the browser, at once
        begun = self.start.click(None, None, self.status, js=waits, **refused)
        run = begun.then(
            self._run,
            asked,
            shows,
            concurrency_limit=self.shop.limits.jobs,
            concurrency_id="runs",
            show_progress_on=[self.status],
            show_progress="minimal",
            **private,
        )
        run.failure(self._not_begun, self.status, self.status, **refused)
        self.cancel.click(self._stop, [self.visit], shows, cancels=[run], **refused)

    # what a visitor gives

    def _take(self, path: str | None, visit: Visit | None) -> dict[Any, Any]:
        visit = visit or Visit.begin(self.shop.root)
        if path is None:
            return self._drop(visit)
        try:
            visit.photograph = photograph(Path(path), self.shop.limits)
        except BadInput as error:
            visit.photograph = None
            note = gr.HTML(refusal(str(error)), visible=True)
            return {self.visit: visit, self.photo: None, self.note: note, self.start: READY}
        note = gr.HTML(visible=False)
        return {self.visit: visit, self.note: note, self.paint: _canvas(visit), self.start: READY}

    def _take_sample(self, visit: Visit | None) -> dict[Any, Any]:
        updates = self._take(str(SAMPLE), visit)
        return updates | {self.photo: enlarge(Image.open(SAMPLE).convert("RGB"))}

    def _drop(self, visit: Visit | None) -> dict[Any, Any]:
        if visit is not None:
            visit.photograph = None
        note = gr.HTML(visible=False)
        return {self.visit: visit, self.photo: None, self.note: note, self.paint: None, self.start: READY}

    @staticmethod
    def _not_begun(status: str) -> Any:
        """The queue was full. A run that was cancelled may count as failed too, but it has shown its progress."""
        return refusal(BUSY) if status == WAITING else gr.skip()

    def _busy(self) -> dict[Any, Any]:
        return {self.note: gr.HTML(refusal(BUSY), visible=True), self.start: READY}

    def _mode(self, mode: str) -> dict[Any, Any]:
        cases = DEGRADED if mode == "restore" else EXPERIMENTS
        first = next(iter(cases))
        return self._case(first) | {self.case: gr.Dropdown(_choices(cases), value=first)}

    def _case(self, name: str) -> dict[Any, Any]:
        case = CASES[name]
        return {
            self.hint: gr.Markdown(case.hint, visible=bool(case.hint)),
            self.strength: gr.Slider(**_slider(case)),
            self.noise: case.noise_std,
            self.paint_box: gr.update(visible=name == "scratches"),
            self.blur_box: gr.update(visible=name == "kernel"),
        }

    def _preset(self, name: str) -> dict[Any, Any]:
        """All controls as they are good for a case of one who knows nothing of solvers."""
        settings = {self.solver: "pigdm", self.cmi: "off", self.mode: "restore"}
        settings |= {
            self.steps: min(STEPS, self.shop.limits.steps),
            self.samples: min(SAMPLES, self.shop.limits.samples),
        }
        return self._case(name) | settings | {self.case: gr.Dropdown(_choices(DEGRADED), value=name)}

    # the run

    def _run(self, visit: Visit | None, *asked: Any) -> Iterator[dict[Any, Any]]:
        visit = visit or Visit.begin(self.shop.root)
        try:
            job = self._job(visit, *asked)
            visit.take(job)
            job.start()
        except BadInput as error:
            yield {self.visit: visit, self.status: refusal(str(error))}
            return
        except Exception:
            traceback.print_exc(file=sys.stderr)
            message = "Something went wrong on the server: try another picture or other settings."
            yield {self.visit: visit, self.status: refusal(message)}
            return
        try:
            yield {self.visit: visit} | self._begun(job)
            yield from self._watched(job)
            yield {self.visit: visit} | self._ended(job)
        finally:  # also where the visitor has left
            job.cancel()

    def _job(
        self,
        visit: Visit,
        case: str,
        strength: float,
        noise_std: float,
        paint: list[bytes | Path],
        blur: str | None,
        side: int,
        solver: str,
        cmi: str,
        eta: float,
        steps: int,
        samples: int,
        seed: int | None,
    ) -> Job:
        limits = self.shop.limits
        if visit.photograph is None:
            raise BadInput(
                "There is no photograph yet: give one at the top of the page, or take the one that is offered."
            )
        seed = seed or 0
        ask = Ask(case, strength, noise_std, side, seed)
        layers = painted(_files(paint, visit.folder), limits) if case == "scratches" else None
        kernel = checked(Path(blur), limits) if case == "kernel" and blur is not None else None
        problem, truth = problem_of(ask, visit.photograph, layers, kernel, visit.folder)
        runs = self.shop.settings(solver, cmi, eta, int(steps), int(samples), seed)
        return Job(problem, runs, self.shop.prior, truth, visit.new_folder(), limits.seconds)

    def _begun(self, job: Job) -> dict[Any, Any]:
        return {
            self.status: status(job.view),
            self.live: gr.Image(shown(job.problem.view()), label="The measurement", visible=True),
            self.results: gr.update(visible=False),
        }

    def _watched(self, job: Job) -> Iterator[dict[Any, Any]]:
        seen = job.view
        while not job.wait(PERIOD):
            view = job.view
            if view is seen:
                continue
            seen = view
            label = "The estimate so far"
            live = {} if view.x_hat is None else {self.live: gr.Image(shown(view.x_hat), label=label)}
            yield {self.status: status(view)} | live

    def _ended(self, job: Job) -> dict[Any, Any]:
        view = job.view
        results = [result for result in view.results if result.good]
        updates = {self.status: status(view)}
        if not results:
            return updates | {self.live: gr.update(visible=view.x_hat is not None and view.state != "failed")}
        return updates | self._compared(job.problem, results) | self._detailed(job, results)

    def _compared(self, problem: Problem, results: list[Result]) -> dict[Any, Any]:
        means = [result.mean for result in results]
        last = means[-1]
        assert last is not None
        many = len(results[-1].good) > 1
        name = f"{name_of(results[-1], results)}{'mean of the samples' if many else 'restoration'}"
        updates: dict[Any, Any] = {
            self.live: gr.update(visible=False),
            self.results: gr.update(visible=True),
            self.slider: comparison(("measurement", shown(problem.view(), last)), (name, shown(last))),
            self.versus: gr.update(visible=False),
        }
        if len(results) > 1 and means[0] is not None:
            pair = ("without CMI", shown(means[0])), ("with CMI", shown(last))
            updates[self.versus] = gr.HTML(comparison(*pair), visible=True)
        return updates

    def _detailed(self, job: Job, results: list[Result]) -> dict[Any, Any]:
        samples = [
            (f"{name_of(result, results)}sample {sample.index + 1}", shown(sample.values))
            for result in results
            for sample in result.good
        ]
        known = [] if job.truth is None else [("truth", shown(job.truth))]
        moves = curves(results, "move")
        return {
            self.gallery: figures([*samples, *known]),
            self.moments: moments(results),
            self.figures: summary(results),
            self.misfit: curves(results, "misfit"),
            self.moved: gr.LinePlot(moves, visible=bool(any(result.settings.cmi for result in results))),
            self.download: gr.DownloadButton(value=str(job.archive)),
            self.command: "\n".join(job.commands.values()),
        }

    def _stop(self, visit: Visit | None) -> dict[Any, Any]:
        """Cancel what runs and show what it finished; one that still waits has left the queue by now."""
        job = None if visit is None else visit.job
        if job is None or job.view.state != "running":
            return {self.status: told("Cancelled; nothing is running")}
        job.cancel()
        job.wait(60)
        return self._ended(job)


def _end(visit: Visit | None) -> None:
    if visit is not None:
        visit.end()


def _choices(cases: dict[str, Case]) -> list[tuple[str, str]]:
    return [(case.label, name) for name, case in cases.items()]


def _slider(case: Case) -> dict[str, Any]:
    """The strength of a case as the properties of a slider."""
    if case.strength is None:
        return {"visible": False}
    s = case.strength
    return {"minimum": s.low, "maximum": s.high, "value": s.value, "step": s.step, "label": s.label, "visible": True}


def _canvas(visit: Visit) -> dict[str, Any] | None:
    """The photograph to paint on."""
    if visit.photograph is None:
        return None
    return {"background": shown(visit.photograph.picture.values), "layers": [], "composite": None}


def _files(layers: Sequence[bytes | Path], folder: Path) -> list[Path]:
    """Layers as files: those that came as bytes are written into the visitor's folder."""
    paths = []
    for index, layer in enumerate(layers):
        path = layer if isinstance(layer, Path) else folder / f"layer-{index}"
        if isinstance(layer, bytes):
            path.write_bytes(layer)
        paths.append(path)
    return paths
