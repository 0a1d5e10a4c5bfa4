"""Pipelines of the hub of diffusers: what is fetched, and how much that is, before it is fetched."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cmidiff.prior.card import Fields
from cmidiff.prior.fetch import announce
from cmidiff.prior.latent_pipeline import INDEX, PIPELINES
from cmidiff.prior.pipeline import (
    CONFIG_FILE,
    PICKLED_FILE,
    SCHEDULER_FILE,
    WEIGHTS_FILE,
    is_folder,
    part_of,
    weights_beside,
)
from cmidiff.prior.weights import SUFFIXES

HUB = "hf:"
TEXT = ("tokenizer", "tokenizer_2", "tokenizer_3"), ("text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True)
class HubPrior:
    """A latent pipeline of the hub.

    Attributes:
        name: as ``hf:OWNER/NAME``.
        description, licence: in words.
        download: how much is fetched, about.
        network: the folder of its network.
    """

    name: str
    description: str
    download: str
    licence: str
    network: str = "unet"

    @property
    def present(self) -> bool:
        """Whether its network is in the cache of the hub."""
        import huggingface_hub

        config = f"{self.network}/{CONFIG_FILE}"
        return isinstance(huggingface_hub.try_to_load_from_cache(self.name.removeprefix(HUB), config), str)


LATENT_PRIORS = (
    HubPrior("hf:CompVis/ldm-celebahq-256", "faces, 256x256, no text", "1.4 GB", "Apache 2.0"),
    HubPrior("hf:stable-diffusion-v1-5/stable-diffusion-v1-5", "images, 512x512", "4.3 GB", "CreativeML OpenRAIL-M"),
    HubPrior("hf:stabilityai/stable-diffusion-xl-base-1.0", "images, 1024x1024", "13.9 GB", "OpenRAIL++-M"),
    HubPrior(
        "hf:stabilityai/stable-diffusion-3.5-medium",
        "images, 1024x1024, a flow",
        "16 GB",
        "Stability AI Community",
        "transformer",
    ),
    HubPrior(
        "hf:black-forest-labs/FLUX.1-dev",
        "images, 1024x1024, a flow",
        "34 GB",
        "FLUX.1-dev Non-Commercial",
        "transformer",
    ),
)


def hub_name(name: str) -> str:
    """Return ``hf:OWNER/NAME`` for a bare ``OWNER/NAME`` of the hub, and any other name unchanged.

    A name is not of the hub if its first part is a folder here, or if it ends as a file of weights does.
    """
    bare = re.fullmatch(r"(?!\.)[\w.-]+/[\w.-]+(@[\w.-]+)?", name)
    return name if bare is None or Path(name).parent.is_dir() or Path(name).suffix in SUFFIXES else f"{HUB}{name}"


def hub_repository(name: str) -> tuple[str, str | None]:
    """Repository and revision of ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION``.

    Raises:
        ValueError: not a name of the hub.
    """
    repository, _, revision = name.removeprefix(HUB).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or ".." in repository:
        raise ValueError(f"a prior of the hub is called hf:OWNER/NAME, received {name!r}")
    return repository, revision or None


def fetch_from_hub(name: str) -> Path:
    """The folder of a pipeline of the hub, ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION``, fetched if it is not here.

    Raises:
        FileNotFoundError: there is no such pipeline, or it is not here and the hub cannot be reached.
        ValueError: not a name of the hub.
    """
    repository, revision = hub_repository(name)
    try:
        folder = _fetch(name, repository, revision)
    except ValueError as error:
        raise ValueError(f"{name!r} is not a name of the hub: {error}") from error
    except Exception as error:  # offline, unknown, gated: as many classes as the hub has versions
        raise FileNotFoundError(
            f"the prior {name} is not on this machine and cannot be fetched from https://huggingface.co/{repository} "
            f"({type(error).__name__}): put its folder anywhere and pass the path"
        ) from error
    if not is_folder(folder) and not (folder / INDEX).is_file():
        raise FileNotFoundError(f"{name} is no pipeline of diffusers: it has neither unet/config.json nor {INDEX}")
    return folder


def _fetch(name: str, repository: str, revision: str | None) -> Path:
    import huggingface_hub

    def download(patterns: list[str]) -> Path:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=patterns))

    small = [f"{part}{CONFIG_FILE}" for part in ("", "unet/")]
    small += [INDEX, SCHEDULER_FILE, f"scheduler/{SCHEDULER_FILE}", "card.json"]
    folder = download(small)
    if _kind(folder) in PIPELINES:
        return _fetch_latent(name, repository, revision, folder)
    folder = download([*small, *(f"{part}{WEIGHTS_FILE}" for part in ("", "unet/"))])
    config = part_of(folder, "unet", CONFIG_FILE)
    if config is not None and weights_beside(config) is None:
        folder = download([*small, *(f"{part}{PICKLED_FILE}" for part in ("", "unet/"))])
    return folder


def _kind(folder: Path) -> object:
    index = folder / INDEX
    return Fields.read(index).values.get("_class_name") if index.is_file() else None


def _fetch_latent(name: str, repository: str, revision: str | None, folder: Path) -> Path:
    """Fetch a latent pipeline, after saying how much of it is not here."""
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().model_info(repository, revision=revision, files_metadata=True)
    except (OSError, huggingface_hub.errors.OfflineModeIsEnabled):  # what is here may be all
        return Path(huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True))
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    wanted = files_of(sizes, str(_kind(folder)))
    absent = [file for file in wanted if not (folder / file).is_file()]
    if absent:
        total = sum(sizes[file] for file in absent) / 1e9
        announce(f"{total:.1f} GB in {len(absent)} files of {name} from https://huggingface.co/{repository}")
    return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=wanted))


def files_of(names: Iterable[str], kind: str) -> list[str]:
    """Which files of a latent pipeline are needed: configurations, tokenizers, and of each part one set of weights,
    in safetensors if there are any."""
    names, tokenizers, encoders = list(names), *TEXT
    pipeline = PIPELINES[kind]
    wanted = [n for n in names if n in (INDEX, "card.json", "moments.safetensors", f"scheduler/{SCHEDULER_FILE}")]
    for part in tokenizers:
        wanted += [n for n in names if n.startswith(f"{part}/") and n.endswith((".json", ".txt", ".model"))]
    for part in (pipeline.network, pipeline.autoencoder, *encoders):
        inside = [n for n in names if n.startswith(f"{part}/")]
        wanted += [n for n in inside if n.endswith(f"/{CONFIG_FILE}")]
        own = [n for n in inside if re.search(r"/(diffusion_pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)$", n)]
        half = [n for n in inside if re.search(r"/(diffusion_pytorch_)?model\.fp16\.safetensors$", n)]
        safe = [n for n in own if n.endswith(".safetensors")]
        wanted += safe or half or own
        wanted += [n for n in inside if re.search(r"/(diffusion_pytorch_)?model\.safetensors\.index\.json$", n)]
    return wanted
