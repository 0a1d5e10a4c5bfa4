r"""Distances between two sets of images, from the features of a network, and paired tests of their differences.

With features ``X`` of the restored images and ``Y`` of the true ones, means ``m`` and covariances ``C``,

    FID  |m_X - m_Y|^2 + Tr(C_X + C_Y) - 2 |Xc Yc^T|_* / sqrt((n_X - 1) (n_Y - 1)),    Xc, Yc: centred
    KID  mean over i != j of k(x_i, x_j) + k(y_i, y_j), minus twice that of k(x_i, y_j),    k(a, b) = (a.b / d + 1)^3

The sum of singular values ``|.|_*`` equals the trace of the root of ``C_X C_Y``. All of it follows from scalar products
of features. A bootstrap over images therefore only weights them.

Two cells of the same images are compared by the difference of their distances. Its standard error is that over
``DRAWS`` bootstrap samples of the images. Truth, base and CMI of an image are drawn together. The error is taken as
normal.

Sources: Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter, "GANs Trained by a Two Time-Scale Update Rule Converge to a
Local Nash Equilibrium", 2017, https://arxiv.org/abs/1706.08500 (FID); Binkowski, Sutherland, Arbel, Gretton,
"Demystifying MMD GANs", 2018, https://arxiv.org/abs/1801.01401 (KID); Efron, "Bootstrap Methods: Another Look at the
Jackknife", 1979, https://doi.org/10.1214/aos/1176344552
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 200
Array = np.ndarray


class Products(NamedTuple):
    """Scalar products of features: of two restored, of two true, and of a restored and a true image.

    Attributes:
        restored: (n, n).
        true: (m, m).
        cross: (n, m).
        d: number of features.
    """

    restored: Array
    true: Array
    cross: Array
    d: int

    @classmethod
    def of(cls, restored: Array, true: Array) -> Products:
        """Of features (n, d) and (m, d)."""
        x, y = restored.astype(np.float64), true.astype(np.float64)
        return cls(x @ x.T, y @ y.T, x @ y.T, x.shape[1])


Distance = Callable[[Products, Array, Array], float]


def frechet(p: Products, w: Array, v: Array) -> float:
    """FID of restored images with weights ``w`` (n,) to true ones with weights ``v`` (m,); counts of a bootstrap."""
    n, m = w.sum(), v.sum()
    mean = w @ p.restored @ w / n**2 - 2 * (w @ p.cross @ v) / (n * m) + v @ p.true @ v / m**2
    spread = (w @ p.restored.diagonal() - w @ p.restored @ w / n) / (n - 1)
    spread += (v @ p.true.diagonal() - v @ p.true @ v / m) / (m - 1)
    row, column = p.cross @ v / m, w @ p.cross / n
    centred = p.cross - row[:, None] - column[None] + w @ row / n
    kept = np.ix_(w > 0, v > 0)
    root = np.sqrt(w)[:, None] * centred * np.sqrt(v)
    common = np.linalg.svd(root[kept], compute_uv=False).sum() / np.sqrt((n - 1) * (m - 1))
    return float(mean + spread - 2 * common)


def kernel_distance(p: Products, w: Array, v: Array) -> float:
    """KID, unbiased, with weights as in `frechet`; the pairs of an image with itself are left out."""

    def within(products: Array, weight: Array) -> float:
        k = (products / p.d + 1) ** 3
        pairs = weight.sum() ** 2 - (weight**2).sum()
        return float(weight @ k @ weight - weight**2 @ k.diagonal()) / pairs

    across = float(w @ (p.cross / p.d + 1) ** 3 @ v) / (w.sum() * v.sum())
    return within(p.restored, w) + within(p.true, v) - 2 * across


DISTANCES: dict[str, Distance] = {"fid": frechet, "kid": kernel_distance}


def measure(distance: Distance, restored: Array, true: Array) -> float:
    """A distance of two sets of features (n, d) and (m, d)."""
    return distance(Products.of(restored, true), np.ones(len(restored)), np.ones(len(true)))


def compare(
    distance: Distance, corrected: Array, base: Array, true: Array, images: Sequence[int]
) -> tuple[float, float]:
    """The distance of ``corrected`` minus that of ``base``, and its standard error over images.

    Args:
        distance: see `DISTANCES`.
        corrected, base: features of the restored images, (n, d), in the same order.
        true: features of the true images, (m, d).
        images: number of the true image that each restored one belongs to.
    """
    with_cmi, without = Products.of(corrected, true), Products.of(base, true)
    number, m = np.asarray(images), len(true)

    def difference(v: Array) -> float:
        return distance(with_cmi, v[number], v) - distance(without, v[number], v)

    generator, draws = np.random.default_rng(0), []
    while len(draws) < DRAWS:
        weight = generator.multinomial(m, np.full(m, 1 / m)).astype(float)
        if (weight > 0).sum() > 1:  # one image alone has neither a covariance nor pairs
            draws.append(difference(weight))
    return difference(np.ones(m)), float(np.std(draws, ddof=1))
