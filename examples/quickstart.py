"""Algorithm 1 of CMI-guided posterior sampling in one file, with nothing but torch: ``python examples/quickstart.py``

The prior is a mixture of 25 Gaussians in the plane, so that the denoiser, its Jacobian and the posterior are all exact.
One noisy number is
measured, y = a x_0 + n. Four samplers draw 1000 points from p(x_0 | y); the last column is their distance to exact
posterior samples (mean
one-dimensional Wasserstein distance over 64 directions).

Papers: DPS https://arxiv.org/abs/2209.14687, CMI https://arxiv.org/abs/2501.02880, CA-DPS
https://arxiv.org/abs/2412.20045.
In the library the same is ``restore(y, physics, prior, solver=DPS(0.025), cmi=CMI(1.0))``, whose
step size is stated for 1000 steps.
"""

import torch

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)

# The prior: 25 modes on a grid, unequal weights, and its denoiser x_hat(x_t) = E[x_0 | x_t]
GRID = torch.cartesian_prod(torch.arange(-2.0, 3.0), torch.arange(-2.0, 3.0)) * 0.5
WEIGHTS = torch.rand(25).softmax(0)
SPREAD = 0.05  # standard deviation of each mode

# The measurement
A = torch.tensor([[1.0, 0.6]])
NOISE_STD = 0.1
y = A @ torch.tensor([0.5, -0.5]) + NOISE_STD * torch.randn(1)

# The noise schedule: x_t = alpha_t x_0 + sigma_t z, 250 of DDPM's 1000 levels
STEPS = 250
abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[torch.linspace(0, 999, STEPS).round().long()]
alpha, sigma = abar.sqrt(), (1 - abar).sqrt()


def denoise(x, i):
    """x_hat at level i, shape (B, 2)."""
    variance = (alpha[i] * SPREAD) ** 2 + sigma[i] ** 2
    residual = x[:, None] - alpha[i] * GRID
    r = (WEIGHTS.log() - 0.5 * (residual**2).sum(-1) / variance).softmax(1)
    return (r[..., None] * (GRID + alpha[i] * SPREAD**2 / variance * residual)).sum(1)


def rows(values, x):
    """Gradient of each row's value with respect to that row of x."""
    return torch.autograd.grad(values.sum(), x, retain_graph=True)[0]


def covariance(x, i, create_graph=False):
    """Cov(x_0 | x_t) = (sigma_t^2 / alpha_t) d x_hat / d x_t, shape (B, 2, 2)."""
    x_hat = denoise(x, i)
    j = [torch.autograd.grad(x_hat[:, k].sum(), x, retain_graph=True, create_graph=create_graph)[0] for k in range(2)]
    return sigma[i] ** 2 / alpha[i] * torch.stack(j, 1)


def information_gradient(x, i):
    """grad of I(x_0; y | x_t) = 1/2 log det(1 + A Cov A^T / sigma_y^2), in nats; exact, since the measurement is one
    number."""
    s = 1 + (A @ covariance(x, i, create_graph=True) @ A.mT)[:, 0, 0] / NOISE_STD**2
    return rows(0.5 * s.log(), x)


def likelihood_gradient(x, i):
    """CA-DPS: grad log N(y; A x_hat, sigma_y^2 + A Cov A^T), the covariance held fixed."""
    s = NOISE_STD**2 + (A @ covariance(x, i) @ A.mT)[:, 0, 0].detach()
    return rows(-0.5 * (y - denoise(x, i) @ A[0]) ** 2 / s, x)


def sample(count=1000, zeta=0.0, eta=0.0, covariance_aware=False):
    """Algorithm 1; shape (count, 2)."""
    x = torch.randn(count, 2)
    for i in reversed(range(STEPS)):
        x = x.detach().requires_grad_()
        x_hat = denoise(x, i)
        alpha_s, sigma_s = (alpha[i - 1], sigma[i - 1]) if i else (torch.ones(()), torch.zeros(()))
        beta = sigma[i] ** 2 - (alpha[i] / alpha_s * sigma_s) ** 2
        weight = alpha_s * beta / alpha[i]  # of a log-density's gradient in this step
        mean = alpha[i] / alpha_s * sigma_s**2 / sigma[i] ** 2 * x + alpha_s * beta / sigma[i] ** 2 * x_hat
        x_s = mean + beta.sqrt() * sigma_s / sigma[i] * torch.randn(count, 2)
        if eta:
            x_s = x_s + eta * weight * information_gradient(x, i)
        if zeta:
            x_s = x_s - zeta * rows((y - x_hat @ A[0]).abs(), x)
        if covariance_aware:
            x_s = x_s + weight * likelihood_gradient(x, i)
        x = x_s
    return x.detach()


def exact_posterior(count=1000):
    """Samples of p(x_0 | y): a mixture again."""
    s = NOISE_STD**2 + SPREAD**2 * (A @ A.mT)[0, 0]
    residual = y - GRID @ A[0]
    which = torch.multinomial((WEIGHTS.log() - 0.5 * residual**2 / s).softmax(0), count, replacement=True)
    gain = SPREAD**2 * A[0] / s
    cov = SPREAD**2 * (torch.eye(2) - torch.outer(gain, A[0]))
    return GRID[which] + gain * residual[which, None] + torch.randn(count, 2) @ torch.linalg.cholesky(cov).mT


def distance(a, b):
    """Mean over directions of the Wasserstein-1 distance of projections."""
    angle = torch.arange(64) * torch.pi / 64
    directions = torch.stack([angle.cos(), angle.sin()])
    return float(((a @ directions).sort(0)[0] - (b @ directions).sort(0)[0]).abs().mean())


if __name__ == "__main__":
    exact = exact_posterior()
    print(f"another exact sample  {distance(exact_posterior(), exact):.3f}")  # 0.018
    print(f"DPS                   {distance(sample(zeta=0.1), exact):.3f}")  # 0.069
    print(f"CMI + DPS             {distance(sample(zeta=0.1, eta=1.0), exact):.3f}")  # 0.105
    print(f"CA-DPS                {distance(sample(covariance_aware=True), exact):.3f}")  # 0.079
    print(f"CMI + CA-DPS          {distance(sample(covariance_aware=True, eta=1.0), exact):.3f}")  # 0.058
