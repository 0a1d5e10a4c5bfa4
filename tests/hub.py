"""A hub in a folder: what `huggingface_hub` is asked for, and what it answers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled


@dataclass
class Hub:
    """One repository.

    Attributes:
        source: its files.
        cache: where they are copied to.
        offline: whether it cannot be reached.
        size: of a file, as the hub states it.
        asked: the patterns of each download.
        before: called before each download.
    """

    source: Path
    cache: Path
    offline: bool = False
    size: Callable[[Path], int] = lambda path: path.stat().st_size
    asked: list[list[str]] = field(default_factory=list)
    before: Callable[[], None] = lambda: None

    def install(self, patch: pytest.MonkeyPatch) -> Hub:
        patch.setattr(huggingface_hub, "snapshot_download", self.download)
        patch.setattr(huggingface_hub, "HfApi", lambda: self)
        return self

    @property
    def names(self) -> list[str]:
        return [str(path.relative_to(self.source)) for path in sorted(self.source.rglob("*")) if path.is_file()]

    def download(
        self, repository: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool = False
    ) -> str:
        if local_files_only or self.offline:
            if not self.cache.is_dir():
                raise LocalEntryNotFoundError(f"{repository} is not in the cache")
            return str(self.cache)
        self.before()
        self.asked.append(allow_patterns)
        for name in set(self.names) & set(allow_patterns):
            (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.source / name, self.cache / name)
        return str(self.cache)

    def model_info(self, repository: str, *, revision: str | None, files_metadata: bool) -> Any:
        assert files_metadata
        if self.offline:
            raise OfflineModeIsEnabled("offline")
        files = [SimpleNamespace(rfilename=name, size=self.size(self.source / name)) for name in self.names]
        return SimpleNamespace(siblings=files)
