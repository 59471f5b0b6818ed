"""The default solver on networks that are not exact, beside the best of the named solvers on the usual grids.

    python -m experiments.imperfect                      # an exact mixture with a smooth error of 0.015 in epsilon
    python -m experiments.imperfect --run RUN --run RUN  # runs trained by `sdediff train`

RMS and median over the starts of the error against the network's own probability flow (``ab4`` on a fine grid), at
equal numbers of forwards. The best named solver is the best of dpm++2m, dpm++3m, deis3, unipc3 and ab4 on the grids
karras, logsnr, asinh and reference, chosen anew at every number of forwards, knowing the answer.

Expected on the mixture: every figure of ``ode`` below 1.2, and falling but for single starts that change their mode
(which are an RMS of 0.1); medians 0.1 to 2 times the best named one. At the noisy end of a cosine chain
``sigma / alpha`` is 20,000, and an error of 0.015 in epsilon is 300 in the clean half. Cost: two minutes on one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

import sdediff
from sdediff.analytic import GaussianMixture
from sdediff.evaluation.distances import Errors

STEPS = (5, 8, 10, 15, 20, 30, 50)
SOLVERS = ("dpm++2m", "dpm++3m", "deis3", "unipc3", "ab4")
GRIDS = ("karras", "logsnr", "asinh", "reference")
PROCESSES = {
    "cosine chain": sdediff.DDPM.cosine(1000),
    "linear chain": sdediff.DDPM.linear(1000),
    "ve": sdediff.VESDE(),
    "flow": sdediff.RectifiedFlow(),
}


class Erring(nn.Module):
    """An exact network with a fixed error in epsilon, smooth in the state and in the noise level."""

    def __init__(self, exact: sdediff.Denoiser, dim: int, predicts: str, size: float = 0.015, width: int = 24) -> None:
        super().__init__()
        self.exact, self.predicts, rng = exact, predicts, torch.Generator().manual_seed(0)
        self.into, self.out = (torch.randn(*shape, generator=rng).double() for shape in ((dim, width), (width, dim)))
        self.into *= math.sqrt(8 / dim)  # as smooth in any number of dimensions
        self.rate, self.phase = (torch.randn(width, generator=rng).double() for _ in range(2))
        self.size = size * math.sqrt(2.0 / width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        level = self.exact.sde.level(t)
        cos, sin, scale, clock = (
            torch.as_tensor(value)[:, None] for value in (level.cos, level.sin, level.scale, level.half_log_snr)
        )
        y = x / scale
        waves = torch.sin(0.7 * y @ self.into + clock.clamp(-8.0, 8.0) * self.rate + 3.0 * self.phase)
        eps = self.exact(x, level).eps + self.size * waves @ self.out
        return eps if self.predicts == "epsilon" else (eps - sin * y) / cos


def exact_problems(dim: int = 8) -> Iterator[tuple[str, sdediff.ScoreModel, Tensor]]:
    """Yield names, models and starts ``(64, dim)``."""
    rng = torch.Generator().manual_seed(1)
    law = GaussianMixture(torch.randn(6, dim, generator=rng).double(), torch.full((6,), 0.05).double())
    for name, sde in PROCESSES.items():
        exact = law.model(sde)
        for predicts in ("epsilon", "v_prediction"):
            network = Erring(exact, dim, predicts)
            model = sdediff.ScoreModel(network, sde, predicts, conditioning="time", moments=exact.moments)
            yield f"{name}, {predicts}", model, sde.prior_sample((64, dim), dtype=torch.float64, seed=3)


def table(name: str, model: sdediff.ScoreModel, x: Tensor, fine: int) -> None:
    """Print the errors of the default and of the best named solver, RMS and median."""
    with torch.no_grad():
        truth, other = (sdediff.solve(model, x, solver, steps=fine, grid="asinh").x for solver in ("ab4", "unipc3"))
        found = {
            (solver, grid): [Errors.of(sdediff.solve(model, x, solver, steps=n, grid=grid).x, truth) for n in STEPS]
            for solver in SOLVERS
            for grid in GRIDS
        }
        own = np.array([Errors.of(sdediff.solve(model, x, "ode", steps=n).x, truth) for n in STEPS])
    values = np.nan_to_num(np.array(list(found.values())), nan=np.inf)
    print(f"\n{name} (the two fine solves differ by {Errors.of(other, truth).rms:.1e})")
    print(f"{'forwards':18s}" + "".join(f"{n:>16d}" for n in STEPS))
    for column, kind in enumerate(("RMS", "median")):
        best = values[:, :, column].min(axis=0)
        who = [" ".join(list(found)[i]) for i in values[:, :, column].argmin(axis=0)]
        print(f"{'ode, ' + kind:18s}" + "".join(f"{value:16.2g}" for value in own[:, column]))
        print(f"{'best named':18s}" + "".join(f"{value:16.2g}" for value in best))
        print(f"{'':18s}" + "".join(f"{pair:>16s}" for pair in who))
        print(f"{'ratio':18s}" + "".join(f"{value:16.2f}" for value in own[:, column] / best), flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", default=[], help="Folder of a trained model; repeatable.")
    parser.add_argument("--starts", type=int, default=32)
    arguments = parser.parse_args()
    if not arguments.run:
        for name, model, x in exact_problems():
            table(name, model, x, 1500)
    for folder in arguments.run:
        model = sdediff.load(folder)
        x = model.sde.prior_sample((arguments.starts, *model.data.shape), seed=3)
        table(folder, model, x, 600 if len(model.data.shape) == 1 else 150)


if __name__ == "__main__":
    main()
