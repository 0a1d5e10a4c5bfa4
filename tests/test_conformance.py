"""The official codes' trajectories, replayed: see tests/conformance.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import conformance

FOLDER = Path(__file__).resolve().parent.parent.parent / "shared" / "conformance"
FILES = sorted(FOLDER.glob("*_box.npz")) + sorted(FOLDER.glob("*_sr4.npz")) + sorted(FOLDER.glob("dps_full*.npz"))
FILES += [path for path in sorted(FOLDER.glob("part*/*.npz")) if conformance.known(path)]


@pytest.mark.skipif(not FILES, reason="the reference trajectories are not part of the project")
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_official_trajectory(path: Path) -> None:
    for run, (error, tolerance) in conformance.replay(path).items():
        assert error <= tolerance, run


def test_the_trajectory_that_comes_with_the_tests() -> None:
    """One run of the official code of DPS is part of the project, so that a clone can check it."""
    path = Path(__file__).resolve().parent / "reference" / "dps_box.npz"
    ((error, tolerance),) = conformance.replay(path).values()
    assert error <= tolerance == 1e-7
    assert conformance.main([str(path)]) == 0


def test_missing_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert conformance.main([str(tmp_path / "none.npz")]) == 2
    assert "no such file" in capsys.readouterr().out
