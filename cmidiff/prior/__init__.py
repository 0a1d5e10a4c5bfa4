"""All that knows ``p(x_0)``: the denoiser contract, the exact mixture, networks, and where to find them."""

from cmidiff.prior.base import Denoiser as Denoiser
from cmidiff.prior.base import Prediction as Prediction
from cmidiff.prior.known import PRIORS as PRIORS
from cmidiff.prior.known import PriorInfo as PriorInfo
from cmidiff.prior.load import load_prior as load_prior
from cmidiff.prior.mixture import GaussianMixture as GaussianMixture
from cmidiff.prior.network import NetworkPrior as NetworkPrior
