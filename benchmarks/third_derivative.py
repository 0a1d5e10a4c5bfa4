"""Which contraction of a *network* is nearest to the true information gradient?

    python benchmarks/third_derivative.py            # about two minutes on two cores

On a trained network `second-difference` and `double-backward` differ, because the network's Jacobian is not symmetric;
that alone does not say which is wrong. Here a small network learns a Gaussian mixture, whose gradient is known: both
are compared with it, at two stages of the training and for each noise level, all with the same coordinate probes and
the same isotropic covariance inside S, so that what is left is the network's error.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from deepinv.physics import GaussianNoise, LinearPhysics
from torch import Tensor, nn

from cmidiff import GaussianMixture, NetworkPrior
from cmidiff.information import Contraction, gradient
from cmidiff.prior.base import Denoiser

D, M, NOISE_STD, STATES = 12, 5, 0.3, 64
TIMES = (100.0, 200.0, 400.0, 600.0)
CONTRACTIONS: tuple[Contraction, ...] = ("double-backward", "second-difference")


class Net(nn.Module):
    """Three hidden layers, and sines of the time."""

    def __init__(self, width: int = 384) -> None:
        super().__init__()
        self.frequencies = nn.Buffer(2 * math.pi * torch.randn(16))
        sizes = [D + 32, width, width, width]
        hidden = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, D))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        angle = (t / 1000)[:, None] * self.frequencies
        return self.layers(torch.cat([x_t, angle.sin(), angle.cos()], 1))


def the_mixture(generator: torch.Generator) -> GaussianMixture:
    """Four Gaussians with full covariances."""
    q = torch.linalg.qr(torch.randn(4, D, D, generator=generator, dtype=torch.float64))[0]
    spectrum = torch.linspace(0.05, 0.6, D, dtype=torch.float64)
    means = torch.randn(4, D, generator=generator, dtype=torch.float64)
    return GaussianMixture(torch.full((4,), 0.25, dtype=torch.float64), means, (q * spectrum) @ q.mT)


def errors(network: Denoiser, mixture: GaussianMixture, physics: LinearPhysics, t: float) -> list[str]:
    """Cosine with the true gradient and relative error of each contraction, and their mutual cosine."""
    alpha, sigma = mixture.schedule(t)
    generator = torch.Generator().manual_seed(1)
    x_0 = mixture.sample(STATES, generator)
    x_t = alpha * x_0 + sigma * torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype)

    def of(prior: Denoiser, how: Contraction) -> Tensor:
        return gradient(prior, physics, x_t, t, covariance="isotropic", probe="coordinate", probes=M, contraction=how)

    truth, ours = of(mixture, "double-backward"), [of(network, how) for how in CONTRACTIONS]
    cells = [f"{t:.0f}", f"{sigma / alpha:.2f}"]
    for g in ours:
        cells += [f"{cosine(g, truth):.2f}", f"{float((g - truth).norm() / truth.norm()):.2f}"]
    return [*cells, f"{cosine(ours[0], ours[1]):.2f}"]


def cosine(a: Tensor, b: Tensor) -> float:
    """Mean over the states."""
    return float(torch.cosine_similarity(a, b).mean())


def train(net: Net, mixture: GaussianMixture, steps: int, report: Callable[[int], None]) -> None:
    """Adam on the v-prediction loss, the rate falling to zero; reported after an eighth of the steps and at the end."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    levels = torch.tensor([mixture.schedule(float(t)) for t in range(1000)], dtype=torch.float32)
    for step in range(1, steps + 1):
        x_0 = mixture.sample(512).float()
        t = torch.randint(0, 1000, (512,))
        alpha, sigma = levels[t].T[..., None]
        eps = torch.randn_like(x_0)
        loss = (net(alpha * x_0 + sigma * eps, t.float()) - (alpha * eps - sigma * x_0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - step / (steps + 1))
        if step in (steps // 8, steps):
            report(step)


def main(
    steps: Annotated[int, typer.Option(min=8, help="training steps of 512 samples")] = 4000,
    seed: Annotated[int, typer.Option(help="of the mixture, the network and its training")] = 0,
) -> None:
    """Print, as Markdown, how near each contraction of a trained network is to the true information gradient."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    mixture, net = the_mixture(generator), Net()
    matrix = torch.randn(M, D, generator=generator, dtype=torch.float64)
    noise: Any = GaussianNoise(NOISE_STD)
    physics = LinearPhysics(A=lambda x: x @ matrix.mT, A_adjoint=lambda y: y @ matrix, noise_model=noise)

    def report(step: int) -> None:
        double = Net().double()
        double.load_state_dict(net.state_dict())
        network = NetworkPrior(double, "v", mixture.schedule, value_range=None, channels=None)
        for t in TIMES:
            typer.echo(f"| {step} | {' | '.join(errors(network, mixture, physics, t))} |")

    names = " | ".join(f"{how}: cosine | error" for how in CONTRACTIONS)
    typer.echo(f"| training steps | t | sigma/alpha | {names} | cosine of the two |\n|{'---|' * 8}")
    train(net, mixture, steps, report)


if __name__ == "__main__":
    typer.run(main)
