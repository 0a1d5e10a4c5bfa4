"""What is measured of a unit, and of a whole cell.

FID and KID compare two sets of images, so they are figures of a cell (see `cmidiff.evaluate.sets`). The features are
those of the Inception network of torch-fidelity. FID depends on the number of images, which is recorded with it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from deepinv.physics import Physics
from torch import Tensor

from cmidiff.evaluate.records import Metric
from cmidiff.images import read_image
from cmidiff.metrics import calibration, crps, data_misfit, lpips, psnr, ssim

SSIM_LEAST = 11  # pixels: smaller images have no SSIM
LPIPS_LEAST = 32  # pixels: smaller images vanish in the network of LPIPS
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
FEATURES = 2048
INCEPTION_NAME = "Inception-v3 (2015-12-05), 2048 features"
BATCH = 16  # images through the network of FID and KID at once
FID_LEAST = 2  # images: a covariance needs two

METRICS = (
    Metric("psnr", "dB", "higher", "peak signal-to-noise ratio of a sample"),
    Metric("ssim", "", "higher", "structural similarity of a sample"),
    Metric("lpips", "", "lower", "learned perceptual distance of a sample, of images with 8 bits"),
    Metric("fid", "", "lower", "Frechet inception distance of the first samples of a cell to the true images"),
    Metric("kid", "", "lower", "kernel inception distance of the first samples of a cell to the true images, unbiased"),
    Metric("misfit", "sigma", "none", "|y - A x| / (sigma sqrt m) of a sample; 1 explains y down to the noise"),
    Metric("mean_psnr", "dB", "higher", "peak signal-to-noise ratio of the mean of the samples"),
    Metric("mean_ssim", "", "higher", "structural similarity of the mean of the samples"),
    Metric("crps", "", "lower", "continuous ranked probability score: distance of the samples' distribution from the "
           "truth, least for the true posterior"),
    Metric("diversity", "", "none", "standard deviation over the samples, averaged over the pixels"),
    Metric("coverage", "", "none", "share of the pixels whose truth lies between the extremes of the K samples; "
           "(K - 1)/(K + 1) if they are calibrated"),
)  # fmt: skip
OF_SEVERAL = ("mean_psnr", "mean_ssim", "crps", "diversity", "coverage")


def list_metrics(samples: int, side: int, absent: Mapping[str, str | None]) -> list[Metric]:
    """The metrics of a run, with the reason for each that it cannot have.

    Args:
        samples: K.
        side: smallest side of the images, pixels.
        absent: reasons that are known already.
    """
    reasons = dict(absent)
    if side < SSIM_LEAST:
        reasons |= dict.fromkeys(("ssim", "mean_ssim"), f"needs images of at least {SSIM_LEAST} pixels a side")
    if side < LPIPS_LEAST:
        reasons["lpips"] = f"needs images of at least {LPIPS_LEAST} pixels a side"
    if samples < 2:
        reasons |= dict.fromkeys(OF_SEVERAL, "needs at least two samples: --samples 2 or more")
    return [replace(metric, absent=reasons.get(metric.name)) for metric in METRICS]


def score_samples(
    samples: Tensor, truth: Tensor, y: Tensor, physics: Physics, *, noise_std: float, lpips_net: str | None
) -> dict[str, float]:
    """The scores of a unit.

    Args:
        samples: those that finished, (K, C, H, W), in [0, 1], not clipped.
        truth: (C, H, W).
        y: measurement (1, ...).
        physics: that made it.
        noise_std: of the measurement; without noise, the misfit is the root mean square of the residual.
        lpips_net: or None for no LPIPS.
    """
    several = truth.expand_as(samples)
    found = {"psnr": psnr(samples, several).mean()}
    residuals = [data_misfit(x[None], y, physics, noise_std=noise_std or 1.0) for x in samples]
    found["misfit"] = torch.cat(residuals).mean()
    with_ssim = min(truth.shape[1:]) >= SSIM_LEAST
    if with_ssim:
        found["ssim"] = ssim(samples, several).mean()
    if lpips_net is not None:
        found["lpips"] = compute_lpips(samples, several, lpips_net)
    if len(samples) > 1:
        mean = samples.mean(0, keepdim=True)
        found["mean_psnr"] = psnr(mean, truth[None]).mean()
        found["crps"] = crps(samples[None], truth[None])
        found["diversity"] = samples.double().std(0).mean()
        found["coverage"] = calibration(samples[None], truth[None]).observed[0, -1]
        if with_ssim:
            found["mean_ssim"] = ssim(mean, truth[None]).mean()
    return {name: float(value) for name, value in found.items()}


def compute_lpips(samples: Tensor, truth: Tensor, net: str) -> Tensor:
    """LPIPS of images with 8 bits, as they are saved, so that it can be had from the files later."""
    saved = (samples.double().clamp(0, 1) * 255).round() / 255  # in float32 a level could round to its neighbour
    return lpips(saved.to(truth), truth, net=cast(Literal["alex", "vgg", "squeeze"], net)).mean()


def compute_lpips_of_files(samples: Sequence[Path], truth: Path, net: str) -> float:
    """The same, of PNG files."""
    images = torch.stack([read_levels(path) for path in samples]).float() / 255
    return float(compute_lpips(images, (read_levels(truth).float() / 255).expand_as(images), net))


def explain_no_lpips(net: str) -> str | None:
    """Why there is no LPIPS here and how to get it; None if there is."""
    try:
        lpips(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64), net=cast(Literal["alex", "vgg", "squeeze"], net))
    except FileNotFoundError as error:
        return str(error)
    return None


def explain_no_fid() -> str | None:
    """Why there is no FID here and how to get it; None if there is."""
    if importlib.util.find_spec("torch_fidelity") is None:
        return "FID needs the package torch-fidelity: pip install 'cmidiff[fid]'"
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    if path.is_file():
        return None
    return (
        f"FID needs the weights of torch-fidelity's Inception network at {path}; there are none. Copy the file there, "
        'or run once, with a network: python -c "from torchmetrics.image.fid import FrechetInceptionDistance as F; F()"'
    )


def compute_features(files: Sequence[Path], network: Any = FEATURES, device: str = "cpu") -> np.ndarray:
    """Features (n, d) of PNG files.

    Args:
        files: of the images.
        network: width of the Inception features, or a module (B, 3, H, W) uint8 -> (B, features).
        device: where it runs.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    extract = FrechetInceptionDistance(feature=network).to(device).inception
    with torch.no_grad():
        parts = [extract(images.to(device)).float().cpu().numpy() for images in _batches(list(files), BATCH)]
    return np.concatenate(parts)


def _batches(files: list[Path], batch: int) -> Iterable[Tensor]:
    """Images (B, 3, H, W) uint8, consecutive ones of one size together."""
    together: list[Tensor] = []
    for file in files:
        image = read_levels(file)
        if together and (len(together) == batch or image.shape != together[0].shape):
            yield torch.stack(together)
            together = []
        together.append(image)
    if together:
        yield torch.stack(together)


def read_levels(file: Path) -> Tensor:
    """A image (3, H, W), uint8."""
    return (read_image(file).values.expand(3, -1, -1) * 255).round().byte()
