"""What is on the page: Gradio's components, the first result first and everything else folded away."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import gradio as gr

from cmidiff.app.web.controls import CASES, EXPERIMENT, EXPERIMENTS, WISHES, Limits
from cmidiff.app.web.shown import line
from cmidiff.information import CMI
from cmidiff.registry import SOLVERS

SOLVER, SAMPLER, SAMPLES = "dpir", "cadps", 4
LATENT = "dps"  # what takes the place of both with a latent prior
NOTHING = line("The result appears here.")
INTRODUCTION = (
    "# Restore a photograph\nYour photograph stays on this server and is deleted within two hours after your visit."
)
UNCERTAINTY = (
    "What is lost can only be guessed. Samples are several guesses that agree with the photograph; where they differ, "
    "the result is uncertain."
)
ABSENT = "The command `cmidiff serve --prior NAME` fetches one of them, then offers it:\n"
MISFIT = "Misfit: how far an image is from explaining the photograph, in units of the noise."
ARCHIVE = "The archive holds the measurement and all results. In its unpacked folder, this repeats the run:"


class Layout:
    """The components of the page.

    Args:
        limits: the ranges of the controls.
        priors: names of those to choose from, the default first.
        absent: name, size and description of those that would have to be fetched.
    """

    def __init__(self, limits: Limits, priors: Sequence[str], absent: Sequence[tuple[str, str, str]]) -> None:
        self.limits, self._priors, self._absent = limits, priors, absent
        with gr.Blocks(title="cmidiff", analytics_enabled=False, delete_cache=(600, 7200)) as self.blocks:
            self.token = gr.Textbox("", visible=False)
            gr.Markdown(INTRODUCTION)
            with gr.Row():
                with gr.Column(scale=5, min_width=280):
                    self._questions()
                with gr.Column(scale=6, min_width=280, elem_id="answers"):
                    self._answers()

    def _questions(self) -> None:
        self.photo = gr.Image(
            label="Photograph", sources=["upload", "clipboard"], height=300, format="png", elem_id="photo"
        )
        self.note = gr.HTML(visible=False, elem_id="note")
        self.example = gr.Button("Use an example", size="sm", elem_id="sample")
        wishes = [(case.label, name) for name, case in WISHES.items()]
        wishes.append(("Experiment: degrade a good image first", EXPERIMENT))
        self.case = gr.Radio(wishes, value="scratches", label="What do you want?", elem_id="case")
        self.experiment = gr.Dropdown(
            list(EXPERIMENTS),
            value="inpaint-random",
            label="How to degrade it",
            visible=False,
            filterable=False,
            elem_id="experiment",
        )
        self.hint = gr.Markdown(WISHES["scratches"].hint, elem_id="hint")
        with gr.Column() as self.paint_box:
            self.paint = gr.ImageEditor(
                label="Paint over what is damaged",
                sources=(),
                transforms=(),
                layers=False,
                brush=gr.Brush(default_size=16, colors=["#e11d48"], color_mode="fixed"),
                elem_id="paint",
            )
            with gr.Accordion("Give a mask instead of painting", open=False):
                self.mask = gr.Image(label="Mask: white means damaged", sources=["upload"], height=180, elem_id="mask")
            self.whole = gr.Checkbox(False, label="Remove noise outside of the paint, too", elem_id="whole")
        with gr.Column(visible=False) as self.blur_box, gr.Accordion("The blur is known", open=False):
            self.blur = gr.Image(
                label="What a point of light became, on black", sources=["upload"], height=180, elem_id="blur"
            )
        self.strength = gr.Slider(0, 1, 0.5, visible=False, elem_id="strength")
        self.side = gr.Dropdown([], label="Size", filterable=False, elem_id="side")
        self.size = gr.HTML(elem_id="size")
        with gr.Row():
            self.start = gr.Button("Restore", variant="primary", elem_id="start", min_width=120)
            self.cancel = gr.Button("Cancel", elem_id="cancel", min_width=90)
        with gr.Accordion("Settings", open=False):
            self._settings()

    def _settings(self) -> None:
        with gr.Row():
            self.noise = gr.Textbox(
                label="Noise", info="White is 1.", placeholder="estimated", min_width=140, elem_id="noise"
            )
            self.seed = gr.Number(0, label="Seed", info="Of what is random.", min_width=140, elem_id="seed")
        self.prior = gr.Dropdown(
            list(self._priors),
            value=self._priors[0],
            label="Prior",
            info="What is known of images in general.",
            filterable=False,
            elem_id="prior",
        )
        with gr.Row():
            self.solver = gr.Dropdown(grouped(), value=SOLVER, label="Solver", min_width=140, elem_id="solver")
            self.steps = gr.Textbox(  # Gradio shows an empty gr.Number as 0
                label="Steps",
                info=f"At most {self.limits.steps}.",
                placeholder="default",
                min_width=140,
                elem_id="steps",
            )
        if self._absent:
            with gr.Accordion("Priors that are not on the server", open=False):
                gr.Markdown(ABSENT + "\n".join(f"- `{name}`: {size}, {what}" for name, size, what in self._absent))

    def _answers(self) -> None:
        self.status = gr.HTML(NOTHING, elem_id="status")
        self.live = gr.Image(
            label="The estimate so far", interactive=False, buttons=[], height=420, visible=False, elem_id="live"
        )
        with gr.Column(visible=False) as self.results:
            self.slider = gr.ImageSlider(
                label="Before and after", interactive=False, buttons=["fullscreen"], format="png", elem_id="slider"
            )
            self.cut = gr.Slider(0, 100, 50, step=1, label="Before to after (percent)", elem_id="cut")
            self.doubt = gr.HTML(visible=False, elem_id="doubt")
            self.download = gr.DownloadButton("Download the image", variant="primary", elem_id="download")
            with gr.Accordion("Uncertainty", open=False, elem_id="uncertainty"):
                self._samples()
            with gr.Accordion("Details", open=False, elem_id="details"):
                self.figures = gr.Markdown(elem_id="figures")
                gr.Markdown(MISFIT)
                self.archive = gr.DownloadButton("Download everything (zip)", elem_id="archive")
                self.command = gr.Code(label=ARCHIVE, wrap_lines=True, lines=1, max_lines=6, elem_id="command")

    def _samples(self) -> None:
        gr.Markdown(UNCERTAINTY)
        most = self.limits.samples
        with gr.Row():
            self.samples = gr.Slider(1, most, min(SAMPLES, most), step=1, label="Samples", min_width=140)
            self.sampler = gr.Dropdown(
                grouped(samplers()), value=SAMPLER, label="Solver", min_width=140, elem_id="sampler"
            )
        choices = [("off", "off"), ("on", "on"), ("compare both", "compare")]
        self.cmi = gr.Radio(choices, value="off", label="CMI guidance", elem_id="cmi")
        self.eta = gr.Slider(-1, 1, CMI().eta, step=0.05, label="Strength of CMI", elem_id="eta")
        self.draw = gr.Button("Draw samples", elem_id="draw")
        self.gallery = gr.Gallery(
            label="Samples", interactive=False, format="png", object_fit="contain", height="auto", elem_id="gallery"
        )


def grouped(names: Collection[str] | None = None) -> list[tuple[str, str]]:
    """Return solvers by their kind, as the choices of a menu: what is shown, and the name."""
    groups = SOLVERS.by_kind().items()
    return [(f"{kind}: {name}", name) for kind, own in groups for name in own if names is None or name in names]


def samplers() -> list[str]:
    """Return the names of the solvers that draw samples."""
    return [name for name in SOLVERS.loadable() if name != SOLVER and not SOLVERS.make(name).point]


def strength_of(name: str) -> dict[str, Any]:
    """Return the strength of a case as the properties of a slider."""
    s = CASES[name].strength
    if s is None:
        return {"visible": False}
    return {"minimum": s.low, "maximum": s.high, "value": s.value, "step": s.step, "label": s.label, "visible": True}
