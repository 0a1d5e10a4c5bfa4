"""A solver of cmidiff for a benchopt benchmark of inverse problems: copy it into the benchmark's folder ``solvers``.

The objective of the benchmark passes ``y`` (B, ...) and a ``deepinv`` physics, and reads ``estimate``.
"""

from benchopt import BaseSolver  # pyright: ignore[reportMissingImports]


class Solver(BaseSolver):
    name = "cmidiff"
    requirements = ("pip::cmidiff",)
    sampling_strategy = "iteration"
    parameters = {"solver": ["dpir", "pigdm", "cadps"], "prior": ["photo"], "cmi": [False]}  # noqa: RUF012

    def set_objective(self, y, physics):
        self.y, self.physics = y, physics

    def run(self, n_iter):
        from cmidiff import restore

        steps = max(int(n_iter), 2)
        cmi = self.cmi or None
        self.restoration = restore(self.y, self.physics, self.prior, solver=self.solver, steps=steps, cmi=cmi)

    def get_result(self):
        return {"estimate": self.restoration.estimate}
