"""Output files: whole or absent, never in the place of an input or of a file of another origin."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cmidiff import files
from cmidiff.app.cli import app
from cmidiff.app.errors import TRACEBACK


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def photograph(name: str, seed: int = 0) -> bytes:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(name)
    return Path(name).read_bytes()


def cmidiff(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert "Traceback" not in result.output
    return result.exit_code, result.stderr


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# the library


def test_a_file_is_written_as_a_whole_and_the_folder_is_clean(desk: Path) -> None:
    files.write(desk / "new" / "a.txt", b"one", "test")
    files.write(desk / "new" / "a.txt", b"two", "test")
    assert (desk / "new" / "a.txt").read_bytes() == b"two"
    assert names(desk / "new") == [files.LIST, "a.txt"]


def test_a_full_disk_leaves_the_earlier_file(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write(desk / "a.txt", b"one")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        files.write(desk / "a.txt", b"two")
    assert caught.value.filename == str(desk / "a.txt")
    assert (desk / "a.txt").read_bytes() == b"one"
    assert names(desk) == ["a.txt"]


def test_a_link_is_followed_and_a_device_is_refused(desk: Path) -> None:
    (desk / "link.txt").symlink_to("far.txt")
    files.write(desk / "link.txt", b"one", "test")
    assert (desk / "far.txt").read_bytes() == b"one"
    assert files.is_own(desk / "link.txt", "test")
    with pytest.raises(OSError, match="no regular file"):
        files.write(Path(os.devnull), b"one")


def test_only_the_same_command_may_replace_an_unchanged_file(desk: Path) -> None:
    path = desk / "a.txt"
    files.write(path, b"one", "test")
    files.check_outputs([path], command="test")
    with pytest.raises(ValueError, match="exists and cmidiff other did not write it"):
        files.check_outputs([path], command="other")
    files.check_outputs([path], command="other", overwrite=True)
    path.write_bytes(b"edited")
    with pytest.raises(ValueError, match="or it was changed since"):
        files.check_outputs([path], command="test")


@pytest.mark.parametrize("how", ["same", "dotted", "absolute", "symbolic", "hard", "folder"])
def test_an_input_is_never_replaced(desk: Path, how: str) -> None:
    path = desk / "a.txt"
    path.write_bytes(b"mine")
    (desk / "sub").mkdir()
    output = {"same": path, "dotted": desk / "sub" / ".." / "a.txt", "absolute": Path("a.txt")}.get(how, desk / "b.txt")
    if how == "symbolic":
        output.symlink_to(path)
    elif how == "hard":
        output.hardlink_to(path)
    elif how == "folder":
        output = path
    with pytest.raises(ValueError, match="would replace the input"):
        files.check_outputs([output], [None, desk if how == "folder" else path], command="test", overwrite=True)


# the commands


def hard_link(name: str) -> None:
    Path(name).hardlink_to("p.png")


def symbolic_link(name: str) -> None:
    Path(name).symlink_to("p.png")


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    ("output", "make"),
    [
        ("p", None),
        ("p.png", None),
        ("./p.safetensors", None),
        ("other", hard_link),
        ("other", symbolic_link),
    ],
)
def test_degrade_never_writes_over_its_photograph(
    output: str, make: Callable[[str], None] | None, overwrite: list[str]
) -> None:
    before = photograph("p.png")
    if make is not None:
        make("other.png")
    code, said = cmidiff("degrade", "p.png", "--task", "denoise", "-o", output, *overwrite)
    assert code == 2
    assert "would replace the input p.png: give another --output" in said
    assert Path("p.png").read_bytes() == before


def test_degrade_replaces_its_own_files_and_no_others() -> None:
    photograph("p.png")
    degrade = ("degrade", "p.png", "--task", "denoise", "--resize", 8, "-o", "m")
    for name in ("m.png", "m.safetensors", "m-truth.png"):
        Path(name).write_bytes(b"mine")
        code, said = cmidiff(*degrade)
        assert (code, f"{name} exists and cmidiff degrade did not write it" in said) == (2, True)
        assert Path(name).read_bytes() == b"mine"
        Path(name).unlink()
    assert cmidiff(*degrade)[0] == 0
    assert cmidiff(*degrade, "--noise-std", 0.2)[0] == 0
    edited = photograph("m-truth.png", seed=1)
    assert cmidiff(*degrade)[0] == 2
    assert Path("m-truth.png").read_bytes() == edited
    assert cmidiff(*degrade, "--overwrite")[0] == 0
    assert Path("m-truth.png").read_bytes() != edited


def test_degrade_never_writes_over_a_mask() -> None:
    photograph("p.png")
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[4, 4:9] = 255
    Image.fromarray(mask).save("m.png")
    for option in ("--mask", "--seen"):
        code, said = cmidiff("degrade", "p.png", option, "m.png", "-o", "m", "--overwrite")
        assert (code, "would replace the input m.png" in said) == (2, True)


def test_restore_and_demo_leave_files_of_another_origin(desk: Path) -> None:
    """The check comes before anything is computed, so no prior is needed here."""
    from cmidiff.app.folder import open_folder

    (desk / "out").mkdir()
    mine = photograph("out/mean.png")
    photograph("out/holiday.png")
    photograph("out/sample-side.png")
    record = {"samples": 2}
    with pytest.raises(ValueError, match=r"mean\.png exists and cmidiff restore did not write it"):
        open_folder(desk / "out", record, overwrite=False)
    with pytest.raises(ValueError, match="would replace the input"):
        open_folder(desk / "out", record, overwrite=True, inputs=[desk / "out" / "mean.png"])
    assert Path("out/mean.png").read_bytes() == mine
    open_folder(desk / "out", record, overwrite=True)
    files.write(desk / "out" / "sample-05.png", b"own", "restore")
    open_folder(desk / "out", record, overwrite=True)
    assert names(desk / "out") == [files.LIST, "holiday.png", "mean.png", "run.json", "sample-side.png"]
    photograph("demo.png")
    code, said = cmidiff("demo", "-o", "demo.png")
    assert (code, "demo.png exists and cmidiff demo did not write it" in said) == (2, True)


def test_tune_validate_and_evaluate_leave_files_of_another_origin(desk: Path) -> None:
    (desk / "images").mkdir()
    for k in range(4):
        photograph(f"images/{k}.png", k)
    Path("preset.toml").write_text("mine")
    code, said = cmidiff("tune", "denoise", "--images", "images", "--count", 4, "--device", "cpu")
    assert (code, "preset.toml exists and cmidiff tune did not write it" in said) == (2, True)
    (desk / "v").mkdir()
    Path("v/gradient-notes.csv").write_text("mine")
    code, said = cmidiff("validate", "--only", "gradient", "--quick", "-o", "v")
    assert (code, "gradient-notes.csv exists and cmidiff validate did not write it" in said) == (2, True)
    evaluate = ("evaluate", "--images", "images", "--tasks", "denoise", "--solvers", "dps", "--device", "cpu", "--out")
    code, said = cmidiff(*evaluate, "v")
    assert (code, "--out v holds files of another origin" in said) == (2, True)
    code, said = cmidiff(*evaluate, "images/run")
    assert (code, "lies in the folder of the images" in said) == (2, True)


def test_a_file_limit_is_one_line_and_leaves_nothing(desk: Path) -> None:
    """RLIMIT_FSIZE is what a full disk is to a process: a write fails in the middle."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)).save("p.png")
    command = [sys.executable, "-c", "from cmidiff.app.cli import main; main()"]
    done = subprocess.run(
        [*command, "degrade", "p.png", "--task", "denoise", "-o", "m"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 4
    assert done.stderr.splitlines() == [
        "cmidiff: cannot write or read m.safetensors (File too large): make room, and give the same command again"
    ]
    assert names(desk) == ["p.png"]


def test_unforeseen_errors_are_one_line_unless_the_traceback_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    photograph("p.png")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a fault\nof several lines")

    monkeypatch.setattr("cmidiff.app.problem.degrade", fail)
    code, said = cmidiff("degrade", "p.png", "--task", "denoise")
    assert (code, said.count("\n")) == (1, 1)
    assert "RuntimeError: a fault" in said
    assert f"{TRACEBACK}=1 shows where" in said
    monkeypatch.setenv(TRACEBACK, "1")
    with pytest.raises(RuntimeError, match="a fault"):
        CliRunner().invoke(app, ["degrade", "p.png", "--task", "denoise"], catch_exceptions=False)
