"""Encoding and decoding: exact maps, round trips, interpolation."""

import math

import pytest
import torch

import sdediff
from sdediff.transport import slerp

PROCESSES = [
    sdediff.VPSDE(),
    sdediff.CosineVPSDE(),
    sdediff.SubVPSDE(),
    sdediff.VESDE(),
    sdediff.ExponentialVESDE(),
    sdediff.RectifiedFlow(),
    sdediff.DDPM.linear(1000),
]


def name(value):
    return type(value).__name__


def gaussian(dim=3):
    generator = torch.Generator().manual_seed(1)
    factor = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return sdediff.analytic.Gaussian(torch.arange(dim).double(), 0.2 * factor @ factor.T + 0.01 * torch.eye(dim))


def mixture(dim=64, components=10, shape=None):
    generator = torch.Generator().manual_seed(2)
    means = torch.randn(components, dim, generator=generator, dtype=torch.float64)
    factors = torch.randn(components, dim, dim, generator=generator, dtype=torch.float64) / math.sqrt(dim)
    covariances = 0.3 * factors @ factors.transpose(1, 2) + 0.02 * torch.eye(dim)
    return sdediff.analytic.GaussianMixture(means, covariances, shape=shape)


@pytest.mark.parametrize("sde", PROCESSES, ids=name)
def test_encoding_a_gaussian_is_its_affine_map(sde):
    """For N(m, C) the probability flow carries alpha m + (alpha^2 C + sigma^2)^(1/2) z, the same z at every t."""
    data, n = gaussian(), 16
    values, basis = torch.linalg.eigh(data.covariance)
    near, far = sde.levels([sde.t_min, sde.t_max])
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def state(level):
        return level.alpha * data.mean + (z * (level.alpha**2 * values + level.sigma**2).sqrt()) @ basis.T

    model = data.model(sde)
    assert torch.allclose(sdediff.encode(model, state(near), rtol=1e-9), state(far), rtol=1e-7, atol=1e-7)
    assert torch.allclose(sdediff.decode(model, state(far), rtol=1e-9), state(near), rtol=1e-7, atol=1e-7)
    # negative control: ten times the tolerance above separates this map from the flow of another process
    assert not torch.allclose(sdediff.encode(model, state(near), "ddim", steps=3), state(far), rtol=1e-6, atol=1e-6)


def test_round_trip_on_a_64_d_mixture():
    data = mixture()
    model, x = data.model(sdediff.VPSDE()), data.sample(64)
    z = sdediff.encode(model, x)
    assert float((sdediff.decode(model, z) - x).square().mean().sqrt()) <= 1e-5
    # negative control: the latents are not the data, and another process does not undo them
    other = sdediff.decode(data.model(sdediff.CosineVPSDE()), z[:4])
    assert float((other - x[:4]).square().mean().sqrt()) > 1e-3


def test_images_and_float32():
    data = mixture(shape=(1, 8, 8))
    model, x = data.model(sdediff.VPSDE()), data.sample(8, dtype=torch.float32)
    z = sdediff.encode(model, x)
    assert (z.dtype, z.shape) == (torch.float32, x.shape)
    # float32 data hold 6e-8 of themselves; the flow's Lipschitz constant near the data multiplies it
    assert float((sdediff.decode(model, z) - x).square().mean().sqrt()) <= 1e-4


def test_fixed_steps_go_both_ways_with_the_solver_s_order():
    data = gaussian()
    model, x = data.model(sdediff.VPSDE()), data.sample(32)
    errors = []
    for steps in (40, 80):
        back = sdediff.decode(model, sdediff.encode(model, x, "heun", steps=steps), "heun", steps=steps)
        errors.append(float((back - x).norm()))
    assert errors[1] < errors[0] / 3.0  # second order: about 4


def test_stochastic_solvers_cannot_encode():
    data = gaussian()
    with pytest.raises(ValueError, match="'sde' is stochastic"):
        sdediff.encode(data.model(sdediff.VPSDE()), data.sample(2), "sde")


def test_slerp_is_on_the_arc():
    a, b = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    assert torch.allclose(slerp(a, b, 0.0), a)
    assert torch.allclose(slerp(a, b, 1.0), b, atol=1e-7)
    third = slerp(a, b, 1.0 / 3.0)
    assert torch.allclose(third[0], torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)]))
    assert torch.allclose(third[1], a[1])  # parallel: the straight line
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, 5, 100, generator=generator, dtype=torch.float64)
    v = v / v.norm(dim=1, keepdim=True) * u.norm(dim=1, keepdim=True)
    assert torch.allclose(slerp(u, v, 0.3).norm(dim=1), u.norm(dim=1))  # equal norms stay equal
    assert torch.allclose(slerp(u, v, 0.3), slerp(v, u, 0.7))


def test_interpolation_starts_and_ends_at_the_data():
    data = mixture(dim=4, components=3)
    model, x = data.model(sdediff.VPSDE()), data.sample(6)
    path = sdediff.interpolate(model, x[:3], x[3:], points=5)
    assert path.shape == (5, 3, 4)
    assert torch.allclose(path[0], x[:3], atol=1e-4)
    assert torch.allclose(path[-1], x[3:], atol=1e-4)
    middle = data.log_prob(path[2])
    straight = data.log_prob(0.5 * (x[:3] + x[3:]))
    assert float(middle.mean()) > float(straight.mean())  # the latent path keeps to likely data
    with pytest.raises(ValueError, match="at least 2 points"):
        sdediff.interpolate(model, x[:3], x[3:], points=1)
    with pytest.raises(ValueError, match="one shape"):
        sdediff.interpolate(model, x[:3], x[:2])


def test_unknown_options_are_named_with_those_allowed():
    """By every verb that hands options on, before anything is solved."""
    model, x = gaussian().model(sdediff.VPSDE()), gaussian().sample(2)
    for call in (
        lambda: sdediff.encode(model, x, step=10),
        lambda: sdediff.decode(model, x, path=True),
        lambda: sdediff.interpolate(model, x, x, t_from=0.3),
        lambda: sdediff.bits_per_dim(model, (x > 0.0).long(), levels=2, draw=3),
    ):
        with pytest.raises(TypeError, match=r"unknown option '[a-z_]+'; allowed are: .*steps"):
            call()
