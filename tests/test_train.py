"""Training: the kernel and the loss against their formulas, exact resume, export, and clear complaints."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import resource
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from PIL import Image
from torch import Tensor, nn

from cmidiff.app.cli import app
from cmidiff.schedule import DDPM
from cmidiff.train import TrainConfig, run, snapshot
from cmidiff.train.checkpoint import State, load, new_state
from cmidiff.train.data import Dataset
from cmidiff.train.export import read
from cmidiff.train.loop import CHECKPOINT, COOL_DOWN, learning_rate
from cmidiff.train.loss import MAX_SIGMA, MIN_SIGMA, draw_times, kernel, teach, time_of, v_loss
from cmidiff.train.optimiser import MuonAdamW, orthogonalise
from cmidiff.train.validate import clean, denoising

SHIPPED = Path(__file__).parents[1] / "cmidiff" / "train"


def smooth_image(rng: np.random.Generator, side: int) -> Image.Image:
    """A colour gradient in a random direction: easy to learn from few steps."""
    along = np.add.outer(rng.normal() * np.arange(side), rng.normal() * np.arange(side)) / side
    pixels = 127.5 + 50 * along[..., None] + 20 * rng.normal(size=3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def archive(path: Path, count: int, side: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    return pack(path, [smooth_image(rng, side) for _ in range(count)])


def pack(path: Path, found: list[Image.Image]) -> Path:
    with tarfile.open(path, "w") as tar:
        for i, image in enumerate(found):
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
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
        crop_share=0.25,
        channels=(16, 32),
        groups=8,
        batch=8,
        steps=12,
        learning_rate=1e-2,
        warmup=2,
        bfloat16=False,
    )


def weights(config: TrainConfig, folder: str = ".") -> dict[str, Tensor]:
    """The weights and their average in the checkpoint of a run."""
    state = restored(config, folder)
    return {
        **{f"n.{k}": v for k, v in state.network.state_dict().items()},
        **{f"a.{k}": v for k, v in state.average.state_dict().items()},
    }


def restored(config: TrainConfig, folder: str = ".") -> State:
    state = new_state(config)
    load(state, config.out / folder / CHECKPOINT)
    return state


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


def write_toml(config: TrainConfig, path: Path, **changes: object) -> Path:
    """A configuration file with the fields of ``config`` that differ from the defaults."""
    kept = {"name", "out", "export_to", "cache", "images", "photographs", "size", "crop_share", "channels", "groups"}
    kept |= {"batch", "steps", "learning_rate", "warmup", "optimiser", "bfloat16"}
    values = {name: getattr(config, name) for name in sorted(kept)} | changes

    def text(value: object) -> str:
        if isinstance(value, tuple):
            return f"[{', '.join(text(v) for v in value)}]"
        return json.dumps(str(value) if isinstance(value, Path) else value)

    path.write_text("".join(f"{name} = {text(value)}\n" for name, value in values.items()))
    return path


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


def test_the_weight_of_detail_acts_within_blocks_and_at_high_noise_only() -> None:
    x_0 = torch.zeros(2, 3, 8, 8)
    blocks = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = blocks.repeat_interleave(2, 2).repeat_interleave(2, 3)
    weave = torch.tensor([1.0, -1.0]).repeat(4).expand(2, 3, 8, 8)

    def loss(error: Tensor, detail: float, ratio: float = 1.0) -> float:
        t = time_of(torch.full((2,), ratio))
        alpha_t, _ = (k.float()[:, None, None, None] for k in kernel(t))
        return float(v_loss(lambda x, _: alpha_t * smooth + error, x_0, t, smooth, False, detail=detail))

    assert loss(smooth, 8) == pytest.approx(loss(smooth, 0), rel=1e-5)
    assert loss(weave, 0) == pytest.approx(1, rel=1e-4)
    assert loss(weave, 8) == pytest.approx(5, rel=1e-4)  # sigma_t^2 = 1/2
    assert loss(weave, 8, 0.1) == pytest.approx(1 + 8 * 0.01 / 1.01, rel=1e-3)


def test_the_learning_rate_warms_up_stays_and_ends_at_zero(config: TrainConfig) -> None:
    state = new_state(config)
    config = replace(config, steps=1000, warmup=10, cooldown=0.2)

    def rate(config: TrainConfig, **numbers: float) -> float:
        return learning_rate(config, replace(state, **numbers)) / config.learning_rate  # pyright: ignore

    assert rate(config) == pytest.approx(1 / 10)
    assert rate(config, step=10) == 1
    assert rate(config, step=800) == pytest.approx(1)
    assert rate(config, step=900) == pytest.approx(1 / 2)
    assert rate(config, step=1000) == 0
    by_time = replace(config, steps=0, seconds=60.0)
    assert rate(by_time, step=10**6, elapsed=54.0) == pytest.approx(1 / 2)
    endless = replace(config, steps=0)
    assert rate(endless, step=10**9, elapsed=1e9) == 1
    assert rate(endless, step=150, cool_from=100, cool_to=200) == pytest.approx(1 / 2)
    assert rate(endless, step=200, cool_from=100, cool_to=200) == 0


def test_a_batch_depends_on_seed_and_step_and_mixes_images_with_crops(config: TrainConfig) -> None:
    config = replace(config, crop_share=0.25, batch=64)
    data, again = Dataset(config), Dataset(config)
    first, other = data.batch(0), data.batch(1)
    assert not torch.equal(first, other)
    assert torch.equal(again.batch(1), other)  # not on what was drawn before
    assert not torch.equal(Dataset(replace(config, seed=1)).batch(1), other)
    assert data.images is not None
    whole = {pixels.tobytes() for pixels in data.images} | {pixels[:, ::-1].tobytes() for pixels in data.images}
    shown = [((x.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy().tobytes() for x in torch.cat([first, other])]
    crops = [pixels for pixels in shown if pixels not in whole]
    assert len(crops) / len(shown) == pytest.approx(0.25, abs=0.12)  # 3 standard errors
    assert len(set(crops)) == len(crops)  # cut anew every time


def test_sides_share_the_pixels_and_crops_lie_in_the_photographs(config: TrainConfig, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(256, size=(40, 56, 3), dtype=np.uint8)
    photographs = pack(tmp_path / "noise.tar", [Image.fromarray(noise), Image.fromarray(noise[:8, :8])])
    config = replace(config, sides=(8, 16, 32), photographs=(photographs,), crop_share=1.0)
    data = Dataset(config)
    shapes = {tuple(data.batch(step).shape) for step in range(40)}
    assert shapes == {(32, 3, 8, 8), (8, 3, 16, 16), (2, 3, 32, 32)}
    assert data.photographs is not None
    windows = np.lib.stride_tricks.sliding_window_view(noise, (32, 32), axis=(0, 1))
    known = {np.ascontiguousarray(w.transpose(1, 2, 0)).tobytes() for w in windows.reshape(-1, 3, 32, 32)}
    drawn = [data.photographs.crop(32, rng) for _ in range(200)]
    native = [any(np.rot90(c, k).tobytes() in known for k in range(4)) for c in drawn]
    assert 0.4 < sum(native) / 200 < 0.7  # half by choice, and those reduced by less than a pixel
    with pytest.raises(ValueError, match="no photograph has both sides of at least 48"):
        Dataset(replace(config, sides=(48,)))


@pytest.mark.parametrize("shape", [(20, 20), (12, 60), (60, 12)])
def test_newton_schulz_keeps_the_directions_and_equalises_the_sizes(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    sizes = u.T @ orthogonalise(matrix) @ v.T
    torch.testing.assert_close(sizes - sizes.diag().diag(), torch.zeros_like(sizes), rtol=0, atol=1e-4)
    large = torch.linalg.svdvals(matrix) > 0.05 * matrix.norm()
    assert 0.6 < float(sizes.diag()[large].min()) <= float(sizes.diag().max()) < 1.25


def test_muon_leaves_vectors_and_the_ends_to_adamw(config: TrainConfig) -> None:
    network = new_state(config).network
    twin = copy.deepcopy(network)
    muon = MuonAdamW(network, 1e-3, 0.1)
    adamw = torch.optim.AdamW(twin.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    for net, optimiser in ((network, muon), (twin, adamw)):
        net(x, torch.tensor([3.0, 800.0])).sub(x).square().mean().backward()
        optimiser.step()
    for (name, weight), other in zip(network.named_parameters(), twin.parameters(), strict=True):
        if weight.ndim == 1 or "conv_in" in name or "conv_out" in name:
            assert torch.equal(weight, other), name
        elif bool(weight.grad is not None and weight.grad.any()):  # the last layer is zero: others have no gradient yet
            move = (weight - before[name] * (1 - 1e-4)).flatten(1)
            expected = 1e-3 * 0.2 * max(move.shape) ** 0.5 * min(move.shape) ** 0.5
            assert 0.3 * expected < float(move.norm()) < 1.3 * expected, name


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_resume_is_bit_exact(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, optimiser: str) -> None:
    config = replace(config, validation=None, optimiser=optimiser)
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
    assert_equal(whole, weights(parted))


def test_a_killed_run_resumes_bit_for_bit_at_the_command_line(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, validation=None, optimiser="muon", steps=40)
    run(config)
    killed = replace(config, out=tmp_path / "killed")
    path = write_toml(killed, tmp_path / "killed.toml", checkpoint_seconds=0, threads=1)
    code = "from cmidiff.app.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, "train", str(path)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not ((killed.out / CHECKPOINT).is_file() and restored(killed).step >= 3):
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    done = restored(killed).step
    assert 3 <= done < 40
    assert command("train", str(path), "--resume") == (0, "")
    assert_equal(weights(config), weights(killed))
    steps = [int(row.split(",")[0]) for row in (killed.out / "loss.csv").read_text().splitlines()[1:]]
    assert steps == sorted(set(steps))  # no step is recorded twice
    assert steps[-1] == 40


def command(*arguments: str) -> tuple[int, str]:
    """The exit code of the command line, in this process, and what it says on standard error."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = app(list(arguments))
        except SystemExit as stop:
            code = stop.code
    assert isinstance(code, int)
    return code, said.getvalue()


def test_a_cool_down_branches_off_and_leaves_the_run_alone(config: TrainConfig) -> None:
    config = replace(config, validation=None, steps=0, seconds=0.0, optimiser="muon")
    run(replace(config, steps=5, cooldown=0.0))
    before = weights(config)
    result = run(config, cool_down=6)
    assert (result.steps, result.finished) == (11, True)
    assert_equal(before, weights(config))
    cooled = restored(config, COOL_DOWN)
    assert (cooled.step, cooled.cool_from, cooled.cool_to) == (11, 5, 11)
    exported = read(result.folder).state_dict()
    assert all(torch.equal(v.half().float(), exported[k]) for k, v in cooled.average.state_dict().items())
    rates = [row.split(",")[-1] for row in (config.out / COOL_DOWN / "loss.csv").read_text().splitlines()[1:]]
    assert float(rates[-1]) == 0
    snapshot(config)
    average = restored(config).average.state_dict()
    assert all(torch.equal(v.half().float(), read(result.folder).state_dict()[k]) for k, v in average.items())


def test_a_run_starts_from_exported_weights(config: TrainConfig) -> None:
    folder = run(replace(config, steps=3, validation=None)).folder
    state = new_state(replace(config, initial=folder))
    assert_equal(read(folder).state_dict(), state.network.state_dict())
    assert_equal(read(folder).state_dict(), state.average.state_dict())
    again = run(replace(config, initial=folder, out=config.out.with_name("second"), steps=1, validation=None)).folder
    card = json.loads((again / "card.json").read_text())
    assert (card["started_from"]["name"], card["started_from"]["steps"]) == ("tiny", 3)
    assert card["started_from"]["sha256"] in (again / "README.md").read_text()
    with pytest.raises(ValueError, match="holds another network"):
        new_state(replace(config, initial=folder, channels=(16, 16)))
    with pytest.raises(FileNotFoundError, match="no exported prior"):
        new_state(replace(config, initial=folder.with_name("absent")))


def halve(x: Tensor, _: Tensor) -> Tensor:
    """A teacher for images in [0, 1] that moves every pixel half of the way to grey."""
    return x / 2 + 0.25


def test_the_teacher_replaces_the_target_between_its_levels() -> None:
    x_0, noisy = (torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    ratio = 2 * torch.tensor([0.9 * MIN_SIGMA, MIN_SIGMA * 1.01, 0.2, 0.99 * MAX_SIGMA, 1.01 * MAX_SIGMA])
    target = teach(halve, x_0, noisy, ratio)
    assert torch.equal(target[[0, 4]], x_0[[0, 4]])
    torch.testing.assert_close(target[1:4], noisy[1:4] / 2)


def test_a_student_that_repeats_its_teacher_has_no_loss() -> None:
    t = time_of(torch.tensor([0.1, 0.3]))
    alpha_t, sigma_t = (k.float()[:, None, None, None] for k in kernel(t))

    def student(x_t: Tensor, _: Tensor) -> Tensor:
        return (alpha_t * x_t - x_t / alpha_t / 2) / sigma_t  # v of x_hat = x_t / (2 alpha_t)

    x_0, eps = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    assert float(v_loss(student, x_0, t, eps, False, halve)) == pytest.approx(0, abs=1e-10)
    assert float(v_loss(student, x_0, t, eps, False)) > 0.1


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
    assert len(card["validation"]) == 10
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


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes, as on a full disk."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def test_the_command_line_explains_what_is_wrong_in_one_line(config: TrainConfig, tmp_path: Path) -> None:
    def complain(path: Path, *options: str) -> str:
        code, said = command("train", str(path), *options)
        assert code != 0
        assert said.startswith("cmidiff: ")
        assert said.count("\n") == 1
        return said

    path = write_toml(config, tmp_path / "config.toml", steps=2)
    assert "no checkpoint to resume from" in complain(path, "--resume")
    assert "no checkpoint to resume from" in complain(path, "--export")
    absent = write_toml(config, tmp_path / "absent.toml", images=(tmp_path / "absent.tar",))
    assert "absent.tar" in complain(absent)
    (tmp_path / "text.tar").write_text("no archive")
    assert "neither a folder nor a tar archive" in complain(
        write_toml(config, tmp_path / "text.toml", photographs=(tmp_path / "text.tar",))
    )
    empty = pack(tmp_path / "empty.tar", [])
    assert "there is no file" in complain(
        write_toml(config, tmp_path / "untaught.toml", teacher=tmp_path / "absent.pth")
    )
    assert "holds no image" in complain(write_toml(config, tmp_path / "empty.toml", images=(empty,)))
    with tarfile.open(tmp_path / "damaged.tar", "w") as tar:
        tar.add(tmp_path / "text.tar", "damaged.png")
    damaged = write_toml(config, tmp_path / "damaged.toml", images=(tmp_path / "damaged.tar",))
    assert "damaged.png cannot be used" in complain(damaged)
    assert command("train", str(path))[0] == 0
    kept = (config.out / CHECKPOINT).read_bytes()
    longer = write_toml(config, tmp_path / "longer.toml", steps=4)
    with largest_file(10_000):
        assert "cannot be written" in complain(longer, "--resume")
    assert (config.out / CHECKPOINT).read_bytes() == kept
    assert [file.name for file in config.out.glob(".*.part")] == []
    other = write_toml(config, tmp_path / "other.toml", channels=(16, 16))
    assert "another network" in complain(other, "--resume")
    assert "another network or optimiser" in complain(
        write_toml(config, tmp_path / "muon.toml", optimiser="muon"), "--resume"
    )
    (config.out / CHECKPOINT).write_bytes(kept[: len(kept) // 2])
    assert "is damaged" in complain(path, "--resume")
    torch.save({"step": 3}, config.out / CHECKPOINT)
    assert "is no checkpoint" in complain(path, "--export")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not valid TOML"),
        ('name = "a"\nlearning_rat = 1e-3', "has no option 'learning_rat': did you mean learning_rate"),
        ('name = "a"', "out is missing"),
        ('batch = "many"', "batch must be a whole number, received 'many'"),
        ('channels = ["wide"]', "channels must be a whole number, received 'wide'"),
        ("channels = []", "should have at least 1 item"),
        ("compile = 1", "compile must be true or false, received 1"),
        ("channels = [20]", "divisible by groups = 16"),
        ("size = 60", "divisible by 8, received 60"),
        ("seconds = -1", "seconds must be greater than or equal to 0, received -1"),
        ('optimiser = "sgd"', "optimiser must be 'adamw' or 'muon', received 'sgd'"),
        ("sides = [60]", "every entry of sides must be divisible by 8, received 64, [60]"),
        ("sides = [128]", "has an entry above size 64, but photographs names no archive"),
        ("cooldown = 2", "cooldown must be less than or equal to 1, received 2"),
        ("learning_rate = 0", "learning_rate must be greater than 0"),
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
    if not message.startswith(("not valid", "has no option", "out is missing")):
        key, value = text.split(" = ")
        text = "\n".join(f"{k} = {v}" for k, v in {**base, key: value}.items())
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"(?s).*") as caught:
        TrainConfig.load(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["natural-64", "cats-64"])
def test_the_shipped_configurations_load(name: str) -> None:
    path = SHIPPED / f"{name}.toml"
    config = TrainConfig.load(path)
    assert config.name == name
    assert config.multiple == 8
    assert config.export_to.resolve().is_relative_to(SHIPPED.parents[1] / "runs")  # never over the shipped weights
    with pytest.raises(FileNotFoundError, match="no training configuration"):
        TrainConfig.load(path.with_name("absent.toml"))
    assert math.isclose(TrainConfig.load(path, seconds=7).seconds, 7.0)
