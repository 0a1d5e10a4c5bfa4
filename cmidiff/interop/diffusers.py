"""Restoration as a pipeline in the manner of diffusers: loaded once by a name, then called."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from deepinv.physics import Physics
from torch import Tensor

from cmidiff.prior import load_prior
from cmidiff.prior.base import Denoiser
from cmidiff.restoration import restore
from cmidiff.result import Restoration


class RestorationPipeline:
    """A prior with `cmidiff.restore`: ``pipeline(y, physics)``.

    Args:
        prior: the prior.
    """

    def __init__(self, prior: Denoiser) -> None:
        self.prior = prior

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "photo",
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> Self:
        """Load the prior by `cmidiff.load_prior`, which lists the other options and the errors."""
        return cls(load_prior(name_or_path, device, dtype, **options))

    def to(self, device: str | torch.device) -> Self:
        """Move the prior to a device."""
        self.prior = self.prior.to(device)
        return self

    def __call__(self, y: Tensor, physics: Physics, **options: Any) -> Restoration:
        """Restore ``y``; `cmidiff.restore` lists the options, the result and the errors."""
        return restore(y, physics, self.prior, **options)
