"""Facts about masks: how much is hidden, and how large the largest hole is."""

import numpy as np
from scipy.ndimage import distance_transform_edt
from torch import Tensor


def hidden_fraction(mask: Tensor) -> float:
    """Fraction of hidden pixels of a mask of shape (..., H, W); positive values are seen."""
    return float((mask <= 0).double().mean())


def hidden_disc(mask: Tensor) -> float:
    """Diameter in pixels of the largest disc of hidden pixels.

    Args:
        mask: (..., H, W); positive values are seen. A pixel is hidden if no channel or batch entry sees it.

    Returns:
        ``2 d - 1``, ``d`` the largest distance from the centre of a hidden pixel to that of the nearest seen one: 1 for
        a single pixel or a line one pixel wide, 0 if nothing is hidden, infinity if nothing is seen. Beyond the border
        of the image nothing is seen and nothing is hidden.
    """
    height, width = mask.shape[-2:]
    hidden = (mask.detach().cpu().reshape(-1, height, width) <= 0).all(0).numpy()
    if hidden.all():
        return float("inf")
    return max(0.0, 2 * float(np.asarray(distance_transform_edt(hidden)).max()) - 1)
