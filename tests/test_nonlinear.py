"""Physics that are not linear, noise that is not Gaussian, and what the door refuses: against dense Jacobians, exact
posteriors, and the linear case in disguise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from deepinv.physics import GaussianNoise, LinearPhysics, Physics, PoissonGaussianNoise, PoissonNoise
from torch import Tensor

from cmidiff import CADPS, CMI, DDIM, DPS, DSG, Ancestral, NetworkPrior, PiGDM, ProbabilityFlow, measure, restore
from cmidiff.covariance import Diagonal, Exact, Isotropic
from cmidiff.measurement import Measurement
from cmidiff.physics import denoise, inpaint_box, super_resolution
from cmidiff.prior import GaussianMixture
from cmidiff.prior.tiles import Tiled
from cmidiff.solvers import CADPSReleased, Solver
from cmidiff.step import Carry, Step
from tests.cases import (
    F64,
    NONLINEAR,
    PHYSICS,
    SOLVERS,
    Shape,
    generator,
    randn,
    step_at,
    three_images,
    with_measurement,
)

pytestmark = pytest.mark.filterwarnings("ignore::cmidiff.result.RestorationWarning")  # runs of few steps

B, NOISE, R2 = 2, 0.2, 0.37


def canvases(image: Shape) -> list[Shape]:
    larger = (image[0], image[1] + 3, image[2] + 1)
    return [image, (3, *larger[1:])]


CASES = [(name, canvas) for name in NONLINEAR for canvas in canvases(NONLINEAR[name].shape)]


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=generator(seed), dtype=F64)


def at(name: str, canvas: Shape) -> tuple[Measurement, Tensor, Tensor]:
    """A measurement with every feature of the bridge, a point inside [-1, 1], and the dense ``dA/dx`` (B, m, d)."""
    case = NONLINEAR[name]
    physics = case.build(NOISE)
    gain, offset = 0.5, 0.45
    y = physics.A(uniform(B, *case.shape, seed=1))
    weight = 0.5 + uniform(1, *y.shape[1:], seed=2)
    m = Measurement(y + 0.1, physics, NOISE, canvas, case.shape, (gain, offset), weight)
    return at_point(m, 1.6 * uniform(B, *canvas, seed=3) - 0.8, case.shape)


def at_point(m: Measurement, x_hat: Tensor, image_shape: Shape) -> tuple[Measurement, Tensor, Tensor]:
    """The same at another point."""
    physics, weight, canvas, (gain, offset) = m.physics, m.weight, m.shape, m.affine
    assert weight is not None

    def forward(x: Tensor) -> Tensor:
        image = x.reshape(1, *canvas)[..., : image_shape[1], : image_shape[2]]
        image = image if image_shape[0] == canvas[0] else image.mean(1, keepdim=True)
        return (weight * physics.A(gain * image + offset) / gain).flatten()

    jacobian: Any = torch.autograd.functional.jacobian
    return m, x_hat, torch.stack([jacobian(forward, x.flatten()) for x in x_hat])


def times(matrix: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bij,bj->bi", matrix, v.flatten(1))


# the linearisation


@pytest.mark.parametrize(("name", "canvas"), CASES)
def test_linearised_products_are_those_of_the_dense_jacobian(name: str, canvas: Shape) -> None:
    m, x_hat, jacobian = at(name, canvas)
    linear = m.linearised(x_hat)
    v, e = randn(B, *canvas, seed=4), torch.randn(m.y.shape, generator=generator(5), dtype=F64)
    assert linear.linear
    assert linear.noise_std == m.noise_std
    for _ in range(2):  # the graph is kept
        torch.testing.assert_close(linear.A(v).flatten(1), times(jacobian, v), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(linear.At(e).flatten(1), times(jacobian.mT, e), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(m.pull(x_hat, e), linear.At(e))
    torch.testing.assert_close(linear.residual(x_hat), m.residual(x_hat), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "canvas"), CASES)
def test_linearised_inverses_are_those_of_the_dense_jacobian(name: str, canvas: Shape) -> None:
    m, x_hat, jacobian = at(name, canvas)
    linear = m.linearised(x_hat)
    e = torch.randn(m.y.shape, generator=generator(5), dtype=F64)
    s = NOISE**2 * torch.eye(jacobian.shape[1], dtype=F64) + R2 * jacobian @ jacobian.mT
    values, vectors = torch.linalg.eigh(s)
    for ours, power in ((linear.solve(e, R2), -1.0), (linear.whiten(e, R2), -0.5)):
        root = (vectors * values[:, None, :] ** power) @ vectors.mT
        theirs = times(jacobian.mT, times(root, e))
        torch.testing.assert_close(ours.flatten(1), theirs, rtol=0, atol=2e-7 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", NONLINEAR)
@pytest.mark.parametrize("covariance", [Isotropic(), Diagonal(), Exact(300)], ids=str)
def test_a_covariance_takes_the_linearisation_for_the_measurement(name: str, covariance: Any) -> None:
    """What CMI asks of it: ``A^T S^-1 e`` with ``S`` from the covariance's own products."""
    case = NONLINEAR[name]
    m, x_hat, jacobian = at(name, case.shape)
    step = step_at(three_images(case.shape), m, x_hat, 300.0, 250.0)
    bound = covariance.at(with_measurement(step, m.linearised(x_hat)))
    e = torch.randn(m.y.shape, generator=generator(5), dtype=F64)
    d = jacobian.shape[2]
    columns = [bound.product(v.expand(B, d).reshape(B, *case.shape)).flatten(1) for v in torch.eye(d, dtype=F64)]
    s = NOISE**2 * torch.eye(jacobian.shape[1], dtype=F64) + jacobian @ torch.stack(columns, -1) @ jacobian.mT
    theirs = times(jacobian.mT, torch.linalg.solve(s, e.flatten(1)[..., None])[..., 0])
    gap = (bound.solve(e).flatten(1) - theirs).norm() / theirs.norm()
    assert float(gap) < 1e-5


def test_a_linear_measurement_is_its_own_linearisation() -> None:
    case = PHYSICS["super-resolution"]
    physics = case.build(0.1)
    m = Measurement(physics.A(uniform(1, *case.shape)), physics, 0.1, case.shape, case.shape)
    assert m.linearised(uniform(1, *case.shape)) is m


def test_phase_retrieval_of_real_images_has_a_real_gradient() -> None:
    """deepinv's own ``A_vjp`` is complex here."""
    m, x_hat, _ = at("coded-phase", (1, 8, 8))
    assert m.physics.A_vjp(x_hat, m.y).is_complex()
    assert not m.pull(x_hat, m.y).is_complex()


# the door: ranges


class Disguised(Physics):
    """A linear map that does not say so."""

    def __init__(self, linear: LinearPhysics, shape: Shape) -> None:
        super().__init__(noise_model=linear.noise_model)
        self.linear, self.img_size = linear, shape

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.linear.A(x)


def gaussian_images(shape: Shape, std: float = 0.3) -> NetworkPrior:
    """Independent pixels ``N(0, std^2)`` in [-1, 1]."""
    schedule = NetworkPrior(lambda x, t: x).schedule

    def x_hat(x_t: Tensor, t: Tensor) -> Tensor:
        alpha_t, sigma_t = schedule(float(t[0]))
        return alpha_t * std**2 / (alpha_t**2 * std**2 + sigma_t**2) * x_t

    return NetworkPrior(x_hat, "x0", channels=shape[0], multiple=4)


@pytest.mark.parametrize("solver", [DPS(0.012), DSG(0.07)], ids=["dps", "dsg"])
@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-3.0, 7.0)])
def test_a_linear_map_in_disguise_is_restored_as_itself(solver, value_range) -> None:
    """The affine map between the door's range and the prior's is composed with the physics: same samples, same units
    of noise, same misfit."""
    shape = (3, 6, 8)  # on a canvas of 8 x 8
    physics = super_resolution(shape, factor=2, noise_std=0.1, dtype=F64)
    y = value_range[0] + (value_range[1] - value_range[0]) * measure(uniform(2, *shape), physics)
    options: dict[str, Any] = {"solver": solver, "steps": 12, "value_range": value_range, "noise_std": 0.4}
    prior = gaussian_images(shape)
    known, hidden = (restore(y, p, prior, **options) for p in (physics, Disguised(physics, shape)))
    torch.testing.assert_close(hidden.samples, known.samples, rtol=0, atol=1e-9 * (value_range[1] - value_range[0]))
    torch.testing.assert_close(hidden.stats["misfit"], known.stats["misfit"])


# the door: which solver


@pytest.mark.parametrize("name", NONLINEAR)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_explains_a_nonlinear_measurement_or_refuses(name: str, solver: str) -> None:
    case, used = NONLINEAR[name], SOLVERS[solver]
    physics = case.build(0.1)
    prior = three_images(case.shape)
    y = measure(prior.sample(2, generator(3)), physics, seed=[0, 1])
    if used.needs_linear:
        with pytest.raises(TypeError, match=f"{type(used).__name__} needs a linear physics, received.*use DPS or"):
            restore(y, physics, prior, solver=used, steps=3)
        return
    used = {DPS: DPS(0.04), DSG: DSG(0.13), CADPSReleased: CADPSReleased(0.012)}.get(type(used), used)
    found = restore(y, physics, prior, solver=used, steps=40)
    assert bool(found.ok.all())
    if isinstance(used, DPS | DSG):
        free = restore(y, physics, prior, solver=SOLVERS["unconditional"], steps=40)
        ours, theirs = (float(r.stats["misfit"][-1].mean()) for r in (found, free))
        assert ours < min(2.0, theirs)


@pytest.mark.parametrize("name", NONLINEAR)
def test_cmi_takes_the_linearisation_at_the_denoised_image(name: str) -> None:
    """Its move is that of the linear physics which the dense derivative makes, and a run with it ends."""
    case = NONLINEAR[name]
    m, x_hat, _ = at(name, case.shape)
    prior = three_images(case.shape)
    step = step_at(prior, m, x_hat, 300.0, 250.0)
    _, _, jacobian = at_point(m, step.x_hat.detach(), case.shape)
    fixed = LinearPhysics(
        A=lambda v: torch.einsum("bij,bj->bi", jacobian, v.flatten(1)).reshape(m.y.shape),
        A_adjoint=lambda e: torch.einsum("bij,bi->bj", jacobian, e.flatten(1)).reshape(len(e), *case.shape),
        img_size=case.shape,
    )
    plain = Measurement(m.y, fixed, m.noise_std, case.shape, case.shape)
    for covariance in ("isotropic", "exact"):
        cmi = CMI(1.0, covariance=covariance, cap=1e9, window=(0.0, math.inf))
        ours, theirs = cmi(step).correction, cmi(with_measurement(step, plain)).correction
        assert ours is not None
        assert theirs is not None
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
    physics = case.build(0.1)
    y = measure(prior.sample(1, generator(3)), physics)
    assert restore(y, physics, prior, solver=DPS(0.01), cmi=CMI(), steps=10).ok.all()


def test_physics_without_a_size_or_with_another_is_refused() -> None:
    prior = gaussian_images((3, 8, 8))
    physics = Physics(A=lambda x: x**2, noise_model=GaussianNoise(0.1))
    with pytest.raises(ValueError, match="not linear and has no img_size"):
        restore(torch.rand(1, 3, 8, 8), physics, prior, steps=2)
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\) does not fit FourierMagnitude.*\(B, 3, 16, 16\)"):
        restore(torch.rand(1, 3, 8, 8, dtype=F64), NONLINEAR["phase-retrieval"].build(0.1), prior, steps=2)


@pytest.mark.parametrize("sampler", [DDIM(), ProbabilityFlow(), ProbabilityFlow(order=1)], ids=str)
def test_dsg_without_noise_is_refused_before_the_run(sampler) -> None:
    physics, seen = denoise((3, 8, 8), noise_std=0.1, dtype=F64), []
    y = uniform(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"DSG uses the noise of the sampler.*has none: use sampler=Ancestral"):
        restore(y, physics, three_images((3, 8, 8)), solver=DSG(), sampler=sampler, steps=4, callback=seen.append)
    assert not seen
    assert restore(y, physics, three_images((3, 8, 8)), solver=DSG(0.0), sampler=sampler, steps=2).ok.all()
    for noisy in (DDIM(1.0), Ancestral()):
        assert restore(y, physics, three_images((3, 8, 8)), solver=DSG(), sampler=noisy, steps=2).ok.all()


class Once(torch.autograd.Function):
    """A square whose backward pass has no derivative of its own, as fused kernels have none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 2 * ctx.saved_tensors[0] * grads[0]


@pytest.mark.parametrize("how", ["double-backward", "reverse-over-forward"])
def test_a_contraction_that_the_prior_has_not_is_refused_before_the_run(how) -> None:
    """``double-backward`` alone would not notice the tiles: their derivative would be taken for a constant."""
    physics, y = denoise((3, 8, 16), noise_std=0.1, dtype=F64), uniform(1, 3, 8, 16)
    tiled = Tiled(three_images((3, 8, 8)), tile=8, overlap=4)
    once = NetworkPrior(lambda x, t: 0.1 * Once.apply(x), "x0", channels=3)  # pyright: ignore
    seen: list[Any] = []
    for prior in (tiled, once) if how == "reverse-over-forward" else (tiled,):
        options: dict[str, Any] = {"solver": PiGDM(), "steps": 3}
        with pytest.raises(ValueError, match=f"{how}.*needs derivatives that this prior does not support"):
            restore(y, physics, prior, cmi=CMI(contraction=how), callback=seen.append, **options)
        assert not seen
        assert restore(y, physics, prior, cmi=CMI(), **options).ok.all()
        assert restore(y, physics, prior, cmi=CMI(0.0, contraction=how), **options).ok.all()
    small = denoise((3, 8, 8), noise_std=0.1, dtype=F64)
    options = {"solver": PiGDM(), "cmi": CMI(contraction=how), "steps": 3}
    assert restore(y[..., :8], small, three_images((3, 8, 8)), **options).ok.all()


# photons


def photons(shape: Shape, gain: float, **options: Any) -> LinearPhysics:
    physics = denoise(shape, dtype=F64)
    physics.noise_model = PoissonNoise(gain, **options)
    return physics


@pytest.mark.parametrize(
    "model",
    [PoissonNoise(1 / 64), PoissonGaussianNoise(1 / 64, 0.1), PoissonNoise(1 / 64, normalize=False)],
    ids=["poisson", "both", "counts"],
)
def test_photons_weigh_the_data_by_their_variance(model) -> None:
    """A Gaussian prior and entries of three brightnesses: the posterior of each has its own variance, known in closed
    form."""
    shape, std, gain = (3, 24, 24), 0.3, 1 / 64
    levels = torch.tensor([12.0, 30.0, 48.0], dtype=F64) * gain
    y = levels.reshape(1, 3, 1, 1).expand(1, *shape) / (
        gain if getattr(model, "normalize", None) is not None and not bool(model.normalize) else 1.0
    )
    physics = denoise(shape, dtype=F64)
    physics.noise_model = model
    solver = CADPS(Isotropic(std**2))
    found = restore(
        y, physics, gaussian_images(shape, std), solver=solver, sampler=ProbabilityFlow(), steps=100, samples=4
    ).samples
    prior_variance = (0.5 * std) ** 2
    sigma = float(getattr(model, "sigma", torch.zeros(1)))
    noise = gain * levels + sigma**2
    variance = prior_variance * noise / (prior_variance + noise)
    mean = 0.5 + prior_variance / (prior_variance + noise) * (levels - 0.5)
    count = found[:, :, 0].numel()
    for c in range(3):
        error = float(found[:, :, c].mean() - mean[c])
        assert abs(error) < 5 * math.sqrt(float(variance[c]) / count) + 0.01
        assert float(found[:, :, c].var() / variance[c]) == pytest.approx(1.0, abs=5 * math.sqrt(2 / count) + 0.08)


class Watch(Solver):
    """A solver that keeps the measurement it was shown."""

    def __init__(self) -> None:
        self.seen: list[Measurement] = []

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        self.seen.append(step.measurement)
        return step.advance(carry)


def test_no_entry_is_surer_than_one_photon_allows() -> None:
    """Weights in the open: 1 at the middle of the range, those of one photon where none or fewer were counted."""
    gain, watch = 0.02, Watch()
    y = torch.tensor([0.0, 0.01, 0.02, 0.5, 1.0], dtype=F64).reshape(1, 1, 1, 5)
    prior = NetworkPrior(lambda x, t: 0 * x, "x0", channels=1)
    restore(y, photons((1, 1, 5), gain), prior, solver=watch, steps=1)
    m = watch.seen[0]
    assert m.weight is not None
    assert m.noise_std == pytest.approx(2 * math.sqrt(gain * 0.5))  # in [-1, 1]
    expected = [math.sqrt(0.5 / value) for value in (0.02, 0.02, 0.02, 0.5, 1.0)]
    assert m.weight.flatten().tolist() == pytest.approx(expected)
    torch.testing.assert_close(m.y, m.weight * (2 * y - 1))


def test_misfit_of_the_truth_under_photons_is_one() -> None:
    """Bright enough that ``y`` estimates its own variance: within its own error of 1."""
    x = 0.2 + 0.8 * uniform(1, 3, 32, 32)
    physics = photons((3, 32, 32), 1 / 256)
    y = measure(x, physics, seed=4)
    truth = GaussianMixture(torch.ones(1, dtype=F64), x, torch.full_like(x, 1e-12))
    misfit = restore(y, physics, truth, solver=PiGDM(), steps=3, value_range=None).stats["misfit"][-1]
    assert float(misfit) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("solver", ["dps", "pigdm", "mcg", "dsg", "cadps", "cadps-exact"])
def test_every_solver_takes_photons(solver: str) -> None:
    physics = inpaint_box((3, 8, 8), dtype=F64)
    physics.noise_model = PoissonNoise(1 / 64)
    prior = three_images((3, 8, 8))
    y = measure(prior.sample(2, generator(1)).clamp(0, 1), physics, seed=[0, 1])
    found = restore(y, physics, prior, solver=SOLVERS[solver], cmi=CMI(), steps=30, seed=[0, 1])
    assert bool(found.ok.all())
    assert float(found.stats["misfit"][-1].mean()) < 2.5
    alone = restore(y[:1], physics, prior, solver=SOLVERS[solver], cmi=CMI(), steps=30)
    torch.testing.assert_close(alone.samples[0], found.samples[0], rtol=0, atol=1e-6)


def test_a_stated_noise_std_overrides_photons_and_complex_photons_are_refused() -> None:
    y = uniform(1, 3, 8, 8)
    prior = gaussian_images((3, 8, 8))
    gauss = restore(y, denoise((3, 8, 8), noise_std=0.2, dtype=F64), prior, steps=4).estimate
    assert torch.equal(restore(y, photons((3, 8, 8), 0.01), prior, noise_std=0.2, steps=4).estimate, gauss)
    physics = LinearPhysics(A=lambda x: x * 1j, A_adjoint=lambda u: (u * -1j).real, img_size=(3, 8, 8))
    physics.noise_model = PoissonNoise(0.1)
    with pytest.raises(ValueError, match=r"photons are counted in real numbers.*complex"):
        restore(y * 1j, physics, prior, steps=2)
