"""Latent priors at the command line and on the page."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import shlex
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from cmidiff import load_prior
from cmidiff.app.cli import app
from cmidiff.app.options import LOADING_OPTIONS
from cmidiff.app.settings import check_prior
from cmidiff.app.web.server import serving
from cmidiff.loading import Loading
from cmidiff.physics import TASKS
from cmidiff.prior.hub import LATENT_PRIORS
from cmidiff.registry import SOLVERS
from tests import latents
from tests.hub import Hub
from tests.web import LIMITS, Visitor, png


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latent") / "tiny-sd"
    latents.stable_diffusion(path)
    return path


@pytest.fixture
def made_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub that cannot be reached, with Stable Diffusion 1.5 in its cache."""
    whole = Hub(folder, folder, offline=True).install(monkeypatch)

    def download(repository: str, **options: Any) -> str:
        if f"hf:{repository}" != LATENT_PRIORS[1].name:
            raise FileNotFoundError(repository)
        return whole.download(repository, **options)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    values = np.random.default_rng(0).integers(60, 200, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_latent_pipeline_restores_at_the_command_line(folder: Path, photo: Path, tmp_path: Path) -> None:
    common = ("restore", photo, "--task", "denoise", "--noise-std", 0.1, "--prior", folder, "--steps", 3)
    plain = run(*common, "--output", tmp_path / "plain")
    assert plain.exit_code == 0, plain.output
    assert Image.open(tmp_path / "plain" / "restored.png").size == (20, 16)
    record = json.loads((tmp_path / "plain" / "run.json").read_text())["options"]
    assert record["estimate"] is None
    assert record["solver"]["name"] == "dps", "what samples where nothing is said"
    told = ("--prompt", "a photo of a cat", "--guidance-scale", 3, "--dtype", "bfloat16", "--checkpointing")
    memory = ("--offload", "--max-batch", 1, "--channels-last")
    guided = run(*common, *told, *memory, "--solver", "psld", "--cmi", "--output", tmp_path / "told")
    assert guided.exit_code == 0, guided.output
    options = json.loads((tmp_path / "told" / "run.json").read_text())["options"]
    expected = {"prompt": "a photo of a cat", "guidance_scale": 3.0, "dtype": "bfloat16", "checkpointing": True}
    expected |= {"offload": True, "max_batch": 1, "channels_last": True}
    assert options["loading"] == expected
    one, other = (load_file(tmp_path / name / "sample-00.safetensors")["sample"] for name in ("plain", "told"))
    assert not torch.equal(one, other)
    again = run(*common, "--prompt", "cat", "--output", tmp_path / "plain")
    assert again.exit_code == 2
    assert "another" in again.output


def test_a_latent_pipeline_is_tuned_at_the_command_line(folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(4):
        values = np.random.default_rng(i).integers(60, 200, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(values).save(images / f"{i}.png")
    common = ("tune", "denoise", "--images", images, "--count", 4, "--solver", "dps", "--prior", folder)
    preset = tmp_path / "preset.toml"
    found = run(*common, "--steps", 2, "--trials", 1, "--prompt", "a cat", "--offload", "--output", preset)
    assert found.exit_code == 0, found.output
    loading = tomllib.loads(preset.read_text())["provenance"]["loading"]
    assert loading == {"prompt": "a cat", "offload": True}
    other = run(*common, "--steps", 2, "--trials", 1, "--prompt", "a blur", "--output", preset)
    assert other.exit_code == 2, "another text is another search"
    assert "another search" in " ".join(other.output.split()), other.output


def test_options_of_loading_have_one_meaning() -> None:
    """Names and defaults of the command line, of `Loading` and of `load_prior` agree."""
    python = inspect.signature(load_prior).parameters
    fields = {field.name: field.default for field in dataclasses.fields(Loading)}
    assert fields == {name: option.default for name, option in LOADING_OPTIONS.items()}
    assert fields.pop("dtype") == str(python["dtype"].default).removeprefix("torch.")
    assert fields == {name: python[name].default for name in fields}
    assert set(python) - set(fields) == {"name_or_path", "device", "dtype", "label", "card"}
    chosen = Loading(prompt="a cat", offload=True, max_batch=2)
    assert chosen.words == ["--prompt", "a cat", "--offload", "--max-batch", "2"]


def test_what_a_latent_prior_cannot_do_is_one_line(folder: Path, photo: Path, tmp_path: Path) -> None:
    out, compressed = ("--output", tmp_path / "out"), photo.with_suffix(".jpg")
    Image.open(photo).resize((64, 64)).save(compressed, quality=20)
    jpeg = run("restore", compressed, "--task", "jpeg", "--prior", folder, *out)
    assert jpeg.exit_code == 2, jpeg.output
    assert "needs a prior of images" in " ".join(jpeg.output.split())
    for arguments, message in (
        (("--task", "denoise", "--noise-std", 0.1, "--prior", folder, "--solver", "ddrm"), "singular basis"),
        (
            ("--task", "denoise", "--noise-std", 0.1, "--prompt", "cat", "--prior", "natural-64"),
            "are for latent priors",
        ),
        (("--task", "denoise", "--noise-std", 0.1, "--prior", folder, "--dtype", "int8"), "dtype"),
    ):
        result = run("restore", photo, *arguments, *out)
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.output.split()), result.output
        assert "Traceback" not in result.output


def test_the_commands_of_the_manual_can_be_typed() -> None:
    """Each goes through the parser of the command line; sizes are those of `cmidiff priors`."""
    page = (Path(__file__).parents[1] / "docs" / "latent.md").read_text()
    rows = [row for row in page.splitlines() if row.startswith("|") and "`cmidiff " in row]
    group: Any = typer.main.get_command(app)
    seen = {}
    for row in rows:
        _, size, command = (cell.strip() for cell in row.strip("|").split("|"))
        program, name, *words = shlex.split(command.strip("`"))
        assert program == "cmidiff"
        with group.commands[name].make_context(name, words) as context:
            given = dict(context.params)
        Loading(**{field.name: given[field.name] for field in dataclasses.fields(Loading)})
        check_prior(given["prior"])
        assert given["task"] is None or given["task"] in TASKS
        assert given["solver"] is None or given["solver"] in SOLVERS
        assert given["device"] == "cuda"
        seen[given["prior"]] = size.removesuffix(", gated")
    assert seen == {entry.name: entry.download for entry in LATENT_PRIORS}


def test_the_list_of_priors_says_how_large_a_download_is() -> None:
    shown = " ".join(run("priors").output.split())
    for part in ("latent priors of the hub", "4.3 GB", "33.7 GB", "cmidiff[latent]"):
        assert part in shown


def test_the_page_restores_with_a_latent_pipeline(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By requests: a photograph in, the mean of samples by DPS out, with the command that repeats it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with serving(replace(LIMITS), priors=[str(folder)], device="cpu", port=0) as (address, _):
        visitor = Visitor(address)
        assert visitor.take(png(32, 24, grain=20)) == ""
        status, archive = visitor.restore("denoise", solver="dpir", steps=2, noise=0.1)
        assert "Finished" in status, status
        command = archive["command.txt"].decode()
        assert "--solver dps" in command
        assert "--prior" in command
        assert "result.png" in archive
        values, jpeg = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8), io.BytesIO()
        Image.fromarray(values).save(jpeg, "JPEG", quality=20)
        assert visitor.take(jpeg.getvalue(), "photo.jpg") == ""
        refused, _ = visitor.restore("blocks", solver="dpir")
        assert "needs a prior of images" in refused


def test_the_page_offers_the_priors_that_are_here(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chosen by requests, one after the other; what would have to be fetched is named with its size and not offered."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    loading = Loading(prompt="a cat", offload=True, checkpointing=True)
    priors = ["natural-64", str(folder)]
    with serving(replace(LIMITS), priors=priors, device="cpu", port=0, loading=loading) as (address, _):
        visitor = Visitor(address)
        (chooser,) = (c for c in visitor.config["components"] if c["props"].get("elem_id") == "prior")
        assert [value for _, value in chooser["props"]["choices"]] == ["natural-64", "tiny-sd"]
        texts = [str(c["props"].get("value")) for c in visitor.config["components"] if c["type"] == "markdown"]
        (absent,) = (text for text in texts if "cmidiff serve --prior NAME" in text)
        assert "`hf:stable-diffusion-v1-5/stable-diffusion-v1-5`: 4.3 GB, images, 512x512" in absent
        assert "natural-64" not in absent
        assert visitor.take(png(32, 24, grain=20)) == ""
        results = {}
        for name in ("natural-64", "tiny-sd"):
            visitor.run(visitor.event("prior", "input"), [name])
            status, archive = visitor.restore("denoise", solver="dps", steps=2, noise=0.1, prior=name)
            assert "Finished" in status, status
            command = archive["command.txt"].decode()
            assert f"--prior {name} " in command
            assert ("--prompt 'a cat' --offload" in command) == (name == "tiny-sd")
            assert "--checkpointing" in command
            results[name] = archive["result.png"]
        assert results["natural-64"] != results["tiny-sd"]
        refused = visitor.answer(visitor.event("start", "click"), visitor.asked("denoise", prior="drunet"))
        assert not refused["success"], "a prior that is not offered"


def test_without_a_name_all_priors_that_are_here_are_offered(
    made_hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from cmidiff.app.web.priors import Priors, find_absent, find_present

    monkeypatch.setenv("CMIDIFF_CACHE", str(tmp_path))
    name = LATENT_PRIORS[1].name
    assert name in find_present()
    assert {"drunet", "ffhq-256", "imagenet-256"} <= {absent for absent, _, _ in find_absent()}
    priors = Priors((), "cpu")
    assert priors.names[0] == "photo"
    assert {"natural-64", name} <= set(priors.names)
    assert "drunet" not in priors.names
    ready = priors.get(name)
    assert ready.prior.decoder is not None
    assert (ready.name, priors.get(name)) == (name, ready)
    with priors._lock, ThreadPoolExecutor(1) as pool:  # as while another prior is loaded
        assert pool.submit(priors.get, name).result(timeout=10) is ready
