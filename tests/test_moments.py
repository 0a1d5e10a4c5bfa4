"""The discrete cosine transform, and second moments of signals at their own size and at others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import scipy.fft
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from cmidiff import load_prior
from cmidiff.app.cli import app
from cmidiff.dct import dct, idct
from cmidiff.moments import SecondMoments
from tests.cases import F64, generator, randn
from tests.test_save import tiny

SHAPES = [(7,), (1, 5), (3, 8, 8), (3, 6, 11), (2, 3, 4, 5)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_transform_is_scipys_and_orthonormal(shape: tuple[int, ...]) -> None:
    x, axes = randn(3, *shape), tuple(range(1, len(shape) + 1))
    theirs = torch.from_numpy(scipy.fft.dctn(x.numpy(), axes=axes, norm="ortho"))
    torch.testing.assert_close(dct(x), theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(idct(dct(x)), x, rtol=1e-12, atol=1e-12)
    other = randn(3, *shape, seed=1)
    torch.testing.assert_close((dct(x) * other).sum(), (x * idct(other)).sum())
    single = dct(x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, theirs.float(), rtol=1e-4, atol=1e-5)


def law(shape: tuple[int, int, int], slopes: Tensor) -> Tensor:
    """A power law of the radial frequency for each channel; the constant stands at half a step."""
    rows, columns = (torch.arange(n, dtype=F64).clamp_min(0.5) / n for n in shape[1:])
    radius = (rows[:, None] ** 2 + columns**2).sqrt()
    return torch.arange(1, 1 + shape[0], dtype=F64)[:, None, None] * radius ** slopes[:, None, None]


def test_a_spectrum_at_its_own_size_is_the_table() -> None:
    table = torch.rand(3, 8, 8, generator=generator(1), dtype=F64)
    moments = SecondMoments(torch.zeros(3, dtype=F64), table)
    assert torch.equal(moments.spectrum((3, 8, 8)), table)
    assert moments.variance == pytest.approx(float(table.mean()))


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 64, 64), (3, 23, 40), (3, 16, 9)], ids=str)
def test_a_power_law_is_carried_to_every_size(shape: tuple[int, int, int]) -> None:
    slopes = torch.tensor([-2.0, -1.5, -2.7], dtype=F64)
    moments = SecondMoments(torch.zeros(3, dtype=F64), law((3, 16, 16), slopes))
    torch.testing.assert_close(moments.spectrum(shape), law(shape, slopes), rtol=1e-10, atol=0)


def test_a_spectrum_stays_positive_and_symmetric_at_every_size() -> None:
    table = torch.rand(1, 16, 16, generator=generator(2), dtype=F64).square() + 1e-6
    moments = SecondMoments(torch.zeros(1, dtype=F64), 0.5 * (table + table.mT))
    for side in (5, 16, 33, 100):
        found = moments.spectrum((1, side, side))
        assert bool((found > 0).all())
        torch.testing.assert_close(found, found.mT)


def test_measured_moments_are_those_of_the_signals() -> None:
    slopes = torch.tensor([-2.0, -1.0], dtype=F64)
    table = law((2, 6, 6), slopes)
    coefficients = randn(4000, 2, 6, 6) * table.sqrt()
    mean = torch.tensor([0.3, -0.2], dtype=F64)
    images = idct(coefficients) + mean[:, None, None]
    found = SecondMoments.measure(list(images))
    ratio = found.variances / table
    assert float((ratio - 1).abs().max()) < 5 * (2 / 4000) ** 0.5
    # the constant coefficient over both channels alone moves the means
    assert float((found.mean - mean).abs().max()) < 5 * float((table[:, 0, 0].max() / 36 / 4000) ** 0.5) * 2
    signal = SecondMoments.measure(list(images), per_channel=False)
    torch.testing.assert_close(signal.mean, images.mean(0))
    scaled = found.rescaled(0.5, 0.5)
    again = SecondMoments.measure([0.5 * image + 0.5 for image in images])
    torch.testing.assert_close(scaled.mean, again.mean)
    torch.testing.assert_close(scaled.variances, again.variances)


def test_moments_come_back_from_a_file_in_single_precision(tmp_path: Path) -> None:
    moments = SecondMoments(randn(3), law((3, 8, 8), torch.tensor([-2.0, -1.5, -2.7], dtype=F64)))
    moments.save(tmp_path / "m.safetensors")
    found = SecondMoments.load(tmp_path / "m.safetensors")
    torch.testing.assert_close(found.variances, moments.variances, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.mean, moments.mean, rtol=1e-6, atol=1e-7)
    with pytest.raises(FileNotFoundError, match="no file of second moments"):
        SecondMoments.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no moments")
    with pytest.raises(ValueError, match="holds no second moments"):
        SecondMoments.load(tmp_path / "text.safetensors")


def test_what_moments_do_not_serve_is_refused() -> None:
    moments = SecondMoments(torch.zeros(3, dtype=F64), torch.ones(3, 8, 8, dtype=F64))
    for shape in ((1, 8, 8), (8, 8), (3, 8, 8, 8)):
        with pytest.raises(ValueError, match="do not serve signals of shape"):
            moments.spectrum(shape)
    with pytest.raises(ValueError, match="one shape"):
        SecondMoments.measure([torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)])
    with pytest.raises(ValueError, match="one shape"):
        SecondMoments.measure([])


# those of a person's images


def images_in(folder: Path, *sizes: tuple[int, int]) -> list[Tensor]:
    """Images of noise, (3, H, W) in [0, 1], as files and as tensors."""
    folder.mkdir()
    made = []
    for k, (width, height) in enumerate(sizes):
        levels = torch.randint(0, 256, (height, width, 3), generator=generator(k), dtype=torch.uint8)
        Image.fromarray(levels.numpy()).save(folder / f"{k}.png")
        made.append(levels.movedim(-1, 0).double() / 255)
    return made


def test_the_command_measures_crops_at_the_scale_of_the_images(tmp_path: Path) -> None:
    """Beside the prior, where `load_prior` finds them; they are part of its identity."""
    images = images_in(tmp_path / "images", (129, 80), (64, 64), (32, 160))
    tiny().save_pretrained(tmp_path / "prior")
    before = load_prior(str(tmp_path / "prior"))
    command = ["priors", "--moments", str(tmp_path / "images"), "--prior", str(tmp_path / "prior")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "of 3 crops of 64 pixels; fewer than 200" in result.stdout
    crops = [images[0][:, 8:72, :64], images[0][:, 8:72, 64:128], images[1]]
    expected = SecondMoments.measure([2 * crop - 1 for crop in crops])
    prior = load_prior(str(tmp_path / "prior"))
    assert before.second_moments is None
    assert prior.second_moments is not None
    torch.testing.assert_close(prior.second_moments.mean, expected.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(prior.second_moments.variances, expected.variances, rtol=1e-5, atol=0)
    assert prior.fingerprint != before.fingerprint
    assert CliRunner().invoke(app, command).exit_code == 0, "its own file is replaced"
    SecondMoments(torch.ones(3), torch.ones(3, 64, 64)).save(tmp_path / "prior" / "moments.safetensors")
    assert "exists and cmidiff priors did not write it" in CliRunner().invoke(app, command).stderr
    assert CliRunner().invoke(app, [*command, "--overwrite"]).exit_code == 0


@pytest.mark.parametrize(
    ("prior", "images", "message"),
    [
        ("natural-64", "images", "--prior natural-64 must be a folder or a file"),
        ("", "images", "must be a folder or a file"),
        ("prior", "small", "no image of .* is as large as a crop, 64 pixels"),
        ("prior", "nothing", "nothing"),
        ("prior", None, "--prior goes with --moments"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, prior: str, images: str | None, message: str) -> None:
    images_in(tmp_path / "images", (64, 64))
    images_in(tmp_path / "small", (63, 90))
    tiny().save_pretrained(tmp_path / "prior")
    command = ["priors", "--prior", str(tmp_path / prior) if prior == "prior" else prior]
    result = CliRunner().invoke(app, command if images is None else [*command, "--moments", str(tmp_path / images)])
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert re.search(message, result.stderr)
    assert not (tmp_path / "prior" / "moments.safetensors").exists()
