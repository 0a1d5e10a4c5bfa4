"""The priors of a page: those that its command names, or all that are on this machine.

Nothing is fetched for a visitor. A prior that is not here is shown with the size of its download and the command that
fetches it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmidiff.app.speed import Speed
from cmidiff.loading import Loading
from cmidiff.prior.base import Denoiser
from cmidiff.prior.formats.latent_pipeline import is_latent
from cmidiff.prior.hub import HUB, LATENT_PRIORS, fetch_from_hub, folder_of, hub_name
from cmidiff.prior.known import info_of
from cmidiff.registry import PRIORS

DEFAULT = "photo"


@dataclass(frozen=True)
class Ready:
    """A prior that is loaded.

    Attributes:
        name: at the command line.
        prior: on the device of the page.
        loading: how it was loaded.
        speed: of its runs.
        device: of the page.
    """

    name: str
    prior: Denoiser
    loading: Loading
    speed: Speed
    device: str = "cpu"


class Priors:
    """The priors of a page; each is loaded once.

    Args:
        names: of the command line, loaded at once and fetched if they are not here. Without any, `DEFAULT` and all that
            are on this machine are offered.
        device: where they compute.
        loading: how they are loaded; options of latent priors do not reach others where several are offered.

    Raises:
        ValueError, OSError: one that is named cannot be loaded.
    """

    def __init__(self, names: Sequence[str], device: str, loading: Loading | None = None) -> None:
        self.device, self._loading = device, loading or Loading()
        named = tuple(dict.fromkeys(names)) or (DEFAULT,)
        offered = named if names else (*named, *(name for name in find_present() if name not in named))
        self._names = {Path(name).name if Path(name).exists() else name: name for name in offered}
        self._ready, self._lock = dict[str, Ready](), threading.Lock()
        for name in list(self._names)[: len(named)]:
            self.get(name)

    @property
    def names(self) -> list[str]:
        """Those that a visitor may choose, the default first; a path is named by its last part."""
        return list(self._names)

    def get(self, name: str) -> Ready:
        """Return a prior that is offered, loaded if it is not yet.

        One prior is loaded at a time, which bounds the memory; visitors of the others do not wait for it.
        """
        if name in self._ready:
            return self._ready[name]
        with self._lock:
            if name not in self._ready:
                self._ready[name] = self._load(self._names[name])
            return self._ready[name]

    def _load(self, name: str) -> Ready:
        folder = None if name in PRIORS else folder_of(name)
        if folder is None and name not in PRIORS and hub_name(name).startswith(HUB):
            folder = fetch_from_hub(hub_name(name))
        latent = folder is not None and is_latent(folder)
        loading = self._loading if latent or len(self._names) == 1 else self._loading.of_images
        # A hub's pipeline that is here is read where it is: to ask the hub could fetch a newer one.
        prior = loading.load(name if folder is None else str(folder), self.device)
        return Ready(name, prior, loading, Speed(prior), self.device)

    def close(self) -> None:
        """End measurements that are under way."""
        for ready in self._ready.values():
            ready.speed.close()


def find_present() -> list[str]:
    """Return the names of the priors that are on this machine, of the package and of the hub."""
    own = [name for name in PRIORS.loadable() if info_of(name).where() is not None]
    return own + [entry.name for entry in LATENT_PRIORS if entry.present]


def find_absent() -> list[tuple[str, str, str]]:
    """Return name, size of the download and description of the known priors that would have to be fetched."""
    infos = [info_of(name) for name in PRIORS.loadable()]
    own = [(info.name, info.card["download"], info.description) for info in infos if info.where() is None and info.url]
    return own + [(entry.name, entry.download, entry.description) for entry in LATENT_PRIORS if not entry.present]
