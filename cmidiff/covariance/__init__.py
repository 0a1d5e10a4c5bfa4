"""Covariances of ``p(x_0 | x_t)``: isotropic, second moments, diagonal, exact, and one after the other."""

from cmidiff.covariance.analytic import Analytic as Analytic
from cmidiff.covariance.base import NOISE_FLOOR as NOISE_FLOOR
from cmidiff.covariance.base import Bound as Bound
from cmidiff.covariance.base import Covariance as Covariance
from cmidiff.covariance.base import difference_size as difference_size
from cmidiff.covariance.base import make_covariance as make_covariance
from cmidiff.covariance.base import precision as precision
from cmidiff.covariance.convert import Convert as Convert
from cmidiff.covariance.diagonal import Diagonal as Diagonal
from cmidiff.covariance.diagonal import RowSum as RowSum
from cmidiff.covariance.exact import Exact as Exact
from cmidiff.covariance.free_hunch import FreeHunch as FreeHunch
from cmidiff.covariance.isotropic import Isotropic as Isotropic
from cmidiff.covariance.isotropic import isotropic_variance as isotropic_variance
from cmidiff.covariance.moments import SecondMoments as SecondMoments
from cmidiff.covariance.moments import gaussian_draw as gaussian_draw
from cmidiff.covariance.moments import moments_of as moments_of
from cmidiff.covariance.moments import wiener_estimate as wiener_estimate
from cmidiff.covariance.switch import Hybrid as Hybrid
from cmidiff.covariance.wavelet import Wavelet as Wavelet
