"""The laboratory: everything that this library claims of CMI and of its solvers, measured against exact answers.

Seven sections, each a module with one function from `Settings` to `Findings` (tables of numbers) and one from
`Findings` to figures:

    gradient      error and bias of the CMI gradient's estimators
    difference    error of the finite differences against their step
    symmetry      how symmetric the third derivative of the embedded prior is
    posterior     every solver against known posteriors, with and without CMI
    particles     particle solvers against known posteriors, and more of them
    levy          every solver on Lévy processes, with references by Gibbs sampling
    trajectory    the information along a run

`validate` runs them, keeps what is finished, and goes on from there.
"""

from cmidiff.laboratory.findings import Findings as Findings
from cmidiff.laboratory.findings import Table as Table
from cmidiff.laboratory.run import SECTIONS as SECTIONS
from cmidiff.laboratory.run import validate as validate
from cmidiff.laboratory.settings import Settings as Settings
