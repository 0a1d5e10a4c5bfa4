"""Pipelines of the hub of diffusers: what is fetched, and how much that is, before it is fetched."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cmidiff.prior.fetch import announce
from cmidiff.prior.formats.card import Fields
from cmidiff.prior.formats.latent_pipeline import INDEX, PIPELINES, check_kind
from cmidiff.prior.formats.pipeline import (
    CONFIG_FILE,
    PICKLED_FILE,
    SCHEDULER_FILE,
    WEIGHTS_FILE,
    is_folder,
    weights_of,
)
from cmidiff.prior.formats.text import ENCODERS, TOKENIZERS
from cmidiff.prior.formats.weights import SUFFIXES

HUB = "hf:"
SMALL = (CONFIG_FILE, f"unet/{CONFIG_FILE}", INDEX, SCHEDULER_FILE, f"scheduler/{SCHEDULER_FILE}", "card.json")


@dataclass(frozen=True)
class HubPrior:
    """A latent pipeline of the hub.

    Attributes:
        name: as ``hf:OWNER/NAME``.
        description, licence: in words.
        millions: parameters of its network, its autoencoder and its text encoders, in millions, as their published
            configurations make them.
        width: bytes of a parameter in the files.
    """

    name: str
    description: str
    licence: str
    millions: tuple[int, ...]
    width: int = 4

    @property
    def download(self) -> str:
        """How much is fetched, about: parameters times bytes."""
        return f"{sum(self.millions) * self.width / 1e3:.1f} GB"

    @property
    def present(self) -> bool:
        """Whether all of it is in the cache of the hub."""
        return folder_of(self.name) is not None


AUTOENCODER, CLIP, CLIP_G, T5 = 84, 123, 695, 4762
LATENT_PRIORS = (
    HubPrior("hf:CompVis/ldm-celebahq-256", "faces, 256x256, no text", "Apache 2.0", (274, 55)),
    HubPrior(
        "hf:stable-diffusion-v1-5/stable-diffusion-v1-5",
        "images, 512x512",
        "CreativeML OpenRAIL-M",
        (860, AUTOENCODER, CLIP),
    ),
    HubPrior(
        "hf:stabilityai/stable-diffusion-xl-base-1.0",
        "images, 1024x1024",
        "OpenRAIL++-M",
        (2567, AUTOENCODER, CLIP, CLIP_G),
    ),
    HubPrior(
        "hf:stabilityai/stable-diffusion-3.5-medium",
        "images, 1024x1024, a flow",
        "Stability AI Community",
        (2470, AUTOENCODER, CLIP, CLIP_G, T5),
        width=2,
    ),
    HubPrior(
        "hf:black-forest-labs/FLUX.1-dev",
        "images, 1024x1024, a flow",
        "FLUX.1-dev Non-Commercial",
        (11901, AUTOENCODER, CLIP, T5),
        width=2,
    ),
)


def hub_name(name: str) -> str:
    """Return ``hf:OWNER/NAME`` for a bare ``OWNER/NAME`` of the hub, and any other name unchanged.

    A name is not of the hub if its first part is a folder here, or if it ends as a file of weights does.
    """
    bare = re.fullmatch(r"(?!\.)[\w.-]+/[\w.-]+(@[\w.-]+)?", name)
    return name if bare is None or Path(name).parent.is_dir() or Path(name).suffix in SUFFIXES else f"{HUB}{name}"


def hub_repository(name: str) -> tuple[str, str | None]:
    """Repository and revision of ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION``."""
    repository, _, revision = name.removeprefix(HUB).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or ".." in repository:
        raise ValueError(f"a prior of the hub is called hf:OWNER/NAME, received {name!r}")
    return repository, revision or None


def fetch_from_hub(name: str) -> Path:
    """The folder of a pipeline of the hub, ``hf:OWNER/NAME[@REVISION]``, fetched if it is not here."""
    from huggingface_hub.errors import HFValidationError

    repository, revision = hub_repository(name)
    try:
        folder = _download(repository, revision, SMALL)
        if (folder / INDEX).is_file():
            check_kind(Fields.read(folder / INDEX))
        folder = _fetch_weights(name, repository, revision, folder)
    except HFValidationError as error:
        raise ValueError(f"{name!r} is not a name of the hub: {error}") from error
    except ValueError:
        raise
    except Exception as error:  # offline, unknown, gated: as many classes as the hub has versions
        raise FileNotFoundError(_explain(name, repository, error)) from error
    if not is_folder(folder) and not (folder / INDEX).is_file():
        raise FileNotFoundError(f"{name} is no pipeline of diffusers: it has neither unet/config.json nor {INDEX}")
    return folder


def _explain(name: str, repository: str, error: Exception) -> str:
    """Why a prior cannot be fetched, and what to do."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"https://huggingface.co/{repository}"
    if isinstance(error, GatedRepoError):
        return (
            f"the prior {name} is gated: accept its licence at {page}, then log in on this machine (hf auth login), or "
            "put its folder anywhere and pass the path"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"the prior {name} names a revision that {page} does not have: leave @REVISION out, or correct it"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no {page}, or it is private: correct the name {name}, or log in (hf auth login)"
    return (
        f"the prior {name} is not on this machine and cannot be fetched from {page} ({type(error).__name__}): put its "
        "folder anywhere and pass the path"
    )


def _download(repository: str, revision: str | None, files: Iterable[str], *, offline: bool = False) -> Path:
    import huggingface_hub

    return Path(
        huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=list(files), local_files_only=offline
        )
    )


def _fetch_weights(name: str, repository: str, revision: str | None, folder: Path) -> Path:
    """Fetch what is not here, after saying how much that is."""
    import huggingface_hub

    kind = _kind(folder)
    try:
        info = huggingface_hub.HfApi().model_info(repository, revision=revision, files_metadata=True)
    except (OSError, huggingface_hub.errors.OfflineModeIsEnabled):  # what is here may be all
        if not _is_whole(folder, kind):
            raise
        return folder
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    wanted = files_of(sizes, kind)
    absent = [file for file in wanted if not (folder / file).is_file()]
    if absent:
        total = sum(sizes[file] for file in absent) / 1e9
        announce(f"{total:.1f} GB in {len(absent)} files of {name} from https://huggingface.co/{repository}")
    return _download(repository, revision, wanted)


def folder_of(name: str) -> Path | None:
    """The folder of a pipeline by its path or its name of the hub; nothing is fetched. None where
    there is none, or where files of it are missing in the cache of the hub."""
    name = hub_name(name)
    if not name.startswith(HUB):
        return Path(name) if Path(name).is_dir() else None
    repository, revision = hub_repository(name)
    try:
        folder = _download(repository, revision, SMALL, offline=True)
    except Exception:  # as many classes as the hub has versions
        return None
    return folder if _is_whole(folder, _kind(folder)) else None


def _is_whole(folder: Path, kind: str | None) -> bool:
    """Whether a folder has a configuration and weights of each part that its index names."""
    if kind not in PIPELINES:
        return any((folder / part / file).is_file() for part in ("unet", "") for file in (WEIGHTS_FILE, PICKLED_FILE))
    index = Fields.read(folder / INDEX).values
    parts = [part for part in (PIPELINES[kind].network, PIPELINES[kind].autoencoder, *ENCODERS) if part in index]
    parts = [part for part in parts if index[part] != [None, None]]
    names = {part: [path.name for path in (folder / part).glob("*")] for part in parts}
    return all(CONFIG_FILE in names[part] and weights_of(names[part]) for part in parts)


def _kind(folder: Path) -> str | None:
    """The class of a latent pipeline; None of others."""
    index = folder / INDEX
    found = Fields.read(index).values.get("_class_name") if index.is_file() else None
    return str(found) if found in PIPELINES else None


def files_of(names: Iterable[str], kind: str | None) -> list[str]:
    """Which of the files of a pipeline are needed: configurations, tokenizers, and of each part one set of weights.
    ``kind`` is None of pipelines that are not latent."""
    names = list(names)
    wanted = [name for name in names if name in (*SMALL, "moments.safetensors")]
    if kind is None:
        beside = (f"{part}{file}" for file in (WEIGHTS_FILE, PICKLED_FILE) for part in ("unet/", ""))
        return wanted + [name for name in beside if name in names][:1]
    for part in TOKENIZERS:
        wanted += [n for n in names if n.startswith(f"{part}/") and n.endswith((".json", ".txt", ".model"))]
    for part in (PIPELINES[kind].network, PIPELINES[kind].autoencoder, *ENCODERS):
        inside = [n.removeprefix(f"{part}/") for n in names if n.startswith(f"{part}/")]
        needed = [n for n in inside if n == CONFIG_FILE or re.search(r"\.safetensors\.index(\.\w+)?\.json$", n)]
        wanted += [f"{part}/{n}" for n in (*needed, *weights_of(inside)) if f"{part}/{n}" not in wanted]
    return wanted
