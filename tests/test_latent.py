"""Latent priors: solvers and CMI through a decoder, against the same problem in pixels and dense matrices."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import pytest
import torch
from deepinv.physics import LinearPhysics
from torch import Tensor, nn

from cmidiff import restore
from cmidiff.information import CMI
from cmidiff.loop import sample
from cmidiff.measurement import Measurement
from cmidiff.physics import TASKS, measure
from cmidiff.prior import (
    Composite,
    Decoder,
    GaussianMixture,
    LatentPrior,
    check_memory,
    from_azula,
    from_callable,
)
from cmidiff.prior.decoder import in_tiles
from cmidiff.prior.network import NetworkPrior
from cmidiff.prior.tiles import fitted
from cmidiff.schedule import DDPM, VE
from cmidiff.solvers import CADPS, DPS, PiGDM
from cmidiff.solvers.grid import EvenLevels
from cmidiff.step import Problem
from tests.cases import (
    F64,
    SAMPLERS,
    SOLVERS,
    dense_matrix,
    gaussian,
    gaussian_posterior,
    matrix_physics,
    measured,
    mixture,
    problem_of,
    randn,
    rows,
    step_at,
)

D, M, NOISE = 6, 4, 0.3
ROTATION = torch.linalg.qr(randn(D, D, seed=5))[0]


def rotated(rotation: Tensor, prior: GaussianMixture) -> LatentPrior:
    """The prior of latents ``z`` whose images ``R z`` have a given prior."""
    means, covariances = prior.means @ rotation, rotation.mT @ prior.covariance_matrices() @ rotation
    latent = GaussianMixture(prior.weights, means, covariances, prior.schedule)
    decoder = Decoder(lambda z: z @ rotation.mT, lambda x: x @ rotation, channels=D, factor=1, image_channels=D)
    return LatentPrior(latent, decoder, None)


@dataclasses.dataclass
class Rotated:
    """The draws of a run in pixels, as latents."""

    inner: Any
    rotation: Tensor

    def normal(self, stream: str, index: int, like: Tensor, inner: int = 0) -> Tensor:
        z = self.inner.normal(stream, index, like, inner)
        return z @ self.rotation if like.shape[1:] == (D,) else z


def both(rotation: Tensor, prior: GaussianMixture, **options: Any) -> tuple[Problem, Problem]:
    """A problem in pixels, and the same one in latents."""
    latent, measurement = rotated(rotation, prior), measured(randn(M, D, seed=3), randn(3, M, seed=4), NOISE)
    through = dataclasses.replace(measurement, decoder=latent.decoder)
    draws = Rotated(rows(3), rotation)
    return problem_of(prior, measurement, **options), problem_of(latent, through, draws=draws, **options)


# Covariances that are diagonal in the pixels, their cosines or wavelets, and moves by entries, are not those of rotated
# latents: a decoder that turns the sign, or one that does nothing, keeps them.
SIGN = {
    *("pigdm-row-sum", "dpir", "cadps", "cadps-diagonal", "cadps-paper", "resample", "red-diff", "sitcom"),
    *("cadps-wavelet", "free-hunch"),
}
SAME = {"cadps-released", "cadps-analytic"}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_in_latents_is_the_solver_in_pixels(name: str) -> None:
    """Also those that are refused with a prior whose decoder is curved: this one is linear."""
    solver, eye = SOLVERS[name], torch.eye(D, dtype=F64)
    rotation = eye if name in SAME else -eye if name in SIGN else ROTATION
    if isinstance(solver, EvenLevels) and rotation is ROTATION:  # even levels start from moments, which are of cosines
        solver = dataclasses.replace(cast(Any, solver), grid="schedule")
    pixels, latents = both(rotation, gaussian(D, seed=1))
    ours = sample(latents, solver, solver.times(latents, 8))
    for there, here in zip(sample(pixels, solver, solver.times(pixels, 8)), ours, strict=True):
        torch.testing.assert_close(here.x_s @ rotation.mT, there.x_s, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(here.misfit, there.misfit, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("solver", [DPS(0.0075), PiGDM(), CADPS("exact")], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("sampler", ["ancestral", "probability-flow", "dpm-solver"])
def test_cmi_in_latents_is_cmi_in_pixels(solver: Any, sampler: str) -> None:
    """On a mixture, whose information has a gradient; the estimators with probes in y."""
    cmi = CMI(eta=0.5, contraction="double-backward", probes=2, cap=10.0)
    pixels, latents = both(ROTATION, mixture(D, 3, seed=2), sampler=SAMPLERS[sampler])
    times = pixels.prior.schedule.grid(6)
    moved = 0.0
    for there, here in zip(sample(pixels, solver, times, cmi), sample(latents, solver, times, cmi), strict=True):
        torch.testing.assert_close(here.x_s @ ROTATION.mT, there.x_s, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(here.cmi, there.cmi, rtol=1e-5, atol=1e-8)
        moved = max(moved, float(there.cmi.max()))
    assert moved > 1e-4


def test_samples_in_latents_have_the_exact_posterior() -> None:
    """A linear decoder that is no rotation: the posterior of the image is that of its own Gaussian."""
    wide = randn(D, 3, seed=6)  # three latents for six pixels
    latent = gaussian(3, seed=7)
    decoder = Decoder(lambda z: z @ wide.mT, channels=3, factor=1, image_channels=D)
    matrix, count = randn(M, D, seed=3), 400
    y = randn(1, M, seed=4).expand(count, M)
    measurement = Measurement(y, matrix_physics(matrix, noise_std=NOISE), NOISE, (3,), (D,), decoder=decoder)
    problem = problem_of(LatentPrior(latent, decoder, None), measurement, sampler=SAMPLERS["probability-flow"])
    *_, last = sample(problem, CADPS("exact"), latent.schedule.grid(60))
    mean, covariance = gaussian_posterior(latent.means[0], latent.covariance_matrices()[0], matrix @ wide, y[0], NOISE)
    found = last.x_s.mean(0)
    assert float((found - mean).norm()) < 4 * math.sqrt(float(covariance.trace()) / count)
    torch.testing.assert_close(torch.cov(last.x_s.mT), covariance, rtol=0.3, atol=0.02)


# The measurement of a decoded latent

WEIGHTS = randn(3, 4, 2, 2, seed=8) / 4, randn(4, 3, 2, 2, seed=9) / 4


def curved() -> Decoder:
    """Blocks of 2x2 pixels of one latent each, through a curve."""
    up, down = WEIGHTS
    return Decoder(
        lambda z: torch.tanh(nn.functional.conv_transpose2d(z, up.transpose(0, 1), stride=2)),
        lambda x: nn.functional.conv2d(x, down, stride=2),
        channels=4,
        factor=2,
    )


PHYSICS = {
    "inpaint-random": {"hidden": 0.5},
    "super-resolution": {"factor": 2},
    "hdr": {},
}


@pytest.mark.parametrize("name", PHYSICS)
def test_the_linearisation_has_the_dense_jacobian(name: str) -> None:
    decoder, shape = curved(), (3, 4, 4)
    physics = TASKS[name](shape, noise_std=0.1, dtype=F64, **PHYSICS[name])
    with torch.no_grad():
        y = physics.A(randn(1, *shape, seed=1)).expand(2, *physics.A(torch.zeros(1, *shape, dtype=F64)).shape[1:])
    affine = (1.0, 0.0) if isinstance(physics, LinearPhysics) else (0.5, 0.5)
    measurement = Measurement(y, physics, 0.1, (4, 2, 2), shape, affine, decoder=decoder)
    assert not measurement.linear
    z = 0.5 * randn(2, 4, 2, 2, seed=10)
    linear = measurement.linearised(z)
    assert linear.linear
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda v: measurement.A(v[None])[0].flatten(), row).flatten(1) for row in z]
    )  # pyright: ignore[reportAttributeAccessIssue]
    v, u = randn(2, 4, 2, 2, seed=11), torch.ones_like(y) * randn(*y.shape, seed=12)
    forward = torch.einsum("bmd,bd->bm", jacobian, v.flatten(1))
    adjoint = torch.einsum("bmd,bm->bd", jacobian, u.flatten(1))
    torch.testing.assert_close(linear.A(v).flatten(1), forward)
    torch.testing.assert_close(linear.At(u).flatten(1), adjoint)
    torch.testing.assert_close(measurement.pull(z, u).flatten(1), adjoint)
    torch.testing.assert_close(linear.residual(z), measurement.residual(z))
    e = linear.residual(z).flatten(1)
    s = 0.01 * torch.eye(e.shape[1], dtype=F64) + 0.7 * jacobian @ jacobian.mT
    solved = torch.einsum("bmd,bm->bd", jacobian, torch.linalg.solve(s, e))
    torch.testing.assert_close(linear.solve(linear.residual(z), 0.7).flatten(1), solved, rtol=1e-5, atol=1e-7)
    with pytest.raises(TypeError, match="adjoint"):
        measurement.At(u)


def test_a_masked_measurement_counts_what_was_measured() -> None:
    decoder, shape = curved(), (3, 4, 4)
    physics = TASKS["inpaint-random"](shape, hidden=0.5, noise_std=0.1, dtype=F64)
    y = physics.A(torch.tanh(randn(1, *shape, seed=1)))
    through = Measurement(y, physics, 0.1, (4, 2, 2), shape, decoder=decoder)
    z = randn(1, 4, 2, 2, seed=2)
    torch.testing.assert_close(through.misfit(z), through.of_image.misfit(decoder.decode(z)))
    assert through.of_image.shape == shape
    assert dense_matrix(through.of_image.physics, shape).shape == (48, 48)  # pyright: ignore[reportArgumentType]


# Tiles


def test_tiles_of_a_local_decoder_show_no_seam() -> None:
    decoder, z = curved(), randn(2, 4, 13, 9, seed=13)
    tiled = decoder.tiled(6, 2)
    torch.testing.assert_close(tiled.decode(z), decoder.decode(z))
    x = decoder.decode(z)
    torch.testing.assert_close(tiled.encoded(x), decoder.encoded(x))
    v = z.clone().requires_grad_()
    with torch.enable_grad():
        torch.testing.assert_close(
            torch.autograd.grad(tiled.decode(v), v, x)[0], torch.autograd.grad(decoder.decode(v), v, x)[0]
        )
    torch.testing.assert_close(
        torch.func.jvp(tiled.decode, (z,), (z,))[1], torch.func.jvp(decoder.decode, (z,), (z,))[1]
    )


def test_tiles_blend_a_decoder_that_sees_its_border() -> None:
    """Each tile answers with its own mean: the blend changes smoothly from one to the next, and is their average."""
    x = torch.arange(16.0, dtype=F64).expand(1, 1, 16, 16)
    blended = in_tiles(lambda z: z.mean((2, 3), keepdim=True).expand_as(z), x, 1, 1, 8, 4)
    assert float(blended.diff(dim=3).abs().max()) < 2.0
    assert 3.0 < float(blended.min()) < float(blended.max()) < 12.0


def test_a_tiled_latent_prior_is_tiled_in_pixels() -> None:
    prior = from_callable(lambda x, t: 0.5 * x, DDPM.linear(), "x0", decoder=curved())
    tiled = fitted(prior, (4, 20, 20), 16)
    assert (tiled.tile, tiled.decoder is not None) == (8, True)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="multiple of 2, the pixels of one latent, received 15"):
        fitted(prior, (4, 20, 20), 15)
    z = randn(1, 4, 20, 20)
    torch.testing.assert_close(tiled.decode(z), prior.decode(z))


# A prior of one's own, from a photograph to its restoration


def own(**options: Any) -> LatentPrior:
    """Latents with unit variance, exactly denoised."""
    schedule = DDPM.linear()

    def x_hat(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, _ = schedule(float(t[0]))
        return alpha * x_t

    prior = from_callable(x_hat, schedule, "x0", decoder=curved(), name="own", **options)
    assert isinstance(prior, LatentPrior)
    return prior


@pytest.mark.parametrize(
    "solver", ["dps", "pigdm", "mcg", "cadps", "mmps", "daps", "diffpir", "psld", "resample", "tds"]
)
def test_a_restoration_in_latents_explains_the_measurement(solver: str) -> None:
    prior, shape = own(), (3, 10, 7)
    z = randn(1, 4, 5, 4, seed=20)
    truth = (0.5 + 0.5 * prior.decode(z))[..., :10, :7]
    physics = TASKS["inpaint-random"](shape, hidden=0.3, noise_std=0.1, dtype=F64)
    y = measure(truth, physics, seed=1)
    torch.manual_seed(0)
    result = restore(y, physics, prior, solver=solver, steps=60 if solver in ("dps", "psld") else 12)
    assert result.estimate.shape == truth.shape
    assert result.estimate_status[0].misfit < 1.5
    assert result.estimate.dtype == F64


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    prior, shape = own(), (3, 8, 8)
    physics = TASKS["super-resolution"](shape, factor=2, noise_std=0.1, dtype=F64)
    y = physics.A(torch.rand(3, *shape, generator=torch.Generator().manual_seed(1), dtype=F64))
    for solver in ("dps", "pigdm", "psld", "resample"):
        whole = restore(y, physics, prior, solver=solver, steps=5, seed=[5, 6, 7], samples=1)
        alone = restore(y[1:2], physics, prior, solver=solver, steps=5, seed=[6], samples=1)
        torch.testing.assert_close(alone.samples[0], whole.samples[1], rtol=1e-8, atol=1e-9)


def test_without_a_solver_a_latent_prior_is_sampled_by_dps() -> None:
    prior, shape = own(), (3, 8, 8)
    physics = TASKS["denoise"](shape, noise_std=0.2, dtype=F64)
    y = torch.full((1, *shape), 0.5, dtype=F64)
    plain, named = restore(y, physics, prior, steps=10), restore(y, physics, prior, steps=10, solver=DPS())
    torch.testing.assert_close(plain.samples, named.samples, rtol=0, atol=0)


@pytest.mark.parametrize("solver", ["ddrm", "fps", "mcgdiff"])
def test_a_solver_that_cannot_decode_says_why(solver: str) -> None:
    prior, shape = own(), (3, 8, 8)
    physics = TASKS["denoise"](shape, noise_std=0.2, dtype=F64)
    with pytest.raises(
        ValueError,
        match=r"latent prior own: it.* of a decoder changes with the state\. .* such as dps, psld or resample",
    ):
        restore(torch.zeros(1, *shape, dtype=F64), physics, prior, solver=solver)


def test_grey_images_and_value_ranges_reach_the_decoder() -> None:
    prior = own()
    physics = TASKS["denoise"]((1, 8, 8), noise_std=0.05, dtype=F64)
    result = restore(
        torch.full((1, 1, 8, 8), 100.0, dtype=F64),
        physics,
        prior,
        solver="pigdm",
        steps=10,
        noise_std=10.0,
        value_range=(0.0, 255.0),
    )
    assert result.estimate.shape == (1, 1, 8, 8)
    assert 60 < float(result.estimate.mean()) < 140


def test_azula_denoisers_take_a_decoder() -> None:
    class Azula:
        def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return torch.ones_like(t), 5 * t + 1e-3

        def __call__(self, x_t: Tensor, t: Tensor) -> Any:
            return type("Posterior", (), {"mean": x_t / (1 + (5 * t + 1e-3) ** 2)})

    prior = from_azula(Azula(), decoder=curved())
    assert isinstance(prior, LatentPrior)
    assert (prior.channels, prior.value_range, prior.clip) == (4, (-1.0, 1.0), None)
    physics = TASKS["denoise"]((3, 8, 8), noise_std=0.1, dtype=F64)
    result = restore(torch.full((1, 3, 8, 8), 0.5, dtype=F64), physics, prior, solver="dps", steps=20)
    assert bool(result.ok.all())


def test_the_state_keeps_its_precision() -> None:
    """Networks in bfloat16, latents and images in float32; the encoder and the decoder give what they are given."""
    linear = nn.Conv2d(4, 3, 1).to(torch.bfloat16)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear

        def forward(self, z: Tensor, t: Tensor) -> Tensor:
            assert z.dtype == torch.bfloat16
            return self.inner(z)

    network = NetworkPrior(Network(), "x0", value_range=None, channels=None, dtype=torch.bfloat16, name="half")
    decoder = Decoder(lambda z: network(z, 0.0).mean, channels=4, factor=1, network=network)
    prior = from_callable(lambda x, t: 0.5 * x, DDPM.linear(), "x0", decoder=decoder, name="denoiser")
    z = torch.randn(2, 4, 4, 4)
    assert prior.decode(z).dtype == torch.float32
    before = prior.fingerprint
    with torch.no_grad():
        linear.weight.mul_(2)
    assert prior.fingerprint != before
    assert [part.prior.name for part in prior.evaluations((4, 4, 4), 1)] == ["denoiser", "half"]
    with pytest.raises(ValueError, match=r"not enough memory: 1 x \(4, 64, 64\) with half and its gradient"):
        check_memory(network, (4, 64, 64), graph=True, available=1000)


def test_decoders_that_cannot_be() -> None:
    with pytest.raises(TypeError, match="functions of a batch"):
        Decoder("vae")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="factor must be at least 1, received 0"):
        Decoder(lambda z: z, factor=0)
    with pytest.raises(ValueError, match=r"a decoder and no encoder: pass Decoder\(decode, encode="):
        LatentPrior(gaussian(3), Decoder(lambda z: z, channels=3, image_channels=3)).encode(torch.zeros(1, 3))
    latent = own()
    with pytest.raises(ValueError, match="latent"):
        Composite(latent, latent, 0.5)


def test_a_step_is_linearised_once() -> None:
    calls = []
    decoder = curved()

    def decode(z: Tensor) -> Tensor:
        calls.append(z)
        return decoder.decode(z)

    counted = dataclasses.replace(decoder, decode=decode)
    prior = LatentPrior(from_callable(lambda x, t: 0.5 * x, VE(), "x0", value_range=None, channels=4), counted)
    physics = TASKS["denoise"]((3, 4, 4), noise_std=0.1, dtype=F64)
    measurement = Measurement(randn(1, 3, 4, 4), physics, 0.1, (4, 2, 2), (3, 4, 4), decoder=counted)
    step = step_at(prior, measurement, randn(1, 4, 2, 2), 1.0, 0.5)
    step = dataclasses.replace(step, problem=dataclasses.replace(step.problem, linearise=True))
    assert step.measurement is dataclasses.replace(step, correction=torch.zeros(1)).measurement
    assert len(calls) == 2  # the graph, and the constant of the linear measurement
