"""A prior as a module of torch, and as a folder that `load_prior` reads, on disk and on a hub that is not there."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from torch import nn

from cmidiff import CMI, DPS, RestorationPipeline, load_prior, restore
from cmidiff.moments import SecondMoments
from cmidiff.physics import inpaint_random
from cmidiff.prior import Composite, NetworkPrior, Prior
from cmidiff.prior.formats.patch import PatchUNet
from cmidiff.prior.network import Parametrisation
from cmidiff.schedule import DDPM, VE, RectifiedFlow
from tests.test_load import UNET


def tiny(
    parametrisation: Parametrisation = "eps", schedule: DDPM | None = None, patch: int = 1, **facts: Any
) -> NetworkPrior:
    channels = 3 * patch**2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel.from_config(UNET | {"in_channels": channels, "out_channels": channels})  # pyright: ignore[reportCallIssue]
    for module in unet.modules():  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())  # as `load_prior` takes it
    network = PatchUNet(unet, patch).eval().requires_grad_(False)  # pyright: ignore[reportArgumentType]
    return NetworkPrior(
        network, parametrisation, schedule, multiple=2 * patch, **{"name": "tiny", "dtype": torch.float32} | facts
    )


def states(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=dtype)


# A module


def test_a_prior_is_a_module_whose_precision_follows_its_weights() -> None:
    prior = tiny()
    assert isinstance(prior, nn.Module)
    assert isinstance(prior, Prior)
    assert next(name for name, _ in prior.named_parameters()) == "network.unet.conv_in.weight"
    expected = prior(states(), 300.0).mean
    assert prior.to("cpu") is prior
    assert prior.half().dtype is torch.float16
    half = prior(states(), 300.0).mean
    assert half.dtype is torch.float32, "the state keeps its own precision"
    assert 0 < float((half - expected).abs().max()) < 0.05 * float(expected.abs().max())
    doubled = tiny().double()
    assert doubled.dtype is torch.float64
    torch.testing.assert_close(doubled(states(), 300.0).mean, expected, rtol=1e-4, atol=1e-4)
    other = tiny()
    other.load_state_dict({name: 0 * value for name, value in other.state_dict().items()})
    assert torch.equal(other(states(), 300.0).mean, states() / other.schedule(300.0)[0]), "eps = 0"
    assert other.fingerprint != tiny().fingerprint


def test_a_compiled_network_gives_the_same_image_and_the_same_jacobian() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv2d(3, 3, 1)

        def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.mix(x_t) * t.reshape(-1, 1, 1, 1) / 100)

    network = Small()
    prior, compiled = NetworkPrior(network), NetworkPrior(copy.deepcopy(network))
    compiled.compile(backend="eager")
    for t in (300.0, 12.5):
        x_t = states().requires_grad_()
        expected, found = prior(x_t, t).mean, compiled(x_t, t).mean
        assert torch.equal(found, expected)
        (pulled,) = torch.autograd.grad(expected.sum(), x_t)
        (pulled_too,) = torch.autograd.grad(found.sum(), x_t)
        assert torch.equal(pulled, pulled_too)
    assert compiled.fingerprint == prior.fingerprint


def test_a_function_is_a_prior_that_has_no_weights() -> None:
    prior = NetworkPrior(lambda x_t, t: 0.5 * x_t, "x0")
    assert list(prior.parameters()) == []
    assert prior.half().dtype is None
    assert prior.to("cpu").device is None
    assert torch.equal(prior(states(), 3.0).mean, 0.5 * states())
    outer = nn.ModuleDict({"prior": prior, "other": tiny()}).half()
    assert {value.dtype for value in outer.parameters()} == {torch.float16}
    joined = Composite(tiny(), NetworkPrior(lambda x_t, t: x_t, "x0"), at=0.4).to("cpu")
    assert joined(states(), 10.0).mean.shape == states().shape


# A folder


@pytest.mark.parametrize(
    ("parametrisation", "schedule", "patch", "clip"),
    [("eps", None, 1, True), ("v", DDPM.cosine(200), 2, False), ("x0", DDPM.linear(50, 1e-3, 0.3), 1, True)],
)
def test_a_saved_prior_is_the_same_function(
    tmp_path: Path, parametrisation: Parametrisation, schedule: DDPM | None, patch: int, clip: bool
) -> None:
    moments = SecondMoments(torch.zeros(3), torch.full((3, 16, 16), 0.2, dtype=torch.float64))
    prior = tiny(parametrisation, schedule, patch, clip=clip, second_moments=moments, card={"licence": "MIT"})
    prior.save_pretrained(tmp_path / "saved")
    loaded = load_prior(tmp_path / "saved")
    assert isinstance(loaded, NetworkPrior)
    assert loaded.card["licence"] == "MIT"
    assert "assumed" not in loaded.card
    assert (loaded.clip, loaded.multiple, loaded.parametrisation) == (prior.clip, prior.multiple, parametrisation)
    assert loaded.second_moments is not None
    torch.testing.assert_close(loaded.second_moments.variances, moments.variances, rtol=1e-6, atol=0)
    prior, loaded, x_t = prior.double(), loaded.double(), states(torch.float64)
    for t in prior.schedule.grid(3):
        assert loaded.schedule(t) == pytest.approx(prior.schedule(t), rel=1e-12)
        torch.testing.assert_close(loaded(x_t, t).mean, prior(x_t, t).mean, rtol=1e-8, atol=1e-8)


def test_diffusers_reads_what_is_saved(tmp_path: Path) -> None:
    prior = tiny()
    prior.save_pretrained(tmp_path)
    pipeline = DDPMPipeline.from_pretrained(tmp_path)
    t = 300
    eps = pipeline.unet(states(), t).sample
    alpha_t, sigma_t = prior.schedule(float(t))
    torch.testing.assert_close(prior(states(), float(t)).mean, (states() - sigma_t * eps) / alpha_t)
    assert float(pipeline.scheduler.alphas_cumprod[t]) == pytest.approx(alpha_t**2, rel=1e-5)


def test_a_folder_with_files_is_replaced_on_request_only(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        tiny().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    tiny().save_pretrained(tmp_path, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert load_prior(tmp_path).fingerprint == tiny().fingerprint


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (NetworkPrior(lambda x_t, t: x_t, "x0"), "UNet2DModel, received a function"),
        (NetworkPrior(nn.Identity(), "x0"), "UNet2DModel, received Identity"),
        (tiny("flow", RectifiedFlow()), "received flow on RectifiedFlow"),  # pyright: ignore[reportArgumentType]
        (tiny("eps", VE()), "received eps on VE"),  # pyright: ignore[reportArgumentType]
        (tiny(value_range=(0.0, 1.0)), r"images in \(-1, 1\), received \(0.0, 1.0\)"),
    ],
)
def test_what_the_format_cannot_state_is_refused(tmp_path: Path, prior: NetworkPrior, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prior.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


# The hub


class Hub:
    """What `huggingface_hub.HfApi` is asked for; the files are kept in a folder."""

    asked: list[tuple[str, dict[str, Any]]]
    folder: Path

    def __init__(self, token: str | None = None) -> None:
        self.asked.append(("token", {"token": token}))

    def create_repo(self, name: str, **options: Any) -> None:
        self.asked.append((name, options))

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        shutil.copytree(folder_path, self.folder / repo_id)

    def model_info(self, name: str, **_: Any) -> Any:
        files = [path for path in (self.folder / name).rglob("*") if path.is_file()]
        names = [str(path.relative_to(self.folder / name)) for path in files]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=1) for name in names])


def test_a_pushed_prior_is_loaded_by_its_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Hub, "asked", [], raising=False)
    monkeypatch.setattr(Hub, "folder", tmp_path / "hub", raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path / "hub" / name))
    assert tiny().push_to_hub("owner/tiny", private=True, token="t") == "hf:owner/tiny"
    assert Hub.asked == [("token", {"token": "t"}), ("owner/tiny", {"private": True, "exist_ok": True})]
    for name in ("hf:owner/tiny", "owner/tiny"):
        loaded = load_prior(name)
        assert (loaded.name, loaded.fingerprint) == ("hf:owner/tiny", tiny().fingerprint)
    card = json.loads((tmp_path / "hub" / "owner" / "tiny" / "card.json").read_text())
    assert card["name"] == "tiny"
    for wrong in ("tiny", "owner/tiny@main", "../tiny"):
        with pytest.raises(ValueError, match="received"):
            tiny().push_to_hub(wrong)


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"https://huggingface.co/owner/tiny .*save_pretrained") as caught:
        tiny().push_to_hub("owner/tiny")
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="hf:google/ddpm-cifar10-32 is not on this machine"):
        load_prior("google/ddpm-cifar10-32")
    (tmp_path / "google").mkdir()
    with pytest.raises(FileNotFoundError, match="no prior 'google/ddpm-cifar10-32'"):
        load_prior("google/ddpm-cifar10-32")  # the folder is here: a path with a typing error


# A pipeline


def test_a_pipeline_is_restore_with_its_prior(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    pipeline = RestorationPipeline.from_pretrained(tmp_path, dtype=torch.float64, max_batch=1).to("cpu")
    physics = inpaint_random((3, 16, 16), hidden=0.5, noise_std=0.1)
    y = physics(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2)))
    options: dict[str, Any] = {"solver": DPS(), "cmi": CMI(), "steps": 2, "samples": 2, "seed": 3}
    expected = restore(y, physics, load_prior(tmp_path, dtype=torch.float64), **options)
    assert torch.equal(pipeline(y, physics, **options).samples, expected.samples)
    with pytest.raises(TypeError, match="stepz"):
        pipeline(y, physics, stepz=2)
