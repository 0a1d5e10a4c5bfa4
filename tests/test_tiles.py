"""Tiles: the windows are a partition of unity, the blend is the sum that it says, its derivative the derivative of that
sum, and nothing but the blend is kept."""

from __future__ import annotations

import itertools
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cmidiff import CADPS, CMI, DPS, PiGDM, load_prior, measure, restore
from cmidiff.physics import deblur_gaussian
from cmidiff.prior import GaussianMixture
from cmidiff.prior.base import Prediction, Prior
from cmidiff.prior.tiles import FAR, Tiled, fitted, starts, windows
from cmidiff.schedule import DDPM, Schedule
from tests.cases import F64, randn, three_images

ASSETS = Path(__file__).resolve().parent.parent / "cmidiff" / "assets"
GEOMETRIES = [(512, 64, 16, 8), (72, 64, 16, 8), (200, 96, 32, 8), (481, 64, 24, 1), (20, 8, 0, 1), (13, 5, 4, 1)]


class Sums(Prior):
    """A denoiser that mixes all the entries of its input, with a head for the variance."""

    schedule: Schedule = DDPM.linear()
    value_range = (-1.0, 1.0)
    channels = 2
    multiple = 2

    def __init__(self) -> None:
        self.graphs: list[weakref.ref[Tensor]] = []
        self.most_alive = 0

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        total = (x_t * torch.arange(1.0, 1 + x_t[0].numel(), dtype=x_t.dtype).reshape(x_t.shape[1:])).flatten(1).sum(1)
        mean = torch.sin(x_t) + 0.01 * total.reshape(-1, *[1] * (x_t.ndim - 1)) * x_t**2
        if mean.requires_grad:
            self.graphs.append(weakref.ref(mean))
            self.most_alive = max(self.most_alive, sum(graph() is not None for graph in self.graphs))
        return Prediction(mean, torch.sigmoid(x_t + t))


@pytest.mark.parametrize(("side", "tile", "overlap", "multiple"), GEOMETRIES)
def test_windows_are_a_partition_of_unity(side: int, tile: int, overlap: int, multiple: int) -> None:
    places, weights = starts(side, tile, overlap, multiple), windows(side, tile, overlap, multiple)
    total = torch.zeros(side, dtype=F64)
    for start, weight in zip(places, weights, strict=True):
        total[start : start + tile] += weight
    assert float((total - 1).abs().max()) < 1e-15 * 4
    assert bool((weights > 0).all())
    assert places[0] == 0
    assert places[-1] == side - tile
    assert all(start % multiple == 0 for start in places[:-1])
    shared = [a + tile - b for a, b in itertools.pairwise(places)]
    assert min(shared) >= overlap


def test_windows_fade_to_nothing_at_inner_borders_alone() -> None:
    """No entry's weight jumps by more than the steepest slope of the ramp: there is no seam to see."""
    for start, weight in zip(starts(200, 64, 16, 8), windows(200, 64, 16, 8), strict=True):
        own = torch.nn.functional.pad(weight, (start, 200 - 64 - start))
        assert float(own.diff().abs().max()) < 1.1 * torch.pi / 2 / 16
    assert windows(200, 64, 16, 8)[0, 0] == 1.0


def blended(prior, tiled: Tiled, x: Tensor, t: float) -> Tensor:
    """The sum of the module, written with padded tiles."""
    total = torch.zeros_like(x)
    rows, columns = (
        list(
            zip(
                starts(n, tiled.tile, tiled.overlap, prior.multiple),
                windows(n, tiled.tile, tiled.overlap, prior.multiple),
                strict=True,
            )
        )
        for n in x.shape[2:]
    )
    for (top, down), (left, across) in itertools.product(rows, columns):
        place = (..., slice(top, top + len(down)), slice(left, left + len(across)))
        part = prior(x[place], t).mean * torch.outer(down, across)
        beyond = (left, x.shape[3] - left - len(across), top, x.shape[2] - top - len(down))
        total = total + torch.nn.functional.pad(part, beyond)
    return total


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_blend_and_its_derivative(chunk: int) -> None:
    prior, x, v = Sums(), randn(2, 2, 10, 14), randn(2, 2, 10, 14, seed=1)
    tiled = Tiled(prior, tile=6, overlap=2, chunk=chunk)
    x.requires_grad_()
    ours, theirs = tiled(x, 0.3).mean, blended(prior, tiled, x, 0.3)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    pulled = torch.autograd.grad(ours, x, v, retain_graph=True)[0]
    torch.testing.assert_close(pulled, torch.autograd.grad(theirs, x, v)[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(ours, x, v)[0], pulled, rtol=0, atol=0)  # the graph may be kept


def test_gradcheck() -> None:
    tiled = Tiled(Sums(), tile=4, overlap=2, chunk=2)
    assert torch.autograd.gradcheck(lambda x: tiled(x, 0.3).mean, (randn(1, 2, 6, 4).requires_grad_(),))


def test_learned_variance_is_blended_without_a_gradient() -> None:
    tiled = Tiled(Sums(), tile=4, overlap=2)
    x = torch.full((1, 2, 8, 8), 0.2, dtype=F64, requires_grad=True)
    fraction = tiled(x, 0.3).variance_fraction
    assert fraction is not None
    assert not fraction.requires_grad
    torch.testing.assert_close(fraction, torch.full_like(fraction, float(torch.sigmoid(torch.tensor(0.5)))))


def test_one_tile_is_the_prior_itself() -> None:
    prior = three_images((1, 8, 8))
    x = randn(3, 1, 8, 8).requires_grad_()
    ours = Tiled(prior, tile=8, overlap=4)(x, 300.0).mean
    assert torch.equal(ours, prior(x, 300.0).mean)
    first = torch.autograd.grad(ours.sum(), x, create_graph=True)[0]
    assert torch.autograd.grad(first.sum(), x)[0].abs().max() > 0  # the second derivative is there still


def test_tiles_of_independent_pixels_change_nothing() -> None:
    """Where the prior couples no pixels, any tiling is exact, in one dimension as in two."""
    for shape, tile in (((1, 20), (1, 8)), ((1, 12, 20), (1, 8, 8))):
        whole = GaussianMixture(
            torch.ones(1, dtype=F64), torch.full((1, *shape), 0.3, dtype=F64), torch.full((1, *shape), 0.5, dtype=F64)
        )
        part = GaussianMixture(
            torch.ones(1, dtype=F64), torch.full((1, *tile), 0.3, dtype=F64), torch.full((1, *tile), 0.5, dtype=F64)
        )
        x = randn(2, *shape)
        ours = Tiled(part, tile=8, overlap=4)(x, 300.0).mean
        torch.testing.assert_close(ours, whole(x, 300.0).mean, rtol=1e-12, atol=1e-12)


def test_one_chunk_of_activations_lives_at_a_time() -> None:
    prior = Sums()
    x = randn(1, 2, 40, 40).requires_grad_()
    x_hat = Tiled(prior, tile=6, overlap=2, chunk=4)(x, 0.3).mean
    assert not prior.graphs  # nothing is kept by the forward pass
    torch.autograd.grad(x_hat.sum(), x)
    assert len(prior.graphs) > 20
    assert prior.most_alive <= 2  # a chunk, while the next one is made


def test_a_second_derivative_is_refused() -> None:
    x = randn(1, 2, 8, 8).requires_grad_()
    x_hat = Tiled(Sums(), tile=4, overlap=2)(x, 0.3).mean
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(x_hat.sum(), x, create_graph=True)
    assert bool(torch.autograd.grad(x_hat.sum(), x)[0].any())


def test_rows_do_not_depend_on_their_neighbours() -> None:
    tiled = Tiled(Sums(), tile=4, overlap=2, chunk=3)
    x = randn(3, 2, 8, 12)
    torch.testing.assert_close(tiled(x, 0.3).mean[1:2], tiled(x[1:2], 0.3).mean, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile": 7}, "multiple of 2"),
        ({"tile": 0}, "multiple of 2"),
        ({"tile": 8, "overlap": 7}, "0 <= overlap <= 6"),
        ({"tile": 8, "overlap": -1}, "0 <= overlap <= 6"),
        ({"tile": 8, "overlap": 2, "chunk": 0}, "chunk >= 1"),
    ],
)
def test_bad_tiles_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tiled(Sums(), **settings)


def test_the_windows_leave_no_imprint() -> None:
    """A linear denoiser of a constant image gives a constant."""
    prior = GaussianMixture(
        torch.ones(1, dtype=F64), torch.zeros(1, 1, 8, 8, dtype=F64), torch.ones(1, 1, 8, 8, dtype=F64)
    )
    x_hat = Tiled(prior, tile=8, overlap=4)(torch.full((1, 1, 28, 28), 0.7, dtype=F64), 200.0).mean
    assert float(x_hat.std()) < 1e-15


def jumps(x: Tensor, lines: list[int]) -> Tensor:
    """How much larger the mean absolute difference across each line is than across lines 8, 16 and 24 pixels away,
    which are in the same phase of the network's own grid; one number for each column and each row of ``lines``."""
    ratios = []
    for along in (x, x.mT):
        jump = along.diff(dim=-1).abs().mean((0, 1, 2))
        for c in lines:
            near = [c + k - 1 for k in (-24, -16, -8, 8, 16, 24) if 0 < c + k <= len(jump) and c + k not in lines]
            ratios.append(jump[c - 1] / jump[near].mean() - 1)
    return torch.stack(ratios)


def test_a_photograph_shows_no_seams() -> None:
    """The embedded prior on the photograph of the demo, at three noise levels. What tiles change of the denoised image
    has no edges where tiles have theirs; the control, tiles without an overlap, has."""
    with Image.open(ASSETS / "plane.png") as file:
        photograph = torch.from_numpy(np.array(file.convert("RGB").resize((104, 104)))).permute(2, 0, 1)[None] / 255
    network = load_prior("natural-64")
    z = torch.randn(photograph.shape, generator=torch.Generator().manual_seed(0))

    def excess(overlap: int) -> tuple[float, float]:
        begins, values = starts(104, 64, overlap, 8), []
        lines = sorted({*begins[1:], *(b + 64 for b in begins[:-1])})
        for ratio in (0.5, 1.0, 2.0):
            t = network.schedule.time(ratio)
            alpha_t, sigma_t = network.schedule(t)
            x_t = alpha_t * (2 * photograph - 1) + sigma_t * z
            with torch.no_grad():
                change = Tiled(network, tile=64, overlap=overlap)(x_t, t).mean - network(x_t, t).mean
            values.append(jumps(change, lines))
        return float(torch.cat(values).mean()), float(torch.cat(values).std()) / torch.cat(values).numel() ** 0.5

    soft, hard = excess(16), excess(0)
    assert abs(soft[0]) < 3 * soft[1]
    assert hard[0] > 5 * hard[1]
    assert hard[0] > 5 * abs(soft[0])


def test_tiles_are_taken_where_an_image_is_far_larger_than_the_training() -> None:
    network = load_prior("natural-64")
    assert network.size == 64
    assert fitted(network, (3, 64 * FAR, 64 * FAR)) is network
    large = fitted(network, (3, 64 * FAR + 8, 64))
    assert isinstance(large, Tiled)
    assert (large.tile, large.overlap) == (128, 32)
    assert fitted(network, (3, 640, 640), None) is network
    chosen = fitted(network, (3, 64, 64), 96)
    assert isinstance(chosen, Tiled)
    assert (chosen.tile, chosen.overlap) == (96, 24)
    assert isinstance(least := fitted(network, (3, 64, 64), 8), Tiled)
    assert least.overlap == 0  # a tile of one multiple can share nothing
    unknown = Sums()
    assert fitted(unknown, (2, 9000, 9000)) is unknown
    for wrong in (True, 64.0, "all"):
        with pytest.raises(ValueError, match="tile must be a number of pixels, 'auto' or None"):
            fitted(network, (3, 64, 64), wrong)  # pyright: ignore[reportArgumentType]


def test_restore_takes_tiles_and_the_physics_sees_the_whole() -> None:
    """Independent pixels: tiles may change nothing, also where the blur reaches across them."""
    tile, whole = (
        GaussianMixture(torch.ones(1, dtype=F64), torch.zeros(shape, dtype=F64), torch.full(shape, 0.5, dtype=F64))
        for shape in ((1, 3, 8, 8), (1, 3, 20, 12))
    )
    physics = deblur_gaussian((3, 20, 12), kernel_size=9, std=2.0, noise_std=0.1, dtype=F64)
    y = measure(randn(2, 3, 20, 12), physics, seed=[0, 1])
    for solver in (DPS(0.012), PiGDM(), CADPS("exact")):
        options: dict[str, Any] = {"solver": solver, "cmi": CMI(), "steps": 6, "value_range": None}
        ours = restore(y, physics, tile, tile=8, **options).samples
        torch.testing.assert_close(ours, restore(y, physics, whole, **options).samples, rtol=0, atol=1e-6)
