"""cmidiff inside other libraries, against its own results."""

from __future__ import annotations

from dataclasses import replace

import deepinv
import pytest
import torch
from azula.sample import DDIMSampler
from deepinv.tests.dummy import DummyCircles
from deepinv.tests.test_physics import find_operator
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from cmidiff import DDIM, PiGDM, restore
from cmidiff.draws import SeededDraws
from cmidiff.interop.azula import PosteriorDenoiser, PriorSchedule
from cmidiff.interop.deepinv import Reconstructor
from cmidiff.loop import sample
from cmidiff.physics import inpaint_random
from cmidiff.prior import GaussianMixture
from cmidiff.step import Carry, Problem

SHAPE = (3, 8, 8)
OPERATORS = ("inpainting", "demosaicing", "denoising", "fftdeblur", "deblur_valid", "super_resolution_circular")


def gaussian() -> GaussianMixture:
    generator = torch.Generator().manual_seed(0)
    means, ones = torch.rand(1, *SHAPE, generator=generator, dtype=torch.float64) - 0.5, torch.ones(1, *SHAPE)
    return GaussianMixture(torch.ones(1, dtype=torch.float64), means, 0.09 * ones.double())


def measured(batch: int = 1) -> tuple[Tensor, deepinv.physics.LinearPhysics]:
    physics = inpaint_random(SHAPE, hidden=0.5, noise_std=0.05).to(torch.float64)
    y = physics.A(torch.rand(batch, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    return y, physics


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATORS)
def test_a_reconstructor_beats_the_pseudo_inverse(name: str, channels: int) -> None:
    """The check of deepinv's own tests of reconstruction models, on their operators, images and noise."""
    if name == "demosaicing" and channels == 1:
        pytest.skip("demosaicing is of colours")
    physics, shape, *_ = find_operator(name, "cpu", imsize=(channels, 32, 37))
    physics.noise_model = deepinv.physics.GaussianNoise(0.02)
    x = DummyCircles(imsize=shape, samples=2, use_dict_output=False).x
    y = physics(x)
    x_hat, psnr = Reconstructor()(y, physics), deepinv.metric.PSNR()
    assert x_hat.shape == x.shape
    assert psnr(x_hat, x).mean() > psnr(physics.A_dagger(y), x).mean()


def test_deepinv_evaluates_a_reconstructor() -> None:
    """Metrics of `deepinv.test` are those of the images that `restore` gives."""
    physics = inpaint_random((3, 16, 16), hidden=0.3, noise_std=0.02)
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    y = physics(x)
    model = Reconstructor("photo", steps=3)
    loader = DataLoader(TensorDataset(x, y), batch_size=2)
    results = deepinv.test(model, loader, physics, metrics=deepinv.metric.PSNR(), device="cpu", verbose=False)
    expected = deepinv.metric.PSNR()(restore(y, physics, "photo", steps=3).estimate, x).mean()
    assert results["PSNR"] == pytest.approx(float(expected), abs=1e-3)


def test_a_reconstructor_returns_the_mean_of_samples() -> None:
    y, physics = measured(2)
    options = {"solver": "pigdm", "samples": 3, "steps": 5, "cmi": True, "value_range": None}
    model = Reconstructor(gaussian(), **options)
    assert torch.equal(model(y, physics), restore(y, physics, gaussian(), **options).mean)
    with pytest.raises(ValueError, match="noise_std must be a finite number"):
        Reconstructor(gaussian(), noise_std=-1.0)(y, physics)


class Started(PiGDM):
    """PiGDM from a given state."""

    def start(self, problem: Problem, t: float) -> tuple[Tensor, Carry]:
        return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64), None


def test_samplers_of_azula_draw_the_same_posterior() -> None:
    """The deterministic sampler of azula, from the same start on the same times, gives the sample of the loop."""
    (y, physics), prior, steps = measured(), gaussian(), 12
    denoiser = PosteriorDenoiser(y, physics, prior, "pigdm", value_range=None)
    measurement = replace(denoiser.intake.measurement, y=y.expand(2, *y.shape[1:]))
    problem = Problem(prior, measurement, DDIM(eta=0.0), SeededDraws([("0", 0), ("0", 1)]), (0, 0), prior.clip)
    start, _ = Started().start(problem, 0.0)
    sampler = DDIMSampler(denoiser, eta=0.0, steps=steps, silent=True, dtype=torch.float64)
    times = [PriorSchedule(prior.schedule).time(torch.tensor(1 - k / steps)) for k in range(steps)]
    *_, trace = sample(problem, Started(), times)
    torch.testing.assert_close(denoiser.to_images(sampler(start)), trace.x_s, rtol=1e-5, atol=1e-5)


def test_only_posterior_means_become_denoisers() -> None:
    y, physics = measured()
    with pytest.raises(TypeError, match="solver must estimate"):
        PosteriorDenoiser(y, physics, gaussian(), "dps", value_range=None)
    denoiser = PosteriorDenoiser(*measured(2), gaussian(), "pigdm", value_range=None)
    with pytest.raises(ValueError, match="2 measurements need one state each, received 3"):
        denoiser(torch.zeros(3, *SHAPE, dtype=torch.float64), torch.tensor(0.5))
