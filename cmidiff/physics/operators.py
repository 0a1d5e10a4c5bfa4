"""Linear physics from a mask, a blur kernel or signs. They are deepinv's operators."""

import warnings
from typing import Any

import torch
from deepinv.physics import Blur, BlurFFT, GaussianNoise, Inpainting, LinearPhysics, StructuredRandom
from deepinv.physics.functional import dst1
from torch import Tensor
from torch.nn.functional import pad

from cmidiff.physics.border import ValidBlur
from cmidiff.physics.check import Device, Shape, check_dtype, check_fraction, check_noise_std, check_shape
from cmidiff.physics.kernels import trim

PADDINGS = ("circular", "reflect", "replicate", "zeros", "valid")
_FFT_PAYS_FROM = 33  # side of a kernel, pixels, from which deepinv's Fourier convolution beats the direct one on a CPU


def gaussian_noise(noise_std: float, dtype: torch.dtype) -> GaussianNoise:
    """Return white noise of standard deviation ``noise_std``, in units of an image in [0, 1]."""
    return GaussianNoise(torch.tensor(check_noise_std(noise_std), dtype=check_dtype(dtype)))


def from_mask(
    mask: Tensor,
    shape: Shape | None = None,
    *,
    noise_std: float = 0.05,
    dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
) -> LinearPhysics:
    """Inpainting: ``A x = mask x``; the measurement keeps the shape of the image and is 0, without noise, where hidden.

    Args:
        mask: 1 (or True) where a pixel is measured, 0 where it is hidden: ``(H, W)``, ``(1 or C, H, W)``, or one mask
            per image of a batch, ``(B, 1 or C, H, W)``.
        shape: ``(C, H, W)`` of the images; ``None``: read off the mask.
        noise_std: standard deviation of the noise, in units of an image in [0, 1].
        dtype: ``torch.float32`` or ``torch.float64``.
        device: of the physics.

    Raises:
        ValueError: for a mask of another size than ``shape``, with other values than 0 and 1, or without any 1.
    """
    if not isinstance(mask, Tensor) or not 2 <= mask.ndim <= 4 or mask.numel() == 0:
        got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"A mask must be a tensor (H, W), (1 or C, H, W) or (B, 1 or C, H, W); got {got}. Reshape it.")
    full = mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape)).to(dtype=check_dtype(dtype))
    image = check_shape(full.shape[1:] if shape is None else shape)
    if full.shape[2:] != image[1:] or full.shape[1] not in (1, image[0]):
        raise ValueError(
            f"The mask's (channels, height, width) must be (1 or {image[0]}, {image[1]}, {image[2]}), as the image's; "
            f"got {tuple(full.shape[1:])}. Resize the mask, or pass the shape of the images it belongs to."
        )
    if not bool(((full == 0) | (full == 1)).all()):
        raise ValueError(
            f"A mask must hold only 0 (hidden) and 1 (measured); got values from {full.min():g} to {full.max():g}. "
            "Threshold it first, as in mask > 0.5."
        )
    if not bool((full != 0).flatten(1).any(1).all()):
        raise ValueError(
            "A mask must measure at least one pixel; got only zeros. Is it inverted? 1 marks a measured pixel."
        )
    size: Any = image  # deepinv annotates a tuple of three as a tuple of one
    return Inpainting(size, mask=full, noise_model=gaussian_noise(noise_std, dtype), device=device)


def from_kernel(
    kernel: Tensor,
    shape: Shape,
    *,
    noise_std: float = 0.05,
    padding: str = "circular",
    dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
) -> LinearPhysics:
    """Blur: ``A x = kernel * x``, a convolution centred at pixel ``(k // 2, l // 2)`` of the kernel.

    A code that cross-correlates instead (the DPS code does) is matched by ``kernel.flip(-2, -1)``. The kernel is used
    as it is: one that does not sum to 1 changes the brightness, and a warning says so.

    Args:
        kernel: ``(k, l)``, or ``(1 or B, 1 or C, k, l)`` for one per image or channel.
        shape: ``(C, H, W)`` of the images; for ``"valid"`` use ``canvas_shape`` of the photograph's.
        noise_std: standard deviation of the noise, in units of an image in [0, 1].
        padding: what lies beyond the border: ``"circular"`` (any size of kernel; closed-form ``prox_l2``), or
            ``"reflect"``, ``"replicate"``, ``"zeros"`` (its support must fit in the image). ``"valid"``: unknown; ``y``
            is smaller than the image by the kernel, as a photograph is than the scene (``ValidBlur``).
        dtype: ``torch.float32`` or ``torch.float64``.
        device: of the physics.

    Raises:
        ValueError: for a kernel that is NaN, infinite, all zero or of another shape, an unknown padding, or a kernel
            that reaches beyond the padding.
    """
    image, noise = check_shape(shape), gaussian_noise(noise_std, dtype)
    if padding not in PADDINGS:
        raise ValueError(f"padding must be one of {', '.join(PADDINGS)}; got {padding!r}. Choose one of them.")
    centred = trim(_make_odd(_check_kernel(kernel, image[0])))
    if padding == "circular":
        for dim, side in ((-2, image[1]), (-1, image[2])):
            centred = _fold(centred, dim, side)
        return BlurFFT(image, filter=centred.to(dtype), noise_model=noise, device=device)
    if padding == "valid":
        if any(n > side for n, side in zip(centred.shape[-2:], image[1:], strict=True)):
            raise ValueError(
                f"With padding='valid' the kernel must fit into the image; got {tuple(centred.shape[-2:])} and "
                f"{image[1]}x{image[2]}. Build the physics for canvas_shape(kernel, shape of the photograph)."
            )
        return ValidBlur(centred.to(dtype), image, noise).to(device)
    thin = [int(n == 1) for n in centred.shape[-2:]]
    centred = pad(centred, (thin[1], thin[1], thin[0], thin[0]))  # deepinv's adjoint loses sides of one pixel
    reach = tuple(n // 2 for n in centred.shape[-2:])
    if reach[0] >= image[1] or reach[1] >= image[2]:
        raise ValueError(
            f"With padding={padding!r} a kernel may reach less far than the image is large; it reaches {reach} pixels "
            f"in an image of {image[1]}x{image[2]}. Use padding='circular', a smaller kernel or a larger image."
        )
    use_fft = max(centred.shape[-2:]) >= _FFT_PAYS_FROM
    blur = Blur(filter=centred.to(dtype), padding=padding, use_fft=use_fft, noise_model=noise, img_size=image)
    return blur.to(device)


def canvas_shape(kernel: Tensor, shape: Shape) -> tuple[int, int, int]:
    """The shape of the image whose blur by ``kernel`` fills a photograph of ``shape``, for ``padding="valid"``.

    Args:
        kernel: as for ``from_kernel``.
        shape: ``(C, H, W)`` of the photograph.

    Returns:
        ``(C, H + k - 1, W + l - 1)``, where zeros around the kernel do not count.
    """
    channels, height, width = check_shape(shape)
    rows, columns = trim(_make_odd(_check_kernel(kernel, channels))).shape[-2:]
    return channels, height + rows - 1, width + columns - 1


def _check_kernel(kernel: Tensor, channels: int) -> Tensor:
    """The kernel as float64 ``(b, c, k, l)``."""
    if not isinstance(kernel, Tensor) or kernel.ndim not in (2, 4) or kernel.numel() == 0:
        got = tuple(kernel.shape) if isinstance(kernel, Tensor) else type(kernel).__name__
        raise ValueError(f"A kernel must be a tensor (k, l) or (1 or B, 1 or C, k, l); got {got}. Reshape it.")
    full = kernel.reshape((1,) * (4 - kernel.ndim) + tuple(kernel.shape)).double()
    if full.shape[1] not in (1, channels):
        raise ValueError(f"A kernel must have 1 or {channels} channels, as the image; got {full.shape[1]}. Use (k, l).")
    if not bool(full.isfinite().all()) or not bool(full.any()):
        raise ValueError(
            "A kernel must be finite and not all zero; got NaN, infinity or only zeros. Check where it is made."
        )
    total = full.sum((-2, -1))
    if bool(((total - 1).abs() > 0.01).any()):
        warnings.warn(
            f"The kernel sums to {total.min():.4g}, not 1, so the blur changes the brightness; divide it by its sum "
            "if that is not meant.",
            stacklevel=3,
        )
    return full


def _make_odd(kernel: Tensor) -> Tensor:
    """Sides made odd by a zero row or column at the end, which leaves the centre ``k // 2`` where it is."""
    rows, columns = ((n + 1) % 2 for n in kernel.shape[-2:])
    return pad(kernel, (0, columns, 0, rows))


def _fold(kernel: Tensor, dim: int, side: int) -> Tensor:
    """A kernel larger than the image, folded onto its period; deepinv would crop it off-centre."""
    size = kernel.shape[dim]
    if size <= side:
        return kernel
    place = (torch.arange(size, device=kernel.device) - size // 2 + side // 2) % side
    folded = kernel.new_zeros(*(side if d == dim % kernel.ndim else n for d, n in enumerate(kernel.shape)))
    return folded.index_add_(dim, place, kernel)


def from_signs(
    signs: Tensor,
    *,
    ratio: float = 0.25,
    noise_std: float = 0.05,
    dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
) -> LinearPhysics:
    """Compressed sensing: random signs, an orthogonal sine transform of each channel, and a block of its coefficients.

    The signs spread every image evenly over all coefficients, so it does not matter which are measured (Do, Gan,
    Nguyen, Tran, Fast and Efficient Compressive Sensing Using Structurally Random Matrices, 2012,
    https://arxiv.org/abs/1106.5037). It needs O(n log n) time and n signs, where a Gaussian matrix needs m n numbers,
    and ``A A^T = I``.

    Args:
        signs: ``(C, H, W)`` of -1 and 1.
        ratio: measurements per pixel, in (0, 1]; met as nearly as a block of coefficients can.
        noise_std: standard deviation of the noise, in units of an image in [0, 1].
        dtype: ``torch.float32`` or ``torch.float64``.
        device: of the physics.

    Returns:
        A physics from ``(B, C, H, W)`` to ``(B, C, h, w)`` with ``h w`` about ``ratio H W``.

    Raises:
        ValueError: for signs that are none, or a ratio outside of (0, 1].
    """
    image, ratio = check_shape(signs.shape), check_fraction("ratio", ratio, least=0, most=1)
    if not bool((signs.abs() == 1).all()):
        raise ValueError("signs must hold only -1 and 1; got other values. Draw them with random_signs.")
    height = max(1, round(image[1] * ratio**0.5))
    width = min(image[2], round(ratio * image[1] * image[2] / height))
    if width < 1:
        raise ValueError(
            f"ratio={ratio} leaves no measurement of a {image[1]}x{image[2]} image. Choose a larger ratio."
        )
    physics = StructuredRandom(
        image,
        (image[0], height, width),
        transform_func=_sine_transform,
        transform_func_inv=_sine_transform,
        diagonals=[signs.to(check_dtype(dtype))],
        noise_model=gaussian_noise(noise_std, dtype),
    )
    return physics.to(device)


def _sine_transform(x: Tensor) -> Tensor:
    both_sides: Any = (-2, -1)
    return dst1(x, dim=both_sides)
