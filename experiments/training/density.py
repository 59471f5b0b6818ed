"""Models of densities beside ours: the Gaussian mixture of scikit-learn, and the neural spline flow of zuko.

Both choose on validation rows: the mixture its components and their floor, the flow its width, and when to stop.
"""

from __future__ import annotations

import itertools
import math
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from experiments.training.rows import Array, Parts

COMPONENTS, FLOORS = (1, 2, 5, 10, 20, 40, 80, 160), (1e-5, 1e-3)


class Report(NamedTuple):
    """Nats of every test row ``(n,)``, what was chosen, and its CPU seconds."""

    nats: Array
    chosen: str
    seconds: float


def mixture(parts: Parts, budget: float) -> Report:
    """Fit full-covariance mixtures until the budget is spent, and take the best of them."""
    from sklearn.mixture import GaussianMixture

    start, best, chosen, nats = time.process_time(), -math.inf, "", np.empty(0)
    for components, floor in itertools.product(COMPONENTS, FLOORS):
        if time.process_time() - start > budget:
            break
        model = GaussianMixture(components, reg_covar=floor, max_iter=300, random_state=0).fit(parts.train)
        if (value := model.score(parts.validation)) > best:
            best, chosen = value, f"{components} components, floor {floor:g}"
            nats = model.score_samples(parts.test)
    return Report(nats, chosen, time.process_time() - start)


def spline_flow(parts: Parts, budget: float, *, width: int = 128, rate: float = 1e-3, batch: int = 256) -> Report:
    """Train an autoregressive spline flow (Durkan et al. 2019) for a budget; the best on validation rows is kept."""
    import zuko

    torch.manual_seed(0)
    train, validation, test = (torch.from_numpy(x).float() for x in parts)
    flow = zuko.flows.NSF(train.shape[1], transforms=5, hidden_features=(width, width))
    optimizer = torch.optim.Adam(flow.parameters(), rate)
    best, kept, stop = -math.inf, flow.state_dict(), 0
    start, step, every = time.process_time(), 0, max(20, len(train) // batch)
    while (spent := time.process_time() - start) < budget:
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, spent / budget)))
        loss = -flow().log_prob(train[torch.randint(len(train), (batch,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()
        step += 1
        if step % every == 0 and (value := float(log_prob(flow, validation).mean())) > best:
            best, stop, kept = value, step, {name: tensor.clone() for name, tensor in flow.state_dict().items()}
    flow.load_state_dict(kept)
    chosen = f"width {width}, step {stop:,} of {step:,}"
    return Report(log_prob(flow, test).double().numpy(), chosen, time.process_time() - start)


@torch.no_grad()
def log_prob(flow: torch.nn.Module, x: Tensor) -> Tensor:
    """Return the nats of rows ``(n,)``."""
    return torch.cat([flow().log_prob(part) for part in x.split(1024)])
