"""What a solver needs to know of the measurement, in the prior's own units.

canvas.py       ``A`` and its adjoint between the prior's canvas and the image of the physics
products.py     functions of ``A^T A``: solutions of linear systems and their roots
measurement.py  both, for any physics and through a decoder: linearised at a state
"""

from cmidiff.measurement.canvas import nonlinear as nonlinear
from cmidiff.measurement.measurement import Measurement as Measurement
from cmidiff.measurement.products import probe_diagonal as probe_diagonal
