"""From a task's name, a mask, a kernel or a user's own map to the physics ``y = A x_0 + n``.

Every function here returns a ``deepinv.physics.LinearPhysics`` that carries its noise level, ``noise_std``, in units of
an image in [0, 1]; three tasks are not linear and return a ``deepinv.physics.Physics``. Whatever else is one (MRI,
tomography, ...) is equally good: nothing below is required of it.
"""

from cmidiff.physics.blur_width import estimate_blur_width
from cmidiff.physics.border import ValidBlur
from cmidiff.physics.check import adjoint_error
from cmidiff.physics.draw import box_mask, gaussian_kernel, motion_kernel, random_mask, random_signs, scratch_mask
from cmidiff.physics.jpeg import (
    Quantisation,
    Tables,
    find_tables,
    jpeg_noise_std,
    jpeg_quality,
    read_tables,
    restore_jpeg,
    tables_of,
)
from cmidiff.physics.kernels import parse_kernel
from cmidiff.physics.matrix import from_matrix
from cmidiff.physics.measure import Noise, known_entries, measure, measured_count, noise_of
from cmidiff.physics.noise_level import estimate_noise
from cmidiff.physics.nonlinear import Exposure, FourierMagnitude, LightBlur
from cmidiff.physics.operators import (
    BicubicResize,
    Luminance,
    canvas_shape,
    from_callable,
    from_kernel,
    from_mask,
    from_signs,
)
from cmidiff.physics.tasks import (
    Task,
    colorize,
    compressed_sensing,
    deblur_gaussian,
    deblur_motion,
    denoise,
    hdr,
    inpaint_box,
    inpaint_random,
    inpaint_scratches,
    nonlinear_blur,
    phase_retrieval,
    super_resolution,
)
from cmidiff.registry import TASKS

__all__ = [
    "TASKS",
    "BicubicResize",
    "Exposure",
    "FourierMagnitude",
    "LightBlur",
    "Luminance",
    "Noise",
    "Quantisation",
    "Tables",
    "Task",
    "ValidBlur",
    "adjoint_error",
    "box_mask",
    "canvas_shape",
    "colorize",
    "compressed_sensing",
    "deblur_gaussian",
    "deblur_motion",
    "denoise",
    "estimate_blur_width",
    "estimate_noise",
    "find_tables",
    "from_callable",
    "from_kernel",
    "from_mask",
    "from_matrix",
    "from_signs",
    "gaussian_kernel",
    "hdr",
    "inpaint_box",
    "inpaint_random",
    "inpaint_scratches",
    "jpeg_noise_std",
    "jpeg_quality",
    "known_entries",
    "measure",
    "measured_count",
    "motion_kernel",
    "noise_of",
    "nonlinear_blur",
    "parse_kernel",
    "phase_retrieval",
    "random_mask",
    "random_signs",
    "read_tables",
    "restore_jpeg",
    "scratch_mask",
    "super_resolution",
    "tables_of",
]
from cmidiff.physics.masks import hidden_disc as hidden_disc
from cmidiff.physics.masks import hidden_fraction as hidden_fraction
