"""Every prior declares every fact, and a wrapper changes none that it does not mean to change."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cmidiff
from cmidiff.evaluate.work import Counted
from cmidiff.laboratory.increments import Laplace
from cmidiff.laboratory.learned import LearnedMixture
from cmidiff.laboratory.levy_prior import LevyPrior
from cmidiff.laboratory.mixtures import DiagonalMixture
from cmidiff.prior import (
    Composite,
    Denoiser,
    GaussianMixture,
    NetworkPrior,
    Prediction,
    Prior,
    WrappedPrior,
    check_memory,
    check_prior,
    estimate_memory,
    from_denoiser,
)
from cmidiff.prior.adapters import AzulaPrior
from cmidiff.prior.base import FACTS
from cmidiff.prior.tiles import Tiled
from cmidiff.schedule import DDPM, VE
from tests.cases import F64


class Convolution(nn.Module):
    """A network of two convolutions and a smooth function between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.last(torch.tanh(self.layer(x_t)))


def network(dtype: torch.dtype = torch.bfloat16, width: int = 3) -> NetworkPrior:
    """A prior with no fact at its default."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Convolution(width).to(dtype).requires_grad_(False)
    return NetworkPrior(
        module,
        "x0",
        VE(),
        value_range=(-2.0, 2.0),
        channels=3,
        multiple=4,
        name="mine",
        card={"licence": "MIT"},
        dtype=dtype,
        size=16,
        smooth=False,
        clip=False,
        min_ratio=0.02,
        max_ratio=70.0,
    )


def mixture() -> GaussianMixture:
    return GaussianMixture(torch.ones(1), torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4))


PRIORS: dict[str, Denoiser] = {
    "network": network(),
    "function": NetworkPrior(lambda x_t, t: x_t, "x0"),
    "denoiser": from_denoiser(lambda x, sigma: x / (1 + sigma**2), 0.5),
    "composite": Composite(from_denoiser(lambda x, sigma: x, 0.5), network(), at=0.5),
    "mixture": mixture(),
    "diagonal": DiagonalMixture(torch.ones(1), torch.zeros(1, 4), torch.ones(1, 4), DDPM.linear()),
    "levy": LevyPrior(Laplace(), d=8),
    "learned": LearnedMixture(4, 1.0, DDPM.linear()),
}
WRAPPERS: dict[type, Any] = {Tiled: lambda prior: Tiled(prior, 16, 4), Counted: Counted}


def classes() -> Iterator[type]:
    """Every class that the package defines outside of the apps."""
    for module in pkgutil.walk_packages(cmidiff.__path__, "cmidiff."):
        if not (".app" in module.name or module.name.endswith("__main__")):
            for found in vars(importlib.import_module(module.name)).values():
                if inspect.isclass(found) and found.__module__ == module.name:
                    yield found


def test_the_list_of_facts_is_the_protocol() -> None:
    declared = {name for name, value in vars(Denoiser).items() if isinstance(value, property)}
    assert declared == set(FACTS)


@pytest.mark.parametrize("name", PRIORS)
def test_every_prior_has_every_fact(name: str) -> None:
    prior = PRIORS[name]
    check_prior(prior)
    assert isinstance(prior.name, str)
    assert isinstance(prior.card, dict)
    assert isinstance(prior.fingerprint, str)
    assert 0 <= prior.min_ratio < prior.max_ratio
    assert prior.clip in (None, prior.value_range)
    assert prior.to("cpu").fingerprint == prior.fingerprint


def test_no_kind_of_prior_is_left_out_of_this_file() -> None:
    """A class that is called like a prior derives from `Prior` or `WrappedPrior`, and its facts are tested here."""
    tested = {type(prior) for prior in PRIORS.values()} | {*WRAPPERS, AzulaPrior, Prior, WrappedPrior, Denoiser}
    found = set(filter(predicts, classes()))
    assert found <= tested
    assert all(issubclass(one, Prior | WrappedPrior) for one in found - {Denoiser})
    assert {Tiled, Counted, Composite, NetworkPrior} <= found


def predicts(found: type) -> bool:
    """Whether a class is called like a prior."""
    calls = [vars(found)[name] for name in ("__call__", "forward") if name in vars(found)]
    return any(inspect.signature(call).return_annotation in (Prediction, "Prediction") for call in calls)


def test_the_base_of_wrappers_forwards_each_fact_itself() -> None:
    for name in (*FACTS, "smooth_at", "evaluations", "to", "__call__"):
        assert name in vars(WrappedPrior), f"WrappedPrior does not forward {name}"


@pytest.mark.parametrize("wrapper", [Tiled, Counted])
def test_a_wrapper_has_the_facts_of_what_it_wraps(wrapper: type) -> None:
    inner = network()
    wrapped = WRAPPERS[wrapper](inner)
    for name in FACTS:
        assert getattr(wrapped, name) == getattr(inner, name), name
    assert wrapped.smooth_at(1.0) is False
    moved = wrapped.to("cpu")
    assert type(moved) is wrapper
    assert moved.inner is inner
    nested = Counted(Tiled(inner, 16, 4))
    assert (nested.dtype, nested.clip, nested.max_ratio) == (torch.bfloat16, None, 70.0)


@pytest.mark.parametrize("wrapper", [Tiled, Counted])
def test_a_wrapper_keeps_the_memory_check(wrapper: type) -> None:
    """One tile at a time is what a tiled prior needs; the whole is what any other needs."""
    inner, shape = network(torch.float32), (3, 64, 48)
    wrapped = WRAPPERS[wrapper](inner)
    whole, found = estimate_memory(inner, shape, 2, graph=True), estimate_memory(wrapped, shape, 2, graph=True)
    assert whole is not None
    assert found is not None
    seen = estimate_memory(inner, (3, 16, 16), 2 * 8, graph=True) if wrapper is Tiled else whole
    assert seen is not None
    assert found == replace(seen, state=whole.state)
    with pytest.raises(ValueError, match="not enough memory"):
        check_memory(wrapped, shape, 2, graph=True, available=1000)


def test_both_parts_of_a_composite_are_checked_for_memory() -> None:
    small, large = network(torch.float32), network(torch.float32, width=40)
    need = estimate_memory(large, (3, 32, 32), 4)
    assert need is not None
    assert need != estimate_memory(small, (3, 32, 32), 4)
    for low, high in ((small, large), (large, small)):
        composite = Composite(low, high, at=1.0)
        assert estimate_memory(composite, (3, 32, 32), 4) == need
        with pytest.raises(ValueError, match="not enough memory"):
            check_memory(composite, (3, 32, 32), 4, available=int(0.9 * need.beside))


def test_the_fingerprint_is_that_of_the_function() -> None:
    prior = network()
    assert network().fingerprint == prior.fingerprint
    changed = network()
    assert isinstance(changed.network, Convolution)
    nn.init.constant_(changed.network.last.weight, 0.5)
    linear, cosine = (NetworkPrior(prior.network, "eps", s) for s in (DDPM.linear(), DDPM.cosine()))
    others = [changed, linear, cosine, NetworkPrior(prior.network, "x0", DDPM.linear()), mixture()]
    prints = {prior.fingerprint, *(other.fingerprint for other in others)}
    assert len(prints) == 1 + len(others)
    assert Composite(prior, linear, 0.3).fingerprint != Composite(prior, linear, 0.4).fingerprint


def test_what_is_no_prior_is_named() -> None:
    class Old:
        schedule = DDPM.linear()
        value_range, channels, multiple, name = None, None, 1, "old"

        def __call__(self, x_t: Tensor, t: float) -> Prediction:
            return Prediction(x_t)

    with pytest.raises(TypeError, match=r"received 'natural-64': derive .* from_denoiser"):
        check_prior("natural-64")
    with pytest.raises(TypeError, match=r"received Old: derive your own class from cmidiff\.prior\.Prior"):
        check_prior(Old())


def test_a_class_of_ones_own_needs_a_schedule_and_a_call() -> None:
    class Own(Prior):
        schedule = DDPM.linear()

        def __call__(self, x_t: Tensor, t: float) -> Prediction:
            return Prediction(0.5 * x_t)

    prior = Own()
    check_prior(prior)
    assert (prior.name, prior.smooth, prior.max_ratio, prior.dtype) == ("Own", True, math.inf, None)
    with pytest.raises(TypeError, match="abstract"):
        Prior()  # pyright: ignore[reportAbstractUsage]


def test_a_mixture_is_moved_and_stays_the_same() -> None:
    prior = GaussianMixture(torch.ones(1, dtype=F64), torch.zeros(1, 2, dtype=F64), torch.eye(2, dtype=F64)[None])
    x_t = torch.ones(1, 2, dtype=F64)
    torch.testing.assert_close(prior.to("cpu")(x_t, 300.0).mean, prior(x_t, 300.0).mean, rtol=0, atol=0)
    assert prior.to("meta").device == torch.device("meta")
    assert prior.device == torch.device("cpu")
