r"""How good a restoration is: against the truth (PSNR, SSIM, LPIPS), against the measurement, and as an uncertainty.

Images are in [0, 1] and every function returns one number per image, ``(B,)``, float64 where it is computed here. What
lies outside of [0, 1] is clipped first in PSNR, SSIM and LPIPS, as it would be when the image is saved.

Uncertainty. If the ``K`` samples and the truth are drawn from the same posterior, all ``K + 1`` values of a pixel are
exchangeable. The truth then lies between the ``j``-th smallest and the ``j``-th largest sample with probability
``(K + 1 - 2 j) / (K + 1)``. This holds for every distribution, and no quantile has to be estimated. ``calibration``
compares these levels with what happens. ``crps`` is the score that the true posterior minimises: the error of single
samples rewards those that spread too little, this one does not.
"""

from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
from deepinv.physics import Physics
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity

from cmidiff.physics import known_entries, measured_count

_SSIM_WINDOW = 11  # pixels; Wang et al. 2004
_LPIPS_WEIGHTS = {
    "alex": ("alexnet", "alexnet-owt-7be5be79.pth"),
    "vgg": ("vgg16", "vgg16-397923af.pth"),
    "squeeze": ("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth"),
}


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, ``-10 log10 mean |x - truth|^2``, in dB; infinite for equal images.

    Args:
        x: restored images, ``(B, C, H, W)``, in [0, 1].
        truth: clean images of the same shape.

    Returns:
        ``(B,)``, dB.

    Raises:
        ValueError: if the shapes differ, or a value is not finite.
    """
    x, truth = _clipped(x, truth)
    return -10 * (x - truth).double().square().flatten(1).mean(1).log10()


def ssim(x: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity, at most 1, with the Gaussian window of 11 pixels and std 1.5, averaged over the channels.

    It is torchmetrics' SSIM: windows that cross the border see a mirrored image, where scikit-image leaves them out.
    Wang, Bovik, Sheikh, Simoncelli, Image Quality Assessment: From Error Visibility to Structural Similarity, 2004,
    https://doi.org/10.1109/TIP.2003.819861.

    Args:
        x: restored images, ``(B, C, H, W)``, in [0, 1], at least 11 pixels a side.
        truth: clean images of the same shape.

    Returns:
        ``(B,)``, dimensionless.

    Raises:
        ValueError: if the shapes differ, a value is not finite, or the images are smaller than the window.
    """
    x, truth = _clipped(x, truth)
    if min(x.shape[-2:]) < _SSIM_WINDOW:
        raise ValueError(f"SSIM needs images of at least 11x11 pixels; got {x.shape[-2]}x{x.shape[-1]}. Use PSNR.")
    value = structural_similarity_index_measure(x.double(), truth.double(), data_range=1.0, reduction="none")
    return cast(Tensor, value).reshape(len(x))


def lpips(x: Tensor, truth: Tensor, *, net: Literal["alex", "vgg", "squeeze"] = "alex") -> Tensor:
    """Learned perceptual distance, 0 for equal images. Nothing is downloaded: the network's weights must be there.

    Zhang, Isola, Efros, Shechtman, Wang, The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, 2018,
    https://arxiv.org/abs/1801.03924.

    Args:
        x: restored images, ``(B, 3, H, W)``, in [0, 1].
        truth: clean images of the same shape.
        net: ``"alex"``, as in most papers, ``"vgg"`` or ``"squeeze"``.

    Returns:
        ``(B,)``, dimensionless.

    Raises:
        ValueError: if the shapes differ, a value is not finite, the images have no 3 channels, or ``net`` is unknown.
        FileNotFoundError: if the weights are not in torch's cache; the message says how they get there.
    """
    x, truth = _clipped(x, truth)
    if x.shape[1] != 3:
        raise ValueError(f"LPIPS needs images of 3 channels; got {x.shape[1]}. Repeat a grey image three times.")
    if net not in _LPIPS_WEIGHTS:
        raise ValueError(f"There is no LPIPS network {net!r}. Choose from: {', '.join(_LPIPS_WEIGHTS)}.")
    model, file = _LPIPS_WEIGHTS[net]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.is_file():
        raise FileNotFoundError(
            f"LPIPS needs the weights of {model} at {path}; there are none. Copy the file there, or run once, "
            f"with a network: python -c \"from torchvision.models import {model}; {model}(weights='IMAGENET1K_V1')\""
        )
    distance = learned_perceptual_image_patch_similarity(x.float(), truth.float(), net, "none", normalize=True)
    return distance.reshape(len(x)).double()


def data_misfit(x: Tensor, y: Tensor, physics: Physics, *, noise_std: float) -> Tensor:
    """``|y - A x| / (noise_std sqrt(m))`` per image: about 1 for the true image, more if ``x`` does not explain ``y``.

    Args:
        x: restored images, ``(B, C, H, W)``, in [0, 1], not clipped here.
        y: measurements, ``(B, ...)``.
        physics: ``A``; entries that a mask hides count neither in the norm nor in ``m``.
        noise_std: in units of an image in [0, 1], positive.

    Returns:
        ``(B,)``, in units of the noise.

    Raises:
        ValueError: if ``noise_std`` is not positive, or ``A x`` and ``y`` differ in shape.
    """
    if not noise_std > 0:
        raise ValueError(f"The misfit is in units of the noise, so noise_std must be positive; got {noise_std}.")
    predicted = physics.A(x)
    if predicted.shape != y.shape:
        raise ValueError(f"A x has shape {tuple(predicted.shape)}, y {tuple(y.shape)}. Pass the physics that made y.")
    known = known_entries(physics, y)
    residual = (y - predicted).abs().double() * (1 if known is None else known)
    return residual.square().flatten(1).sum(1).div(measured_count(physics, y)).sqrt() / noise_std


class Calibration(NamedTuple):
    """Intervals between the ``j``-th smallest and the ``j``-th largest of K samples, ``j`` from K // 2 down to 1.

    Attributes:
        level: probability that an interval holds the truth if the samples are right, ``(K // 2,)``, increasing.
        observed: share of the pixels where it does, ``(B, K // 2)``.
    """

    level: Tensor
    observed: Tensor

    @property
    def error(self) -> Tensor:
        """Mean of ``|observed - level|``, ``(B,)``: 0 is calibrated."""
        return (self.observed - self.level).abs().mean(1)


def calibration(samples: Tensor, truth: Tensor) -> Calibration:
    """How often the truth lies within each central interval of the samples, pixel by pixel.

    Observed below the level: the samples are too sure; above: not sure enough. The levels are exact for every K (see
    the top of this file), so few samples make the curve coarse, not biased. A truth equal to an end counts as inside.

    Args:
        samples: ``(B, K, C, H, W)``, K at least 2.
        truth: ``(B, C, H, W)``.

    Raises:
        ValueError: for fewer than 2 samples, or shapes that do not belong together.
    """
    _check_samples("Calibration", samples, truth)
    count = samples.shape[1]
    ordered = samples.sort(dim=1).values
    j = torch.arange(count // 2, 0, -1, device=samples.device)
    inside = (ordered[:, j - 1] <= truth[:, None]) & (truth[:, None] <= ordered[:, count - j])
    return Calibration((count + 1 - 2 * j).double() / (count + 1), inside.double().flatten(2).mean(2))


def coverage(samples: Tensor, truth: Tensor, *, level: float = 0.9) -> Tensor:
    """Share of the pixels whose truth lies in the central interval of probability ``level`` of the samples.

    Between the exact levels of ``calibration`` it is interpolated.

    Args:
        samples: ``(B, K, C, H, W)``; ``level`` can be reached with ``K >= (1 + level) / (1 - level)``: 19 for 0.9.
        truth: ``(B, C, H, W)``.
        level: in (0, 1).

    Returns:
        ``(B,)``; ``level`` itself is calibrated.

    Raises:
        ValueError: for a level outside of (0, 1), or one that so few samples cannot reach.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1; got {level}. The usual one is 0.9.")
    exact, observed = calibration(samples, truth)
    if level > float(exact[-1]) + 1e-12:
        raise ValueError(
            f"{samples.shape[1]} samples bound intervals of probability {float(exact[-1]):.3g} at most; got "
            f"level={level}. Draw at least (1 + level) / (1 - level) samples, or lower the level."
        )
    exact = torch.cat([exact.new_zeros(1), exact])
    observed = torch.cat([observed.new_zeros(len(observed), 1), observed], 1)
    above = int(torch.searchsorted(exact, level - 1e-12).clamp(1, len(exact) - 1))
    share = (level - exact[above - 1]) / (exact[above] - exact[above - 1])
    return observed[:, above - 1] + share * (observed[:, above] - observed[:, above - 1])


def crps(samples: Tensor, truth: Tensor) -> Tensor:
    """Continuous ranked probability score, the mean over the pixels of ``E|x - truth| - E|x - x'| / 2``.

    ``x`` and ``x'`` are independent samples of the restorer. In expectation it is least, pixel by pixel, for samples of
    the true posterior: it punishes a wrong mean as well as a wrong spread. Both means run over the K samples and over
    their pairs, so that it is unbiased for every K. Like PSNR it takes images as they are saved, clipped to [0, 1].

    Gneiting, Raftery, Strictly Proper Scoring Rules, Prediction, and Estimation, 2007,
    https://doi.org/10.1198/016214506000001437; unbiased for few samples: Ferro, Fair scores for ensemble forecasts,
    2014, https://doi.org/10.1002/qj.2270.

    Args:
        samples: ``(B, K, C, H, W)``, K at least 2.
        truth: ``(B, C, H, W)``.

    Returns:
        ``(B,)``, in units of the image; 0 is perfect.

    Raises:
        ValueError: for fewer than 2 samples, or shapes that do not belong together.
    """
    _check_samples("The CRPS", samples, truth)
    count = samples.shape[1]
    x = samples.clamp(0, 1).double()
    off = (x - truth.clamp(0, 1).double()[:, None]).abs().flatten(1).mean(1)
    # Sorted, the distances of all pairs add up to a weighted sum.
    weights = torch.arange(1 - count, count, 2, dtype=x.dtype, device=x.device) / (count * (count - 1))
    apart = torch.einsum("k,bkp->bp", weights, x.flatten(2).sort(dim=1).values).mean(1)
    return off - apart


def energy_score(samples: Tensor, truth: Tensor) -> Tensor:
    """Energy score of whole images, ``E|x - truth| - E|x - x'| / 2`` with the Euclidean norm.

    In expectation it is least for samples of the true posterior. Unlike the CRPS it also sees how pixels depend on one
    another. Of one pixel the two are the same. It is unbiased for every K, and takes images clipped to [0, 1].

    Gneiting, Raftery, Strictly Proper Scoring Rules, Prediction, and Estimation, 2007,
    https://doi.org/10.1198/016214506000001437.

    Args:
        samples: ``(B, K, C, H, W)``, K at least 2.
        truth: ``(B, C, H, W)``.

    Returns:
        ``(B,)``, in units of the image; 0 is perfect.

    Raises:
        ValueError: for fewer than 2 samples, or shapes that do not belong together.
    """
    _check_samples("The energy score", samples, truth)
    count = samples.shape[1]
    x, target = samples.clamp(0, 1).double().flatten(2), truth.clamp(0, 1).double().flatten(1)
    apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").sum((1, 2)) / (count * (count - 1))
    return (x - target[:, None]).norm(dim=2).mean(1) - apart / 2


def _check_samples(what: str, samples: Tensor, truth: Tensor) -> None:
    if samples.ndim < 3 or samples.shape[1] < 2 or samples[:, 0].shape != truth.shape:
        raise ValueError(
            f"{what} needs at least 2 samples per image, (B, K, C, H, W), and a truth (B, C, H, W); got "
            f"{tuple(samples.shape)} and {tuple(truth.shape)}. Restore with samples=2 or more."
        )


def _clipped(x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape != truth.shape or x.ndim != 4 or x.numel() == 0:
        raise ValueError(
            f"Images and truth must have the same shape (B, C, H, W); got {tuple(x.shape)} and {tuple(truth.shape)}. "
            "Add the batch dimension by x[None]."
        )
    if not bool(x.isfinite().all()) or not bool(truth.isfinite().all()):
        raise ValueError("Images must be finite; got NaN or infinite values. Leave out samples whose status is not ok.")
    return x.clamp(0, 1), truth.clamp(0, 1)
