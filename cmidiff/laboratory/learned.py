"""A network that has learned a mixture: the one learned prior whose information gradient is known.

On the embedded prior the contractions can only be compared with one another; neither is the gradient of a true density.
Here a small denoiser ``x_hat = c_skip x_t + c_out F(c_in x_t, log(sigma_t / alpha_t))`` is trained on the mixture of
`cmidiff.laboratory.gradient`, and its contractions ``C(u, u)`` are held against those of the exact denoiser.

Source: Karras et al. 2022, https://arxiv.org/abs/2206.00364 (the factors c and the weight of the loss)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmidiff.covariance import Exact
from cmidiff.information import Contraction, contract
from cmidiff.laboratory.findings import Cell, Table
from cmidiff.laboratory.gradient import D, M, make_problem, make_step
from cmidiff.laboratory.settings import Settings, make_seed
from cmidiff.prior import GaussianMixture
from cmidiff.prior.base import Prediction, Prior
from cmidiff.schedule import Schedule

LEVELS = (0.1, 0.2, 0.5, 1.0, 2.0)
COMPARED: tuple[Contraction, ...] = ("double-backward", "second-difference")


class LearnedMixture(nn.Module, Prior):
    """A denoiser as `cmidiff.prior.Denoiser`, for signals (B, d).

    Args:
        d: dimension.
        scale: root mean square of the data.
        schedule: perturbation kernel.
        width: of the hidden layers.
    """

    def __init__(self, d: int, scale: float, schedule: Schedule, width: int = 160) -> None:
        super().__init__()
        self.scale, self.schedule = scale, schedule
        self.net = nn.Sequential(
            nn.Linear(d + 8, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, d),
        )  # fmt: skip

    def at(self, x: Tensor, ratio: Tensor) -> Tensor:
        """``x_hat`` of ``x = x_0 + ratio z``, shape (B, d), ``ratio`` (B, 1)."""
        total = (ratio**2 + self.scale**2).sqrt()
        waves = ratio.log() * torch.tensor([0.25, 0.5, 1.0, 2.0], dtype=x.dtype)
        inner = self.net(torch.cat([x / total, waves.sin(), waves.cos()], 1))
        return (self.scale / total) ** 2 * x + ratio * self.scale / total * inner

    def forward(self, x_t: Tensor, t: float) -> Prediction:
        alpha_t, sigma_t = self.schedule(t)
        return Prediction(self.at(x_t / alpha_t, x_t.new_full((len(x_t), 1), sigma_t / alpha_t)))


def train(prior: GaussianMixture, settings: Settings) -> LearnedMixture:
    """A denoiser after some seconds of training, float64 for what follows."""
    g = settings.generator("learned")
    steps, batch = (200 if settings.quick else 4000), 512
    scale = float(prior.sample(4096, g).square().mean().sqrt())
    with torch.random.fork_rng():
        torch.manual_seed(make_seed(settings.seed, "initial weights"))
        network = LearnedMixture(prior.d, scale, prior.schedule)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    with torch.enable_grad():
        for _ in range(steps):
            x_0 = prior.sample(batch, g).float()
            ratio = torch.exp(-0.7 + 1.2 * torch.randn(batch, 1, generator=g))
            x_hat = network.at(x_0 + ratio * torch.randn(x_0.shape, generator=g), ratio)
            weight = (ratio**2 + scale**2) / (ratio * scale) ** 2
            loss = (weight * (x_hat - x_0) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.double().requires_grad_(False)


def compare_known(settings: Settings) -> Table:
    """Contractions of the learned denoiser against the exact one's."""
    prior, matrix = make_problem(settings)
    network = train(prior, settings)
    rows: list[list[Cell]] = []
    for ratio in LEVELS:
        t = prior.schedule.time(ratio)
        alpha_t, sigma_t = prior.schedule(t)
        g = settings.generator("learned", ratio)
        x_0 = prior.sample(256, g)
        x_t = alpha_t * x_0 + sigma_t * torch.randn(256, D, generator=g, dtype=x_0.dtype)
        exact, learned = (make_step(p, matrix, x_t, t, 0) for p in (prior, network))
        z = torch.where(torch.randn(256, M, generator=g, dtype=x_0.dtype) < 0, -1.0, 1.0).to(x_0)
        u = Exact(2 * M).at(exact).whiten(z).detach()
        truth = contract(exact, u, u, "double-backward").detach()
        ours = [contract(learned, u, u, how).detach() for how in COMPARED]
        gap, spread = (learned.x_hat - exact.x_hat).detach(), (exact.x_hat - x_0).detach()
        pairs = ((ours[0], truth), (ours[1], truth), (ours[1], ours[0]))
        rows.append([ratio, float(gap.norm() / spread.norm()), *(v for pair in pairs for v in _compared(*pair))])
    names = [f"{how} / known: {what}" for how in COMPARED for what in ("cosine", "relative error")]
    return Table(
        "A network trained on the 12-dimensional mixture: contractions against the known ones",
        ("sigma/alpha", "denoiser's error", *names, "second / double: cosine", "relative error"),
        rows,
        "Cosine: mean over 256 states and probes; relative error: root mean square. Denoiser's error: relative to the "
        "uncertainty of x_0 itself.",
    )


def _compared(ours: Tensor, truth: Tensor) -> tuple[float, float]:
    cosine = torch.nn.functional.cosine_similarity(ours, truth)
    return float(cosine.mean()), float((ours - truth).norm() / truth.norm())
