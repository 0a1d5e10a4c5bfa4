"""The examples run and print what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

QUICKSTART = Path(__file__).resolve().parent.parent / "examples" / "quickstart.py"


def test_quickstart_prints_the_numbers_beside_its_calls() -> None:
    source = QUICKSTART.read_text()
    expected = {name.strip(): float(value) for name, value in re.findall(r'print\(f"(.{20}).*# (\d\.\d+)', source)}
    printed = subprocess.check_output([sys.executable, str(QUICKSTART)], text=True)
    found = {line[:20].strip(): float(line[20:]) for line in printed.splitlines()}
    assert len(expected) == 5
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert abs(found[name] - value) < 0.01, name
