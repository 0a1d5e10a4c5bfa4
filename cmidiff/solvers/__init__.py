"""How the measurement is used: one method, one file."""

from cmidiff.solvers.base import PosteriorMean as PosteriorMean
from cmidiff.solvers.base import Solver as Solver
from cmidiff.solvers.base import misfit_gradient as misfit_gradient
from cmidiff.solvers.cadps import CADPS as CADPS
from cmidiff.solvers.cadps_released import CADPSReleased as CADPSReleased
from cmidiff.solvers.daps import DAPS as DAPS
from cmidiff.solvers.ddnm import DDNM as DDNM
from cmidiff.solvers.ddrm import DDRM as DDRM
from cmidiff.solvers.diffpir import DiffPIR as DiffPIR
from cmidiff.solvers.dpir import DPIR as DPIR
from cmidiff.solvers.dps import DPS as DPS
from cmidiff.solvers.dsg import DSG as DSG
from cmidiff.solvers.fps import FPS as FPS
from cmidiff.solvers.mcg import MCG as MCG
from cmidiff.solvers.mcgdiff import MCGDiff as MCGDiff
from cmidiff.solvers.mmps import MMPS as MMPS
from cmidiff.solvers.pigdm import PiGDM as PiGDM
from cmidiff.solvers.pnpdm import PnPDM as PnPDM
from cmidiff.solvers.reddiff import REDDiff as REDDiff
from cmidiff.solvers.repaint import RePaint as RePaint
from cmidiff.solvers.scale import Ramp as Ramp
from cmidiff.solvers.sitcom import SITCOM as SITCOM
from cmidiff.solvers.tds import TDS as TDS
from cmidiff.solvers.tmpd import TMPD as TMPD
from cmidiff.solvers.unconditional import Unconditional as Unconditional
