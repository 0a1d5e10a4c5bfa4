"""From a task's name, a mask, a kernel or a user's own map to the physics ``y = A x_0 + n``.

Every function here returns a ``deepinv.physics.LinearPhysics`` that carries its noise level, ``noise_std``, in units of
an image in [0, 1]; three tasks are not linear and return a ``deepinv.physics.Physics``. Whatever else is one (MRI,
tomography, ...) is equally good: nothing below is required of it.
"""

from cmidiff.physics.check import adjoint_error
from cmidiff.physics.draw import box_mask, gaussian_kernel, motion_kernel, random_mask, random_signs
from cmidiff.physics.measure import Noise, known_entries, measure, measured_count, noise_of
from cmidiff.physics.nonlinear import Exposure, FourierMagnitude, LightBlur
from cmidiff.physics.operators import BicubicResize, Luminance, from_callable, from_kernel, from_mask, from_signs
from cmidiff.physics.tasks import (
    TASKS,
    Task,
    colorize,
    compressed_sensing,
    deblur_gaussian,
    deblur_motion,
    denoise,
    hdr,
    inpaint_box,
    inpaint_random,
    nonlinear_blur,
    phase_retrieval,
    super_resolution,
)

__all__ = [
    "TASKS",
    "BicubicResize",
    "Exposure",
    "FourierMagnitude",
    "LightBlur",
    "Luminance",
    "Noise",
    "Task",
    "adjoint_error",
    "box_mask",
    "colorize",
    "compressed_sensing",
    "deblur_gaussian",
    "deblur_motion",
    "denoise",
    "from_callable",
    "from_kernel",
    "from_mask",
    "from_signs",
    "gaussian_kernel",
    "hdr",
    "inpaint_box",
    "inpaint_random",
    "known_entries",
    "measure",
    "measured_count",
    "motion_kernel",
    "noise_of",
    "nonlinear_blur",
    "phase_retrieval",
    "random_mask",
    "random_signs",
    "super_resolution",
]
from cmidiff.physics.masks import hidden_disc as hidden_disc
from cmidiff.physics.masks import hidden_fraction as hidden_fraction
