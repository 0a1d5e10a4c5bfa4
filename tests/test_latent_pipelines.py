"""Tiny random latent pipelines, saved as diffusers saves them and loaded as priors: the same functions, to rounding."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cmidiff import load_prior, restore
from cmidiff.draws import SeededDraws
from cmidiff.loop import sample
from cmidiff.measurement import Measurement
from cmidiff.physics import TASKS
from cmidiff.prior import LatentPrior, NetworkPrior, check_memory, estimate_memory
from cmidiff.prior.formats.card import Fields
from cmidiff.prior.formats.pipeline import weights_of
from cmidiff.prior.formats.scheduler import read_scheduler
from cmidiff.prior.hub import LATENT_PRIORS, files_of, folder_of
from cmidiff.prior.tiles import fitted
from cmidiff.registry import SOLVERS
from cmidiff.samplers import DDIM
from cmidiff.solvers import Unconditional
from tests import latents
from tests.cases import problem_of
from tests.device import Device, OnDevice, Single, moved
from tests.hub import Hub

PROMPT = {"prompt": "a photo of a cat", "guidance_scale": 3.0, "negative_prompt": "blurry"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Folder and pipeline of every kind."""
    root = tmp_path_factory.mktemp("pipelines")
    return {name: (root / name, make(root / name)) for name, make in latents.PIPELINES.items()}


def load(folder: Path, **options: Any) -> LatentPrior:
    prior = load_prior(folder, **options)
    assert isinstance(prior, LatentPrior)
    return prior


def z_of(prior: LatentPrior, batch: int = 2, side: int = 8) -> Tensor:
    assert prior.channels is not None
    return torch.randn(batch, prior.channels, side, side, generator=torch.Generator().manual_seed(1))


def run(prior: LatentPrior, z: Tensor, times: list[float]) -> Tensor:
    """The image of a deterministic DDIM run without a measurement."""

    class Start:
        def normal(self, stream: str, index: int, like: Tensor, inner: int = 0) -> Tensor:
            return z

    shape = tuple(prior.decode(z).shape[1:])
    physics = TASKS["denoise"](shape, noise_std=0.1)
    measurement = Measurement(
        torch.zeros(len(z), *shape), physics, 0.1, tuple(z.shape[1:]), shape, decoder=prior.decoder
    )
    problem = problem_of(prior, measurement, sampler=DDIM(), draws=Start())
    with torch.no_grad():
        *_, last = sample(problem, Unconditional(), times)
        return prior.decode(last.x_s)


def test_an_unconditional_pipeline_is_its_own_ddim(made: dict[str, tuple[Path, Any]]) -> None:
    folder, pipeline = made["ldm"]
    prior = load(folder)
    z = z_of(prior)
    pipeline.scheduler.set_timesteps(5)
    latent = z
    with torch.no_grad():
        for t in pipeline.scheduler.timesteps:
            latent = pipeline.scheduler.step(pipeline.unet(latent, t).sample, t, latent, eta=0.0).prev_sample
        expected = pipeline.vqvae.decode(latent / pipeline.vqvae.config.scaling_factor).sample
    # the pipeline clips x_hat to [-1, 1], which latents are not bound to: compare where it does not act
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert config["clip_sample"]
    pipeline.scheduler.register_to_config(clip_sample=False)
    latent = z
    with torch.no_grad():
        for t in pipeline.scheduler.timesteps:
            latent = pipeline.scheduler.step(pipeline.unet(latent, t).sample, t, latent, eta=0.0).prev_sample
        expected = pipeline.vqvae.decode(latent / pipeline.vqvae.config.scaling_factor).sample
    torch.testing.assert_close(run(prior, z, pipeline.scheduler.timesteps.tolist()), expected, rtol=1e-3, atol=1e-4)
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        encoded = pipeline.vqvae.encode(x).latents * pipeline.vqvae.config.scaling_factor
    torch.testing.assert_close(prior.encode(x), encoded)


def test_a_vq_model_without_a_factor_has_one(made: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    """The files of CompVis/ldm-celebahq-256 state none: https://github.com/huggingface/diffusers/issues/6725"""
    folder = changed(made["ldm"][0], tmp_path / "old", "vqvae/config.json")
    path = folder / "vqvae" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "scaling_factor"}))
    prior, vqvae = load(folder), made["ldm"][1].vqvae
    z = z_of(prior)
    with torch.no_grad():
        torch.testing.assert_close(prior.decode(z), vqvae.decode(z).sample)
        torch.testing.assert_close(prior.encode(z), vqvae.encode(z).latents)


@pytest.mark.parametrize("name", ["sd", "xl", "sd3", "flux"])
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
def test_a_text_pipeline_draws_what_its_own_code_draws(
    made: dict[str, tuple[Path, Any]], name: str, guided: bool
) -> None:
    """The pipeline of diffusers, from the same noise, with the same text: the same image."""
    folder, pipeline = made[name]
    told = PROMPT if guided else {"prompt": "cat"}
    if name == "flux":
        told = {"prompt": "cat", "guidance_scale": 3.0 if guided else 1.0}
    prior = load(folder, **told)
    z = z_of(prior, batch=1)
    if name == "xl":  # a deterministic sampler of the same levels
        pipeline.scheduler = latents.diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    arguments: dict[str, Any] = {"prompt": told["prompt"], "guidance_scale": told.get("guidance_scale", 1.0)}
    if guided and name != "flux":
        arguments["negative_prompt"] = told["negative_prompt"]
    given = z
    if name == "flux":  # which takes its latents in blocks
        given = pipeline._pack_latents(z, 1, 4, 8, 8)
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        expected = pipeline(
            **arguments, latents=given, num_inference_steps=4, output_type="pt", height=16, width=16
        ).images
    times = pipeline.scheduler.timesteps.double()
    flow = name in ("sd3", "flux")
    if flow:
        own = prior.schedule.grid(4) if name == "sd3" else (times / 1000).tolist()
        torch.testing.assert_close(torch.tensor(own[1:]).double(), times[1:] / 1000, rtol=1e-5, atol=0)
        times = torch.tensor([1 - 1e-5, *own[1:]])
    ours = (0.5 + 0.5 * run(prior, z, times.tolist())).clamp(0, 1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-3)
    assert float(ours.std()) > 0.01
    other = load(folder, **(told | {"prompt": "a blur"}))
    assert other.fingerprint != prior.fingerprint
    assert float((run(other, z, times.tolist()) - run(prior, z, times.tolist())).abs().max()) > 1e-4
    with torch.no_grad():
        x = torch.rand(1, 3, 16, 16) * 2 - 1
        config, mode = pipeline.vae.config, pipeline.vae.encode(x).latent_dist.mode()
    expected = (mode - (config.shift_factor or 0.0)) * config.scaling_factor
    torch.testing.assert_close(prior.encode(x), expected, rtol=1e-4, atol=1e-5)


def test_levels_are_those_of_the_scheduler() -> None:
    for options in ({}, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}):
        scheduler = latents.diffusers.DDIMScheduler(**latents.SCALED, **options)
        found: Any = read_scheduler(Fields({"_class_name": "DDIMScheduler"} | dict(scheduler.config), "here")).schedule
        levels = torch.tensor(found.alphas_cumprod).float()
        torch.testing.assert_close(levels[:-1], scheduler.alphas_cumprod[:-1], rtol=2e-4, atol=1e-7)
        assert float(levels[-1]) < 5e-6 or not options  # the last level keeps a trace of the image
    for options in ({"shift": 3.0}, {"shift": 1.0}):
        flow = latents.diffusers.FlowMatchEulerDiscreteScheduler(**options)
        flow.set_timesteps(7)
        config = Fields({"_class_name": "FlowMatchEulerDiscreteScheduler"} | dict(flow.config), "here")
        grid = torch.tensor(read_scheduler(config).schedule.grid(7))
        torch.testing.assert_close(grid, flow.sigmas[:-1], rtol=1e-5, atol=2e-5)
    dynamic = latents.diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    config = Fields({"_class_name": "FlowMatchEulerDiscreteScheduler"} | dict(dynamic.config), "here")
    with pytest.raises(ValueError, match="use_dynamic_shifting must be false where the size"):
        read_scheduler(config)
    dynamic.set_timesteps(sigmas=torch.linspace(1, 1 / 7, 7).tolist(), mu=0.5 + (1024 - 256) / (4096 - 256) * 0.65)
    grid = torch.tensor(read_scheduler(config, tokens=1024).schedule.grid(7))
    torch.testing.assert_close(grid, dynamic.sigmas[:-1], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("option", ["invert_sigmas", "shift_terminal"])
def test_a_flow_that_is_not_known_is_refused(option: str) -> None:
    config = Fields({"_class_name": "FlowMatchEulerDiscreteScheduler", option: True}, "here")
    with pytest.raises(ValueError, match=f"here: {option} must be"):
        read_scheduler(config)


def test_v_prediction_and_no_text(made: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    """Stable Diffusion 2.x, and the empty text as the default."""
    folder = tmp_path / "two"
    pipeline = latents.stable_diffusion(
        folder, scheduler={"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    )
    prior = load(folder)
    assert isinstance(prior.inner, NetworkPrior)
    assert prior.inner.parametrisation == "v"
    z, t = z_of(prior), 400.0
    alpha, sigma = prior.schedule(t)
    with torch.no_grad():
        text = pipeline.encode_prompt("", torch.device("cpu"), 1, False)[0]
        v = pipeline.unet(z, 400, encoder_hidden_states=text.expand(2, -1, -1)).sample
        torch.testing.assert_close(prior(z, t).mean, alpha * z - sigma * v, rtol=1e-4, atol=1e-5)


# Restorations


@pytest.mark.parametrize("name", latents.PIPELINES)
def test_a_pipeline_restores(made: dict[str, tuple[Path, Any]], name: str) -> None:
    prior = load(made[name][0])
    physics = TASKS["super-resolution"]((3, 14, 15), factor=1, noise_std=0.1)
    y = torch.rand(1, 3, 14, 15, generator=torch.Generator().manual_seed(3))
    for solver in ("dps", "psld"):
        result = restore(y, physics, prior, solver=solver, steps=3, cmi=solver == "dps")
        assert result.estimate.shape == y.shape
        assert bool(torch.isfinite(result.estimate).all())


def test_the_autoencoder_linearises_exactly(made: dict[str, tuple[Path, Any]]) -> None:
    """Products with the decoder's Jacobian, both ways, with and without checkpointing, against a dense one."""
    for name in ("sd", "ldm"):
        plain = load(made[name][0], dtype=torch.float64)
        again = load(made[name][0], dtype=torch.float64, checkpointing=True, max_batch=1)
        z = z_of(plain, batch=2, side=2).double()
        physics = TASKS["denoise"]((3, 4, 4), noise_std=0.1, dtype=torch.float64)
        y = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
        dense = [torch.autograd.functional.jacobian(plain.decode, row[None]).reshape(48, -1) for row in z]  # pyright: ignore[reportAttributeAccessIssue]
        v, u = torch.randn_like(z), torch.randn_like(y)
        for prior in (plain, again):
            linear = Measurement(y, physics, 0.1, tuple(z.shape[1:]), (3, 4, 4), decoder=prior.decoder).linearised(z)
            for row, jacobian in enumerate(dense):
                # attention computes its weights in single precision
                torch.testing.assert_close(
                    linear.A(v)[row].flatten(), jacobian @ v[row].flatten(), rtol=1e-5, atol=1e-6
                )
                back = jacobian.mT @ u[row].flatten()
                torch.testing.assert_close(linear.At(u)[row].flatten(), back, rtol=1e-5, atol=1e-6)


def test_precision_and_moments(made: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    from cmidiff.moments import SecondMoments

    folder = tmp_path / "sd"
    shutil.copytree(made["sd"][0], folder)
    SecondMoments(torch.zeros(4), torch.ones(4, 8, 8)).save(folder / "moments.safetensors")
    plain, half = load(folder), load(folder, dtype=torch.bfloat16)
    z = z_of(plain)
    assert half(z, 500.0).mean.dtype == half.decode(z).dtype == torch.float32
    torch.testing.assert_close(half.decode(z), plain.decode(z), rtol=0, atol=0.1)
    assert plain.second_moments is not None


def on_device(prior: LatentPrior) -> LatentPrior:
    """The prior with its networks on the device of `tests.device`."""
    assert prior.decoder is not None
    for part in (prior.inner, prior.decoder.network, prior.decoder.encoder):
        assert isinstance(part, NetworkPrior)
        assert isinstance(part.network, torch.nn.Module)
        moved(part.network)
    return prior


@pytest.mark.parametrize("offload", [False, True], ids=["plain", "offload"])
@pytest.mark.parametrize("name", latents.PIPELINES)
def test_a_pipeline_computes_on_its_device(
    made: dict[str, tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch, name: str, offload: bool
) -> None:
    """No tensor of the CPU is made or met; offloaded weights visit the device, also for a gradient that computes blocks
    again."""
    if (
        name == "flux"
    ):  # whose rotary embedding is computed in float64, except on devices that diffusers knows to lack it
        monkeypatch.setattr("tests.device.MISSING", ())
    here, there = (load(made[name][0], offload=offload, checkpointing=offload) for _ in range(2))
    on_device(there)
    z, x = z_of(here), torch.rand(2, 3, 16, 16)
    t = here.schedule.grid(3)[1]

    def results(prior: LatentPrior, z: Tensor, x: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            v = z.detach().requires_grad_()
            gradient = torch.autograd.grad(prior.decode(prior(v, t).mean).square().sum(), v)[0]
        return [prior(z, t).mean, prior.decode(z), prior.encode(x), gradient]

    with torch.no_grad():
        expected, moved_z, moved_x = results(here, z, x), OnDevice(z), OnDevice(x)
        with Device(strict=True):
            found = results(there, moved_z, moved_x)
    for ours, other in zip(found, expected, strict=True):
        assert isinstance(ours, OnDevice)
        torch.testing.assert_close(ours.inner, other, rtol=1e-3, atol=1e-4)


def test_offloaded_weights_stay_where_they_are(made: dict[str, tuple[Path, Any]]) -> None:
    plain, offloaded = load(made["sd"][0]), load(made["sd"][0], offload=True)
    assert plain.fingerprint == offloaded.fingerprint
    z = z_of(plain)
    for ours, other in zip(*(torch.func.jvp(p.decode, (z,), (z,)) for p in (offloaded, plain)), strict=True):
        torch.testing.assert_close(ours, other)
    assert offloaded.decoder is not None
    assert offloaded.decoder.network is not None
    network: Any = offloaded.decoder.network.network
    network.to("meta")
    assert network.decoder.conv_in.weight.device.type == "cpu"
    assert network.gain.device.type == "meta"


@pytest.mark.parametrize("solver", ["dps", "psld", "resample", "red-diff"])
def test_a_solver_through_a_decoder_runs_on_a_device(made: dict[str, tuple[Path, Any]], solver: str) -> None:
    """Those that take backward passes alone: forward-mode derivatives do not know tensors of `tests.device`."""
    short = {"every": 1, "pixel_steps": 3, "latent_steps": 3} if solver == "resample" else None
    made_solver, shape = SOLVERS.make(solver, {"guard": False} if solver == "dps" else short), (3, 16, 16)
    physics, found = TASKS["super-resolution"](shape, factor=2, noise_std=0.1), []
    y = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for prior, there in ((load(made["sd"][0]), False), (on_device(load(made["sd"][0])), True)):
        measurement = Measurement(
            OnDevice(y) if there else y,
            moved(physics) if there else physics,  # pyright: ignore[reportArgumentType]
            0.1,
            (4, 8, 8),
            shape,
            decoder=prior.decoder,
        )
        problem = problem_of(prior, measurement, sampler=DDIM(), draws=SeededDraws([(0, 0)]))
        with torch.no_grad(), Device() if there else contextlib.nullcontext():
            *_, last = sample(problem, made_solver, made_solver.times(problem, 3))
        found.append(last.x_s.inner if there else last.x_s)
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", latents.PIPELINES)
def test_forward_products_of_a_decoder_make_no_float64(made: dict[str, tuple[Path, Any]], name: str) -> None:
    """Both directions of the linearised measurement; a test of the mode itself comes first."""
    with Single(), pytest.raises(TypeError, match=r"no torch\.float64"):
        torch.ones(1).double()
    prior, shape = load(made[name][0]), (3, 16, 16)
    physics = TASKS["super-resolution"](shape, factor=2, noise_std=0.1)
    z, y = z_of(prior), torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    measurement = Measurement(y, physics, 0.1, tuple(z.shape[1:]), shape, decoder=prior.decoder)
    with torch.no_grad(), Single():
        linear = measurement.linearised(z)
        forward, backward = linear.A(z), linear.At(y)
    torch.testing.assert_close((forward * y).sum((1, 2, 3)), (backward * z).sum((1, 2, 3)), rtol=1e-3, atol=1e-3)


def test_what_precision_and_checkpointing_buy(made: dict[str, tuple[Path, Any]]) -> None:
    """Of the network, without running it: attention counts as its fused kernels do."""

    def need(prior: LatentPrior) -> int:
        found = estimate_memory(prior.inner, (4, 16, 16), graph=True)
        assert found is not None
        return found.activations

    folder = made["sd"][0]
    plain = load(folder)
    whole = need(plain)
    assert need(load(folder, dtype=torch.bfloat16)) < 0.6 * whole
    assert need(load(folder, checkpointing=True)) < 0.6 * whole
    with pytest.raises(ValueError, match=r"checkpointing=True"):
        check_memory(plain.inner, (4, 16, 16), 1, graph=True, available=whole // 2)
    tiled = fitted(plain, (4, 32, 32), 16)  # pixels: one tile of the decoder at a time
    assert [(part.shape, part.batch) for part in tiled.evaluations((4, 32, 32), 2)] == [((4, 8, 8), 16), ((4, 8, 8), 2)]


# What is refused


def changed(folder: Path, to: Path, file: str, **values: Any) -> Path:
    """A copy of a pipeline with another configuration."""
    shutil.copytree(folder, to)
    path = to / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return to


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            "model_index.json",
            {"_class_name": "PixArtAlphaPipeline"},
            r"_class_name must be one of LDMPipeline.*decoder=",
        ),
        ("model_index.json", {"requires_aesthetics_score": True}, "refiner"),
        ("unet/config.json", {"time_cond_proj_dim": 8}, "time_cond_proj_dim must be absent"),
        ("unet/config.json", {"addition_embed_type": "image"}, "addition_embed_type must be absent"),
        ("unet/config.json", {"cross_attention_dim": 8}, "must have shape"),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "_class_name must be one of AutoencoderKL, VQModel"),
        ("scheduler/scheduler_config.json", {"_class_name": "CMStochasticIterativeScheduler"}, "FlowMatchEuler"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "x_hat has no meaning"),
    ],
)
def test_a_pipeline_that_is_not_known_is_refused(
    made: dict[str, tuple[Path, Any]], tmp_path: Path, file: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_prior(changed(made["sd"][0], tmp_path / "other", file, **values))


def test_further_inputs_and_missing_files_are_named(
    made: dict[str, tuple[Path, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents.stable_diffusion(tmp_path / "inpaint", in_channels=9)
    with pytest.raises(ValueError, match="takes 9 channels and its autoencoder has 4"):
        load_prior(tmp_path / "inpaint")
    other = changed(made["sd"][0], tmp_path / "copy", "model_index.json")
    (other / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"weights are missing: .*vae"):
        load_prior(other)
    with pytest.raises(ValueError, match="takes no text"):
        load_prior(made["ldm"][0], prompt="cat")
    with pytest.raises(ValueError, match="are for latent priors, which natural-64 is not"):
        load_prior("natural-64", prompt="cat")
    with pytest.raises(ValueError, match="negative_prompt counts only with guidance"):
        load_prior(made["sd"][0], negative_prompt="blurry")
    with pytest.raises(ValueError, match="no negative text, leave negative_prompt out"):
        load_prior(made["flux"][0], negative_prompt="blurry", guidance_scale=3.0)
    with pytest.raises(ValueError, match="guidance_scale must be a number >= 0"):
        load_prior(made["sd"][0], guidance_scale=-1.0)
    real = importlib_find_spec()
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "transformers" else real(name, *a))
    with pytest.raises(ValueError, match=r"needs the package transformers: pip install 'cmidiff\[latent\]'"):
        load_prior(made["sd"][0])


@pytest.mark.parametrize("name", ["sd", "xl", "sd3"])
def test_a_folder_in_half_precision_is_read(made: dict[str, tuple[Path, Any]], tmp_path: Path, name: str) -> None:
    """As the hub's variants are: fp16 in the names of all weights, and in several files."""
    pipeline = copy.deepcopy(made[name][1]).to(torch.float16)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16", max_shard_size="20KB")
    assert not list((tmp_path / "half").rglob("model.safetensors"))
    half, whole = load(tmp_path / "half"), load(made[name][0])
    z, t = z_of(whole), whole.schedule.grid(3)[1]
    torch.testing.assert_close(half(z, t).mean, whole(z, t).mean, rtol=0, atol=0.05)
    torch.testing.assert_close(half.decode(z), whole.decode(z), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("name", "part"), [("sd", "text_encoder"), ("xl", "text_encoder_2"), ("flux", "text_encoder_2")]
)
def test_a_missing_text_encoder_is_named(
    made: dict[str, tuple[Path, Any]], tmp_path: Path, name: str, part: str
) -> None:
    folder = changed(made[name][0], tmp_path / "copy", "model_index.json")
    shutil.rmtree(folder / part)
    with pytest.raises(ValueError, match=rf"has no {part} with weights.*put .*copy/{part} there"):
        load_prior(folder)
    again = changed(made[name][0], tmp_path / "null", "model_index.json", **{part: [None, None]})
    with pytest.raises(ValueError, match=f"has no {part} with weights"):
        load_prior(again)


@pytest.mark.parametrize(
    ("name", "part"), [("sd", "tokenizer"), ("xl", "tokenizer_2"), ("sd3", "tokenizer_2"), ("flux", "tokenizer_2")]
)
def test_a_missing_tokenizer_is_named(made: dict[str, tuple[Path, Any]], tmp_path: Path, name: str, part: str) -> None:
    """transformers makes an empty one of a folder that is missing, which reads all texts alike."""
    folder = changed(made[name][0], tmp_path / "copy", "model_index.json")
    (folder / part / "tokenizer.json").unlink()
    for _ in range(2):  # without its words, and without its folder
        with pytest.raises(ValueError, match=f"{part} has no vocabulary, which text_encoder"):
            load_prior(folder, prompt="cat")
        shutil.rmtree(folder / part, ignore_errors=True)


@pytest.mark.parametrize(("name", "part"), [("ldm", "vqvae"), ("sd", "vae"), ("flux", "vae"), ("sd", "unet")])
def test_a_missing_network_is_named(made: dict[str, tuple[Path, Any]], tmp_path: Path, name: str, part: str) -> None:
    """Without its autoencoder a latent pipeline is no prior of images."""
    folder = changed(made[name][0], tmp_path / "copy", "model_index.json")
    shutil.rmtree(folder / part)
    with pytest.raises(FileNotFoundError, match=f"{part}/config.json"):
        load_prior(folder)


@pytest.mark.parametrize(
    "name", ["model.diffusion_model.input_blocks.0.0.weight", "double_blocks.0.img_attn.qkv.weight"]
)
def test_a_single_file_checkpoint_is_refused_with_the_way_to_convert_it(tmp_path: Path, name: str) -> None:
    save_file({name: torch.zeros(2, 2), "final.weight": torch.zeros(2)}, tmp_path / "sd.safetensors")
    with pytest.raises(ValueError, match=r"single-file checkpoint.*from_single_file\(FILE\).*save_pretrained"):
        load_prior(tmp_path / "sd.safetensors")


def importlib_find_spec() -> Any:
    import importlib.util

    return importlib.util.find_spec


# The hub


def test_only_what_is_needed_is_fetched() -> None:
    names = [
        *("model_index.json", "README.md", "v1-5-pruned.safetensors", "scheduler/scheduler_config.json"),
        *("safety_checker/model.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt"),
        *("text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors"),
        *("text_encoder/pytorch_model.bin", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
        *("unet/diffusion_pytorch_model.non_ema.safetensors", "unet/diffusion_pytorch_model.bin"),
        *("vae/config.json", "vae/diffusion_pytorch_model.bin"),
    ]
    wanted = files_of(names, "StableDiffusionPipeline")
    assert sorted(name for name in wanted if not name.endswith((".json", ".txt"))) == [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.bin",
    ]
    assert "tokenizer/merges.txt" in wanted
    assert not any(name.startswith("safety") or name == "README.md" for name in wanted)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("model.safetensors", "model.fp16.safetensors", "model.bin"), ("model.safetensors",)),
        (("model.fp16.safetensors", "model.bin"), ("model.fp16.safetensors",)),
        (("model.bf16.safetensors",), ("model.bf16.safetensors",)),
        (
            ("diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.bin"),
            ("diffusion_pytorch_model.bin",),
        ),
        (("model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"),) * 2,
        (("diffusion_pytorch_model.fp16-00001-of-00001.safetensors", "x.json"),) * 2,
        (("pytorch_model.bin", "flax_model.msgpack"), ()),
    ],
)
def test_one_set_of_weights(names: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    assert weights_of(names) == sorted(name for name in wanted if name.endswith((".safetensors", ".bin")))


def test_the_size_of_a_download_is_said_first(
    made: dict[str, tuple[Path, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said: list[str] = []
    hub = Hub(
        made["sd"][0],
        tmp_path / "snapshot",
        size=lambda path: 10**9 if path.suffix == ".safetensors" else 1000,
        before=lambda: said.append(capsys.readouterr().err),
    ).install(monkeypatch)
    assert folder_of("hf:owner/model") is None
    prior = load_prior("hf:owner/model")
    assert prior.name == "hf:owner/model"
    assert said[0] == ""
    assert "fetching 3.0 GB in " in said[1]
    assert "files of hf:owner/model from https://huggingface.co/owner/model" in said[1].replace("\n", " ")
    assert not list(hub.cache.rglob("made*"))
    assert folder_of("hf:owner/model") == hub.cache
    load_prior("hf:owner/model")
    assert "fetching" not in capsys.readouterr().err
    hub.offline = True
    assert load_prior("hf:owner/model").fingerprint == prior.fingerprint
    (hub.cache / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert folder_of("hf:owner/model") is None
    with pytest.raises(FileNotFoundError, match="is not on this machine and cannot be fetched"):
        load_prior("hf:owner/model")


def test_an_unknown_kind_is_refused_before_its_weights_are_fetched(
    made: dict[str, tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = changed(
        made["sd"][0], tmp_path / "other", "model_index.json", _class_name="StableDiffusionInpaintPipeline"
    )
    hub = Hub(source, tmp_path / "cache").install(monkeypatch)
    with pytest.raises(ValueError, match="_class_name must be one of LDMPipeline"):
        load_prior("hf:owner/model")
    assert len(hub.asked) == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", "is gated: accept its licence at https://huggingface.co/owner/model, then log in"),
        ("RepositoryNotFoundError", "there is no https://huggingface.co/owner/model, or it is private"),
        ("RevisionNotFoundError", "names a revision that https://huggingface.co/owner/model does not have"),
    ],
)
def test_what_the_hub_refuses_is_explained(monkeypatch: pytest.MonkeyPatch, error: str, message: str) -> None:
    import httpx
    from huggingface_hub import errors

    def refuse(*_: Any, **__: Any) -> str:
        answer = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
        raise getattr(errors, error)("refused", response=answer)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match=message):
        load_prior("hf:owner/model")


def test_the_sizes_in_the_list_are_those_of_the_published_networks() -> None:
    """The smallest of them, built without weights from its published configuration; see the manual for the others."""
    with torch.device("meta"):
        unet = latents.diffusers.UNet2DModel(
            sample_size=64,
            in_channels=3,
            out_channels=3,
            block_out_channels=(224, 448, 672, 896),
            attention_head_dim=32,
            down_block_types=("DownBlock2D", *("AttnDownBlock2D",) * 3),
            up_block_types=(*("AttnUpBlock2D",) * 3, "UpBlock2D"),
        )
    assert round(sum(value.numel() for value in unet.parameters()) / 1e6) == LATENT_PRIORS[0].millions[0]
    assert [entry.download for entry in LATENT_PRIORS] == ["1.3 GB", "4.3 GB", "13.9 GB", "16.3 GB", "33.7 GB"]
