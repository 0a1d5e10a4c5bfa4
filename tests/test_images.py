"""Images: what a person sees in a file is what the solver gets, and what the solver found is what is in the file."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image as PIL
from PIL import ImageCms, ImageOps

from cmidiff.app.figures import Tile, side_by_side, std_map, std_tile
from cmidiff.images import Image, UnknownRange, encode_image, fit_alpha, read_image, resize, to_pil, write_image

RANDOM = np.random.default_rng(0)


def deep_png(path: Path, array: np.ndarray) -> Path:
    """A PNG of sixteen bits per channel, (H, W, C)."""
    height, width, channels = array.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_are_kept(tmp_path: Path, channels: int) -> None:
    array = RANDOM.integers(0, 65536, (5, 7, channels))
    image = read_image(deep_png(tmp_path / "deep.png", array))
    expected = torch.from_numpy(array / 65535).permute(2, 0, 1).to(torch.float32)
    colours = 1 if channels <= 2 else 3
    torch.testing.assert_close(image.values, expected[:colours], rtol=0, atol=1e-7)
    if channels in (2, 4):
        assert image.alpha is not None
        torch.testing.assert_close(image.alpha, expected[colours:], rtol=0, atol=1e-7)
    else:
        assert image.alpha is None


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_writing_and_reading_give_the_same_bytes(tmp_path: Path, mode: str) -> None:
    array = RANDOM.integers(0, 256, (6, 5, len(mode)), dtype=np.uint8)
    source = tmp_path / "source.png"
    PIL.fromarray(array.squeeze(), mode=None).save(source)
    image = read_image(source)
    write_image(tmp_path / "copy.png", image.values, image.alpha)
    with PIL.open(tmp_path / "copy.png") as copy:
        np.testing.assert_array_equal(np.asarray(copy).reshape(array.shape), array)


def test_orientation_is_applied(tmp_path: Path) -> None:
    array = RANDOM.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = PIL.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    PIL.fromarray(array).save(tmp_path / "turned.png", exif=exif)
    shown = np.rot90(array, k=-1).transpose(2, 0, 1) / 255
    torch.testing.assert_close(read_image(tmp_path / "turned.png").values, torch.tensor(shown.copy()).float())


def test_palettes_and_black_and_white_are_read(tmp_path: Path) -> None:
    colours = PIL.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8))
    colours.quantize(2).save(tmp_path / "palette.png")
    values = read_image(tmp_path / "palette.png").values
    torch.testing.assert_close(values[:, 0], torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]))
    PIL.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    torch.testing.assert_close(read_image(tmp_path / "bits.png").values, torch.tensor([[[1.0, 0.0]]]))


def refusal(path: Path, **options: Any) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        read_image(path, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_unusable_files_say_what_is_wrong(tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("no image")
    assert "notes.png cannot be read as an image: give a PNG" in refusal(text)
    assert "no such file" in refusal(tmp_path / "absent.png")
    assert "is no file" in refusal(tmp_path)
    (tmp_path / "empty.png").touch()
    assert "is empty (0 bytes)" in refusal(tmp_path / "empty.png")


@pytest.mark.parametrize(
    "name", ["deep.png", "plain.png", "photo.jpg", "photo.webp", "plain.tif", "deep.tif", "plain.bmp"]
)
def test_files_that_are_cut_short_are_damaged(tmp_path: Path, name: str) -> None:
    path, array = tmp_path / name, RANDOM.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    if name == "deep.png":
        deep_png(path, array.astype(np.uint16) * 257)
    elif name == "deep.tif":
        tifffile.imwrite(path, array.astype(np.uint16) * 257, photometric="rgb")
    else:
        PIL.fromarray(array).save(path)
    whole = path.read_bytes()
    assert read_image(path).values.shape == (3, 40, 40)
    for part in (len(whole) // 2, 60, 20, 5):
        path.write_bytes(whole[:part])
        assert name in refusal(path)


@pytest.mark.parametrize("name", ["two.gif", "two.png", "two.tif", "two.webp"])
def test_several_images_in_a_file_are_refused(tmp_path: Path, name: str) -> None:
    first, second = (PIL.fromarray(RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(2))
    first.save(tmp_path / name, save_all=True, append_images=[second])
    assert "holds 2 images" in refusal(tmp_path / name)
    first.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[second])  # a photograph and a preview
    assert read_image(tmp_path / "phone.jpg").values.shape == (3, 8, 8)


def test_floating_point_files_need_a_range(tmp_path: Path) -> None:
    path, array = tmp_path / "float.tif", np.linspace(0, 255, 12, dtype=np.float32).reshape(3, 4)
    for colours in (array, np.stack([array] * 3, -1)):
        tifffile.imwrite(path, colours, photometric="minisblack" if colours.ndim == 2 else "rgb")
        assert "holds values from 0 to 255 of type float32: state the range" in refusal(path)
        assert "from 0 to 255, outside of the stated range 0 to 1" in refusal(path, value_range=(0, 1))
        assert "LOW < HIGH" in refusal(path, value_range=(1, 1))
        image = read_image(path, value_range=(0, 510))
        torch.testing.assert_close(image.values[0], torch.from_numpy(array) / 510)
        assert (len(image.values), image.bits) == (1 if colours.ndim == 2 else 3, 16)
    array[1, 1] = np.nan
    tifffile.imwrite(path, array)
    assert "not finite" in refusal(path, value_range=(0, 255))
    tifffile.imwrite(path, np.array([[-5, 7]], dtype=np.int16))
    with pytest.raises(UnknownRange) as caught:
        read_image(path)
    assert caught.value.found == (-5, 7)


def test_a_stated_range_holds_for_integers(tmp_path: Path) -> None:
    """Twelve bits in a file of sixteen."""
    path = tmp_path / "scan.png"
    PIL.fromarray(np.array([[0, 4095]], dtype=np.uint16)).save(path)
    torch.testing.assert_close(read_image(path, value_range=(0, 4095)).values, torch.tensor([[[0.0, 1.0]]]))


@pytest.mark.parametrize("compression", [None, "deflate", "lzw"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tiff_files_of_sixteen_bits(tmp_path: Path, channels: int, compression: str | None) -> None:
    path, array = tmp_path / "deep.tif", RANDOM.integers(0, 65536, (5, 7, channels)).astype(np.uint16)
    kind = "minisblack" if channels == 1 else "rgb"
    if compression == "lzw":
        if channels > 1:
            pytest.skip("neither Pillow nor tifffile writes it")
        PIL.fromarray(array[..., 0]).save(path, compression="tiff_lzw")
    else:
        tifffile.imwrite(path, array.squeeze(), photometric=kind, compression=compression)
    image = read_image(path)
    colours = min(channels, 3)
    expected = torch.from_numpy(array / 65535).permute(2, 0, 1).float()
    torch.testing.assert_close(image.values, expected[:colours], rtol=0, atol=1e-7)
    assert image.bits == 16
    assert (image.alpha is None) == (channels != 4)


def test_premultiplied_and_floating_transparency(tmp_path: Path) -> None:
    path, array = tmp_path / "a.tif", np.full((2, 2, 4), 30000, dtype=np.uint16)
    array[..., 3] = 60000
    tifffile.imwrite(path, array, photometric="rgb", extrasamples=["assocalpha"])
    image = read_image(path)
    torch.testing.assert_close(image.values, torch.full((3, 2, 2), 0.5), rtol=0, atol=1e-4)
    values = np.full((2, 2, 4), 100, dtype=np.float32)
    values[..., 3] = 0.5
    tifffile.imwrite(path, values, photometric="rgb", extrasamples=["unassalpha"])
    image = read_image(path, value_range=(0, 200))
    torch.testing.assert_close(image.values, torch.full((3, 2, 2), 0.5))
    assert image.alpha is not None
    torch.testing.assert_close(image.alpha, torch.full((1, 2, 2), 0.5))


@pytest.mark.parametrize("name", ["bomb.png", "bomb.tif"])
def test_images_of_too_many_pixels_are_refused_before_they_are_decoded(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.zeros((30, 30), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "bomb.tif", array)
    PIL.fromarray(array).save(tmp_path / "bomb.png")
    monkeypatch.setattr(PIL, "MAX_IMAGE_PIXELS", 400)
    assert "has more than" in refusal(tmp_path / name)


def test_tiff_planes_inverted_gray_and_previews(tmp_path: Path) -> None:
    path, array = tmp_path / "a.tif", RANDOM.integers(0, 65536, (3, 5, 7)).astype(np.uint16)
    tifffile.imwrite(path, array, photometric="rgb", planarconfig="separate")
    torch.testing.assert_close(read_image(path).values, torch.from_numpy(array / 65535).float(), rtol=0, atol=1e-7)
    tifffile.imwrite(path, array[0], photometric="miniswhite")
    torch.testing.assert_close(read_image(path).values, 1 - torch.from_numpy(array[:1] / 65535).float())
    tifffile.imwrite(path, array[0], subfiletype=1)
    assert "begins with a preview" in refusal(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "deep.png", "a.tif", "deep.tif"])
def test_every_orientation_is_applied(tmp_path: Path, name: str, orientation: int) -> None:
    """As Pillow applies it to eight bits, whose rule is the reference."""
    path, array = tmp_path / name, RANDOM.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    exif = PIL.Exif()
    exif[0x0112] = orientation
    flat = PIL.fromarray(array)
    flat.save(tmp_path / "as.png", exif=exif)
    with PIL.open(tmp_path / "as.png") as opened:
        upright = torch.from_numpy(np.array(ImageOps.exif_transpose(opened))).permute(2, 0, 1) / 255
    if name == "deep.tif":
        tags = [(274, 3, 1, orientation, True)]
        tifffile.imwrite(path, array.astype(np.uint16) * 257, photometric="rgb", extratags=tags)
    elif name == "deep.png":
        deep_png(path, array.astype(np.uint16) * 257)
        data, chunk = path.read_bytes(), exif.tobytes().removeprefix(b"Exif\0\0")
        content = struct.pack(">I", len(chunk)) + b"eXIf" + chunk + struct.pack(">I", zlib.crc32(b"eXIf" + chunk))
        path.write_bytes(data[:33] + content + data[33:])
    else:
        flat.save(path, exif=exif, quality=100, subsampling=0)
    torch.testing.assert_close(read_image(path).values, upright, rtol=0, atol=4 / 255 if name == "a.jpg" else 1e-6)
    write_image(tmp_path / "out.png", read_image(path).values)
    with PIL.open(tmp_path / "out.png") as written:
        assert written.getexif().get(0x0112, 1) == 1


def display_profile(primaries: str = "p3", curve: bytes = b"") -> bytes:
    """A profile of the primaries of Display P3 under D50, with the tone curve of sRGB or another one."""

    def s15(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(65536 * v) for v in values))

    columns = {
        "p3": ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)),
        "gray": (),
    }[primaries]
    srgb = b"para\0\0\0\0\0\3\0\0" + s15(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    curve = curve or srgb
    tags = {b"wtpt": b"XYZ \0\0\0\0" + s15(0.9642, 1.0, 0.8249)}
    text = b"Test profile\0"
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * 78
    tags[b"cprt"] = b"text\0\0\0\0none\0"
    if columns:
        tags |= {name + b"XYZ": b"XYZ \0\0\0\0" + s15(*c) for name, c in zip((b"r", b"g", b"b"), columns, strict=True)}
        tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    else:
        tags[b"kTRC"] = curve
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        table += struct.pack(">4sII", name, start + len(body), len(content))
        body += content
    size = start + len(body)
    space = b"RGB " if columns else b"GRAY"
    head = struct.pack(">I4sI4s4s4s", size, b"none", 0x02400000, b"mntr", space, b"XYZ ") + b"\0" * 12 + b"acsp"
    head += b"\0" * 28 + s15(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


GAMMA = b"curv\0\0\0\0\0\0\0\1\2\x33\0\0"  # v^2.2
TABLE = b"curv\0\0\0\0\0\0\0\3" + struct.pack(">3H", 0, 20000, 65535)


@pytest.mark.parametrize(("kind", "curve"), [("p3", b""), ("p3", GAMMA), ("p3", TABLE), ("gray", b""), ("gray", GAMMA)])
def test_profiles_become_srgb_as_littlecms_does_it(tmp_path: Path, kind: str, curve: bytes) -> None:
    profile = display_profile(kind, curve)
    shape = (30, 30, 3) if kind == "p3" else (30, 30)
    stored = PIL.fromarray(RANDOM.integers(0, 256, shape, dtype=np.uint8))
    stored.save(tmp_path / "wide.png", icc_profile=profile)
    mode = stored.mode
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    shown = ImageCms.profileToProfile(stored, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert shown is not None
    expected = torch.from_numpy(np.array(shown.convert(mode))).reshape(30, 30, -1).permute(2, 0, 1) / 255
    image = read_image(tmp_path / "wide.png")
    torch.testing.assert_close(image.values, expected, rtol=0, atol=1.5 / 255)
    if (kind, curve) == ("gray", b""):
        assert image.notes == ()  # the curve of sRGB: nothing to do
    else:
        assert image.notes == ("Test profile is converted to sRGB",)
    deep = np.asarray(stored).reshape(30, 30, -1).astype(np.uint16) * 257
    tifffile.imwrite(
        tmp_path / "deep.tif", deep.squeeze(), photometric="rgb" if mode == "RGB" else None, iccprofile=profile
    )
    torch.testing.assert_close(read_image(tmp_path / "deep.tif").values, image.values, rtol=0, atol=1e-5)


def test_an_srgb_profile_changes_nothing_and_a_broken_one_is_said(tmp_path: Path) -> None:
    array = RANDOM.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile, notes in ((own, ()), (own[:200], ("the colour profile of the file is damaged and is ignored",))):
        PIL.fromarray(array).save(tmp_path / "a.png", icc_profile=profile)
        image = read_image(tmp_path / "a.png")
        np.testing.assert_array_equal(np.asarray(to_pil(image.values)), array)
        assert image.notes == notes


def test_ink_becomes_colour(tmp_path: Path) -> None:
    array = np.zeros((4, 4, 4), dtype=np.uint8)
    array[..., 0] = 255  # cyan
    PIL.fromarray(array, "CMYK").save(tmp_path / "ink.tif")
    image = read_image(tmp_path / "ink.tif")
    assert float(image.values[0].max()) < 0.3
    assert float(image.values[2].min()) > 0.7
    assert "approximate" in image.notes[0]


def test_colours_bleed_under_transparency(tmp_path: Path) -> None:
    array = np.zeros((6, 6, 4), dtype=np.uint8)
    array[:3] = (200, 100, 50, 255)
    array[3:] = (1, 2, 3, 0)
    PIL.fromarray(array).save(tmp_path / "erased.png")
    image = read_image(tmp_path / "erased.png")
    torch.testing.assert_close(image.values, (torch.tensor([200, 100, 50]) / 255)[:, None, None].expand(3, 6, 6))
    assert image.alpha is not None
    torch.testing.assert_close(image.alpha[0, :, 0], torch.tensor([1.0, 1, 1, 0, 0, 0]))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_are_written(tmp_path: Path, channels: int) -> None:
    array = RANDOM.integers(1, 65536, (5, 7, channels))
    image = read_image(deep_png(tmp_path / "deep.png", array))
    write_image(tmp_path / "copy.png", image.values, image.alpha, bits=image.bits)
    copy = read_image(tmp_path / "copy.png")
    assert copy.bits == 16
    torch.testing.assert_close(copy.values, image.values, rtol=0, atol=0)
    if image.alpha is not None and copy.alpha is not None:
        torch.testing.assert_close(copy.alpha, image.alpha, rtol=0, atol=0)


def test_what_is_written_says_that_it_is_srgb() -> None:
    for bits in (8, 16):
        with PIL.open(io.BytesIO(encode_image(torch.rand(3, 4, 4), bits=bits))) as written:
            written.load()
            assert written.info["srgb"] == 0


def test_a_resized_image_is_the_centre() -> None:
    ramp = torch.arange(12.0).expand(1, 6, 12) / 12
    same = resize(Image(ramp), (6, 6)).values
    torch.testing.assert_close(same, ramp[..., 3:9])
    half = resize(Image(ramp), (6, 3)).values
    torch.testing.assert_close(half[0, 1, 2:-2], ramp[0, 0].reshape(6, 2).mean(1)[2:-2], rtol=0, atol=1e-3)


def test_transparency_follows_the_size() -> None:
    alpha = torch.full((1, 2, 2), 0.5)
    assert fit_alpha(None, 4, 4) is None
    assert fit_alpha(alpha, 2, 2) is alpha
    torch.testing.assert_close(fit_alpha(alpha, 4, 4), torch.full((1, 4, 4), 0.5))


def test_values_out_of_range_are_clipped_on_writing() -> None:
    image = to_pil(torch.tensor([[[-1.0, 0.5, 2.0]]]))
    assert list(np.asarray(image).ravel()) == [0, 128, 255]


def test_small_images_are_enlarged_by_a_whole_factor() -> None:
    values = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    tile = Tile(to_pil(values), "title", "note")
    sheet = np.asarray(side_by_side([tile] * 7))
    pixels = np.asarray(tile.image).repeat(4, 0).repeat(4, 1)
    rows, columns = np.nonzero((sheet == pixels[0, 0]).all(-1))
    found = [
        (top, left)
        for top, left in zip(rows, columns, strict=True)
        if np.array_equal(sheet[top : top + 256, left : left + 256], pixels)
    ]
    assert len(found) == 7
    assert len({top for top, _ in found}) == 2


def test_the_map_shows_the_deviation_over_channels() -> None:
    std = torch.zeros(3, 4, 4)
    std[:, 1, 2] = torch.tensor([0.1, 0.2, 0.2])
    tile = std_tile(std)
    assert tile.note.endswith(f"{(0.09 / 3) ** 0.5:.3f}")
    brightness = np.asarray(tile.image).sum(-1)
    assert np.unravel_index(brightness.argmax(), brightness.shape) == (1, 2)
    assert std_map(std).width > 256
    assert std_tile(torch.zeros(1, 4, 4)).note.endswith("0.000")
