r"""How often do the stated 95 % intervals hold the data's own log-density?

Data whose density is known, with an exact denoiser, on every process: a mixture of three in the plane, one of four on 8
dimensions, one of three on 36 with variances over two decades (``images``), and two points with a spread of 0.03
(``narrow``), beside which the noise of ``t_min`` is not small on every process. The truth is the density of the data,
without noise: the interval has to hold what solver, quadrature, probes, blur and prior make of it together.

One table a problem: the share of items whose interval holds the truth, by process and number of steps. Where nothing is
random (``exact``, ``adaptive``) at least 93 % is right, and more is usual, for effects of known sign count both ways;
where probes are, 93 to 97 %.

Expected: 0.99 to 1.00 in every row of ``exact`` and ``rtol``; with probes 0.91 to 0.99 from 10 steps on (0.93 to 0.97
for four of five figures), and 0.97 to 1.00 at 5, where the path's own error is most of it. Cost: 5 minutes on 1 core.

    python -m experiments.coverage [--items 200] [--seed 11] [--problem images]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch

import sdediff
from sdediff.analytic import GaussianMixture

PROCESSES = {
    "vp": sdediff.VPSDE(),
    "cosine": sdediff.CosineVPSDE(),
    "subvp": sdediff.SubVPSDE(),
    "ve": sdediff.VESDE(),
    "flow": sdediff.RectifiedFlow(),
    "ddpm": sdediff.DDPM.linear(1000),
    "ddpm-cosine": sdediff.DDPM.cosine(1000),
}
STEPS = (5, 10, 20, 40)
TOLERANCES = (1e-2, 1e-3, 1e-4)


def mixture(components: int, dim: int, decades: float, seed: int) -> GaussianMixture:
    """Components of random axes, with variances that fall over some decades."""
    rng = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(components, dim, dim, generator=rng, dtype=torch.float64))[0]
    variances = torch.logspace(-decades, 0.0, dim, dtype=torch.float64)
    covariances = 0.3 * basis @ torch.diag_embed(variances.expand(components, -1)) @ basis.mT
    means = 0.7 * torch.randn(components, dim, generator=rng, dtype=torch.float64)
    return GaussianMixture(means, 0.5 * (covariances + covariances.mT))


PROBLEMS: dict[str, Callable[[int], GaussianMixture]] = {
    "plane": lambda seed: mixture(3, 2, 0.7, seed),
    "eight": lambda seed: mixture(4, 8, 1.0, seed),
    "images": lambda seed: mixture(3, 36, 2.0, seed),
    "narrow": lambda _: GaussianMixture([[-0.7, 0.1], [0.5, 0.4]], [0.03**2, 0.03**2]),
}


def covered(law: GaussianMixture, sde: sdediff.SDE, items: int, seed: int, **options: Any) -> float:
    """Return the share of items whose interval holds the truth."""
    x = law.sample(items, seed=seed)
    result = sdediff.log_likelihood(law.model(sde), x, seed=seed, **options)
    (low, high), truth = result.interval(), law.log_prob(x)
    return float(((low <= truth) & (truth <= high)).double().mean())


def settings(dim: int) -> dict[str, dict[str, Any]]:
    """Return the calls of a table's columns."""
    found = {f"exact {steps}": {"trace": "exact", "steps": steps} for steps in STEPS}
    for probes in (1, 2, 4):
        if dim > 4:  # below, the trace is exact whatever is asked for
            rule = {"trace": "hutchinson", "probes": probes}
            found |= {f"K={probes} {steps}": rule | {"steps": steps} for steps in STEPS}
    found |= {f"rtol {rtol:g}": {"solver": "adaptive", "rtol": rtol, "trace": "exact"} for rtol in TOLERANCES}
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--problem", choices=PROBLEMS, action="append")
    arguments = parser.parse_args()
    for name in arguments.problem or PROBLEMS:
        law = PROBLEMS[name](arguments.seed)
        error = math.sqrt(0.95 * 0.05 / arguments.items)
        print(f"\n{name}, {law.dim} dimensions, {arguments.items} items: 95 % is {0.95:.2f} +- {error:.3f}")
        print(f"{'':12s}" + "".join(f"{sde:>12s}" for sde in PROCESSES))
        for label, options in settings(law.dim).items():
            row = [covered(law, sde, arguments.items, arguments.seed, **options) for sde in PROCESSES.values()]
            print(f"{label:12s}" + "".join(f"{share:12.3f}" for share in row), flush=True)


if __name__ == "__main__":
    main()
