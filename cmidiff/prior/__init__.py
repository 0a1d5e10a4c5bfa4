"""All that knows ``p(x_0)``: the denoiser contract, the exact mixture, networks, and where to find them.

base, wrapped                the contract; priors that are made of one other prior
network, denoiser, adapters  a network, a denoiser ``D(x, sigma)``, a function or an object of azula as a prior
composite, tiles, windows    two priors as one; large images in tiles
decoder, latent              from latents to images
mixture                      the exact prior
load, known, hub, fetch      priors by name: which there are, and how their files come here
formats/                     what opens a file; save writes one
checkpointed                 less memory for a gradient; memory, fitting: how much it takes, and what makes it fit

A file that is missing is a `FileNotFoundError`. One that is damaged, unsafe or does not fit is a `ValueError`.
"""

from cmidiff.prior.adapters import from_azula as from_azula
from cmidiff.prior.adapters import from_callable as from_callable
from cmidiff.prior.base import Denoiser as Denoiser
from cmidiff.prior.base import Prediction as Prediction
from cmidiff.prior.base import Prior as Prior
from cmidiff.prior.base import check_prior as check_prior
from cmidiff.prior.composite import Composite as Composite
from cmidiff.prior.decoder import Decoder as Decoder
from cmidiff.prior.denoiser import from_deepinv as from_deepinv
from cmidiff.prior.denoiser import from_denoiser as from_denoiser
from cmidiff.prior.fitting import check_memory as check_memory
from cmidiff.prior.known import PriorInfo as PriorInfo
from cmidiff.prior.latent import LatentPrior as LatentPrior
from cmidiff.prior.load import load_network as load_network
from cmidiff.prior.load import load_prior as load_prior
from cmidiff.prior.memory import estimate_memory as estimate_memory
from cmidiff.prior.mixture import GaussianMixture as GaussianMixture
from cmidiff.prior.network import NetworkPrior as NetworkPrior
from cmidiff.prior.wrapped import WrappedPrior as WrappedPrior
from cmidiff.registry import PRIORS as PRIORS
