"""The registry of names: what is registered is found, stored and made again; a foreign package adds names."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from cmidiff import CADPS, CMI, DPIR, DPS, DSG, MCG, PiGDM, ProbabilityFlow, Ramp, restore
from cmidiff.config import Bound
from cmidiff.covariance import Covariance, Diagonal, Exact, Hybrid, Isotropic, RowSum, SecondMoments
from cmidiff.physics import denoise
from cmidiff.registry import COVARIANCES, SAMPLERS, SOLVERS, Registry, describe
from cmidiff.samplers import DDIM, DPMSolver
from cmidiff.solvers import Solver
from cmidiff.step import Sampler
from tests.cases import F64, label, three_images

REGISTRIES: dict[str, tuple[Registry, Any]] = {
    "solvers": (SOLVERS, Solver),
    "samplers": (SAMPLERS, Sampler),
    "covariances": (COVARIANCES, Covariance),
}
THINGS: list[tuple[Registry, Any]] = [
    *((SOLVERS, thing) for thing in (DPS(Ramp(2.0, 0.5)), MCG(0.1), DSG(0.1, 3), DPIR(0.3), PiGDM(0.9, "flow", 0.2))),
    (SOLVERS, PiGDM(covariance=Diagonal(probes=4))),
    (SOLVERS, CADPS(Exact(8), guard=False)),
    (SOLVERS, CADPS(Hybrid(high=Isotropic(1.0), low=Exact(8), switch=1.0), 0.9, complete=True)),
    (SAMPLERS, DDIM(0.5)),
    (SAMPLERS, DPMSolver(sde=True)),
    (SAMPLERS, ProbabilityFlow(churn=3.0, churn_range=(0.1, 2.0))),
    (COVARIANCES, Hybrid(high=Hybrid(switch=3.0), low=SecondMoments(5))),
]


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_name_makes_its_thing_with_the_defaults_of_its_class(kind: str) -> None:
    registry, base = REGISTRIES[kind]
    for name in registry:
        made = registry.make(name)
        assert isinstance(made, base)
        assert registry.resolve(name) == made
        assert registry.resolve(made) is made
        assert registry.spell(made) == {"name": name}
        assert set(registry.options(name)) <= {field.name for field in dataclasses.fields(made)}
    own = {"cadps": CADPS(), "pigdm": PiGDM(), "dpir": DPIR(), "dps": DPS()}
    assert kind != "solvers" or all(SOLVERS.make(name) == thing for name, thing in own.items())


@pytest.mark.parametrize(("registry", "thing"), THINGS, ids=[label(thing) for _, thing in THINGS])
def test_a_thing_is_spelled_as_text_and_made_again(registry: Registry, thing: Any) -> None:
    spelled = json.loads(json.dumps(registry.spell(thing)))
    assert registry.make(spelled.pop("name"), spelled) == thing


def test_a_description_names_the_class_of_what_is_nested() -> None:
    found = describe(CADPS(Hybrid(high=Isotropic(0.5), low=Exact(3))))
    assert found["covariance"]["class"] == "Hybrid"
    assert found["covariance"]["high"] == {"class": "Isotropic", "data_variance": 0.5}
    assert describe(DPS(Ramp(2.0, 1.0)))["scale"] == {"class": "Ramp", "start": 2.0, "end": 1.0}
    assert describe(CADPS) == {}
    assert json.loads(json.dumps(found)) == found


def test_wrong_names_and_options_are_answered_with_what_there_is() -> None:
    for wrong, message in (
        ("pigmd", "unknown solver 'pigmd': did you mean pigdm"),
        ("xyzzy", "unknown solver 'xyzzy': choose one of dpir, cadps"),
    ):
        with pytest.raises(ValueError, match=message):
            SOLVERS.make(wrong)
    with pytest.raises(ValueError, match="solver 'dps' has no option 'sclae': did you mean scale"):
        SOLVERS.make("dps", {"sclae": 1.0})
    with pytest.raises(ValueError, match="solver 'unconditional' has no option 'scale': it has none"):
        SOLVERS.make("unconditional", {"scale": 1.0})
    with pytest.raises(ValueError, match="unknown covariance 'exat': did you mean exact"):
        SOLVERS.make("cadps", {"covariance": {"name": "exat"}})
    with pytest.raises(ValueError, match="scale must be a number >= 0"):
        SOLVERS.make("dps", {"scale": -1.0})
    with pytest.raises(ValueError, match=r"must be one of .* to be stored"):
        SAMPLERS.spell(DPS())
    assert "pigdm" in SOLVERS
    assert "pigmd" not in SOLVERS
    assert 3 not in SOLVERS
    assert len(SOLVERS) == len(list(SOLVERS))


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The solvers, with an installed distribution that registers three more."""
    info = tmp_path / "landweber-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: landweber\nVersion: 1.0\n")
    names = "landweber = foreign_landweber:Landweber\nbroken = foreign_landweber:Nothing\nabsent = no_module:Thing\n"
    (info / "entry_points.txt").write_text(f"[cmidiff.solvers]\n{names}dps = foreign_landweber:Landweber\n")
    (tmp_path / "foreign_landweber.py").write_text(
        "from dataclasses import dataclass\n"
        "from cmidiff.solvers import PosteriorMean\n"
        "@dataclass(frozen=True)\n"
        "class Landweber(PosteriorMean):\n"
        "    size: float = 0.5\n"
        "    needs_linear = True\n"
        "    def estimate(self, step):\n"
        "        x = step.x_hat.detach()\n"
        "        return x + self.size * step.measurement.At(step.measurement.residual(x))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    fresh = Registry(SOLVERS.kind, SOLVERS.group, SOLVERS.builtin)
    monkeypatch.setitem(SOLVERS.__dict__, "_all", fresh._all)
    return SOLVERS


@pytest.mark.filterwarnings("ignore::cmidiff.result.RestorationWarning")
def test_an_installed_distribution_adds_a_solver(foreign: Registry) -> None:
    assert set(foreign) > set(foreign.builtin)
    made = foreign.make("landweber", {"size": 0.7})
    assert made.size == 0.7
    assert foreign.spell(made) == {"name": "landweber", "size": 0.7}
    physics, prior = denoise((3, 8, 8), noise_std=0.1, dtype=F64), three_images((3, 8, 8))
    y = physics.A(prior.means[:1].reshape(1, 3, 8, 8))
    assert restore(y, physics, prior, solver="landweber", steps=3, value_range=None).ok.all()


def test_a_broken_registration_says_so_and_costs_the_others_nothing(foreign: Registry) -> None:
    for name in ("broken", "absent"):
        with pytest.raises(ValueError, match=f"the solver '{name}' is registered as .* and cannot be loaded"):
            foreign.make(name)
    assert isinstance(foreign.make("dps"), DPS), "a name of this package is not taken by another"
    assert foreign.spell(DPS(0.5)) == {"name": "dps", "scale": 0.5}


def kinds() -> list[Any]:
    """One object of every class with options."""
    made = [registry.make(name) for registry, _ in REGISTRIES.values() for name in registry.builtin]
    return list({type(thing): thing for thing in [*made, CMI(), Ramp(1.0, 2.0)]}.values())


@pytest.mark.parametrize("thing", kinds(), ids=lambda thing: type(thing).__name__)
def test_an_option_of_another_kind_is_refused_by_name(thing: Any) -> None:
    """Of every class: a text, a list, an object and NaN in every field; what is a text or a choice has no such text."""
    for field in dataclasses.fields(thing):
        for wrong in ("wrong", [], object(), math.nan):
            with pytest.raises((ValueError, TypeError), match=f"{type(thing).__name__}|unknown covariance") as caught:
                dataclasses.replace(thing, **{field.name: wrong})
            assert field.name in str(caught.value) or "covariance" in str(caught.value)


def test_every_range_that_an_annotation_states_is_kept() -> None:
    seen = set()
    for thing in kinds():
        for name, hint in get_type_hints(type(thing), include_extras=True).items():
            if any(isinstance(part, Bound) for kind in (hint, *get_args(hint)) for part in get_args(kind)):
                seen.add(type(thing).__name__)
                with pytest.raises(ValueError, match=f"{type(thing).__name__}: {name} must be .*, received -1"):
                    dataclasses.replace(thing, **{name: -1})
    assert {"DPS", "CADPS", "DDIM", "Exact", "FreeHunch", "FPS", "RePaint"} <= seen


def test_numbers_out_of_their_range_are_refused() -> None:
    for make in (
        lambda: DDIM(-1.0),
        lambda: DDIM(1.5),
        lambda: ProbabilityFlow(3),  # pyright: ignore[reportArgumentType]
        lambda: DPMSolver(3),  # pyright: ignore[reportArgumentType]
        lambda: DPMSolver(True),  # pyright: ignore[reportArgumentType]
        lambda: SAMPLERS.make("ancestral", {"variance": "tiny"}),
        lambda: CADPS(contraction="thrice"),  # pyright: ignore[reportArgumentType]
        lambda: RowSum(-0.1),
        lambda: SecondMoments(0),
        lambda: SecondMoments(tolerance=0.0),
        lambda: CMI(window=(1.0,)),  # pyright: ignore[reportArgumentType]
        lambda: CMI(every=2.5),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(ValueError, match=r"must be|need"):
            make()


def test_names_classes_and_objects_are_the_same_covariance() -> None:
    assert Hybrid("moments", Exact) == Hybrid() == Hybrid(SecondMoments(), "exact")  # pyright: ignore[reportArgumentType]
    assert CADPS(Exact) == CADPS("exact") == CADPS(Exact())  # pyright: ignore[reportArgumentType]
    assert CMI(covariance=Exact) == CMI(covariance="exact")  # pyright: ignore[reportArgumentType]
