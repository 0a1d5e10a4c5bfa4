r"""Linear physics from their parts: a mask, a blur kernel, signs, or a user's own map.

They are deepinv's operators. Two are completed here, because solvers rely on ``prox_l2``, the one primitive of PiGDM
and of every covariance-aware likelihood, ``argmin_x gamma/2 |A x - y|^2 + 1/2 |x - z|^2``:

- ``BicubicResize`` is deepinv's ``DownsamplingMatlab`` (the resizer of the DPS code) by its singular value
  decomposition. The map is separable, ``A x = R_h x R_w^T``, so two small decompositions give ``A``, ``A^T`` and
  ``prox_l2`` exactly, where the original runs a backward pass for each ``A^T`` and conjugate gradients for each
  ``prox_l2`` (a hundred times slower).
- ``Luminance`` is deepinv's ``Decolorize`` with a ``prox_l2`` that keeps what grey does not see: the inherited formula
  takes the basis for a full one and drops ``z`` on the null space of ``A``.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from deepinv.physics import (
    Blur,
    BlurFFT,
    Decolorize,
    DecomposablePhysics,
    GaussianNoise,
    Inpainting,
    LinearPhysics,
    StructuredRandom,
)
from deepinv.physics.forward import adjoint_function
from deepinv.physics.functional import dst1, imresize_matlab
from torch import Tensor
from torch.nn.functional import pad

from cmidiff.physics.border import ValidBlur
from cmidiff.physics.check import (
    Shape,
    adjoint_error,
    checked_dtype,
    checked_fraction,
    checked_noise_std,
    checked_shape,
    checked_signal,
)

PADDINGS = ("circular", "reflect", "replicate", "zeros", "valid")
_FFT_PAYS_FROM = 33  # side of a kernel, pixels, from which deepinv's Fourier convolution beats the direct one on a CPU


def gaussian_noise(noise_std: float, dtype: torch.dtype) -> GaussianNoise:
    """White noise of standard deviation ``noise_std``, in units of an image in [0, 1]."""
    return GaussianNoise(torch.tensor(checked_noise_std(noise_std), dtype=checked_dtype(dtype)))


def from_mask(
    mask: Tensor,
    shape: Shape | None = None,
    *,
    noise_std: float = 0.05,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
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
    full = mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape)).to(dtype=checked_dtype(dtype))
    image = checked_shape(full.shape[1:] if shape is None else shape)
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
    device: str | torch.device = "cpu",
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
    image, noise = checked_shape(shape), gaussian_noise(noise_std, dtype)
    if padding not in PADDINGS:
        raise ValueError(f"padding must be one of {', '.join(PADDINGS)}; got {padding!r}. Choose one of them.")
    centred = _trimmed(_odd(_checked_kernel(kernel, image[0])))
    if padding == "circular":
        for dim, side in ((-2, image[1]), (-1, image[2])):
            centred = _wrapped(centred, dim, side)
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
    channels, height, width = checked_shape(shape)
    rows, columns = _trimmed(_odd(_checked_kernel(kernel, channels))).shape[-2:]
    return channels, height + rows - 1, width + columns - 1


def _checked_kernel(kernel: Tensor, channels: int) -> Tensor:
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


def _odd(kernel: Tensor) -> Tensor:
    """Sides made odd by a zero row or column at the end, which leaves the centre ``k // 2`` where it is."""
    rows, columns = ((n + 1) % 2 for n in kernel.shape[-2:])
    return torch.nn.functional.pad(kernel, (0, columns, 0, rows))


def _trimmed(kernel: Tensor) -> Tensor:
    """The kernel without its border of zeros, as far as that is symmetric about the centre."""
    for dim in (-2, -1):
        half = kernel.shape[dim] // 2
        used = kernel.movedim(dim, 0).flatten(1).any(1).nonzero().flatten()
        reach = int((used - half).abs().max())
        kernel = kernel.narrow(dim, half - reach, 2 * reach + 1)
    return kernel


def _wrapped(kernel: Tensor, dim: int, side: int) -> Tensor:
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
    device: str | torch.device = "cpu",
) -> LinearPhysics:
    """Compressed sensing: random signs, an orthogonal sine transform of each channel, and a block of its coefficients.

    The signs spread every image evenly over all coefficients, so it does not matter which are kept (Do, Gan, Nguyen,
    Tran, Fast and Efficient Compressive Sensing Using Structurally Random Matrices, 2012,
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
    image, ratio = checked_shape(signs.shape), checked_fraction("ratio", ratio, least=0, most=1)
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
        diagonals=[signs.to(checked_dtype(dtype))],
        noise_model=gaussian_noise(noise_std, dtype),
    )
    return physics.to(device)


def _sine_transform(x: Tensor) -> Tensor:
    both_sides: Any = (-2, -1)
    return dst1(x, dim=both_sides)


def from_callable(
    A: Callable[[Tensor], Tensor],
    shape: Shape,
    *,
    adjoint: Callable[[Tensor], Tensor] | None = None,
    noise_std: float = 0.05,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> LinearPhysics:
    """A user's own linear map as a physics, tested at the door.

    Tested on random images: ``A(0) = 0``, ``A(u + v) = A u + A v``, each image treated on its own, and
    ``<A u, v> = <u, A^T v>``.

    Args:
        A: from ``(B, C, H, W)`` to ``(B, ...)``, any batch size.
        shape: ``(C, H, W)`` of the images, or the shape of any other signal.
        adjoint: ``A^T``, from ``(B, ...)`` to ``(B, C, H, W)``; ``None``: by reverse differentiation of ``A``.
        noise_std: standard deviation of the noise, in units of an image in [0, 1].
        dtype: ``torch.float32`` or ``torch.float64``: of the images that ``A`` takes.
        device: of the images that ``A`` takes.

    Raises:
        ValueError: if ``A`` is not linear, mixes the images of a batch, or ``adjoint`` is not its adjoint.
        TypeError: if ``A`` or ``adjoint`` is no function, or ``A`` cannot be differentiated and ``adjoint`` is missing.
    """
    if not callable(A) or not (adjoint is None or callable(adjoint)):
        raise TypeError(
            f"A and adjoint must be functions of one tensor; got {type(A).__name__}, {type(adjoint).__name__}."
        )
    image = checked_signal(shape)
    _check_linear(A, image, checked_dtype(dtype), device)
    transpose = adjoint or _reverse_mode_adjoint(A, image, dtype)
    noise: Any = gaussian_noise(noise_std, dtype)  # deepinv takes the type of the default, ZeroNoise, for the only one
    physics = LinearPhysics(A=A, A_adjoint=transpose, img_size=image, noise_model=noise, device=device)
    advice = (
        "Correct it, or leave it out: A is then differentiated."
        if adjoint
        else "Pass adjoint=..., or write A in torch."
    )
    who = "adjoint" if adjoint else "A's reverse derivative"
    try:
        error = adjoint_error(physics, image, dtype=dtype, device=device)
    except Exception as cause:
        raise TypeError(f"{who} could not be evaluated for images of {image}: {cause} {advice}") from cause
    if not error <= _tolerance(dtype):
        raise ValueError(
            f"{who} is not the adjoint of A: <A u, v> and <u, A^T v> differ by {error:.2g} of |A u| |v|, where "
            f"{_tolerance(dtype):.0e} is allowed. {advice}"
        )
    return physics


def _tolerance(dtype: torch.dtype) -> float:
    return 1e-4 if dtype == torch.float32 else 1e-9


def _check_linear(A: Callable[[Tensor], Tensor], image: tuple[int, ...], dtype: torch.dtype, device: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, 2, *image, generator=generator, dtype=dtype).to(device)
    a_u, a_v, a_sum, a_zero, a_alone = A(u), A(v), A(u + v), A(torch.zeros_like(u)), A(u[1:])
    if not isinstance(a_u, Tensor) or a_u.ndim < 2 or a_u.shape[0] != 2 or a_alone.shape[0] != 1:
        got = tuple(a_u.shape) if isinstance(a_u, Tensor) else type(a_u).__name__
        raise ValueError(f"A must map a batch (B, *{image}) to a tensor (B, ...); for B = 2 it returned {got}.")
    size = float(a_u.abs().max() + a_v.abs().max())
    facts = {
        "A(0) is not 0": a_zero,
        "A(u + v) is not A(u) + A(v)": a_sum - a_u - a_v,
        "A treats an image differently in a batch than alone": a_alone - a_u[1:],
    }
    for fault, gap in facts.items():
        worst = float(gap.abs().max())
        if not worst <= _tolerance(dtype) * size:
            raise ValueError(
                f"A must be linear, image by image, but {fault}: they differ by {worst:.2g}, where A's outputs are of "
                f"size {size:.2g}. Take constants, clipping, noise and batch statistics out of A."
            )


def _reverse_mode_adjoint(
    A: Callable[[Tensor], Tensor], image: tuple[int, ...], dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    def transpose(y: Tensor) -> Tensor:
        return adjoint_function(A, (y.shape[0], *image), device=str(y.device), dtype=dtype)(y)

    return transpose


class Luminance(Decolorize):
    """Grey by the weights of ITU-R BT.601, ``y = sum_c w_c x_c``, with a ``prox_l2`` that is right everywhere.

    Args:
        img_size: ``(3, H, W)``.
        noise_model: added to the grey image.
        dtype: ``torch.float32`` or ``torch.float64``.
    """

    srf: Tensor
    mask: Tensor

    def __init__(
        self, img_size: tuple[int, int, int], noise_model: GaussianNoise, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(channels=3, srf="rec601", noise_model=noise_model, img_size=img_size)
        self.srf = self.srf.to(dtype)
        self.mask = torch.linalg.vector_norm(self.srf, dim=1, keepdim=True)

    def prox_l2(self, z: Tensor | float | None, y: Tensor, gamma: Any, **kwargs: Any) -> Tensor:
        """``argmin_x gamma/2 |A x - y|^2 + 1/2 |x - z|^2 = z + A^T (y - A z) gamma / (1 + gamma |w|^2)``."""
        start = z if isinstance(z, Tensor) else torch.full_like(self.A_adjoint(y), float(z or 0))
        if isinstance(gamma, Tensor) and gamma.ndim:
            gamma = gamma.reshape(-1, 1, 1, 1)
        return start + self.A_adjoint(y - self.A(start)) * gamma / (1 + gamma * self.mask**2)


class BicubicResize(DecomposablePhysics):
    r"""Bicubic reduction with antialiasing and symmetric borders, by its singular value decomposition.

    ``A x = R_h x R_w^T`` with ``R = U diag(s) V^T`` of deepinv's ``imresize_matlab`` for each side, hence
    ``A = (U_h x U_w) diag(s_h s_w^T) (V_h x V_w)^T``. Both ``V`` are square, so that ``prox_l2`` keeps what ``A`` does
    not see.

    Args:
        img_size: ``(C, H, W)``, both sides divisible by ``factor``.
        factor: whole reduction factor.
        noise_model: added to the reduced image.
        dtype: ``torch.float32`` or ``torch.float64``.
    """

    U_h: Tensor
    V_h: Tensor
    U_w: Tensor
    V_w: Tensor

    def __init__(
        self,
        img_size: tuple[int, int, int],
        factor: int,
        noise_model: GaussianNoise,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        spectra = []
        bases = {}
        for name, side in (("h", img_size[1]), ("w", img_size[2])):
            columns = torch.eye(side, dtype=torch.float64)[:, None, :, None]
            resize = imresize_matlab(columns, sizes=(side // factor, 1))[:, 0, :, 0].T
            u, s, vt = torch.linalg.svd(resize)
            bases |= {f"U_{name}": u, f"V_{name}": vt.T}
            spectra.append(torch.nn.functional.pad(s, (0, side - len(s))))
        singular_values: Any = torch.outer(*spectra)[None, None].to(dtype)  # a tensor, annotated as float by deepinv
        super().__init__(mask=singular_values, img_size=img_size, noise_model=noise_model)
        self.factor = factor
        for name, basis in bases.items():
            self.register_buffer(name, basis.to(dtype).contiguous())

    def V_adjoint(self, x: Tensor) -> Tensor:
        return self.V_h.mT @ x @ self.V_w

    def V(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.V_h @ x @ self.V_w.mT

    def U(self, x: Tensor) -> Tensor:
        return self.U_h @ x[..., : len(self.U_h), : len(self.U_w)] @ self.U_w.mT

    def U_adjoint(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        inside = self.U_h.mT @ x @ self.U_w
        rows, columns = len(self.V_h) - len(self.U_h), len(self.V_w) - len(self.U_w)
        return torch.nn.functional.pad(inside, (0, columns, 0, rows))
