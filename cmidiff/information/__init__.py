"""The conditional mutual information ``I(x_0; y | x_t)``: its value, its gradient, and the correction by it."""

from cmidiff.information.cmi import CMI as CMI
from cmidiff.information.cmi import Weight as Weight
from cmidiff.information.contraction import Contraction as Contraction
from cmidiff.information.contraction import Estimator as Estimator
from cmidiff.information.contraction import contract as contract
from cmidiff.information.contraction import default_contraction as default_contraction
from cmidiff.information.gradient import Probe as Probe
from cmidiff.information.gradient import gradient_at as gradient_at
from cmidiff.information.value import Unit as Unit
from cmidiff.information.value import estimate as estimate
from cmidiff.information.value import exact as exact
from cmidiff.information.value import gradient as gradient
from cmidiff.information.value import value_at as value_at
