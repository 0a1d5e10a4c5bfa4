"""One step of the reverse process, and what a run is made of.

problem.py   prior, measurement, sampler and random numbers of a run
sampler.py   the contract of reverse samplers
denoised.py  the denoiser at one state, evaluated at most once
step.py      from ``x_t`` to ``x_s``, as a solver sees it
"""

from cmidiff.step.denoised import Denoised as Denoised
from cmidiff.step.denoised import Seen as Seen
from cmidiff.step.problem import Group as Group
from cmidiff.step.problem import Problem as Problem
from cmidiff.step.sampler import Carry as Carry
from cmidiff.step.sampler import Estimate as Estimate
from cmidiff.step.sampler import Sampler as Sampler
from cmidiff.step.step import Record as Record
from cmidiff.step.step import Step as Step
from cmidiff.step.step import own_estimate as own_estimate
