"""Masks as people paint them: what is damaged is hidden, whatever the way of painting."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as PIL
from PIL import ImageDraw

from cmidiff.app.masks import overlay, read_kernel, read_mask, read_seen
from cmidiff.app.photograph import read_problem
from cmidiff.images import read_image
from cmidiff.physics.masks import hidden_disc, hidden_fraction

SIZE = 96
LINE, WIDTH = (10, 20, 80, 70), 5


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A smooth scene with an edge and some grain."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    values = np.stack([0.3 + 0.5 * x, 0.6 - 0.4 * y, 0.3 + 0.3 * x * y], -1) + 0.2 * (x + y > 1)[..., None]
    values += 0.02 * np.random.default_rng(0).normal(size=values.shape)
    PIL.fromarray((255 * values.clip(0, 1)).round().astype(np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def stroke(image: PIL.Image, colour: object) -> PIL.Image:
    """A line with soft edges: drawn at four times the size."""
    large = image.resize((4 * SIZE, 4 * SIZE), PIL.Resampling.NEAREST)
    ImageDraw.Draw(large).line([4 * v for v in LINE], fill=colour, width=4 * WIDTH)  # pyright: ignore[reportArgumentType]
    return large.resize((SIZE, SIZE), PIL.Resampling.BOX)


def touched() -> NDArray[np.bool_]:
    """Pixels of which a tenth or more is painted; those of less may count or not."""
    return np.asarray(stroke(PIL.new("L", (SIZE, SIZE)), 255)) >= np.uint8(26)


def grown(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_dilation

    return np.asarray(binary_dilation(mask, np.ones((3, 3)), iterations=by), np.bool_)


def painted_masks(photo: Path) -> dict[str, PIL.Image]:
    scene = PIL.open(photo)
    clear = PIL.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    coverage = stroke(PIL.new("L", (SIZE, SIZE)), 255)
    red = PIL.new("RGBA", (SIZE, SIZE), (255, 0, 0, 0))
    red.putalpha(coverage)
    erased = scene.convert("RGBA")
    erased.putalpha(coverage.point(lambda v: 255 - v))
    return {
        "white on black": coverage,
        "gray on black": stroke(PIL.new("L", (SIZE, SIZE)), 128),
        "red on black": stroke(PIL.new("RGB", (SIZE, SIZE)), (255, 0, 0)),
        "blue on black, palette": stroke(PIL.new("RGB", (SIZE, SIZE)), (0, 0, 255)).quantize(64),
        "red on nothing": red,
        "white on nothing, hard": stroke(clear, (255, 255, 255, 255)),
        "green on the photograph": stroke(scene, (0, 255, 0)),
        "magenta on the photograph": stroke(scene, (255, 0, 255)),
        "erased from the photograph": erased,
    }


def test_paint_of_every_kind_marks_the_same_pixels(photo: Path, tmp_path: Path) -> None:
    for name, mask in painted_masks(photo).items():
        mask.save(tmp_path / "mask.png")
        hidden = read_mask(tmp_path / "mask.png", read_image(photo))[0, 0].numpy() == 0
        low = 52 if name == "gray on black" else 27  # paint of half the strength
        sure = np.asarray(stroke(PIL.new("L", (SIZE, SIZE)), 255)) >= low
        assert hidden[sure].all(), name
        assert not hidden[~grown(touched(), 1)].any(), name


def test_a_copy_saved_as_jpeg_is_recognised(photo: Path, tmp_path: Path) -> None:
    painted = stroke(PIL.open(photo), (255, 0, 0))
    painted.save(tmp_path / "mask.jpg", quality=90)
    hidden = read_mask(tmp_path / "mask.jpg", read_image(photo))[0, 0].numpy() == 0
    assert hidden[np.asarray(stroke(PIL.new("L", (SIZE, SIZE)), 255)) >= 64].all()
    assert not hidden[~grown(touched(), 9)].any()  # JPEG spreads paint over its blocks of 16 pixels


@pytest.mark.parametrize("brightness", [0.02, 0.98])
def test_a_plain_mask_of_a_dark_or_bright_photograph_is_no_copy(tmp_path: Path, brightness: float) -> None:
    values = brightness + 0.01 * np.random.default_rng(0).normal(size=(SIZE, SIZE, 3))
    PIL.fromarray((255 * values.clip(0, 1)).round().astype(np.uint8)).save(tmp_path / "flat.png")
    stroke(PIL.new("L", (SIZE, SIZE)), 255).save(tmp_path / "mask.png")
    hidden = read_mask(tmp_path / "mask.png", read_image(tmp_path / "flat.png"))[0, 0].numpy() == 0
    np.testing.assert_array_equal(hidden, np.asarray(PIL.open(tmp_path / "mask.png")) > 25.5)


def test_unusable_masks_are_said(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, path = read_image(photo), tmp_path / "mask.png"

    def said(mask: PIL.Image) -> str:
        mask.save(path)
        with pytest.raises(ValueError, match="the mask") as caught:
            read_mask(path, image)
        return str(caught.value)

    assert "is 40x30 but the image is 96x96" in said(PIL.new("L", (40, 30)))
    assert "marks nothing" in said(PIL.new("L", (SIZE, SIZE)))
    assert "marks nothing" in said(PIL.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0)))
    assert "marks nothing" in said(PIL.open(photo))
    assert "give it with --seen" in said(PIL.new("L", (SIZE, SIZE), 255))
    inverted = stroke(PIL.new("L", (SIZE, SIZE), 255), 0)
    inverted.save(path)
    read_mask(path, image)
    assert "if it is inverted (bright pixels were measured), give it with --seen" in capsys.readouterr().err
    torch.testing.assert_close(
        read_seen(path, image), torch.from_numpy(np.asarray(inverted) > 0.9 * 255).float()[None, None]
    )
    PIL.new("L", (SIZE, SIZE)).save(path)
    with pytest.raises(ValueError, match="hides every pixel"):
        read_seen(path, image)
    PIL.new("L", (SIZE, SIZE), 255).save(path)
    with pytest.raises(ValueError, match="hides nothing"):
        read_seen(path, image)


def test_the_largest_hidden_disc_is_measured() -> None:
    y, x = np.mgrid[:101, :121]
    for diameter in (1, 5, 21):
        seen = torch.from_numpy((y - 50) ** 2 + (x - 60) ** 2 > (diameter / 2) ** 2).float()
        assert hidden_disc(seen) == pytest.approx(diameter, abs=1)
    line = torch.ones(1, 3, 40, 40)
    line[..., 20:24, :] = 0
    assert hidden_disc(line) == pytest.approx(4, abs=1)
    assert hidden_fraction(line) == pytest.approx(0.1)
    assert hidden_disc(torch.ones(4, 4)) == 0
    assert math.isinf(hidden_disc(torch.zeros(4, 4)))
    half = torch.ones(2, 1, 8, 8)
    half[0] = 0  # hidden in one image of a batch only
    assert hidden_disc(half) == 0


def test_what_a_mask_hides_becomes_visible(photo: Path, tmp_path: Path) -> None:
    """A part that was erased in an editor (alpha 0), and a mask over it."""
    scene = PIL.open(photo).convert("RGBA")
    scene.putalpha(stroke(PIL.new("L", (SIZE, SIZE), 255), 0))
    scene.putpixel((90, 5), (1, 2, 3, 77))
    scene.save(tmp_path / "erased.png")
    mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
    mask[15:75, 5:90] = 255
    PIL.fromarray(mask).save(tmp_path / "mask.png")
    made = read_problem(tmp_path / "erased.png", noise_std=0.0, mask=tmp_path / "mask.png")
    assert made.alpha is not None
    assert made.original is not None
    assert bool((made.alpha[0][torch.from_numpy(mask > 0)] == 1).all())
    assert float(made.alpha[0, 5, 90]) == pytest.approx(77 / 255)
    assert made.y.shape == (1, 3, SIZE, SIZE)
    assert torch.equal(made.y[0], made.original * torch.from_numpy(mask == 0))


def test_the_overlay_marks_what_is_hidden() -> None:
    values, seen = torch.full((1, 2, 2), 0.5), torch.tensor([[[[1.0, 0.0], [1.0, 1.0]]]])
    shown = overlay(values, seen)
    torch.testing.assert_close(shown[:, 0, 1], torch.tensor([0.75, 0.25, 0.25]))
    torch.testing.assert_close(shown[:, 0, 0], torch.full((3,), 0.5))


def test_kernels_sum_to_one(tmp_path: Path) -> None:
    path, array = tmp_path / "kernel.png", np.array([[0, 60, 0], [60, 120, 60], [0, 60, 0]], dtype=np.uint8)
    PIL.fromarray(array).save(path)
    expected = torch.tensor([[0, 1, 0], [1, 2, 1], [0, 1, 0]]) / 6
    torch.testing.assert_close(read_kernel(path, 8, 8), expected)
    with pytest.raises(ValueError, match="larger than the image"):
        read_kernel(path, 2, 8)
    PIL.fromarray(array / np.float32(1000)).save(tmp_path / "kernel.tif")
    torch.testing.assert_close(read_kernel(tmp_path / "kernel.tif", 8, 8), expected)
    PIL.fromarray(array - np.float32(30)).save(tmp_path / "kernel.tif")
    with pytest.raises(ValueError, match=r"holds negative values \(from -30 to 90\)"):
        read_kernel(tmp_path / "kernel.tif", 8, 8)
    PIL.fromarray(array * 0).save(path)
    with pytest.raises(ValueError, match="black everywhere"):
        read_kernel(path, 8, 8)
