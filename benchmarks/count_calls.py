"""Network calls of every registered solver: ``python benchmarks/count_calls.py``

One sample of a signal of 64 numbers of which half are hidden, with the default options and the default number of steps
of each solver; a particle solver counts one particle. An evaluation is a forward pass, a gradient a backward pass.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn

from cmidiff import NetworkPrior, restore
from cmidiff.evaluate.work import Counted
from cmidiff.moments import SecondMoments
from cmidiff.physics import from_mask, measure
from cmidiff.registry import SOLVERS

SHAPE = (3, 8, 8)


def count(name: str) -> list[str]:
    """A row of the table."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh())
    moments = SecondMoments(torch.zeros(SHAPE).double(), torch.full(SHAPE, 0.3).double())
    prior = NetworkPrior(lambda x, t: layer(x), "v", second_moments=moments)
    counted, solver = Counted(prior), SOLVERS.make(name)
    mask = (torch.rand(1, 1, *SHAPE[1:]) < 0.5).float()
    physics = from_mask(mask, noise_std=0.05)
    restore(measure(torch.rand(1, *SHAPE), physics, seed=2), physics, counted, solver=solver, samples=1)
    steps = solver.default_steps
    forwards, backwards = counted.forwards / steps, counted.backwards / steps
    return [name, str(steps), f"{forwards:.3g}", f"{backwards:.3g}", str(counted.forwards), str(counted.backwards)]


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    columns = ["solver", "steps", "evaluations a step", "gradients a step", "evaluations", "gradients"]
    for row in (columns, ["---"] * len(columns), *(count(name) for name in SOLVERS)):
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
