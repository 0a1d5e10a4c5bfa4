"""The second moments of images in the DCT domain: the Gaussian prior that a set of images defines.

    x_0 ~ N(mu, Q^T diag(lambda) Q),    Q the orthonormal DCT over channels, height and width

``lambda`` is the mean squared coefficient. The table is measured at one size and serves every other. An orthonormal
coefficient at a given frequency has the same variance at every size, the power spectral density there. It is near to a
power law of the radial frequency, the law of photographs (Field, 1987, https://doi.org/10.1364/JOSAA.4.002379). The
law, fitted to the table, is extended to the frequencies of the wanted size. What the table adds to it is interpolated
in the logarithms of the two frequencies, and constant beyond the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cmidiff.dct import dct

LOWEST = 0.5  # frequency, in steps of the DCT, that stands for the constant coefficient
SMALLEST = 1e-8  # of the largest variance: keeps logarithms and inverses finite


@dataclass(frozen=True, eq=False)
class SecondMoments:
    """Mean and variances of a signal in the DCT domain, in the units of a prior.

    Args:
        mean: of the image, shape (C,) for images or the shape of the signal.
        variances: ``lambda``, shape (C, N, N) for images or the shape of the signal, float64.
    """

    mean: Tensor
    variances: Tensor

    @property
    def variance(self) -> float:
        """Mean variance of a pixel around the mean."""
        return float(self.variances.mean())

    def spectrum(self, shape: tuple[int, ...]) -> Tensor:
        """``lambda`` for signals of ``shape``, float64 on the CPU.

        Args:
            shape: (C, H, W), any H and W; signals of other dimensions must have the shape of the table.

        Raises:
            ValueError: the table does not serve this shape.
        """
        table = self.variances
        if tuple(shape) == tuple(table.shape):
            return table
        if len(shape) != 3 or table.ndim != 3 or shape[0] != table.shape[0]:
            raise ValueError(
                f"second moments of shape {tuple(table.shape)} do not serve signals of shape {tuple(shape)}: "
                "measure them on signals of that shape (SecondMoments.measure)"
            )
        logs = table.clamp_min(SMALLEST * float(table.max())).log()
        radius = _log_radius(table.shape)
        centred = radius - radius.mean()
        slope = (centred * logs).sum((1, 2), keepdim=True) / (centred**2).sum()  # of the power law, for each channel
        remainder = _interpolate(_interpolate(logs - slope * radius, shape[1], 1), shape[2], 2)
        return (remainder + slope * _log_radius(shape)).exp()

    def centre(self, shape: tuple[int, ...]) -> Tensor:
        """``mu``, broadcastable to a signal of ``shape``."""
        mean = self.mean
        if mean.ndim == len(shape) and tuple(mean.shape) != tuple(shape):  # of signals of another size
            mean = mean.flatten(1).mean(1)
        return mean if mean.ndim == len(shape) else mean.reshape(-1, *[1] * (len(shape) - 1))

    def rescaled(self, gain: float, offset: float) -> SecondMoments:
        """The moments of ``gain x + offset``."""
        return SecondMoments(gain * self.mean + offset, gain**2 * self.variances)

    @classmethod
    def measure(cls, images: Iterable[Tensor], *, per_channel: bool = True) -> SecondMoments:
        """Measure the moments of signals of one shape.

        Args:
            images: tensors (C, H, W) with H = W, or signals of any one shape, in the units of the prior.
            per_channel: one mean for each channel, and variances that treat both image axes alike (images); otherwise
                a mean for each entry.

        Raises:
            ValueError: no image, or images of different shapes.
        """
        stack = [image.double().cpu() for image in images]
        if not stack or len({tuple(image.shape) for image in stack}) != 1:
            shapes = sorted({tuple(image.shape) for image in stack})
            raise ValueError(f"second moments need images of one shape, received {shapes or 'none'}: crop them")
        x = torch.stack(stack)
        mean = x.mean((0, *range(2, x.ndim))) if per_channel else x.mean(0)
        centred = x - (mean.reshape(-1, *[1] * (x.ndim - 2)) if per_channel else mean)
        variances = dct(centred).square().mean(0)
        if per_channel and variances.ndim == 3 and variances.shape[1] == variances.shape[2]:
            variances = 0.5 * (variances + variances.mT)
        return cls(mean, variances.clamp_min(SMALLEST * float(variances.max())))

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds: the mean, and the logarithms of the variances in single precision."""
        return {"mean": self.mean.float(), "log_variances": self.variances.log().float()}

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        save_file(self.tensors(), path)

    @classmethod
    def load(cls, path: Path) -> SecondMoments:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it holds something else.
        """
        if not path.is_file():
            raise FileNotFoundError(f"there is no file of second moments at {path}")
        try:
            with safe_open(path, "pt") as file:
                mean, logs = file.get_tensor("mean").double(), file.get_tensor("log_variances").double()
        except Exception as error:  # safetensors raises its own kinds
            raise ValueError(f"{path} holds no second moments: {error}") from error
        return cls(mean, logs.exp())


def _interpolate(values: Tensor, size: int, axis: int) -> Tensor:
    """``values`` at the frequencies of a DCT of ``size`` along one axis, linear in the logarithm of the frequency."""
    count = values.shape[axis]
    known, wanted = _log_frequencies(count), _log_frequencies(size)
    upper = torch.searchsorted(known, wanted).clamp(min(2, count - 1), count - 1)
    low, high = known[upper - 1], known[upper]
    share = ((wanted - low) / (high - low)).clamp(0.0, 1.0)
    upper[0], share[0] = 1, 0.0  # edges and horizons: the row of constants stands out whatever the size
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    return torch.lerp(values.index_select(axis, upper - 1), values.index_select(axis, upper), share.reshape(shape))


def _log_radius(shape: tuple[int, ...]) -> Tensor:
    """Logarithm of the radial frequency, shape (H, W)."""
    across, along = (_log_frequencies(n).exp() for n in shape[-2:])
    return (across[:, None] ** 2 + along**2).sqrt().log()


def _log_frequencies(size: int) -> Tensor:
    """Logarithms of the frequencies of a DCT of ``size``, in half cycles a pixel."""
    steps = torch.arange(size, dtype=torch.float64)
    steps[0] = LOWEST
    return (steps / size).log()
