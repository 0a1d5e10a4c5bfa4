"""From a task's name, a mask, a kernel or a user's own map to the physics ``y = A x_0 + n``.

Every function here returns a ``deepinv.physics.LinearPhysics`` that carries its noise level, ``noise_std``, in units of
an image in [0, 1]. Three tasks are not linear and return a ``deepinv.physics.Physics``. Any other ``LinearPhysics``
(MRI, tomography, ...) is equally good: nothing below is required of it.
"""

from cmidiff.physics.blur_width import estimate_blur_width as estimate_blur_width
from cmidiff.physics.border import ValidBlur as ValidBlur
from cmidiff.physics.check import adjoint_error as adjoint_error
from cmidiff.physics.decomposed import BicubicResize as BicubicResize
from cmidiff.physics.decomposed import Luminance as Luminance
from cmidiff.physics.decomposed import from_matrix as from_matrix
from cmidiff.physics.jpeg import Quantisation as Quantisation
from cmidiff.physics.jpeg import Tables as Tables
from cmidiff.physics.jpeg import agree as agree
from cmidiff.physics.jpeg import find_tables as find_tables
from cmidiff.physics.jpeg import jpeg_noise_std as jpeg_noise_std
from cmidiff.physics.jpeg import jpeg_quality as jpeg_quality
from cmidiff.physics.jpeg import read_tables as read_tables
from cmidiff.physics.jpeg import restore_jpeg as restore_jpeg
from cmidiff.physics.jpeg import tables_of as tables_of
from cmidiff.physics.jpeg import turn_tables as turn_tables
from cmidiff.physics.jpeg_noise import estimate_jpeg_noise as estimate_jpeg_noise
from cmidiff.physics.kernels import gaussian_kernel as gaussian_kernel
from cmidiff.physics.kernels import motion_kernel as motion_kernel
from cmidiff.physics.kernels import parse_kernel as parse_kernel
from cmidiff.physics.masks import box_mask as box_mask
from cmidiff.physics.masks import hidden_disc as hidden_disc
from cmidiff.physics.masks import hidden_fraction as hidden_fraction
from cmidiff.physics.masks import random_mask as random_mask
from cmidiff.physics.masks import random_signs as random_signs
from cmidiff.physics.masks import scratch_mask as scratch_mask
from cmidiff.physics.measure import Noise as Noise
from cmidiff.physics.measure import known_entries as known_entries
from cmidiff.physics.measure import measure as measure
from cmidiff.physics.measure import measured_count as measured_count
from cmidiff.physics.measure import noise_of as noise_of
from cmidiff.physics.noise_level import estimate_noise as estimate_noise
from cmidiff.physics.nonlinear import Exposure as Exposure
from cmidiff.physics.nonlinear import FourierMagnitude as FourierMagnitude
from cmidiff.physics.nonlinear import LightBlur as LightBlur
from cmidiff.physics.operators import canvas_shape as canvas_shape
from cmidiff.physics.operators import from_kernel as from_kernel
from cmidiff.physics.operators import from_mask as from_mask
from cmidiff.physics.operators import from_signs as from_signs
from cmidiff.physics.own import from_callable as from_callable
from cmidiff.physics.tasks import Task as Task
from cmidiff.physics.tasks import colorize as colorize
from cmidiff.physics.tasks import compressed_sensing as compressed_sensing
from cmidiff.physics.tasks import deblur_gaussian as deblur_gaussian
from cmidiff.physics.tasks import deblur_motion as deblur_motion
from cmidiff.physics.tasks import denoise as denoise
from cmidiff.physics.tasks import hdr as hdr
from cmidiff.physics.tasks import inpaint_box as inpaint_box
from cmidiff.physics.tasks import inpaint_random as inpaint_random
from cmidiff.physics.tasks import inpaint_scratches as inpaint_scratches
from cmidiff.physics.tasks import nonlinear_blur as nonlinear_blur
from cmidiff.physics.tasks import phase_retrieval as phase_retrieval
from cmidiff.physics.tasks import super_resolution as super_resolution
from cmidiff.registry import TASKS as TASKS
