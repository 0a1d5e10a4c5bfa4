"""What an installation relies on: one version, types, the supported interpreters, and a silent log."""

from __future__ import annotations

import logging
import re
import tomllib
from pathlib import Path

import torch

import cmidiff
from cmidiff import restore
from cmidiff.physics import denoise
from tests.cases import three_images

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_has_one_source() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "cmidiff/__init__.py"
    assert f"version: {cmidiff.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {cmidiff.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_workflow_tests_every_python_of_the_classifiers() -> None:
    classifiers = PROJECT["project"]["classifiers"]
    declared = {c.rpartition(" ")[2] for c in classifiers if re.search(r"Python :: 3\.\d", c)}
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    tested = {v for line in re.findall(r"python: (.*)", workflow) for v in re.findall(r'"(3\.\d+)"', line)}
    assert declared == tested == {"3.11", "3.12", "3.13", "3.14"}
    assert "--resolution lowest-direct" in workflow
    assert {"Homepage", "Documentation", "Changelog", "Issues"} <= set(PROJECT["project"]["urls"])
    assert (ROOT / "cmidiff" / "py.typed").is_file()


def test_a_restoration_leaves_the_log_of_the_program_alone() -> None:
    loggers = [logging.getLogger(name) for name in (None, "cmidiff")]
    before = [(list(logger.handlers), logger.level, logger.disabled) for logger in loggers]
    physics = denoise((3, 8, 8), noise_std=0.1, dtype=torch.float64)
    y = physics(torch.full((1, 3, 8, 8), 0.5, dtype=torch.float64))
    restore(y, physics, three_images((3, 8, 8)), solver="cadps", steps=2, value_range=None)
    assert [(list(logger.handlers), logger.level, logger.disabled) for logger in loggers] == before
