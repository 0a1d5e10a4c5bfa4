"""How the measurement pulls on each step: one paper, one file."""

from cmidiff.guidance.base import Guidance as Guidance
from cmidiff.guidance.base import misfit_gradient as misfit_gradient
from cmidiff.guidance.cadps import CADPS as CADPS
from cmidiff.guidance.dps import DPS as DPS
from cmidiff.guidance.dsg import DSG as DSG
from cmidiff.guidance.mcg import MCG as MCG
from cmidiff.guidance.pigdm import PiGDM as PiGDM
from cmidiff.guidance.scale import Ramp as Ramp
from cmidiff.guidance.unconditional import Unconditional as Unconditional
