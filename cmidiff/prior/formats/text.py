"""Embeddings of a text, by the text encoders of a pipeline: encoded once, and the encoders forgotten.

The pipeline's own code encodes, with neither its network nor its autoencoder loaded: the encoders leave memory before
the network enters it. The empty text is what the pipeline takes for no text.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import inspect
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from cmidiff.prior.formats.card import Fields
from cmidiff.prior.formats.pipeline import weights_of

PARTS = ("unet", "transformer", "vae", "safety_checker", "feature_extractor", "image_encoder")
TOKENIZERS, ENCODERS = (tuple(f"{part}{n}" for n in ("", "_2", "_3")) for part in ("tokenizer", "text_encoder"))
VARIANT = re.compile(r"\.(fp16|bf16)[.-]")
VOCABULARIES = ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"spiece.model"})  # one of these sets of files
NEEDED = {"StableDiffusionPipeline": 1}  # of the encoders, by class: two in others, and the third if it is there


def encode_text(
    folder: Path, kind: str, prompt: str, negative: str | None, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Embeddings of a text on the CPU: ``text`` (rows, tokens, width), and ``pooled`` (rows, width) where the
    network takes it. One row, or two with a negative text for guidance (see
    `cmidiff.prior.formats.conditional.Conditional`)."""
    if importlib.util.find_spec("transformers") is None:
        raise ValueError(
            f"{folder.name} encodes text, which needs the package transformers: pip install 'cmidiff[latent]'"
        )
    pipeline = _encoders(folder, kind, dtype).to(device)
    with torch.no_grad():
        rows = [
            _encode(pipeline, kind, text, device) for text in ([prompt] if negative is None else [negative, prompt])
        ]
    found = {name: torch.cat([row[name] for row in rows]).float().cpu() for name in rows[0]}
    del pipeline
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def _encoders(folder: Path, kind: str, dtype: torch.dtype) -> Any:
    """The pipeline without its networks."""
    import diffusers

    wanted = getattr(diffusers, kind)
    accepted = inspect.signature(wanted.__init__).parameters
    index = Fields.read(folder / "model_index.json").values
    missing = [name for name, value in index.items() if value == [None, None]]
    files = {part: weights_of(path.name for path in (folder / part).glob("*")) for part in ENCODERS}
    for part in ENCODERS[: NEEDED.get(kind, 2)]:
        if part in missing or not files[part]:
            raise ValueError(
                f"{folder.name} has no {part} with weights, and the network of a {kind} takes its embeddings, also for "
                f"no text: put {folder / part} there, as the published pipeline has it"
            )
    for part, encoder in zip(TOKENIZERS, ENCODERS, strict=True):  # without its words a tokenizer reads all texts alike
        present = {path.name for path in (folder / part).glob("*")}
        if files[encoder] and encoder not in missing and not any(names <= present for names in VOCABULARIES):
            raise ValueError(
                f"{folder / part} has no vocabulary, which {encoder} needs: put tokenizer.json, or vocab.json with "
                "merges.txt, or spiece.model there, as the published pipeline has them"
            )
    variants = {found[1] for names in files.values() for name in names if (found := VARIANT.search(name))}
    options: dict[str, Any] = {name: None for name in (*PARTS, *missing) if name in accepted}
    if "requires_safety_checker" in accepted:
        options["requires_safety_checker"] = False
    options["variant"] = next(iter(variants), None)
    options["low_cpu_mem_usage"] = importlib.util.find_spec("accelerate") is not None
    try:
        with _quiet():
            pipeline = wanted.from_pretrained(
                folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True, **options
            )
    except Exception as error:  # as many kinds as transformers has
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the text encoders of {folder} cannot be read ({type(error).__name__}: {reason}): they must be in "
            "safetensors, with their tokenizers"
        ) from error
    if (
        "text_encoder_3" in missing
    ):  # zeros take the place of T5's embeddings, as wide as the network's configuration says
        config = SimpleNamespace(**Fields.read(folder / "transformer" / "config.json").values)
        object.__setattr__(pipeline, "transformer", SimpleNamespace(config=config))
    return pipeline


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither progress bars nor notes of the two libraries."""
    modules: Any = [importlib.import_module(f"{name}.utils.logging") for name in ("diffusers", "transformers")]
    before = [(module.get_verbosity(), module.is_progress_bar_enabled()) for module in modules]
    for module in modules:
        module.set_verbosity_error()
        module.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for module, (verbosity, shown) in zip(modules, before, strict=True):
            module.set_verbosity(verbosity)
            if shown:
                module.enable_progress_bar()


def _encode(pipeline: Any, kind: str, text: str, device: torch.device) -> dict[str, Tensor]:
    """One row of embeddings."""
    if kind == "StableDiffusionPipeline":
        return {"text": pipeline.encode_prompt(text, device, 1, False)[0]}
    if kind == "FluxPipeline":
        embedded, pooled, _ = pipeline.encode_prompt(text, None, device, 1)
        return {"text": embedded, "pooled": pooled}
    # What the pipeline takes for no text is its unconditional row: zeros in Stable Diffusion XL.
    rest = () if kind == "StableDiffusionXLPipeline" else (None,)
    embedded, negative, pooled, negative_pooled = pipeline.encode_prompt(
        text, None, *rest, device, 1, True, **({} if text else {"negative_prompt": None})
    )
    return {"text": embedded, "pooled": pooled} if text else {"text": negative, "pooled": negative_pooled}
