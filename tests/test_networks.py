"""Networks: the exact layer for levels against quadrature, the start at zero, seeds, sizes, conditions."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from sdediff.networks import (
    NETWORKS,
    SIZES,
    DiT,
    LevelHead,
    Levelled,
    UNet,
    default_network,
    initialise,
    parameter_count,
)
from sdediff.networks.dropout import HashedDropout
from sdediff.networks.embedding import FourierFeatures
from sdediff.networks.levels import bin_moments

SHAPES = {
    "mlp": [(2,), (5,), (1, 8, 8)],
    "unet": [(1, 8, 8), (3, 4, 4), (1, 5, 7), (1, 28, 28), (2, 9), (1, 4, 6, 5)],
    "dit": [(1, 8, 8), (3, 4, 6), (2, 10), (1, 4, 2, 6)],
}
CASES = [(name, shape) for name, shapes in SHAPES.items() for shape in shapes]


def build(name, shape, **kwargs):
    network = NETWORKS[name](shape=shape, width=16, **kwargs)
    initialise(network, torch.Generator().manual_seed(0))
    return network


def shake(network, seed=1, *, trainable=False):
    """Move every weight, zeros included, so that nothing is the identity any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.requires_grad_(requires_grad=trainable)


def normals(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_every_network_is_tried():
    assert set(SHAPES) == set(NETWORKS) == set(SMALL)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_output_starts_at_zero_and_items_do_not_mix(name, shape):
    network = build(name, shape)
    x, conditioning = normals(3, *shape), torch.tensor([-5.0, 0.0, 6.0])
    assert torch.equal(network(x, conditioning), torch.zeros_like(x))
    shake(network)
    whole = network(x, conditioning)
    alone = torch.cat([network(x[i : i + 1], conditioning[i : i + 1]) for i in range(3)])
    scale = float(whole.abs().max())
    assert float((whole - alone).abs().max()) <= 1e-5 * scale  # float32 sums in another order
    assert float((whole - network(x, conditioning.flip(0))).abs().max()) > 1e-3 * scale  # it listens to the noise level
    assert float((whole - network(x.flip(0), conditioning)).abs().max()) > 1e-3 * scale  # and to the state


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone(name, shape):
    first, again, other = (NETWORKS[name](shape=shape, width=16) for _ in range(3))
    before = torch.random.get_rng_state()
    for network, seed in ((first, 7), (again, 7), (other, 8)):
        initialise(network, torch.Generator().manual_seed(seed))
    assert torch.equal(before, torch.random.get_rng_state())
    weights = [torch.cat([p.flatten() for p in network.parameters()]) for network in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_config_rebuilds_the_network(name, shape):
    network = shake(build(name, shape, outputs=5))
    twin = NETWORKS[name](**network.config)
    twin.load_state_dict(network.state_dict())
    x, conditioning = normals(2, *shape), torch.tensor([0.0, 3.0])
    assert torch.equal(network(x, conditioning), twin(x, conditioning))


def test_every_weight_is_trained():
    """A part that is wired to nothing would get no gradient."""
    for name, shape in CASES:
        network = shake(build(name, shape), trainable=True)
        network(normals(4, *shape), torch.linspace(-3.0, 3.0, 4)).square().sum().backward()
        dead = [key for key, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
        assert not dead, (name, shape, dead)


@pytest.mark.parametrize(
    ("shape", "kwargs", "message"),
    [
        ((2,), {}, "needs series .* images .* or volumes"),
        ((1, 3, 8), {}, "at least 4"),
        ((1, 8, 8), {"width": 0}, "positive"),
        ((1, 8, 8), {"multipliers": ()}, "positive"),
        ((1, 8, 8), {"outputs": 0}, "positive"),
        ((1, 8, 8), {"blocks": 0}, "positive"),
        ((1, 8, 8), {"attention": -1}, "at least 0"),
        ((1, 8, 8), {"dropout": 1.0}, r"in \[0, 1\)"),
        ((1, 8, 8), {"classes": 0}, "classes and features must be positive"),
        ((1, 8, 8), {"size": "huge"}, "unknown size of the U-Net 'huge'; choose one of: tiny, small"),
    ],
)
def test_unet_says_what_is_wrong(shape, kwargs, message):
    with pytest.raises(ValueError, match=message):
        UNet(shape, **kwargs)


@pytest.mark.parametrize(
    ("shape", "kwargs", "message"),
    [
        ((2,), {}, "needs series"),
        ((1, 8, 9), {}, r"divides, not shape \(1, 8, 9\) in patches of 2"),
        ((1, 8, 8), {"patch": 0}, "patches of 0"),
        ((1, 8, 8), {"heads": 3}, "multiple of the heads"),
        ((1, 8, 8), {"depth": 0}, "positive"),
        ((1, 8, 8), {"dropout": -0.1}, r"in \[0, 1\)"),
    ],
)
def test_dit_says_what_is_wrong(shape, kwargs, message):
    with pytest.raises(ValueError, match=message):
        DiT(shape, **kwargs)


def test_default_network_follows_the_shape():
    shapes = ((2,), (1, 8, 8), (3, 3, 8), (16, 16), (1, 4, 4, 4), (2, 3))
    assert [default_network(s) for s in shapes] == ["mlp", "unet", "mlp", "unet", "unet", "mlp"]


# ---- what all have ---------------------------------------------------------------------------------------------

SMALL = {"mlp": (3, 4), "unet": (2, 8, 6), "dit": (2, 8, 6)}
EVERYTHING = {
    "mlp": {"blocks": 2},
    "unet": {"multipliers": (1, 2), "blocks": 2, "attention": 48, "residual": True},
    "dit": {"depth": 2, "heads": 2},
}


def everything(name, **kwargs):
    """A network with all parts on, moved from its start."""
    return shake(build(name, SMALL[name], **{**EVERYTHING[name], "classes": 3, "features": 2, **kwargs}))


def conditions(count=4):
    return torch.tensor([0, 2, 3, 1])[:count], normals(4, 2, seed=7)[:count]


@pytest.mark.parametrize("name", SMALL)
def test_conditions_are_of_their_items_and_null_ones_are_null(name):
    network, x, level = everything(name), normals(4, *SMALL[name]), torch.linspace(-3.0, 3.0, 4)
    label, vector = conditions()
    whole = network(x, level, label, vector)
    scale = float(whole.abs().max())
    for i in range(4):
        alone = network(x[i : i + 1], level[i : i + 1], label[i : i + 1], vector[i : i + 1])
        assert float((whole[i : i + 1] - alone).abs().max()) <= 1e-5 * scale
    for changed in (network(x, level, label.flip(0), vector), network(x, level, label, vector.flip(0))):
        assert float((whole - changed).abs().max()) > 1e-3 * scale
    null = network(x, level, torch.full((4,), 3), torch.full((4, 2), math.nan))
    assert torch.equal(null, network(x, level))
    assert torch.equal(network(x, level, label=label), network(x, level, label, torch.full((4, 2), math.nan)))
    for bad, message in (
        ({"label": torch.tensor([0, 1, 2, 4])}, "labels are 0 to 2, or 3 for none; came 0 to 4"),
        ({"label": torch.zeros(4)}, r"whole numbers, one an item: \(4,\), not \(4,\) of torch.float32"),
        ({"label": torch.zeros(4, 1, dtype=torch.long)}, "one an item"),
        ({"vector": torch.zeros(4, 3)}, r"has shape \(4, 2\), not \(4, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            network(x, level, **bad)
    plain = build(name, SMALL[name], **EVERYTHING[name])
    for bad, message in (({"label": label}, "takes no label"), ({"vector": vector}, "takes no vector")):
        with pytest.raises(ValueError, match=message):
            plain(x, level, **bad)


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_of_every_part_is_trained(name):
    network = everything(name).requires_grad_()
    network(normals(4, *SMALL[name]), torch.linspace(-3.0, 3.0, 4), *conditions()).square().sum().backward()
    assert not [key for key, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]


@pytest.mark.parametrize("name", SMALL)
def test_config_rebuilds_every_part(name):
    network = everything(name, outputs=2)
    twin = NETWORKS[name](**network.config)
    twin.load_state_dict(network.state_dict())
    x, level = normals(4, *SMALL[name]), torch.linspace(-3.0, 3.0, 4)
    assert network(x, level, *conditions()).shape == (4, 2 * SMALL[name][0], *SMALL[name][1:])
    assert torch.equal(network(x, level, *conditions()), twin(x, level, *conditions()))


@pytest.mark.parametrize("name", SMALL)
def test_dropout_is_for_training_alone_and_a_function_of_its_input(name):
    network, level = everything(name, dropout=0.5), torch.zeros(4)
    x = normals(4, *SMALL[name])
    plain = everything(name)
    plain.load_state_dict(network.state_dict())
    state = torch.get_rng_state()
    first = network(x, level)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, network(x, level))  # a step done again is the same
    assert float((first - plain(x, level)).abs().max()) > 1e-3
    assert torch.equal(network.eval()(x, level), plain(x, level))


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_independently(probability):
    """Shares of entries, and of pairs of neighbours along each axis; false alarms 6e-7 each, and the mean is kept."""
    x = normals(50, 40, 30) + 3.0
    dropped = (HashedDropout(probability)(x) == 0.0).double()
    assert abs(float(dropped.mean()) - probability) < 5.0 * math.sqrt(probability * (1.0 - probability) / x.numel())
    for axis in range(3):
        pairs = dropped.narrow(axis, 1, x.shape[axis] - 1) * dropped.narrow(axis, 0, x.shape[axis] - 1)
        bound = 5.0 * math.sqrt(3.0 * probability**2 * (1.0 - probability**2) / pairs.numel())  # of neighbours' sums
        assert abs(float(pairs.mean()) - probability**2) < bound
    constant = HashedDropout(probability)(torch.ones(1, 100_000))  # where the entries say nothing, their places do
    assert abs(float(constant.mean()) - 1.0) < 5.0 * math.sqrt(probability / (1.0 - probability) / 100_000)
    same = HashedDropout(probability)(torch.ones(2, 1000))  # the control: equal items drop alike
    assert torch.equal(same[0], same[1])


@pytest.mark.parametrize("levelled", [False, True], ids=["plain", "levelled"])
@pytest.mark.parametrize("name", SMALL)
def test_compiled_whole(name, levelled):
    """In one graph, conditions too: a break would be an error."""
    depth = {"mlp": {"blocks": 1}, "unet": {"blocks": 1}, "dit": {"depth": 1}}[name]
    network = everything(name, outputs=5 if levelled else 1, dropout=0.1, **depth)
    network = Levelled(network, 5) if levelled else network
    x, level = normals(4, *SMALL[name]), torch.linspace(-3.0, 3.0, 4)
    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, level, *conditions()), network(x, level, *conditions()))
    torch.testing.assert_close(compiled(x, level), network(x, level))


@pytest.mark.parametrize("name", SMALL)
def test_channels_last(name):
    """The same values and gradients, to the rounding of sums in another order."""
    network, level = everything(name).requires_grad_(), torch.linspace(-3.0, 3.0, 4)
    other = everything(name).requires_grad_().to(memory_format=torch.channels_last)
    x = normals(4, *SMALL[name])
    turned = x.to(memory_format=torch.channels_last) if x.ndim == 4 else x
    came, truth = other(turned, level, *conditions()), network(x, level, *conditions())
    torch.testing.assert_close(came, truth, rtol=1e-4, atol=1e-5 * float(truth.detach().abs().max()))
    for result in (came, truth):
        result.square().mean().backward()
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-3, atol=1e-4 * float(one.grad.abs().max()))


@pytest.mark.parametrize("name", SMALL)
def test_half_precision_by_autocast(name):
    """bfloat16 has 8 bits: the output is off by some multiple of 2^-8, and gradients are finite and in float32."""
    network, level = everything(name).requires_grad_(), torch.linspace(-3.0, 3.0, 4)
    x = normals(4, *SMALL[name])
    truth = network(x, level, *conditions()).detach()
    with torch.autocast("cpu", torch.bfloat16):
        came = network(x, level, *conditions())
    difference = (came.detach().float() - truth).square().mean().sqrt() / truth.square().mean().sqrt()
    assert 1e-5 < float(difference) < 8.0 / 256.0  # the lower bound: it was in half precision
    came.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and bool(torch.isfinite(p.grad).all()) for p in network.parameters())


@pytest.mark.parametrize(("name", "size"), [(name, size) for name in SIZES for size in SIZES[name]])
def test_sizes_grow_and_are_what_they_say(name, size):
    sizes = list(SIZES[name])
    counts = [parameter_count(name, each, (3, 32, 32)) for each in sizes]
    assert counts == sorted(counts)
    with torch.device("meta"):
        network = NETWORKS[name]((3, 32, 32), size=size)
        twin = NETWORKS[name](**network.config)
    assert sum(p.numel() for p in twin.parameters()) == counts[sizes.index(size)]
    assert "size" not in network.config  # a saved model does not depend on what a name means later


# ---- the layout of version 0.1.0 -------------------------------------------------------------------------------


def first_unet(weights, x, embedding, depths):
    """The U-Net of version 0.1.0, from its weights."""

    def layer(name, value, **options):
        return functional.conv2d(value, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    def norm(name, value):
        return functional.group_norm(value, 8, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def block(name, value):
        scale, shift = functional.linear(
            embedding, weights[f"{name}.modulation.weight"], weights[f"{name}.modulation.bias"]
        )[:, :, None, None].chunk(2, dim=1)
        hidden = layer(f"{name}.first.2", functional.silu(norm(f"{name}.first.0", value)), padding=1)
        hidden = functional.silu(norm(f"{name}.norm", hidden) * (1.0 + scale) + shift)
        skip = layer(f"{name}.skip", value) if f"{name}.skip.weight" in weights else value
        return skip + layer(f"{name}.second.1", hidden, padding=1)

    hidden, skips = layer("entry", x, padding=1) + weights["position"], []
    for depth in range(depths):
        hidden = layer(f"shrink.{depth - 1}", hidden, stride=2, padding=1) if depth else hidden
        hidden = block(f"down.{depth}", hidden)
        skips.append(hidden)
    qkv = layer("middle.qkv", norm("middle.norm", hidden))
    q, k, v = qkv.reshape(len(x), 3, 4, -1, hidden.shape[2] * hidden.shape[3]).unbind(1)
    shares = torch.softmax(q.transpose(-1, -2) @ k / math.sqrt(q.shape[2]), dim=-1)
    hidden = hidden + layer("middle.out", (v @ shares.transpose(-1, -2)).reshape(hidden.shape))
    for depth in reversed(range(depths)):
        hidden = functional.interpolate(hidden, skips[depth].shape[2:])
        hidden = block(f"up.{depth}", torch.cat([hidden, skips[depth]], dim=1))
    return layer("exit.2", functional.silu(norm("exit.0", hidden)), padding=1)


@pytest.mark.parametrize("multipliers", [(1, 2, 2), (2, 1)])
def test_the_smallest_unet_is_that_of_the_first_version(multipliers):
    """Folders of old runs name width and multipliers alone: the same weights, which say the same."""
    network = shake(build("unet", (2, 5, 7), multipliers=multipliers)).double()
    x, level = normals(3, 2, 5, 7, dtype=torch.float64), torch.linspace(-3.0, 3.0, 3, dtype=torch.float64)
    truth = first_unet(network.state_dict(), x, network.embedding(level), len(multipliers))
    torch.testing.assert_close(network(x, level), truth, rtol=1e-10, atol=1e-10)
    # nothing else is in it: position, entry and exit, blocks, halvings and attention
    rooms = {key.partition(".")[0] for key in network.state_dict()}
    assert rooms == {"embedding", "position", "entry", "down", "shrink", "middle", "up", "exit"}


def test_fourier_features_tell_levels_apart():
    """Distinct noise levels 0.1 apart are further apart than float32 noise; the features are on circles."""
    features = FourierFeatures(32)(torch.linspace(-10.0, 10.0, 201))
    radius = features.reshape(201, 2, 16).square().sum(dim=1)
    assert torch.allclose(radius, torch.ones_like(radius), atol=1e-6)
    distance = torch.cdist(features, features) + 10.0 * torch.eye(201)
    assert float(distance.min()) > 0.1
    with pytest.raises(ValueError, match="even"):
        FourierFeatures(3)


# ---- the exact layer for levels ------------------------------------------------------------------------------


def quadrature(lower, width):
    """Log-mass and mean of a standard normal in a bin by Gauss-Legendre, scaled by the largest density inside."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(200))
    z = lower[:, None] + 0.5 * width[:, None] * (nodes + 1.0)
    exponent = -0.5 * z.square()
    top = exponent.max(dim=1, keepdim=True).values
    density = torch.exp(exponent - top) * weights
    mass = density.sum(dim=1)
    log_mass = torch.log(mass * 0.5 * width) + top[:, 0] - 0.5 * math.log(2.0 * math.pi)
    return log_mass, (density * z).sum(dim=1) / mass


@pytest.mark.parametrize("width", [1e-4, 0.03, 0.049, 0.051, 0.5, 3.0])
def test_bin_moments_against_quadrature(width):
    lower = torch.linspace(-6.0, 6.0, 97, dtype=torch.float64)
    widths = torch.full_like(lower, width)
    mass, mean = bin_moments(lower, widths)
    exact_mass, exact_mean = quadrature(lower, widths)
    # The series drops terms of order (|z| width)^4 / 2880; beyond it only cancellation over a bin of 0.05 remains.
    bound = (6.0 * 0.05) ** 4 / 1000.0
    assert float((mass - exact_mass).abs().max()) < bound
    assert float((mean - exact_mean).abs().max()) < bound


def test_bin_moments_in_the_far_tails():
    """A bin a thousand deviations away: the normal piles up at its near edge, and nothing overflows in float32."""
    lower = torch.tensor([1000.0, -1002.0])
    mass, mean = bin_moments(lower, torch.tensor([2.0, 2.0]))
    # Mills: the mean is z + 1/z, the log-mass -z^2/2 - log(z sqrt(2 pi)), to order 1/z^3 and 1/z^2
    assert torch.allclose(mean, torch.tensor([1000.001, -1000.001]), rtol=1e-6)
    assert torch.allclose(mass, torch.full((2,), -500000.0 - math.log(1000.0 * math.sqrt(2.0 * math.pi))), rtol=1e-6)


def posterior_velocity(y, half_log_snr, logits, levels):
    """The velocity of independent dequantised entries with prior softmax(logits), by brute-force integration."""
    delta = 2.0 / (levels - 1)
    sin, cos = (math.sqrt(1.0 / (1.0 + math.exp(s * 2.0 * half_log_snr))) for s in (1.0, -1.0))
    nodes = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    centres = -1.0 + delta * torch.arange(levels, dtype=torch.float64)
    x0 = (centres[:, None] + delta * (nodes - 0.5)).flatten()
    prior = torch.log_softmax(logits, dim=0).repeat_interleave(20000)
    weight = torch.softmax(prior - 0.5 * ((y[:, None] - cos * x0) / sin).square(), dim=1)
    clean = weight @ x0
    return cos * (y - cos * clean) / sin - sin * clean


@pytest.mark.parametrize("half_log_snr", [-4.0, -1.0, 0.0, 2.0, 4.0])
def test_level_head_is_the_exact_posterior_mean(half_log_snr):
    levels, y = 5, torch.linspace(-1.5, 1.5, 31, dtype=torch.float64)
    logits = normals(levels, seed=3, dtype=torch.float64)
    head = LevelHead(levels)
    repeated = logits[:, None].expand(levels, len(y)).reshape(1, -1)
    velocity = head(repeated, y[None], torch.tensor([half_log_snr], dtype=torch.float64))[0]
    exact = posterior_velocity(y, half_log_snr, logits, levels)
    # Midpoint sums err by (bin / 20000 in units of the noise)^2 / 24; v divides by the smaller of sin and cos.
    tolerance = 1e-6 * math.cosh(half_log_snr)
    assert float((velocity - exact).abs().max()) < tolerance
    flat = head(torch.zeros_like(repeated), y[None], torch.tensor([half_log_snr], dtype=torch.float64))[0]
    assert float((flat - exact).abs().max()) > 100.0 * tolerance  # another prior is told apart


def test_level_head_in_float32_keeps_its_digits_from_data_to_noise():
    levels, y = 17, normals(64, seed=4, dtype=torch.float64)
    logits = normals(1, levels * 64, seed=5, dtype=torch.float64)
    head = LevelHead(levels)
    for half_log_snr in torch.linspace(-6.0, 7.0, 27, dtype=torch.float64):
        state = y * float(torch.sigmoid(-2.0 * half_log_snr).sqrt()) + 0.125 * torch.arange(64).remainder(17) - 1.0
        exact = head(logits, state[None], half_log_snr[None])
        single = head(logits.float(), state[None].float(), half_log_snr[None].float())
        # one rounding of the state is exp(lambda) ulps of the noise, at the noisy end exp(-lambda) ulps of x0 / cos;
        # about a hundred operations follow one another
        tolerance = 1e-5 * max(1.0, 4.0 * math.cosh(float(half_log_snr)))
        assert float((single - exact).abs().max()) < tolerance, float(half_log_snr)
        assert bool(torch.isfinite(single).all())


def test_level_head_has_finite_gradients_everywhere():
    head = LevelHead(17)
    for half_log_snr in (-7.0, -2.9, 0.0, 3.0, 7.5):
        y = torch.linspace(-3.0, 3.0, 41)[None].requires_grad_()
        logits = torch.zeros(1, 17 * 41, requires_grad=True)
        head(logits, y, torch.tensor([half_log_snr])).square().sum().backward()
        assert bool(torch.isfinite(y.grad).all())
        assert bool(torch.isfinite(logits.grad).all())
