"""The one table of the solvers' names, for command lines and configurations. Torch is imported when one is made."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmidiff.guidance import Guidance

VARIANCE = 0.3  # about that of pictures in [-1, 1]
SWITCH = 0.5  # above this noise level a network's Jacobian costs more than it gives
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dps": ("DPS", {}),
    "pigdm": ("PiGDM", {"data_variance": VARIANCE}),
    "mcg": ("MCG", {}),
    "dsg": ("DSG", {}),
    "cadps": ("CADPS", {"switch": SWITCH, "data_variance": VARIANCE}),
    "cadps-diagonal": ("CADPS", {}),  # the paper's, at every noise level
    "cadps-isotropic": ("CADPS", {"covariance": "isotropic", "data_variance": VARIANCE}),
    "cadps-exact": ("CADPS", {"covariance": "exact", "switch": SWITCH, "data_variance": VARIANCE}),
    "cadps-released": ("CADPS", {"covariance": "released"}),
    "unconditional": ("Unconditional", {}),
}
"""Name: class in `cmidiff.guidance`, and its options under this name."""


def make_solver(name: str, options: Mapping[str, Any] | None = None) -> Guidance:
    """The solver of a name, with options of its class that replace those of the table.

    Args:
        name: of `SOLVERS`.
        options: JSON values by field, as ``{"scale": 1.0}``; ``{"start": 6.0, "end": 2.0}`` is a `Ramp`.

    Raises:
        ValueError, TypeError: unknown name or option (what there is, is listed), or a value that the solver refuses.
    """
    import cmidiff.guidance
    from cmidiff.guidance import Ramp

    if name not in SOLVERS:
        near = difflib.get_close_matches(name.lower(), SOLVERS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(SOLVERS)}"
        raise ValueError(f"unknown solver {name!r}: {hint}")
    kind, preset = SOLVERS[name]
    solver: Any = getattr(cmidiff.guidance, kind)
    known = {field.name: field.default for field in dataclasses.fields(solver)}
    settable = [field for field, default in known.items() if not callable(default)]
    for option in options or {}:
        if option not in settable:
            raise ValueError(f"solver {name!r} has no option {option!r}: it has {', '.join(settable) or 'none'}")
    values = {k: Ramp(**v) if isinstance(v, Mapping) else v for k, v in (options or {}).items()}
    return solver(**{**preset, **values})


def described(thing: object) -> dict[str, Any]:
    """The fields of a solver, a kernel or CMI as JSON holds them, alike in every process: functions by their name."""

    def plain(value: object) -> str:
        name = getattr(value, "__qualname__", None)
        return str(value) if name is None else f"{getattr(value, '__module__', '')}.{name}"

    fields = dataclasses.asdict(thing) if dataclasses.is_dataclass(thing) and not isinstance(thing, type) else {}
    return json.loads(json.dumps(fields, default=plain))
