r"""JPEG compression: what a file says of it, what its pixels say, and the cells that the true image lies in.

JPEG takes the 8x8 cosine transform of luma and of the two (often halved) chroma planes. It rounds each coefficient
``c`` to a multiple of a step ``q`` of its table. The decoded image is therefore not the truth plus white noise: each
coefficient of the truth lies in a known cell,

$$ |\mathrm{DCT}(x)_k - c_k| \le q_k / 2 $$

and is rarely at its edge. `Quantisation.project` moves an image into cells of a fraction ``SHRINK`` of that width;
`restore_jpeg` alternates it with a denoiser.

Sources: Wallace, "The JPEG Still Picture Compression Standard", 1992, https://doi.org/10.1109/30.125072; Zakhor,
"Iterative Procedures for Reduction of Blocking Effects in Transform Image Coding", 1992,
https://doi.org/10.1109/76.134377 (projection); Park, Lee, "Blocking Artifacts Reduction Using Narrow Quantization
Constraint Set", 1999, https://doi.org/10.1109/76.809155 (cells of less than the full width); Fan, de Queiroz,
"Identification of Bitmap Compression History", 2003, https://doi.org/10.1109/TIP.2002.807361 (tables from pixels).
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from PIL import Image, JpegImagePlugin
from torch import Tensor

SHRINK = 0.5  # width of the cells that `project` uses, of the true width
LEVELS = (2.0, 1.42, 1.0, 0.71, 0.5, 0.36, 0.25, 0.18)  # of the denoiser, in units of `jpeg_noise_std`
ROUNDING = 0.4  # of the pixels to 8 bits, as it shows in a coefficient, 1/255 of the range; the largest is 0.5
MIXED = 0.05  # of a step, from the interpolation of chroma
TAPS = 8  # of a filter that falls by 5.8 from value to value
EVIDENCE = 20.0  # log-likelihood ratio from which an image counts as a JPEG
INFORMATIVE = 0.3  # log-likelihood ratio per coefficient, below which the usual sampling is taken
LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
TO_YCC = torch.stack(
    [
        LUMA,
        (torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64) - LUMA) / 1.772,
        (torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64) - LUMA) / 1.402,
    ]
)
TO_RGB = torch.linalg.inv(TO_YCC)


@dataclass(frozen=True)
class Tables:
    """How an image was compressed.

    Args:
        luma: steps of the 8x8 coefficients of luma, in units of 1/255 of the range, ``(8, 8)``.
        chroma: those of the chroma planes; None for a gray image.
        sampling: how many pixels, down and across, one chroma value stands for.
        offset: row and column of the pixel at which the first whole block, of chroma too, begins.
    """

    luma: Tensor
    chroma: Tensor | None
    sampling: tuple[int, int] = (1, 1)
    offset: tuple[int, int] = (0, 0)


def read_tables(image: Path | str | Image.Image, *, converted: bool = False) -> Tables | None:
    """Read the quantisation tables of a JPEG file.

    They describe the pixels as the file stores them: before a rotation by EXIF, a conversion of colours or a resize.
    `agree` says whether they describe an image.

    Args:
        image: a file, or an image that Pillow has opened.
        converted: also read those of CMYK and RGB planes, which tell the strength of the compression alone.

    Returns:
        The tables, or None if the image is no JPEG, or one that does not hold gray or YCbCr planes.
    """
    if not isinstance(image, Image.Image):
        with Image.open(image) as opened:
            return read_tables(opened, converted=converted)
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.mode not in ("L", "RGB", "CMYK"):
        return None
    if not converted and (image.mode == "CMYK" or (image.info.get("adobe_transform") == 0 and image.mode == "RGB")):
        return None
    planes = [torch.tensor(steps, dtype=torch.float64).reshape(8, 8) for steps in image.quantization.values()]
    if image.mode == "L":
        return Tables(planes[0], None)
    layers = image.layer  # name, horizontal and vertical sampling, table
    down, across = layers[0][2] // layers[1][2], layers[0][1] // layers[1][1]
    return Tables(planes[0], planes[min(1, len(planes) - 1)], (max(1, down), max(1, across)))


def turn_tables(tables: Tables, orientation: int, sides: tuple[int, int]) -> Tables:
    """The tables of an image that is turned upright.

    Args:
        tables: of the pixels as the file stores them.
        orientation: value of the tag of EXIF, 1 to 8.
        sides: height and width of the upright image.
    """
    luma, chroma, sampling = tables.luma, tables.chroma, tables.sampling
    if orientation in (5, 6, 7, 8):  # rows become columns
        luma, chroma, sampling = luma.T, None if chroma is None else chroma.T, (sampling[1], sampling[0])
    flipped = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}.get(orientation, ())
    down, across = (sides[axis] % (8 * sampling[axis]) if axis in flipped else 0 for axis in (0, 1))
    return Tables(luma, chroma, sampling, (down, across))


def tables_of(quality: int, *, sampling: tuple[int, int] = (2, 2), offset: tuple[int, int] = (0, 0)) -> Tables:
    """The tables that the software of the Independent JPEG Group uses at ``quality``, 1 to 100.

    Raises:
        ValueError: for another quality.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"The quality of a JPEG must lie in 1 to 100; got {quality!r}. Cameras use 90 to 98.")
    luma, chroma = _standard_tables(quality)
    return Tables(luma, chroma, sampling, offset)


@cache
def _standard_tables(quality: int) -> tuple[Tensor, Tensor]:
    """Of luma and chroma, as libjpeg writes them."""
    file = io.BytesIO()
    Image.new("YCbCr", (8, 8)).save(file, "JPEG", quality=quality)
    tables = read_tables(Image.open(file))
    assert tables is not None, "it is a JPEG"
    assert tables.chroma is not None, "of three planes"
    return tables.luma, tables.chroma


def jpeg_quality(image: Tables | Path | str | Image.Image | Tensor) -> int | None:
    """Find the quality, 1 to 100, whose standard tables are nearest to those of an image.

    Args:
        image: tables, a file, an image that Pillow has opened, or pixels ``(C, H, W)`` in [0, 1].

    Returns:
        The quality; None if the image shows no sign of JPEG.
    """
    if isinstance(image, Tensor):
        tables = find_tables(image)
    else:
        tables = image if isinstance(image, Tables) else read_tables(image)
    if tables is None:
        return None
    log = tables.luma.log()
    return min(range(1, 101), key=lambda quality: float((tables_of(quality).luma.log() - log).abs().mean()))


def jpeg_noise_std(tables: Tables) -> float:
    """The level of white noise, in units of an image in [0, 1], at which one call of a denoiser restores most.

    Fitted to the best levels of FFDNet: 16, 12 and 8 of 255 at quality 15, 30 and 50. They follow the mean step of the
    nine lowest frequencies of luma.
    """
    return 8.0 / 255 * (float(tables.luma[:3, :3].mean()) / 13.1) ** 0.58


class Quantisation:
    """The cells that the coefficients of the true image lie in.

    Args:
        y: the decoded images, ``(B, 1 or 3, H, W)`` in [0, 1], as decoded: not resized, rotated or recoloured.
        tables: how they were compressed.

    Raises:
        ValueError: if the images are smaller than a block.
    """

    def __init__(self, y: Tensor, tables: Tables) -> None:
        self.tables = tables
        sampling = tables.sampling if y.shape[1] == 3 else (1, 1)
        starts = tables.offset
        sides = [(n - s) // (8 * f) * 8 * f for n, s, f in zip(y.shape[-2:], starts, sampling, strict=True)]
        if 0 in sides:
            raise ValueError(
                f"An image must hold a whole block of {8 * sampling[0]}x{8 * sampling[1]} pixels from {starts} on; got "
                f"{y.shape[-2]}x{y.shape[-1]}. Denoise it without the tables."
            )
        self.region = tuple(slice(s, s + n) for s, n in zip(starts, sides, strict=True))
        self.sampling = sampling
        chroma = tables.luma if tables.chroma is None else tables.chroma
        self.steps = [t.to(y) / 255 for t in ([tables.luma, chroma] if y.shape[1] == 3 else [tables.luma])]
        coefficients = self._coefficients(y)
        if len(coefficients) == 2 and 2 in sampling:
            coefficients[1] = min(coefficients[1], self._decoded_chroma(y), key=lambda c: _distance(c, self.steps[1]))
        self.centres = [(c / q).round() * q for c, q in zip(coefficients, self.steps, strict=True)]
        self.known = [_distance(c, q) < 0.5 * 0.25 for c, q in zip(coefficients, self.steps, strict=True)]

    @property
    def consistent(self) -> bool:
        """Whether the luma coefficients of ``y`` are multiples of the steps, as those of a decoded JPEG are."""
        return self.known[0]

    def project(self, x: Tensor, shrink: float = SHRINK) -> Tensor:
        """Move ``x`` as little as needed for its coefficients to lie in the cells.

        Blocks that the border of the image cuts are left as they are. So is chroma that is not ``known``, whose
        coefficients in ``y`` are not near the multiples of their steps.

        Args:
            x: images, of the shape of ``y``.
            shrink: width of the cells, of the true width.
        """
        moves = []
        for c, centre, step, known in zip(self._coefficients(x), self.centres, self.steps, self.known, strict=True):
            half = 0.5 * shrink * step if known else torch.full_like(step, math.inf)
            gap = c - centre
            moves.append(_image_of(gap.clamp(-half, half) - gap))
        if len(moves) == 2:
            down, across = self.sampling
            moves[1] = moves[1].repeat_interleave(down, -2).repeat_interleave(across, -1)
            move = torch.einsum("ij,bjhw->bihw", TO_RGB.to(x), torch.cat(moves, 1))
        else:
            move = moves[0]
        out = x.clone()
        out[(..., *self.region)] += move
        return out

    def _coefficients(self, x: Tensor) -> list[Tensor]:
        """Those of luma, ``(B, 1, h, w, 8, 8)``, and of chroma, ``(B, 2, h', w', 8, 8)``; 0 is mid-gray."""
        x = x[(..., *self.region)]
        if x.shape[1] == 1:
            return [_cosine(x - 128 / 255)]
        planes = torch.einsum("ij,bjhw->bihw", TO_YCC.to(x), x)
        chroma = torch.nn.functional.avg_pool2d(planes[:, 1:], self.sampling)
        return [_cosine(planes[:, :1] - 128 / 255), _cosine(chroma)]

    def _decoded_chroma(self, y: Tensor) -> Tensor:
        """The coefficients of chroma before decoders interpolated it.

        Where one value stands for two pixels, they take 3/4 of it and 1/4 of their other neighbour. The mean of the two
        is 3/4 of the value and 1/8 of both neighbours, whose inverse is ``sqrt(2) r^|n|`` with ``r = 2 sqrt(2) - 3``.
        """
        starts = [s % f for s, f in zip(self.tables.offset, self.sampling, strict=True)]
        chroma = torch.einsum("ij,bjhw->bihw", TO_YCC.to(y)[1:], y[..., starts[0] :, starts[1] :])
        odd = [-n % f for n, f in zip(chroma.shape[-2:], self.sampling, strict=True)]
        chroma = torch.nn.functional.pad(chroma, (0, odd[1], 0, odd[0]), mode="replicate")
        chroma = torch.nn.functional.avg_pool2d(chroma, self.sampling)
        reach = min(TAPS, *chroma.shape[-2:])
        inverse = math.sqrt(2) * (2 * math.sqrt(2) - 3) ** torch.arange(-reach, reach + 1).abs().to(y)
        for axis in (2, 3):
            if self.sampling[axis - 2] == 2:
                n = chroma.shape[axis]
                ends = (chroma.narrow(axis, at, reach).flip(axis) for at in (0, n - reach))
                wide = torch.cat([next(ends), chroma, next(ends)], axis).unfold(axis, 2 * reach + 1, 1)
                chroma = wide @ inverse
        region = (
            slice((s.start - start) // f, (s.stop - start) // f)
            for s, start, f in zip(self.region, starts, self.sampling, strict=True)
        )
        return _cosine(chroma[(..., *region)])


def _distance(coefficients: Tensor, step: Tensor) -> float:
    """Of the larger coefficients from the multiples of the steps, in steps, the median: 1/4 of those of any image."""
    ratio = (coefficients / step)[(step > 3.5 / 255) & (coefficients.abs() > step / 2)]
    return 0.0 if len(ratio) == 0 else float((ratio - ratio.round()).abs().median())


def agree(y: Tensor, tables: Tables) -> bool:
    """Whether decoded images ``(B, C, H, W)`` hold a whole block, and coefficients that are multiples of the steps."""
    blocks = [8 * n for n in (tables.sampling if y.shape[1] == 3 else (1, 1))]
    if any(n - s < block for n, s, block in zip(y.shape[-2:], tables.offset, blocks, strict=True)):
        return False
    return Quantisation(y, tables).consistent


def restore_jpeg(
    y: Tensor, denoise: Callable[[Tensor, float], Tensor], tables: Tables, *, level: float | None = None
) -> Tensor:
    """Restore decoded JPEG images with a denoiser: the levels fall, and the cells are met before each call.

    Args:
        y: ``(B, C, H, W)`` in [0, 1], as decoded.
        denoise: ``(x, sigma) -> x``: removes white noise of standard deviation ``sigma``, units of [0, 1].
        tables: how ``y`` was compressed: ``read_tables`` of the file, or ``find_tables`` of its pixels.
        level: the level of the denoiser that ``LEVELS`` refers to; None: ``jpeg_noise_std`` of the tables.

    Returns:
        The restored images, in [0, 1]. If ``y`` does not agree with the tables (it was resized or recoloured after it
        was decoded) or holds no whole block, one call of the denoiser at ``level``.
    """
    level = jpeg_noise_std(tables) if level is None else level
    if not agree(y, tables):
        return denoise(y, level).clamp(0, 1)
    cells = Quantisation(y, tables)
    x = denoise(y, LEVELS[0] * level)
    for factor in LEVELS[1:]:
        x = denoise(cells.project(x), factor * level)
    return x.clamp(0, 1)


def find_tables(x: Tensor) -> Tables | None:
    """Find the tables of an image that was a JPEG before, from its pixels alone.

    The grid is where most coefficients were rounded to 0. The quality is the one of the standard tables whose multiples
    the coefficients meet most closely. Finds nothing in images that were resized since, or rotated by an angle that is
    not a multiple of 90 degrees. Nor does it near quality 100, where there is nothing to repair.

    Args:
        x: ``(C, H, W)`` in [0, 1], C 1 or 3.

    Returns:
        The tables, or None.
    """
    planes = x.double() if x.shape[0] == 1 else torch.einsum("ij,jhw->ihw", TO_YCC.to(x.device), x.double())
    planes = planes * 255
    luma = planes[:1] - 128
    if min(luma.shape[1:]) < 24:
        return None
    offset = _grid(luma)
    score, quality = _best_quality(luma, offset)
    if score <= EVIDENCE:
        return None
    if x.shape[0] == 1:
        return Tables(tables_of(quality).luma, None, (1, 1), offset)
    choices = [
        (sampling, (offset[0] + 8 * down, offset[1] + 8 * across))
        for sampling in ((2, 2), (1, 1), (1, 2))
        for down in range(sampling[0])
        for across in range(sampling[1])
    ]
    fits = [_chroma_fit(planes[1:], quality, *choice) for choice in choices]
    sampling, offset = choices[fits.index(max(fits))] if max(fits) > INFORMATIVE else choices[0]
    return tables_of(quality, sampling=sampling, offset=offset)


def _grid(luma: Tensor) -> tuple[int, int]:
    """Row and column, 0 to 7, at which blocks begin: where most coefficients were rounded to 0."""

    def zeros(offset: tuple[int, int]) -> float:
        return float((_blocks(luma, offset, 300).abs() < ROUNDING).double().mean())

    return max(((row, column) for row in range(8) for column in range(8)), key=zeros)


def _best_quality(luma: Tensor, offset: tuple[int, int]) -> tuple[float, int]:
    """The largest log-likelihood ratio of all qualities, and its quality."""
    coefficients = _blocks(luma, offset, 1500)
    tables = {quality: tables_of(quality).luma for quality in range(1, 97)}
    return max((_fit(coefficients, table, ROUNDING / table), quality) for quality, table in tables.items())


def _chroma_fit(chroma: Tensor, quality: int, sampling: tuple[int, int], offset: tuple[int, int]) -> float:
    """The log-likelihood ratio of a sampling, per coefficient. Interpolation mixes blocks: a part of a step is added to
    the errors of rounding."""
    table = tables_of(quality).chroma
    assert table is not None
    area = _align(chroma, offset, (8 * sampling[0], 8 * sampling[1]))
    if area.numel() == 0:
        return -math.inf
    coefficients = _cosine(torch.nn.functional.avg_pool2d(area[None], sampling)).reshape(-1, 8, 8)
    used = (coefficients.abs() > table / 2) & (table >= 3)
    return _fit(coefficients, table, ROUNDING / table + MIXED) / max(1, int(used.sum()))


def _blocks(luma: Tensor, offset: tuple[int, int], most: int) -> Tensor:
    """Coefficients ``(n, 8, 8)`` of at most about ``most`` blocks, spread over the image."""
    coefficients = _cosine(_align(luma, offset, (8, 8))[None]).reshape(-1, 8, 8)
    return coefficients[:: max(1, len(coefficients) // most)]


def _align(planes: Tensor, offset: tuple[int, int], unit: tuple[int, int]) -> Tensor:
    """The part of the planes that whole units cover."""
    rows, columns = ((n - s) // u * u for n, s, u in zip(planes.shape[-2:], offset, unit, strict=True))
    return planes[..., offset[0] : offset[0] + rows, offset[1] : offset[1] + columns]


def _fit(coefficients: Tensor, table: Tensor, spread: Tensor) -> float:
    """Log-likelihood ratio: "multiples of the steps, but for errors of ``spread`` and 5% outliers" against any."""
    ratio = coefficients / table
    use = (ratio.abs() > 0.5) & (table >= 3)
    use[:, 0, 0] = False  # a constant image has nothing else
    residual = (ratio - ratio.round()).abs()
    density = 0.95 * torch.exp(-0.5 * (residual / spread) ** 2) / (spread * math.sqrt(2 * math.pi)) + 0.05
    return float((density.log() * use).sum())


def _cosine_matrix(like: Tensor) -> Tensor:
    """The orthonormal cosine transform of 8 values."""
    k = torch.arange(8, dtype=torch.float64)
    matrix = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.to(like)


def _cosine(planes: Tensor) -> Tensor:
    """Planes ``(B, C, H, W)`` to coefficients ``(B, C, H / 8, W / 8, 8, 8)``."""
    b, c, height, width = planes.shape
    blocks = planes.reshape(b, c, height // 8, 8, width // 8, 8).transpose(3, 4)
    matrix = _cosine_matrix(planes)
    return matrix @ blocks @ matrix.T


def _image_of(coefficients: Tensor) -> Tensor:
    """Coefficients to planes."""
    b, c, rows, columns, _, _ = coefficients.shape
    matrix = _cosine_matrix(coefficients)
    return (matrix.T @ coefficients @ matrix).transpose(3, 4).reshape(b, c, 8 * rows, 8 * columns)
