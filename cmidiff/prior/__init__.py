"""All that knows ``p(x_0)``: the denoiser contract, the exact mixture, networks, and where to find them."""

from cmidiff.prior.adapters import from_azula as from_azula
from cmidiff.prior.adapters import from_callable as from_callable
from cmidiff.prior.base import Denoiser as Denoiser
from cmidiff.prior.base import Prediction as Prediction
from cmidiff.prior.known import PRIORS as PRIORS
from cmidiff.prior.known import PriorInfo as PriorInfo
from cmidiff.prior.load import load_prior as load_prior
from cmidiff.prior.memory import check_memory as check_memory
from cmidiff.prior.memory import estimate_memory as estimate_memory
from cmidiff.prior.mixture import GaussianMixture as GaussianMixture
from cmidiff.prior.network import NetworkPrior as NetworkPrior
