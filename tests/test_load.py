"""The door for weights: every form of prior comes in, and nothing that is not one."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cmidiff.moments import SecondMoments
from cmidiff.prior import NetworkPrior, PriorInfo, from_azula, from_callable, load_network, load_prior
from cmidiff.prior.formats.adm import ADMConfig, ADMUNet
from cmidiff.prior.formats.card import Fields
from cmidiff.prior.formats.scheduler import read_scheduler
from cmidiff.prior.known import info_of
from cmidiff.prior.load import moments_file
from cmidiff.schedule import DDPM, VE, RectifiedFlow
from tests.hub import Hub
from tests.test_adm import TINY, numbered

UNET = {
    "_class_name": "UNet2DModel",
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [32, 32],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 16,
}
SCHEDULER = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "prediction_type": "epsilon"}
HEADS = {"num_head_channels": 16}


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def tiny_unet(**change: Any) -> UNet2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel.from_config(UNET | change)  # pyright: ignore[reportReturnType, reportCallIssue]


def pipeline_folder(
    folder: Path, *, flat: bool = False, scheduler: dict[str, Any] | None = None, **change: Any
) -> Path:
    unet, noise = (folder, folder) if flat else (folder / "unet", folder / "scheduler")
    for part in (unet, noise):
        part.mkdir(parents=True, exist_ok=True)
    (unet / "config.json").write_text(json.dumps(UNET | change))
    save_file(tensors_of(tiny_unet(**change)), unet / "diffusion_pytorch_model.safetensors")
    (noise / "scheduler_config.json").write_text(json.dumps(SCHEDULER if scheduler is None else scheduler))
    return folder


@pytest.fixture
def adm_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.pt"
    torch.save(tensors_of(numbered(TINY, dtype=torch.float32)), path)
    return path


def x(rows: int = 2) -> Tensor:
    return torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(1))


# Forms


def test_a_guided_diffusion_file_is_its_network(adm_file: Path) -> None:
    prior = load_prior(adm_file, card=HEADS)
    network = numbered(TINY, dtype=torch.float32)
    alpha_t, sigma_t = DDPM.linear()(300.0)
    eps, v = network(x(), torch.full((2,), 300.0)).chunk(2, dim=1)
    found = prior(x(), 300.0)
    torch.testing.assert_close(found.mean, (x() - sigma_t * eps) / alpha_t)
    torch.testing.assert_close(found.variance_fraction, (v + 1) / 2)
    assert float(found.mean.abs().max()) > 1, "x_hat is not clipped"
    assert (prior.name, prior.multiple, prior.channels) == ("tiny", 2, 3)
    assert prior.schedule.grid(1000) == [float(t) for t in range(999, -1, -1)]


@pytest.mark.parametrize("wrap", ["ema", "module.", "safetensors", "card"])
def test_the_same_weights_in_other_wrappers(adm_file: Path, tmp_path: Path, wrap: str) -> None:
    expected = load_prior(adm_file, card=HEADS)(x(), 300.0).mean
    tensors = torch.load(adm_file)
    path, card = tmp_path / "other.pt", HEADS
    if wrap == "ema":
        torch.save({"ema": tensors, "model": {k: 0 * v for k, v in tensors.items()}, "step": 3}, path)
        with pytest.raises(ValueError, match=r"networks \('ema', 'model'\): .*\"entry\": \"ema\", the moving aver"):
            load_prior(path, card=card)
        card = HEADS | {"entry": "ema"}
    elif wrap == "module.":
        torch.save({"state_dict": {f"module.{k}": v for k, v in tensors.items()}}, path)
    elif wrap == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
        (tmp_path / "other.pt.json").write_text(json.dumps(HEADS))
        card = None
    torch.testing.assert_close(load_prior(path, card=card)(x(), 300.0).mean, expected, rtol=0, atol=0)


def renamed(tensors: dict[str, Tensor], change: Callable[[str], str]) -> dict[str, Tensor]:
    return {change(name): value for name, value in tensors.items()}


WRAPPERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "module": lambda d: renamed(d, lambda name: f"module.{name}"),
    "model": lambda d: renamed(d, lambda name: f"model.{name}"),
    "compiled": lambda d: renamed(d, lambda name: f"_orig_mod.{name}"),
    "compiled, then distributed": lambda d: {"model": renamed(d, lambda name: f"module._orig_mod.{name}")},
    "own class": lambda d: renamed(d, lambda name: f"net.unet.{name}"),
    "a compiled part": lambda d: renamed(d, lambda name: name.replace("middle_block.", "middle_block._orig_mod.")),
    "moving average": lambda d: {"n_averaged": torch.tensor(9)} | renamed(d, lambda name: f"module.{name}"),
    "schedule beside it": lambda d: {"betas": torch.ones(9)} | renamed(d, lambda name: f"model.{name}"),
    "optimiser": lambda d: {
        "model": d,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "optim_dict": d,
        "epoch": 3,
    },
    "deep": lambda d: {"checkpoint": {"state_dict": {"model": d, "step": 3}}},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_wrappers_add_to_names_is_removed(adm_file: Path, tmp_path: Path, wrapper: str) -> None:
    expected = load_prior(adm_file, card=HEADS)(x(), 300.0).mean
    torch.save(WRAPPERS[wrapper](torch.load(adm_file)), tmp_path / "wrapped.pt")
    torch.testing.assert_close(load_prior(tmp_path / "wrapped.pt", card=HEADS)(x(), 300.0).mean, expected)


SEVERAL: dict[str, Callable[[dict[str, Tensor], dict[str, Tensor]], Any]] = {
    "dictionaries": lambda old, ema: {"model": old, "ema": ema, "optimizer": {"state": {0: {"exp_avg": ema}}}},
    "prefixes": lambda old, ema: renamed(old, lambda name: f"model.{name}") | renamed(ema, lambda name: f"ema.{name}"),
    "prefixes in a dictionary": lambda old, ema: {
        "state_dict": renamed(old, lambda n: f"model.{n}") | renamed(ema, lambda n: f"ema.{n}")
    },
}


@pytest.mark.parametrize("form", SEVERAL)
def test_a_file_with_several_networks_names_them_and_the_right_one(adm_file: Path, tmp_path: Path, form: str) -> None:
    ema = torch.load(adm_file)
    path = tmp_path / "several.pt"
    old = {name: 0 * value for name, value in ema.items()}
    torch.save(SEVERAL[form](old, ema) | {"step": 5}, path)
    with pytest.raises(ValueError, match=r"holds several networks \(.*model.*ema.*moving average") as caught:
        load_prior(path, card=HEADS)
    stated = re.findall(r'"entry": "([^"]+)"', str(caught.value))
    assert [name.split(".")[-1] for name in stated] == ["ema"]
    expected = load_prior(adm_file, card=HEADS)(x(), 300.0).mean
    found = load_prior(path, card=HEADS | {"entry": stated[0]})(x(), 300.0).mean
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"no network .exponential. \(its entries are .*\): state .*model., .*ema."):
        load_prior(path, card=HEADS | {"entry": "exponential"})


def test_a_part_of_a_file_is_named_by_the_start_of_its_names(adm_file: Path, tmp_path: Path) -> None:
    tensors = renamed(torch.load(adm_file), lambda name: f"model.{name}")
    torch.save(tensors | {"loss.vgg.weight": torch.ones(3)}, tmp_path / "parts.ckpt")
    found = load_prior(tmp_path / "parts.ckpt", card=HEADS | {"entry": "model"})(x(), 300.0).mean
    torch.testing.assert_close(found, load_prior(adm_file, card=HEADS)(x(), 300.0).mean, rtol=0, atol=0)


def test_another_file_under_the_same_name_has_another_fingerprint(adm_file: Path) -> None:
    before = load_prior(adm_file, card=HEADS)
    assert load_prior(adm_file, card=HEADS).fingerprint == before.fingerprint
    assert load_prior(adm_file, card=HEADS | {"noise_schedule": "cosine"}).fingerprint != before.fingerprint
    torch.save(tensors_of(numbered(TINY, seed=1, dtype=torch.float32)), adm_file)
    assert load_prior(adm_file, card=HEADS).fingerprint != before.fingerprint


def test_cards_are_found_beside_a_file_the_nearest_first(adm_file: Path) -> None:
    for name, order in (("card.json", "far"), ("tiny.json", "near"), ("tiny.pt.json", "nearest")):
        (adm_file.parent / name).write_text(json.dumps(HEADS | {"licence": order}))
        assert load_prior(adm_file).card["licence"] == order


ASSUMED = {
    "num_head_channels": "num_head_channels = 16",
    "noise_schedule": "noise_schedule = linear",
    "diffusion_steps": "diffusion_steps = 1000",
    "predict_xstart": "parametrisation = eps",
    "value_range": "value_range = [-1, 1]",
}


def test_all_that_is_assumed_is_named_and_kept(adm_file: Path) -> None:
    """A file without a card leaves its attention, its noise and its output open; a stated part is assumed no more."""
    with pytest.warns(UserWarning, match="tiny does not state everything") as caught:
        prior = load_prior(adm_file)
    for text in (*ASSUMED.values(), "use_new_attention_order = false"):
        assert text in str(caught[0].message)
        assert text in prior.card["assumed"]
    stated = {
        "num_head_channels": 16,
        "noise_schedule": "cosine",
        "diffusion_steps": 100,
        "predict_xstart": False,
        "value_range": None,
    }
    for name, text in ASSUMED.items():
        with pytest.warns(UserWarning, match="does not state everything") as caught:
            found = load_prior(adm_file, card={name: stated[name]})
        assert text not in str(caught[0].message)
        assert set(ASSUMED.values()) - {text} <= set(found.card["assumed"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "assumed" not in load_prior(adm_file, card=stated).card
        schedule = {"schedule": {"kind": "vp"}, "parametrisation": "v", "value_range": [0, 1]}
        assert "assumed" not in load_prior(adm_file, card=HEADS | schedule).card


def test_the_order_of_attention_heads_matters(adm_file: Path) -> None:
    one, other = (load_prior(adm_file, card=HEADS | {"use_new_attention_order": order}) for order in (False, True))
    assert not torch.allclose(one(x(), 300.0).mean, other(x(), 300.0).mean)


def test_a_card_states_schedule_parametrisation_and_range(adm_file: Path) -> None:
    card = HEADS | {"parametrisation": "v", "schedule": {"kind": "ve", "sigma_max": 50.0}, "value_range": [0, 1]}
    prior = load_network(adm_file, card=card)
    assert prior.schedule == VE(sigma_max=50.0)
    assert (prior.parametrisation, prior.value_range) == ("v", (0.0, 1.0))
    cosine = load_prior(adm_file, card=HEADS | {"noise_schedule": "cosine", "diffusion_steps": 4000})
    assert cosine.schedule(1234.0) == DDPM.cosine(4000)(1234.0)
    assert load_network(adm_file, card=HEADS | {"predict_xstart": True}).parametrisation == "x0"


@pytest.mark.parametrize("flat", [False, True], ids=["folders", "flat"])
def test_a_folder_of_diffusers(tmp_path: Path, flat: bool) -> None:
    prior = load_prior(pipeline_folder(tmp_path / "pipe", flat=flat))
    t = torch.full((2,), 300.0)
    alpha_t, sigma_t = DDPM.linear()(300.0)
    with torch.no_grad():
        eps = tiny_unet()(x(), t, return_dict=False)[0]
    torch.testing.assert_close(prior(x(), 300.0).mean, (x() - sigma_t * eps) / alpha_t, rtol=1e-4, atol=1e-4)
    assert (prior.name, prior.multiple) == ("pipe", 2)


def test_grids_of_schedulers(tmp_path: Path) -> None:
    scaled = SCHEDULER | {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}
    schedule = load_prior(pipeline_folder(tmp_path / "scaled", scheduler=scaled)).schedule
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    assert schedule(999.0)[0] ** 2 == pytest.approx(np.prod(1 - betas), rel=1e-12)
    trained = SCHEDULER | {"trained_betas": [0.1, 0.2, 0.3]}
    schedule = load_prior(pipeline_folder(tmp_path / "trained", scheduler=trained)).schedule
    assert schedule(2.0)[0] ** 2 == pytest.approx(0.9 * 0.8 * 0.7, rel=1e-12)


def test_what_a_scheduler_leaves_out_has_the_default_of_its_class(tmp_path: Path) -> None:
    heun = pipeline_folder(tmp_path / "heun", scheduler={"_class_name": "HeunDiscreteScheduler"})
    betas = np.linspace(0.00085, 0.012, 1000)
    assert load_prior(heun).schedule(999.0)[0] ** 2 == pytest.approx(np.prod(1 - betas), rel=1e-9)
    nameless = pipeline_folder(tmp_path / "nameless", scheduler={"beta_schedule": "linear"})
    with pytest.warns(UserWarning, match="assumed scheduler = DDPMScheduler"):
        prior = load_prior(nameless)
    assert prior.card["assumed"] == ["scheduler = DDPMScheduler"]


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
@pytest.mark.parametrize("rescaled", [False, True])
def test_levels_are_those_of_diffusers(kind: str, rescaled: bool) -> None:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    options = {"beta_schedule": kind, "rescale_betas_zero_snr": rescaled, "prediction_type": "v_prediction"}
    theirs = DDPMScheduler(**options).alphas_cumprod.double().numpy()  # pyright: ignore[reportArgumentType]
    schedule = read_scheduler(Fields(options | {"_class_name": "DDPMScheduler"}, "here")).schedule
    ours = np.array([schedule(float(t))[0] ** 2 for t in range(1000)])
    np.testing.assert_allclose(ours[:-1], theirs[:-1], rtol=2e-3 if kind == "squaredcos_cap_v2" else 1e-3, atol=1e-7)
    assert 0 < ours[-1] < (1e-5 if rescaled else 1.0)


def test_a_scheduler_s_clipping_is_a_fact_of_the_prior(tmp_path: Path) -> None:
    for clip in (True, False):
        prior = load_prior(pipeline_folder(tmp_path / str(clip), scheduler=SCHEDULER | {"clip_sample": clip}))
        assert prior.value_range == (-1.0, 1.0)
        assert prior.clip == ((-1.0, 1.0) if clip else None)


def former(name: str) -> str:
    """The name of an attention weight before diffusers 0.17."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        name = name.replace(f".{new}.", f".{old}.")
    return name


def test_a_pipeline_of_before_diffusers_0_17(tmp_path: Path) -> None:
    """Its attention weights have other names, and it may have a pickle alone."""
    expected = load_prior(pipeline_folder(tmp_path / "new"))(x(), 300.0).mean
    old = pipeline_folder(tmp_path / "old")
    weights = old / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = renamed(load_file(weights), former)
    assert any(name.endswith("attentions.0.query.weight") for name in tensors)
    save_file(tensors, weights)
    torch.testing.assert_close(load_prior(old)(x(), 300.0).mean, expected, rtol=0, atol=0)
    torch.save(tensors, weights.with_suffix(".bin"))
    weights.unlink()
    torch.testing.assert_close(load_prior(old)(x(), 300.0).mean, expected, rtol=0, atol=0)
    torch.save({"trap": Trap(tmp_path / "trace")}, weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="was refused: it holds more than tensors"):
        load_prior(old)
    assert not (tmp_path / "trace").exists()


def test_the_size_of_the_training_images_is_known(tmp_path: Path) -> None:
    assert load_prior(pipeline_folder(tmp_path / "pipe", sample_size=32)).size == 32
    assert load_prior(pipeline_folder(tmp_path / "other")).size is None


def test_a_single_file_of_a_diffusers_network_needs_its_card(tmp_path: Path) -> None:
    path = tmp_path / "unet.safetensors"
    save_file(tensors_of(tiny_unet()), path)
    with pytest.raises(ValueError, match=r"does not say what network it is for .*unet\.safetensors\.json"):
        load_prior(path)
    card = {"architecture": {"kind": "UNet2DModel"} | UNET, "parametrisation": "x0", "schedule": {"kind": "vp"}}
    (tmp_path / "unet.safetensors.json").write_text(json.dumps(card))
    with torch.no_grad():
        expected = tiny_unet()(x(), torch.full((2,), 0.5), return_dict=False)[0]
    torch.testing.assert_close(load_prior(path)(x(), 0.5).mean, expected, rtol=1e-4, atol=1e-5)
    del card["parametrisation"]
    with pytest.raises(ValueError, match="parametrisation must be one of eps, x0, v, flow"):
        load_prior(path, card=card)


def test_the_hub_is_asked_for_nothing_that_could_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = pipeline_folder(tmp_path / "source")
    (source / "unet" / "own.py").write_text("raise SystemExit")
    torch.save({}, source / "unet" / "diffusion_pytorch_model.bin")
    hub = Hub(source, tmp_path / "cache", size=lambda path: 10**9).install(monkeypatch)
    prior = load_prior("hf:google/ddpm-cat-256@main")
    assert prior.name == "hf:google/ddpm-cat-256@main"
    assert all(name.endswith((".json", ".safetensors")) for ask in hub.asked for name in ask)
    assert len(hub.asked) == 2
    assert not any(name.endswith(".safetensors") for name in hub.asked[0]), "the kind is known first"
    assert "1.0 GB in 1 files of hf:google/ddpm-cat-256@main" in capsys.readouterr().err


def test_a_pipeline_of_the_hub_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pipeline_folder(tmp_path / "source")
    weights = source / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    hub = Hub(source, tmp_path / "cache").install(monkeypatch)
    assert load_prior("hf:google/ddpm-cat-256").name == "hf:google/ddpm-cat-256"
    hub.offline = True
    assert load_prior("hf:google/ddpm-cat-256").name == "hf:google/ddpm-cat-256", "what is here is all"


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"https://huggingface.co/google/ddpm-cat-256 .*pass the path"
    ) as caught:
        load_prior("hf:google/ddpm-cat-256")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="called hf:OWNER/NAME"):
        load_prior("hf:../../etc")


# Named priors


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PriorInfo:
    monkeypatch.setenv("CMIDIFF_CACHE", str(tmp_path / "cache"))
    return info_of("ffhq-256")


def stand_in(monkeypatch: pytest.MonkeyPatch, **change: Any) -> None:
    """A small network in place of the real one, under the same name and with a server that is not there."""
    flags = {"num_channels": 32, "channel_mult": "1,2", "num_res_blocks": 1, "image_size": 16, "learn_sigma": True}
    flags |= {"attention_resolutions": "8", "num_head_channels": 16, "resblock_updown": True}
    card = {"file": "ffhq_10m.pt", "url": "http://127.0.0.1:9/x.pt", "architecture": flags} | change
    monkeypatch.setattr(PriorInfo, "card", property(lambda self: dict(card)))


def test_a_missing_checkpoint_offline_explains_itself_in_one_line(
    named: PriorInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    with pytest.raises(FileNotFoundError) as caught:
        load_prior("ffhq-256")
    message = str(caught.value)
    assert "http://127.0.0.1:9/x.pt" in message
    assert str(named.expected) in message
    assert "\n" not in message
    assert named.where() is None


def test_a_file_put_in_its_place_is_loaded_and_remembered(
    named: PriorInfo, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    stand_in(monkeypatch)
    named.expected.parent.mkdir(parents=True)
    torch.save(tensors_of(numbered(TINY, dtype=torch.float32)), named.expected)
    prior = load_prior("ffhq-256")
    assert prior.name == "ffhq-256"
    assert not [w for w in recwarn if "assumed" in str(w.message)], "its card states all"
    load_prior("ffhq-256")
    torch.save(tensors_of(numbered(TINY, seed=1, dtype=torch.float32)), named.expected)
    with pytest.raises(ValueError, match=r"must have the sha256 \w+ \(the first use, kept in .*\.sha256\), received"):
        load_prior("ffhq-256")


@pytest.mark.parametrize(
    ("facts", "message"),
    [({"size": 7}, "must have 7 bytes, received"), ({"sha256": "0" * 64}, r"must have the sha256 0+ \(its card\)")],
)
def test_a_card_s_facts_hold(
    named: PriorInfo, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], message: str
) -> None:
    stand_in(monkeypatch, **facts)
    named.expected.parent.mkdir(parents=True)
    torch.save(tensors_of(numbered(TINY, dtype=torch.float32)), named.expected)
    with pytest.raises(ValueError, match=message):
        load_prior("ffhq-256")


def test_another_network_under_the_name_is_told_by_its_first_tensor(
    named: PriorInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    named.expected.parent.mkdir(parents=True)
    other = ADMConfig(**{**vars(TINY), "widths": (32, 96), "head_channels": 32})
    torch.save(tensors_of(numbered(other, dtype=torch.float32)), named.expected)
    with pytest.raises(ValueError, match=r"input_blocks.3.0.in_layers.2.weight must have shape \(64, 32, 3, 3\), rec"):
        load_prior("ffhq-256")
    assert not named.expected.with_name("ffhq_10m.pt.sha256").exists(), "only what has loaded is trusted"


# Labels


def conditional(folder: Path) -> Path:
    path = folder / "conditional.pt"
    config = ADMConfig(**{**vars(TINY), "classes": 5})
    torch.save(tensors_of(numbered(config, dtype=torch.float32)), path)
    (folder / "conditional.json").write_text(json.dumps(HEADS))
    return path


def test_labels(tmp_path: Path, adm_file: Path) -> None:
    path = conditional(tmp_path)
    prior = load_network(path, label=3)
    network = numbered(ADMConfig(**{**vars(TINY), "classes": 5}), dtype=torch.float32)
    for label in (3, 4):
        alpha_t, sigma_t = DDPM.linear()(300.0)
        eps = network(x(), torch.full((2,), 300.0), torch.full((2,), label))[:, :3]
        found = prior.with_label(label)(x(), 300.0).mean
        torch.testing.assert_close(found, (x() - sigma_t * eps) / alpha_t)
    assert prior.label == 3, "with_label leaves the prior as it was"
    assert load_network(path, card=HEADS | {"label": 2}).label == 2
    for label in (None, -1, 5, True):
        with pytest.raises(ValueError, match="from 0 to 4"):
            load_prior(path, label=label)
    with pytest.raises(ValueError, match="not class-conditional, received label=3"):
        load_prior(adm_file, card=HEADS, label=3)


def test_labels_of_a_diffusers_network(tmp_path: Path) -> None:
    folder = pipeline_folder(tmp_path / "pipe", num_class_embeds=4)
    one, two = (load_prior(folder, label=label)(x(), 300.0).mean for label in (1, 2))
    assert not torch.allclose(one, two)
    with pytest.raises(ValueError, match="from 0 to 3"):
        load_prior(folder)


# Precision, layout, parts


@pytest.mark.parametrize("form", ["adm", "diffusers"])
def test_settings_change_cost_not_result(tmp_path: Path, adm_file: Path, form: str) -> None:
    source, card = (adm_file, HEADS) if form == "adm" else (pipeline_folder(tmp_path / "pipe"), None)

    def result(rows: int = 5, **options: Any) -> tuple[Tensor, Tensor]:
        prior = load_prior(source, card=card, **options)
        x_t = x(rows).requires_grad_()
        x_hat = prior(x_t, 300.0).mean
        assert x_hat.dtype == torch.float32
        return x_hat.detach(), torch.autograd.grad(x_hat.square().sum(), x_t)[0]

    plain = result()
    for options in ({"checkpointing": True}, {"max_batch": 2}, {"max_batch": 2, "checkpointing": True}):
        for found, expected in zip(result(**options), plain, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for found, expected in zip(result(channels_last=True), plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    for found, expected in zip(result(dtype=torch.bfloat16), plain, strict=True):
        error = float((found - expected).norm() / expected.norm())
        assert 1e-5 < error < 0.05


def test_the_state_keeps_its_own_precision(adm_file: Path) -> None:
    prior = load_network(adm_file, card=HEADS, dtype=torch.bfloat16)
    alpha_t, sigma_t = prior.schedule(2.0)
    eps = prior.network(x().bfloat16(), torch.full((2,), 2.0))[:, :3].float()
    assert torch.equal(prior(x(), 2.0).mean, (x() - sigma_t * eps) / alpha_t), "x_t itself is not rounded"
    assert load_prior(adm_file, card=HEADS, dtype=torch.float64)(x().double(), 2.0).mean.dtype == torch.float64
    with pytest.raises(ValueError, match=r"dtype must be one of torch.float32, .*received torch.int8"):
        load_prior(adm_file, dtype=torch.int8)
    with pytest.raises(ValueError, match="max_batch must be at least 1"):
        load_prior(adm_file, card=HEADS, max_batch=0)


def test_a_gradient_in_parts_holds_one_part_at_a_time(adm_file: Path) -> None:
    alive: list[int] = []

    class Watch(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            alive.append(len(x_t))
            return x_t.sin() * t.reshape(-1, 1, 1, 1)

    prior = NetworkPrior(Watch(), "x0", max_batch=2)
    x_t = x(5).requires_grad_()
    found = prior(x_t, 3.0).mean
    assert alive == [2, 2, 1]
    (gradient,) = torch.autograd.grad(found.sum(), x_t)
    torch.testing.assert_close(gradient, 3 * x(5).cos())
    assert sorted(alive) == [1, 1, 2, 2, 2, 2], "each part was computed again for its gradient"


# What is refused


class Trap:
    """A pickle that would leave a file behind if it were run."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


def hostile(path: Path, trace: Path) -> dict[str, Callable[[], Any]]:
    """Ways to hide a trap in a checkpoint."""
    tensors = tensors_of(numbered(TINY, dtype=torch.float32))
    return {
        "bare": lambda: path.write_bytes(pickle.dumps(Trap(trace))),
        "protocol 2": lambda: path.write_bytes(pickle.dumps(Trap(trace), protocol=2)),
        "torch": lambda: torch.save(Trap(trace), path),
        "legacy": lambda: torch.save(Trap(trace), path, _use_new_zipfile_serialization=False),
        "among tensors": lambda: torch.save(tensors | {"trap": Trap(trace)}, path),
        "in an entry": lambda: torch.save({"state_dict": tensors, "args": [Trap(trace)]}, path),
    }


@pytest.mark.parametrize("way", list(hostile(Path(), Path())))
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_hostile_pickle_leaves_no_trace(tmp_path: Path, way: str, suffix: str) -> None:
    path, trace = tmp_path / f"hostile{suffix}", tmp_path / "trace"
    hostile(path, trace)[way]()
    with pytest.raises(ValueError, match=r"refused|not a whole safetensors file") as caught:
        load_prior(path, card=HEADS)
    assert not trace.exists()
    assert "\n" not in str(caught.value)
    if way == "torch" and suffix == ".pt":
        assert "it asks for posix.system" in str(caught.value)


Edit = Callable[[dict[str, Tensor]], Any]
DAMAGES: dict[str, tuple[Edit, str]] = {
    "missing": (lambda d: d.pop("out.0.bias"), r"out\.0\.bias of shape \(32,\) is missing"),
    "shape": (
        lambda d: d.update({"middle_block.0.in_layers.2.weight": torch.zeros(64, 64, 1, 1)}),
        r"middle_block\.0\.in_layers\.2\.weight must have shape \(64, 64, 3, 3\), received \(64, 64, 1, 1\)",
    ),
    "nan": (lambda d: d["out.2.bias"].fill_(torch.nan), r"out\.2\.bias has 6 values that are not finite"),
    "inf": (lambda d: d["time_embed.0.bias"][:1].fill_(torch.inf), r"time_embed\.0\.bias has 1 values"),
    "surplus": (
        lambda d: d.update({"extra": torch.zeros(3)}),
        r"it has extra of shape \(3,\), which the network does not have",
    ),
    "integers": (lambda d: d.update({"out.2.bias": torch.zeros(6, dtype=torch.int32)}), "must be plain floating-point"),
    "repeated": (lambda d: d.update({"out.2.bias": torch.zeros(1).expand(6)}), "must be plain floating-point"),
    "sparse": (lambda d: d.update({"out.2.bias": torch.zeros(6).to_sparse()}), "must be plain floating-point"),
    "meta": (lambda d: d.update({"out.2.bias": torch.zeros(6, device="meta")}), "must be plain floating-point"),
    "renamed": (lambda d: [d.update({k[::-1]: d.pop(k)}) for k in list(d)], "does not say what network it is for"),
    "no start": (lambda d: d.pop("input_blocks.0.0.weight"), r"expected input_blocks\.0\.0\.weight with 4 dimensions"),
    "no blocks": (lambda d: [d.pop(k) for k in list(d) if "output" in k], r"there is no output_blocks\.0"),
    "uneven": (
        lambda d: [d.pop(k) for k in list(d) if k.startswith("output_blocks.3")],
        "4 input and 3 output blocks make no 2 resolutions",
    ),
    "empty": (lambda d: d.clear(), "holds no tensors"),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_the_first_tensor_that_does_not_fit_is_named(tmp_path: Path, adm_file: Path, damage: str) -> None:
    edit, message = DAMAGES[damage]
    tensors = torch.load(adm_file)
    edit(tensors)
    torch.save(tensors, tmp_path / "damaged.pt")
    with pytest.raises(ValueError, match=message):
        load_prior(tmp_path / "damaged.pt", card=HEADS)


@pytest.mark.parametrize(
    ("content", "suffix", "message"),
    [
        (b"", ".pt", "it is empty"),
        (b"<!DOCTYPE html>", ".pt", "seems to be a web page"),
        (b"\x89PNG\r\n", ".pt", "seems to be a PNG image"),
        (b"version https://git-lfs.github.com/spec/v1", ".safetensors", "pointer of git-lfs"),
        (b"x", ".npz", "must be one of .safetensors, .pt"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, content: bytes, suffix: str, message: str) -> None:
    (tmp_path / f"file{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_prior(tmp_path / f"file{suffix}")


def test_second_moments_lie_beside_a_file(adm_file: Path) -> None:
    assert load_prior(adm_file, card=HEADS).second_moments is None
    moments = SecondMoments(torch.zeros(3), torch.rand(3, 16, 16, dtype=torch.float64) + 0.1)
    moments.save(moments_file(adm_file))
    found = load_prior(adm_file, card=HEADS).second_moments
    assert found is not None
    torch.testing.assert_close(found.variances, moments.variances, rtol=1e-5, atol=0)


def test_half_a_file_and_another_file_s_hash(tmp_path: Path, adm_file: Path) -> None:
    half = tmp_path / "half.pt"
    half.write_bytes(adm_file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="a checkpoint of torch that was cut short"):
        load_prior(half)
    with pytest.raises(ValueError, match="is another file than its card says: its sha256 must be abc"):
        load_prior(adm_file, card=HEADS | {"sha256": "abc"})
    renamed = tmp_path / "tiny.safetensors.pt"
    save_file(torch.load(adm_file), renamed)
    with pytest.raises(ValueError, match="safetensors file under another name"):
        load_prior(renamed)


@pytest.mark.parametrize(
    ("config", "scheduler", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, {}, "_class_name must be UNet2DModel"),
        ({"block_out_channels": [32, -1]}, {}, "block_out_channels must be 1 to 16 whole numbers"),
        ({"layers_per_block": 10**9}, {}, "layers_per_block must be a whole number from 1 to 64"),
        ({"norm_num_groups": 0}, {}, "makes no UNet2DModel"),
        ({"down_block_types": ["os.system", "DownBlock2D"]}, {}, "makes no UNet2DModel"),
        ({"block_out_channels": [32, 64]}, {}, r"must have shape"),
        ({}, {"beta_end": float("inf")}, "beta_end must be a finite number"),
        ({}, {"num_train_timesteps": 10**12}, "num_train_timesteps must be a whole number"),
        ({}, {"prediction_type": "flow"}, "prediction_type must be one of epsilon, sample, v_prediction"),
        ({}, {"_class_name": "FlowMatchHeunDiscreteScheduler"}, "a known scheduler with betas"),
        ({}, {"_class_name": "MyOwnScheduler"}, "a known scheduler .*DDIMScheduler.* received .MyOwn"),
        ({}, {"trained_betas": [0.5, 2.0]}, "betas must lie between 0 and 1"),
        ({}, {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr must be false with prediction_type epsilon"),
        ({}, {"thresholding": True}, "thresholding must be false"),
        ({}, {"clip_sample_range": 3.0}, "clip_sample_range must be 1"),
        ({}, {"use_flow_sigmas": True}, "use_flow_sigmas must be false"),
        ({}, {"clip_sample": "yes"}, "clip_sample must be true or false"),
    ],
)
def test_hostile_configurations_are_named(
    tmp_path: Path, config: dict[str, Any], scheduler: dict[str, Any], message: str
) -> None:
    folder = pipeline_folder(tmp_path / "pipe", scheduler=SCHEDULER | scheduler)
    (folder / "unet" / "config.json").write_text(json.dumps(UNET | config))
    with pytest.raises(ValueError, match=message):
        load_prior(folder)


def test_latent_pipelines_and_missing_files(tmp_path: Path) -> None:
    folder = pipeline_folder(tmp_path / "pipe")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"scheduler_config\.json is missing"):
        load_prior(folder)
    (folder / "vqvae").mkdir()
    with pytest.raises(FileNotFoundError, match="has an autoencoder and no model_index"):
        load_prior(folder)
    for nowhere in ("nothing", tmp_path, "x" * 5000, "a\0b"):
        with pytest.raises((FileNotFoundError, ValueError)):
            load_prior(nowhere)


# Fuzz: nothing but FileNotFoundError and ValueError comes out, with a message

SMALL = {name: torch.arange(4.0) for name in ("input_blocks.0.0.weight", "time_embed.0.weight", "out.2.weight")}
pytestmark = pytest.mark.filterwarnings("ignore:.*does not state everything")
QUIET = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def loads_or_says_why(source: Path, **options: Any) -> None:
    message = "loaded, which is as good"
    try:
        load_prior(source, **options)
    except (FileNotFoundError, ValueError) as error:
        message = str(error)
    assert len(message) > 20, "an error has a message"


@QUIET
@given(
    st.sampled_from([".pt", ".safetensors"]),
    st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda b: b"\x80\x02" + b)),
)
def test_any_bytes(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"any{suffix}").write_bytes(content)
    loads_or_says_why(tmp_path / f"any{suffix}")


@QUIET
@given(st.sampled_from(["zip", "legacy", "safetensors"]), st.integers(0, 10**6), st.integers(0, 7), st.booleans())
@example("zip", 8542, 0, False)  # an end that speaks of several disks
def test_damaged_files(tmp_path: Path, form: str, place: int, bit: int, cut: bool) -> None:
    path = tmp_path / ("damaged.safetensors" if form == "safetensors" else "damaged.pt")
    if form == "safetensors":
        save_file(SMALL, path)
    else:
        torch.save(SMALL, path, _use_new_zipfile_serialization=form == "zip")
    content = bytearray(path.read_bytes())
    place %= len(content)
    content[place] ^= 1 << bit
    path.write_bytes(content[:place] if cut else content)
    loads_or_says_why(path)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**12), 10**12), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@settings(QUIET, max_examples=60)
@given(st.sampled_from(sorted(UNET)), st.sampled_from(["beta_schedule", "beta_start", "trained_betas"]), JSON, JSON)
def test_any_configuration(
    tmp_path_factory: pytest.TempPathFactory, key: str, noise: str, one: Any, other: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    if not folder.exists():
        pipeline_folder(folder)
    (folder / "unet" / "config.json").write_text(json.dumps(UNET | {key: one}))
    loads_or_says_why(folder)
    (folder / "unet" / "config.json").write_text(json.dumps(UNET))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER | {noise: other}))
    loads_or_says_why(folder)


CARD_KEYS = ("architecture", "schedule", "parametrisation", "value_range", "entry", "sha256", "num_channels")
FLAGS = ("num_head_channels", "num_heads", "channel_mult", "attention_resolutions", "image_size", "diffusion_steps")


@settings(QUIET, max_examples=60)
@given(st.dictionaries(st.sampled_from(CARD_KEYS + FLAGS), JSON, min_size=1, max_size=3))
def test_any_card(tmp_path_factory: pytest.TempPathFactory, card: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "carded.pt"
    if not path.exists():
        torch.save(tensors_of(numbered(TINY, dtype=torch.float32)), path)
    path.with_suffix(".json").write_text(json.dumps(HEADS | card))
    loads_or_says_why(path)


# Objects


def gaussian(schedule: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """``E[x_0 | x_t]`` for ``x_0 ~ N(0, I)``."""

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        alpha_t, sigma_t = schedule(float(t[0]))
        return alpha_t * x_t / (alpha_t**2 + sigma_t**2)

    return network


def test_a_function_is_a_prior() -> None:
    flow = RectifiedFlow()
    prior = from_callable(gaussian(flow), flow, "x0", shape=(3, 8, 8), name="mine")
    torch.testing.assert_close(prior(x(), 0.5).mean, x() * 0.5 / 0.5)
    assert prior.name == "mine"
    with pytest.raises(ValueError, match=r"answers \(2, 3, 8, 8\) with \(2, 3, 4, 8\)"):
        from_callable(lambda x_t, t: x_t[:, :, ::2], flow, "x0", shape=(3, 8, 8))
    with pytest.raises(ValueError, match="not finite"):
        from_callable(lambda x_t, t: x_t / 0, flow, "x0", shape=(3, 8, 8))
    with pytest.raises(TypeError, match="fn must be a function"):
        from_callable(3, flow, "x0")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="schedule must be one of"):
        from_callable(gaussian(flow), 3, "x0")  # pyright: ignore[reportArgumentType]


def test_azula_s_gaussian_is_the_exact_posterior_mean() -> None:
    azula = pytest.importorskip("azula.denoise")
    noise = pytest.importorskip("azula.noise")
    covariance = pytest.importorskip("azula.linalg.covariance")
    mean, variance = torch.full((3, 4, 4), 0.25, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    denoiser = azula.GaussianDenoiser(mean, covariance.IsotropicCovariance(variance), noise.VPSchedule())
    prior = from_azula(denoiser)
    x_t = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    for t in prior.schedule.grid(4):
        alpha_t, sigma_t = prior.schedule(t)
        gain = alpha_t * 0.5 / (alpha_t**2 * 0.5 + sigma_t**2)
        found = prior(x_t, t).mean
        torch.testing.assert_close(found, mean + gain * (x_t - alpha_t * mean), rtol=1e-6, atol=1e-6)
        (jacobian,) = torch.autograd.grad(found[0, 0, 0, 0], x_t)
        assert float(jacobian[0, 0, 0, 0]) == pytest.approx(gain, rel=1e-6)


def test_azula_s_schedules_are_schedules() -> None:
    noise = pytest.importorskip("azula.noise")
    azula = pytest.importorskip("azula.denoise")
    for schedule in (noise.VPSchedule(), noise.VESchedule(), noise.RectifiedSchedule()):
        ours = from_azula(azula.SimpleDenoiser(nn.Identity(), schedule)).schedule
        assert ours(ours.end) == (1.0, 0.0)
        assert len(ours.grid(7)) == 7
        assert ours.grid(7)[0] == 1.0
        for ratio in (0.1, 1.0, 30.0):
            alpha_t, sigma_t = ours(ours.time(ratio))
            assert sigma_t / alpha_t == pytest.approx(ratio, rel=1e-5)
    with pytest.raises(TypeError, match="azula's schedule"):
        from_azula(3)  # pyright: ignore[reportArgumentType]


DOCS = Path(__file__).resolve().parent.parent / "docs" / "priors.md"
SNIPPETS = [part for part in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "import torch" in part]


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["denoiser", "function", "azula"])
def test_the_documentation_runs(snippet: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "azula" in snippet:
        pytest.importorskip("azula")
    exec(compile(snippet, str(DOCS), "exec"), {})
    printed = capsys.readouterr().out
    assert ("[2, 3, 32, 32]" if "azula" in snippet else "ok=True") in printed


def test_weights_in_the_package_are_what_their_card_says() -> None:
    import hashlib

    path = info_of("natural-64").where()
    assert path is not None
    assert hashlib.sha256(path.read_bytes()).hexdigest() == info_of("natural-64").card["sha256"]
    prior = load_network("natural-64")
    assert isinstance(prior.network, nn.Module)
    assert len(load_file(path)) == len(prior.network.state_dict())
    assert isinstance(ADMUNet(TINY), nn.Module)
