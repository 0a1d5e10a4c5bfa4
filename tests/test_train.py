"""Training: the kernel and the loss against their formulas, exact resume, export, and clear complaints."""

from __future__ import annotations

import io
import json
import math
import signal
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from PIL import Image
from torch import Tensor, nn

from cmidiff.schedule import DDPM
from cmidiff.train import TrainConfig, run
from cmidiff.train.data import Dataset
from cmidiff.train.export import read
from cmidiff.train.loop import CHECKPOINT, learning_rate, load, new_state, v_loss
from cmidiff.train.noise import draw_times, kernel, time_of
from cmidiff.train.validate import clean, denoising

SHIPPED = Path(__file__).parents[1] / "cmidiff" / "train" / "natural-64.toml"


def smooth_image(rng: np.random.Generator, side: int) -> Image.Image:
    """A colour gradient in a random direction: easy to learn from few steps."""
    along = np.add.outer(rng.normal() * np.arange(side), rng.normal() * np.arange(side)) / side
    pixels = 127.5 + 50 * along[..., None] + 20 * rng.normal(size=3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def archive(path: Path, count: int, side: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            buffer = io.BytesIO()
            smooth_image(rng, side).save(buffer, "PNG")
            info = tarfile.TarInfo(f"{i}.png")
            info.size = len(buffer.getvalue())
            buffer.seek(0)
            tar.addfile(info, buffer)
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small lose more by sharing their work between threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        name="tiny",
        out=tmp_path / "run",
        export_to=tmp_path / "tiny",
        cache=tmp_path / "cache",
        images=(archive(tmp_path / "images.tar", 24, 16, 0),),
        photographs=(archive(tmp_path / "photographs.tar", 3, 48, 1),),
        validation=archive(tmp_path / "validation.tar", 4, 16, 2),
        size=16,
        crops_per_photograph=4,
        channels=(16, 32),
        groups=8,
        batch=8,
        steps=12,
        learning_rate=1e-2,
        warmup=2,
        bfloat16=False,
    )


def weights(config: TrainConfig) -> dict[str, Tensor]:
    state = new_state(config)
    load(state, config.out / CHECKPOINT)
    return {
        **{f"n.{k}": v for k, v in state.network.state_dict().items()},
        **{f"a.{k}": v for k, v in state.average.state_dict().items()},
    }


def test_the_kernel_is_the_ddpm_grid_at_integers_and_invertible_between() -> None:
    grid = DDPM.linear()
    for t in (0, 1, 250, 998, 999):
        alpha_t, sigma_t = kernel(torch.tensor([float(t)], dtype=torch.float64))
        assert float(alpha_t) == pytest.approx(float(grid(t)[0]), rel=1e-6)
        assert float(sigma_t) == pytest.approx(float(grid(t)[1]), rel=1e-6)
    t = torch.linspace(0, 999, 3001, dtype=torch.float64)
    alpha_t, sigma_t = kernel(t)
    torch.testing.assert_close(alpha_t**2 + sigma_t**2, torch.ones_like(t), rtol=0, atol=1e-12)
    torch.testing.assert_close(time_of(sigma_t / alpha_t), t, rtol=0, atol=1e-6)


def test_the_times_of_a_batch_follow_the_stated_mixture() -> None:
    t = draw_times(20000, 0.25, -1.0, 0.8, torch.Generator().manual_seed(0))
    uniform, normal = t[:5000], t[5000:]
    assert float(uniform.mean()) == pytest.approx(999 / 2, abs=0.5)
    alpha_t, sigma_t = kernel(normal)
    log_ratio = torch.log(sigma_t / alpha_t)
    assert float(log_ratio.median()) == pytest.approx(-1.0, abs=0.01)
    assert float(log_ratio.std()) == pytest.approx(0.8, abs=0.02)


class Exact(nn.Module):
    """The best v for images that are independent standard normals: x_hat = alpha_t x_t, hence v = 0."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x_t)


def test_v_zero_is_the_exact_posterior_mean_of_white_images() -> None:
    x_0 = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.full((64,), 300.0, dtype=torch.float64)
    alpha_t, _ = kernel(t[:1])
    torch.testing.assert_close(clean(Exact(), x_0, t), float(alpha_t) * x_0)
    level = denoising(Exact(), x_0.float(), (0.5,))[0]
    assert level.mse == pytest.approx(0.25 / 1.25, rel=0.02)  # Var(x_0 | x_t) = r^2 / (1 + r^2)
    assert level.v_loss == pytest.approx(1.0, rel=0.02)
    loss = v_loss(
        Exact(), x_0.float(), t, torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1)), bfloat16=False
    )
    assert float(loss) == pytest.approx(1.0, rel=0.02)


def test_the_learning_rate_warms_up_and_ends_at_zero(config: TrainConfig) -> None:
    config = replace(config, steps=1000, warmup=10)
    assert learning_rate(config, 0, 0.0) == pytest.approx(config.learning_rate / 10)
    assert learning_rate(config, 500, 0.0) == pytest.approx(config.learning_rate / 2)
    assert learning_rate(config, 1000, 0.0) == pytest.approx(0.0, abs=1e-12)
    by_time = replace(config, steps=0, seconds=60.0)
    assert learning_rate(by_time, 10**6, 60.0) == pytest.approx(0.0, abs=1e-12)


def test_an_epoch_shows_every_image_once_at_the_stated_share_of_crops(config: TrainConfig) -> None:
    data = Dataset(replace(config, crop_share=0.25, batch=4))
    epoch = torch.cat([data.batch(step) for step in range(8)])  # 24 images and 8 crops
    whole = {pixels.tobytes() for pixels in data.images} | {pixels[:, ::-1].tobytes() for pixels in data.images}
    shown = [((x.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy().tobytes() for x in epoch]
    assert sum(pixels in whole for pixels in shown) == 24
    assert len(set(shown)) >= 31
    again = Dataset(replace(config, crop_share=0.25, batch=4)).batch(5)
    assert torch.equal(again, epoch[20:24])


def test_resume_is_bit_exact(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, validation=None)
    run(config)
    whole = weights(config)
    parted = replace(config, out=config.out.with_name("parted"))
    step = torch.optim.AdamW.step
    calls = iter(range(100))

    def interrupted(self: torch.optim.AdamW) -> object:
        if next(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        first = run(parted)
    assert not first.finished
    assert first.steps == 5
    second = run(parted, resume=True)
    assert second.finished
    assert second.steps == 12
    assert second.seconds > first.seconds
    resumed = weights(parted)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_the_loss_falls_and_the_export_reloads_in_half_precision(config: TrainConfig) -> None:
    result = run(replace(config, steps=60))
    assert result.loss < 0.9 * float(first_loss(config))
    assert [level.ratio for level in result.levels] == sorted(level.ratio for level in result.levels)
    mid = next(level for level in result.levels if level.ratio == 0.5)
    assert mid.psnr > mid.noisy_psnr + 2
    state = new_state(config)
    load(state, config.out / CHECKPOINT)
    network = read(result.folder)
    for key, value in state.average.state_dict().items():
        assert torch.equal(network.state_dict()[key], value.half().float()), key
    x = torch.randn(2, 3, 24, 16, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([3.5, 800.0])
    assert torch.equal(network(x, t), read(result.folder)(x, t))
    torch.testing.assert_close(network(x, t), state.average(x, t), rtol=0, atol=5e-3)


def first_loss(config: TrainConfig) -> Tensor:
    x_0 = Dataset(config).batch(0)
    generator = torch.Generator().manual_seed(0)
    t = draw_times(len(x_0), config.uniform_share, config.log_sigma_mean, config.log_sigma_std, generator)
    eps = torch.randn(x_0.shape, generator=generator)
    return v_loss(new_state(config).network, x_0, t, eps, bfloat16=False).detach()


def test_the_exported_folder_says_what_it_is(config: TrainConfig) -> None:
    folder = run(replace(config, steps=2, licence="free", data="gradients")).folder
    card = json.loads((folder / "card.json").read_text())
    assert (card["parametrisation"], card["patch_size"], card["steps"], card["images_seen"]) == ("v", 2, 2, 16)
    assert (card["licence"], card["data"]) == ("free", "gradients")
    assert len(card["validation"]) == 9
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["prediction_type"], scheduler["beta_schedule"]) == ("v_prediction", "linear")
    assert (scheduler["beta_start"], scheduler["beta_end"], scheduler["num_train_timesteps"]) == (1e-4, 0.02, 1000)


def test_the_network_has_a_second_derivative(config: TrainConfig) -> None:
    network = new_state(config).network.double().requires_grad_(False)
    nn.init.normal_(network.unet.conv_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    for module in network.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())  # fused attention has no second derivative
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    t = torch.tensor([200.0], dtype=torch.float64)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def first(at: Tensor) -> Tensor:
        return torch.autograd.grad((network(at, t) * direction).sum(), at, create_graph=True)[0]

    second = torch.autograd.grad((first(x) * direction).sum(), x)[0]
    h = 1e-3  # not smaller: diffusers rounds to float32 inside
    finite = (first(x + h * direction) - first(x - h * direction)) / (2 * h)
    assert float((second * direction).sum()) == pytest.approx(float((finite * direction).sum()), rel=1e-3)


def test_a_run_is_not_overwritten_and_a_missing_one_not_resumed(config: TrainConfig) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        run(config, resume=True)
    run(replace(config, steps=1, validation=None))
    with pytest.raises(FileExistsError, match="resume that run"):
        run(config)
    with pytest.raises(ValueError, match="another network"):
        run(replace(config, channels=(16, 16)), resume=True)


def test_a_missing_archive_is_named(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.tar"):
        run(replace(config, images=(tmp_path / "absent.tar",)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not valid TOML"),
        ('name = "a"\nlearning_rat = 1e-3', "unknown field 'learning_rat'"),
        ('name = "a"', "the field 'out' is missing"),
        ('batch = "many"', "'batch' must be a whole number, received 'many'"),
        ("channels = 64", "'channels' must be a list of whole numbers, received 64"),
        ("compile = 1", "'compile' must be true or false, received 1"),
        ("channels = [20]", "divisible by groups = 16"),
        ("size = 60", "size must be divisible by 8, received 60"),
        ("seconds = 0", "give one a positive value"),
        ("learning_rate = 0", "learning_rate must be positive"),
    ],
)
def test_a_wrong_toml_is_explained(tmp_path: Path, text: str, message: str) -> None:
    base = {
        "name": '"a"',
        "out": '"o"',
        "export_to": '"e"',
        "cache": '"c"',
        "images": '["i.tar"]',
        "crop_share": "0",
        "seconds": "5",
    }
    if not message.startswith(("not valid", "unknown", "the field 'out'")):
        key, value = text.split(" = ")
        text = "\n".join(f"{k} = {v}" for k, v in {**base, key: value}.items())
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"(?s).*") as caught:
        TrainConfig.load(path)
    assert message in str(caught.value)


def test_the_shipped_configuration_loads() -> None:
    config = TrainConfig.load(SHIPPED)
    assert config.name == "natural-64"
    assert config.multiple == 8
    assert config.export_to.resolve() == SHIPPED.parents[1] / "weights" / "natural-64"
    with pytest.raises(FileNotFoundError, match="no training configuration"):
        TrainConfig.load(SHIPPED.with_name("absent.toml"))
    assert math.isclose(TrainConfig.load(SHIPPED, seconds=7).seconds, 7.0)
