"""What happens when a person does something on the page.

The photograph that is shown is the one that is restored: each run reads the file of the component. Values arrive as the
browser sends them (``preprocess=False``), and `cmidiff.app.web.inputs` checks them. A window chooses its token, so its
first event already has one. A reload finds the run and its result again.
"""

from __future__ import annotations

import asyncio
import html
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from cmidiff.app.settings import adapt
from cmidiff.app.web import inputs
from cmidiff.app.web.controls import CASES, EXPERIMENT, LEAST, Ask, Limits, choice, file_of, number
from cmidiff.app.web.jobs import Job, View
from cmidiff.app.web.layout import NOTHING, SAMPLER, SOLVER, Layout, samplers, strength_of
from cmidiff.app.web.priors import Priors, Ready, find_absent
from cmidiff.app.web.shown import comparison, doubt, duration, gallery, line, note, refusal, show_image, status, summary
from cmidiff.app.web.sizes import describe_size, make_options, offer_sizes, options_of
from cmidiff.app.web.visits import Visit, Visits

SAMPLE = Path(__file__).parents[2] / "assets" / "plane.png"
PERIOD = 0.4  # seconds between two looks at a run
CANVAS = 1024  # longer side of what is painted on, in pixels
LAYERS = 4  # of one painting
UNSEEN = (".tif", ".tiff", ".ppm")  # a browser does not show these
CONTROLS: tuple[str, ...] = ("photo", "case", "experiment", "strength", "noise", "paint", "mask", "blur", "whole")
CONTROLS += ("side", "prior", "solver", "steps", "seed", "samples", "sampler", "cmi", "eta")
# Gradio loses an update of a component that is not drawn yet: the request waits for the slow ones.
OPEN = """async () => {
    while (!document.querySelector("#photo input[type=file]") || !document.querySelector("#paint canvas"))
        await new Promise(drawn => setTimeout(drawn, 50));
    const join = group => {  // Gradio names each radio apart: arrow keys need one name
        const radios = group.querySelectorAll("input[type=radio]");
        for (const radio of radios) radio.name = radios[0].name;
    };
    document.querySelectorAll("fieldset").forEach(join);
    document.addEventListener("focusin", ({ target }) => target.type === "radio" && join(target.closest("fieldset")));
    return (%s)("");
}"""
# The token is made in the window: an event may come before the server's first answer.
TOKEN = """(_, ...values) => {
    if (!sessionStorage.cmidiff) {
        const bytes = crypto.getRandomValues(new Uint8Array(16));
        sessionStorage.cmidiff = Array.from(bytes, byte => byte.toString(16).padStart(2, "0")).join("");
    }
    return [sessionStorage.cmidiff, ...values];
}"""
HOLD, READY = (f"() => ({{ __type__: 'update', interactive: {value} }})" for value in ("false", "true"))
CUT = "position => ({ __type__: 'update', slider_position: position })"
Updates = dict[Any, Any]


def clear(handler: Callable[..., Updates]) -> Callable[..., Updates]:
    """Return a handler whose refusals reach the browser as messages of Gradio, and never the log."""

    @wraps(handler)
    def call(*values: Any) -> Updates:
        try:
            return handler(*values)
        except ValueError as error:
            raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from None

    return call


class Page(Layout):
    """The page of a server.

    Args:
        limits: of what one person may ask.
        priors: what the visitor may choose from.
        root: the folder in which each browser window has one.
    """

    def __init__(self, limits: Limits, priors: Priors, root: Path) -> None:
        super().__init__(limits, priors.names, find_absent())
        self.priors, self.visits = priors, Visits(root, limits)
        with self.blocks:
            self._connect()
        ready = priors.get(priors.names[0])
        first = make_options(ready, SOLVER, None, 0)
        self._measuring = threading.Thread(target=ready.speed.seconds, args=(first, (3, 64, 64)))
        self._measuring.start()

    def close(self) -> None:
        """Cancel all runs and wait for their end."""
        self.blocks.close(verbose=False)
        self.visits.close()
        self.priors.close()
        self._measuring.join()

    def _connect(self) -> None:
        local = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        asked = [self.token, *(getattr(self, name) for name in CONTROLS)]
        fresh = [self.photo, self.note, self.paint, self.mask, self.blur, self.side]
        fresh += [self.results, self.live, self.status]
        shows = [self.status, self.live, self.results, self.slider, self.doubt, self.download, self.draw, self.gallery]
        shows += [self.figures, self.archive, self.command]

        def on(event: Any, handler: Any, given: Sequence[Any], changed: Sequence[Any], **options: Any) -> Any:
            shared = {"concurrency_limit": 4, "concurrency_id": "quick"} | options
            private = {"show_progress": "hidden", "api_visibility": "private", "preprocess": False}
            if given[0] is self.token:
                private |= {"js": TOKEN}
            return event(handler, list(given), list(changed), **private | shared)

        def size(event: Any, **options: Any) -> Any:
            return on(event, clear(self._size), asked, [self.side, self.size], **options)

        unlimited = {"concurrency_limit": None, "concurrency_id": "watch"}

        def watch(event: Any) -> None:
            on(event.then, self._watch, [self.token], shows, trigger_mode="multiple", **unlimited)

        def take(event: Any, handler: Any, given: Sequence[Any], changed: Sequence[Any] = fresh) -> None:
            taken = on(event(None, None, self.start, js=HOLD, **local).then, clear(handler), given, changed)
            size(taken.then).then(None, None, self.start, js=READY, **local)

        opened = on(self.blocks.load, self._open, [self.token], fresh, js=OPEN % TOKEN)
        size(opened.then)
        watch(opened)
        take(self.photo.upload, self._take, [self.token, self.photo])
        take(self.photo.clear, self._clear, [self.token])
        take(self.example.click, self._take_example, [self.token])
        shape = [self.side, self.experiment, self.hint, self.strength, self.paint_box, self.blur_box]
        for event in (self.case.input, self.experiment.input):
            take(event, self._case, [self.case, self.experiment], shape)
        take(self.prior.input, self._choose, [self.prior], [self.side])
        for control in (self.strength, self.side, self.whole, self.solver, self.steps):
            size(control.input, trigger_mode="always_last")
        watch(on(self.start.click, clear(self._restore), asked, shows))
        watch(on(self.draw.click, clear(self._draw), asked, shows))
        on(self.cancel.click, self._cancel, [self.token], [self.status])
        self.cut.input(None, self.cut, self.slider, js=CUT, **local)

    # the photograph

    def _open(self, token: Any) -> Updates:
        """Find the state of a window that was reloaded, or begin a new one."""
        visit = self.visits.open(token)
        photo = visit.photo if visit.photo is not None and visit.photo.is_file() else None
        return self._shown(visit, photo) if photo is not None else {self.photo: gr.skip()}

    def _take(self, token: Any, photo: Any) -> Updates:
        """Show a photograph, and forget the results of the one before."""
        visit, path = self.visits.open(token), file_of("photo", photo)
        if path is None:
            return self._clear(token)
        try:
            shown = self._shown(visit, path)
        except ValueError as error:
            return self._clear(token) | {self.note: gr.HTML(refusal(str(error)), visible=True)}
        if path == visit.photo and visit.jobs:  # the run of this photograph was started before this event came
            return shown
        visit.photo = path
        return self._without_results(visit) | shown

    def _take_example(self, token: Any) -> Updates:
        return self._take(token, {"path": str(SAMPLE)}) | {self.photo: str(SAMPLE)}

    def _clear(self, token: Any) -> Updates:
        visit = self.visits.open(token)
        visit.photo = None
        return self._without_results(visit) | {self.photo: None, self.paint: None}

    def _without_results(self, visit: Visit) -> Updates:
        visit.drop(*visit.jobs)
        hidden = gr.update(visible=False)
        files = {self.mask: None, self.blur: None, self.side: None}
        return {self.note: hidden, self.results: hidden, self.live: hidden, self.status: NOTHING} | files

    def _shown(self, visit: Visit, path: Path) -> Updates:
        """Show a photograph and the canvas over it; in place of a file that browsers do not show, an image of it."""
        image = show_image(inputs.shrink(inputs.read_upload(path, self.limits), CANVAS).values)
        if path.suffix.lower() in UNSEEN:
            path = visit.new_folder().with_suffix(".png")
            image.save(path)
            visit.substitute = path.name
        return {self.photo: str(path), self.paint: {"background": image, "layers": [], "composite": None}}

    @staticmethod
    def _photo(visit: Visit, value: Any) -> Path | None:
        """Return the file of the photograph that is shown."""
        path = file_of("photo", value)
        return visit.photo if path is not None and path.name == visit.substitute else path

    # the controls

    def _case(self, wish: Any, experiment: Any) -> Updates:
        name = choice("case", experiment if wish == EXPERIMENT else wish, CASES)
        return {
            self.side: None,
            self.experiment: gr.update(visible=wish == EXPERIMENT),
            self.hint: gr.Markdown(CASES[name].hint, visible=bool(CASES[name].hint)),
            self.strength: gr.Slider(**strength_of(name)),
            self.paint_box: gr.update(visible=name == "scratches" or "hidden"),  # Gradio fails to take the canvas away
            self.blur_box: gr.update(visible=name == "blurred"),
        }

    def _choose(self, prior: Any) -> Updates:
        """Load a prior that is chosen for the first time."""
        self._ready({"prior": prior})
        return {self.side: None}

    def _ready(self, controls: Mapping[str, Any]) -> Ready:
        name = choice("prior", controls["prior"], self.priors.names)
        try:
            return self.priors.get(name)
        except (OSError, MemoryError) as error:
            raise ValueError(f"The prior {name} cannot be loaded on the server: choose another one.") from error

    def _size(self, token: Any, *values: Any) -> Updates:
        """Offer the sizes that the server has time for, and say what the chosen one means."""
        controls = dict(zip(CONTROLS, values, strict=True))
        path = self._photo(self.visits.open(token), controls["photo"])
        if path is None or not path.is_file():
            return {self.size: ""}
        size, ask = inputs.size_of(path, self.limits), Ask.read(controls | {"side": LEAST}, self.limits)
        found, best = offer_sizes(self._ready(controls), ask, size, self.limits)
        side = controls["side"] if controls["side"] in found else best
        choices = [(f"{text}, about {duration(seconds)}", n) for n, (text, seconds) in found.items()]
        words = describe_size(replace(ask, side=side), size, *found[side])
        return {self.side: gr.Dropdown(choices, value=side), self.size: f"<p>{html.escape(words)}</p>"}

    # the runs

    def _restore(self, token: Any, *values: Any) -> Updates:
        """Queue the run that the controls describe."""
        visit, controls = self.visits.open(token), dict(zip(CONTROLS, values, strict=True))
        path = self._photo(visit, controls["photo"])
        if path is None:
            return self._refuse(visit, "There is no photograph yet: give one above, or use the example.")
        visit.photo = path
        ready = self._ready(controls)
        early = controls["side"] is None  # the sizes of a new wish have not come yet
        ask = Ask.read(controls | ({"side": LEAST} if early else {}), self.limits)
        if early:
            ask = replace(ask, side=offer_sizes(ready, ask, inputs.size_of(path, self.limits), self.limits)[1])
        mask, blur = file_of("mask", controls["mask"]), file_of("blur", controls["blur"])
        layers = self._layers(controls["paint"])
        options = options_of(ready, ask)

        def make() -> Job:
            if ask.case == "blocks" and ready.prior.decoder is not None:
                raise ValueError(
                    "The repair of JPEG artefacts needs a prior of images: choose another one in Settings."
                )
            paint = None
            if ask.case == "scratches":
                paint = inputs.read_mask(mask, path, self.limits) if mask else inputs.read_paint(layers, self.limits)
            work = inputs.work_of(ask, path, self.limits, paint, blur)
            runs = {"result": adapt(options, work.problem)}
            return Job(work, runs, ready.prior, visit.new_folder(), self.limits, ready.speed)

        return self._submit(visit, "result", make) | {self.results: gr.update(visible=False)}

    def _layers(self, paint: Any) -> list[Path]:
        layers = (paint or {}).get("layers") or []
        return [path for layer in layers[:LAYERS] if (path := file_of("paint", layer)) is not None]

    def _draw(self, token: Any, *values: Any) -> Updates:
        """Queue the run that draws samples for the problem of the result that is shown."""
        visit, controls = self.visits.open(token), dict(zip(CONTROLS, values, strict=True))
        ask, solver = Ask.read(controls, self.limits), choice("sampler", controls["sampler"], samplers())
        samples = int(number("samples", controls["samples"], 1, self.limits.samples, whole=True))
        etas = {"samples": None, "samples-cmi": number("eta", controls["eta"], -1, 1)}
        names = {"off": ["samples"], "on": ["samples-cmi"], "compare": list(etas)}
        chosen = names[choice("cmi", controls["cmi"], names)]
        ready = self._ready(controls)
        runs = {name: make_options(ready, solver, ask.steps, ask.seed, samples, etas[name]) for name in chosen}

        def make() -> Job:
            first = visit.jobs.get("result")
            if first is None:
                raise ValueError("There is no result yet: restore a photograph first.")
            if first.work.problem.tables is not None:
                raise ValueError("The repair of JPEG artefacts has no samples: choose Remove noise to draw some.")
            return Job(first.work, runs, ready.prior, visit.new_folder(), self.limits, ready.speed)

        return self._submit(visit, "samples", make)

    def _submit(self, visit: Visit, name: str, make: Callable[[], Job]) -> Updates:
        try:
            job = make()
            self.visits.submit(visit, name, job)
        except ValueError as error:
            return self._refuse(visit, str(error).replace(f"{visit.folder}/", ""))
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return self._refuse(visit, "Something went wrong on the server: try another image or other settings.")
        return {self.status: status(job.view)}

    def _refuse(self, visit: Visit, reason: str) -> Updates:
        visit.refused = True
        return {self.status: refusal(reason)}

    def _cancel(self, token: Any) -> Updates:
        """Cancel what runs or waits; who watches it shows what it finished."""
        jobs = [job for job in self.visits.open(token).jobs.values() if not job.view.over]
        for job in jobs:
            job.cancel()
        return {self.status: line("cancelling" if jobs else "nothing is running")}

    async def _watch(self, token: Any) -> AsyncIterator[Updates]:
        """Show the progress of a window's jobs until they end."""
        visit, told = self.visits.open(token), set[Job]()
        if visit.refused:  # the reason stays on the page
            visit.refused = False
            yield {}
            return
        while rest := [(name, job) for name, job in visit.jobs.items() if job not in told]:
            (name, job), seen = rest[0], None
            while not job.view.over and visit.jobs.get(name) is job:
                job.seen = visit.used = time.monotonic()
                if job.view is not seen:
                    seen = job.view
                    yield await asyncio.to_thread(self._show_running, name, seen)
                await asyncio.sleep(PERIOD)
            told.add(job)
            if visit.jobs.get(name) is job:
                yield await asyncio.to_thread(self._show_result, name, job)
        if not visit.jobs:  # also after a new photograph has ended a run
            yield {self.status: NOTHING, self.live: gr.update(visible=False)}

    def _show_running(self, name: str, view: View) -> Updates:
        if name != "result" or view.x_hat is None:
            return {self.status: status(view)}
        return {self.status: status(view), self.live: gr.Image(show_image(view.x_hat), visible=True)}

    def _show_result(self, name: str, job: Job) -> Updates:
        view = job.view
        updates: Updates = {self.status: status(view), self.live: gr.update(visible=False)}
        if all(result.best is None for result in view.results) or view.state == "failed":
            return updates
        updates |= {
            self.figures: summary(view.results),
            self.archive: gr.DownloadButton(value=str(job.archive)),
            self.command: "\n".join(job.commands.values()),
        }
        if name == "samples":
            return updates | {self.gallery: gr.Gallery(gallery(job), visible=True)}
        words = "; ".join(filter(None, (doubt(view), *job.work.notes)))
        ready = self.priors.get(view.results[0].settings.prior)
        one = ready.speed.seconds(make_options(ready, SAMPLER, job.steps, 0, samples=1), job.work.problem.shape)
        return updates | {
            self.results: gr.update(visible=True),
            self.slider: gr.ImageSlider(comparison(job), slider_position=50),
            self.doubt: gr.HTML(note(words, doubtful=bool(doubt(view))), visible=bool(words)),
            self.download: gr.DownloadButton(value=str(job.image)),
            self.draw: f"Draw samples (about {duration(one)} each)",
            self.gallery: gr.Gallery(None, visible=False),
        }
