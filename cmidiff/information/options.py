"""Which options of the estimators go together."""

from __future__ import annotations

from typing import get_args

from cmidiff.information.contraction import Contraction, Estimator, default_contraction
from cmidiff.information.gradient import Probe


def check_options(estimator: Estimator, contraction: Contraction | None, probe: Probe, probes: int) -> None:
    for name, value, allowed in (
        ("estimator", estimator, get_args(Estimator)),
        (
            "contraction",
            default_contraction("measurement") if contraction is None else contraction,
            get_args(Contraction),
        ),
        ("probe", probe, get_args(Probe)),
    ):
        if value not in allowed:
            raise ValueError(f"CMI: {name} must be one of {', '.join(allowed)}, received {value!r}")
    if probes < 1:
        raise ValueError(f"CMI: probes must be at least 1, received {probes}")
    if contraction == "second-difference" and estimator != "measurement-symmetric":
        raise ValueError(
            "CMI: second-difference needs the same direction on both sides of the Jacobian, "
            f"received estimator={estimator!r}: use measurement-symmetric, or contraction='finite-difference'"
        )
