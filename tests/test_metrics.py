"""The metrics against their definitions, image by image, and the calibration against exact probabilities."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from cmidiff.metrics import calibration, coverage, crps, data_misfit, energy_score, lpips, psnr, ssim
from cmidiff.physics import deblur_gaussian, denoise, inpaint_random, measure

DOUBLE = torch.float64


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_psnr_of_a_known_error() -> None:
    truth = torch.full((3, 3, 8, 8), 0.5, dtype=DOUBLE)
    x = truth + torch.tensor([0.1, 0.01, 0.0], dtype=DOUBLE).reshape(3, 1, 1, 1)
    assert psnr(x, truth).tolist() == pytest.approx([20, 40, math.inf])
    assert psnr(x + 5, truth).tolist() == pytest.approx([20 * math.log10(2)] * 3)  # clipped to 1, as when saved


def ssim_by_definition(x: Tensor, y: Tensor) -> float:
    """Mean over the windows of one channel, Gaussian of std 1.5 on 11x11, borders mirrored, K1 = 0.01, K2 = 0.03."""
    offset = torch.arange(-5, 6, dtype=DOUBLE)
    profile = torch.exp(-0.5 * (offset / 1.5) ** 2)
    window = torch.outer(profile, profile)
    window = window / window.sum()
    padded = (torch.nn.functional.pad(t[None, None], (5, 5, 5, 5), mode="reflect")[0, 0] for t in (x, y))
    a, b = (t.unfold(0, 11, 1).unfold(1, 11, 1) for t in padded)

    def mean(t: Tensor) -> Tensor:
        return (t * window).sum((-2, -1))

    mu_a, mu_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mu_a**2, mean(b * b) - mu_b**2, mean(a * b) - mu_a * mu_b
    c1, c2 = 0.01**2, 0.03**2
    values = (2 * mu_a * mu_b + c1) * (2 * cov + c2) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))
    return float(values.mean())


def test_ssim_is_its_definition() -> None:
    truth = uniform(2, 1, 20, 17)
    x = (truth + 0.2 * normal(2, 1, 20, 17)).clamp(0, 1)
    expected = [ssim_by_definition(x[b, 0], truth[b, 0]) for b in range(2)]
    assert ssim(x, truth).tolist() == pytest.approx(expected, abs=1e-9)
    assert ssim(truth, truth).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_an_image_scores_the_same_in_any_batch(metric: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, truth = uniform(3, 3, 16, 16), uniform(3, 3, 16, 16, seed=1)
    together = metric(x, truth)
    alone = torch.cat([metric(x[b : b + 1], truth[b : b + 1]) for b in range(3)])
    assert together.shape == (3,)
    assert (together - alone).abs().max() < 1e-12


def test_lpips_without_weights_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"alexnet-owt-7be5be79.pth; there are none.*python -c"):
        lpips(uniform(1, 3, 32, 32), uniform(1, 3, 32, 32))


def test_lpips_with_weights_is_a_distance_for_each_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1(weights=None)  # random features are enough for what is tested
    torch.save(network.state_dict(), tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    x, truth = uniform(2, 3, 64, 64), uniform(2, 3, 64, 64, seed=1)
    truth[1] = x[1]
    distance = lpips(x, truth, net="squeeze")
    assert float(distance[0]) > 0
    assert float(distance[1]) == pytest.approx(0, abs=1e-7)
    assert lpips(x[:1], truth[:1], net="squeeze").tolist() == pytest.approx(distance[:1].tolist(), rel=1e-5)


def test_misfit_of_the_truth_is_one() -> None:
    x = uniform(2, 3, 64, 64)
    for task in (denoise, inpaint_random, deblur_gaussian):
        physics = task((3, 64, 64), noise_std=0.05, dtype=DOUBLE)
        y = measure(x, physics, seed=[0, 1])
        count = 3 * 64 * 64 * (0.1 if task is inpaint_random else 1)
        misfit = data_misfit(x, y, physics, noise_std=0.05)
        assert (misfit - 1).abs().max() < 4 / math.sqrt(2 * count)
        assert (data_misfit(x, y, physics, noise_std=0.1) - misfit / 2).abs().max() < 1e-12


def test_misfit_counts_measured_entries_only() -> None:
    physics = inpaint_random((1, 10, 10), hidden=0.75, noise_std=0.1, dtype=DOUBLE)
    x = torch.zeros(1, 1, 10, 10, dtype=DOUBLE)
    y = physics.A(torch.ones_like(x) * 0.2) + 9 * (1 - physics.A(torch.ones_like(x)))  # rubbish where hidden
    assert data_misfit(x, y, physics, noise_std=0.1).tolist() == pytest.approx([2.0])


@pytest.mark.parametrize("count", [2, 5, 8])
def test_levels_are_exact_for_few_samples(count: int) -> None:
    shape = (1, 1, 400, 400)
    scale = uniform(*shape, seed=3) + 0.5  # every pixel its own law, far from Gaussian
    draws = torch.stack([scale * normal(*shape, seed=10 + k) ** 3 for k in range(count + 1)], 1)
    level, observed = calibration(draws[:, 1:], draws[:, 0])
    assert level.tolist() == pytest.approx([(count + 1 - 2 * j) / (count + 1) for j in range(count // 2, 0, -1)])
    assert (observed[0] - level).abs().max() < 4 * math.sqrt(0.25 / 160000)


def test_coverage_tells_sure_from_unsure() -> None:
    shape = (1, 1, 100, 100)
    truth = normal(*shape)
    samples = torch.stack([normal(*shape, seed=k) for k in range(1, 40)], 1)
    assert float(coverage(samples, truth, level=0.9)) == pytest.approx(0.9, abs=0.015)
    assert float(coverage(samples, truth, level=0.33)) == pytest.approx(0.33, abs=0.02)
    assert float(coverage(0.5 * samples, truth)) < 0.65
    assert float(coverage(2 * samples, truth)) > 0.98
    assert float(calibration(samples, truth).error) < 0.01
    assert float(calibration(0.5 * samples, truth).error) > 0.15


@pytest.mark.parametrize("count", [2, 3, 8])
def test_crps_is_its_definition_for_every_number_of_samples(count: int) -> None:
    samples, truth = uniform(3, count, 1, 5, 4), uniform(3, 1, 5, 4, seed=1)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    apart = torch.stack([(samples[:, i] - samples[:, j]).abs() for i, j in pairs]).mean(0)
    expected = (samples - truth[:, None]).abs().mean(1) - apart / 2
    torch.testing.assert_close(crps(samples, truth), expected.flatten(1).mean(1))


def test_the_energy_score_is_its_definition_and_the_crps_of_one_pixel() -> None:
    samples, truth = uniform(3, 4, 2, 5, 4), uniform(3, 2, 5, 4, seed=1)
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    apart = torch.stack([(samples[:, i] - samples[:, j]).flatten(1).norm(dim=1) for i, j in pairs]).mean(0)
    expected = (samples - truth[:, None]).flatten(2).norm(dim=2).mean(1) - apart / 2
    torch.testing.assert_close(energy_score(samples, truth), expected)
    pixel, target = samples[..., :1, :1, :1], truth[..., :1, :1, :1]
    torch.testing.assert_close(energy_score(pixel, target), crps(pixel, target))


def test_crps_is_that_of_a_normal_law_and_least_for_the_right_spread() -> None:
    """Forecast N(1/2, s^2), truth N(1/2, 1/100): the expectation has a closed form."""
    truth = 0.5 + 0.1 * normal(1, 1, 400, 400)
    found = {s: float(crps(0.5 + s * normal(1, 2, 1, 400, 400, seed=1), truth)) for s in (0.05, 0.1, 0.15)}
    for s, value in found.items():  # E|N(0, v)| = sqrt(2 v / pi), of the truth's distance and of the samples' own
        assert value == pytest.approx(math.sqrt(2 / math.pi) * (math.hypot(s, 0.1) - s / math.sqrt(2)), abs=4e-4)
    assert found[0.1] < min(found[0.05], found[0.15])
    flat = torch.full((1, 2, 1, 400, 400), 0.5, dtype=DOUBLE)
    assert float(crps(flat, truth)) > found[0.1], "although its squared error is half as large"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: psnr(torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 9)), r"same shape.*\(1, 3, 8, 9\)"),
        (lambda: psnr(torch.full((1, 3, 8, 8), float("nan")), torch.ones(1, 3, 8, 8)), "finite"),
        (lambda: ssim(torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)), "at least 11x11 pixels; got 8x8"),
        (lambda: lpips(torch.ones(1, 1, 64, 64), torch.ones(1, 1, 64, 64)), "3 channels; got 1"),
        (lambda: lpips(torch.ones(1, 3, 64, 64), torch.ones(1, 3, 64, 64), net="res"), "alex, vgg, squeeze"),  # pyright: ignore
        (
            lambda: data_misfit(torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8), denoise((3, 8, 8)), noise_std=0.0),
            "must be positive; got 0.0",
        ),
        (
            lambda: data_misfit(torch.ones(1, 3, 8, 8), torch.ones(1, 1, 8, 8), denoise((3, 8, 8)), noise_std=0.1),
            "Pass the physics that made y",
        ),
        (lambda: calibration(torch.ones(1, 1, 3, 8, 8), torch.ones(1, 3, 8, 8)), "at least 2 samples"),
        (lambda: coverage(torch.ones(1, 4, 3, 8, 8), torch.ones(1, 3, 8, 8), level=0.9), "probability 0.6 at most"),
        (lambda: coverage(torch.ones(1, 4, 3, 8, 8), torch.ones(1, 3, 8, 8), level=1.0), "between 0 and 1"),
    ],
)
def test_bad_input_fails_at_the_door(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
