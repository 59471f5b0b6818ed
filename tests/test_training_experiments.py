"""The experiments of training: their configurations build, and tables are prepared as they say."""

from pathlib import Path

import numpy as np
import pytest

from experiments.training.rows import CORRELATED, kept, prepared
from sdediff.config import Config, build
from sdediff.types import DataInfo

FOLDER = Path(__file__).parents[1] / "experiments" / "training"
INFOS = {
    "digits": DataInfo((1, 8, 8), 17),
    "conditional": DataInfo((1, 8, 8), 17),
    "mnist": DataInfo((1, 28, 28), 256),
    "cifar10": DataInfo((3, 32, 32), 256),
    "series": DataInfo((1, 32)),
    "tables": DataInfo((10,)),
}


def test_every_configuration_is_known():
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(INFOS)


@pytest.mark.parametrize("name", INFOS)
def test_configurations_build(name):
    config = Config.load(FOLDER / f"{name}.toml")
    small = {"network.size": "tiny"} if name == "cifar10" else {}
    assert build(config.updated(small), INFOS[name]).data == INFOS[name]


def test_columns_that_repeat_are_left_out():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 1000))
    columns = [np.ones(1000), a, np.where(b > 0, b, 0.0), b, -2.0 * a + 0.1 * b, a + 0.5 * b]
    found = kept(np.stack(columns, axis=1))
    np.testing.assert_array_equal(found, np.stack([a, b, a + 0.5 * b], axis=1))
    assert np.abs(np.corrcoef(found, rowvar=False) - np.eye(3)).max() < CORRELATED


def test_parts_are_disjoint_and_standardised(tmp_path):
    rng = np.random.default_rng(0)
    data = np.stack([rng.integers(0, 100, 2000), 1e3 * rng.standard_normal(2000)], axis=1)
    mask = np.arange(2000) % 10 == 0
    np.savez(tmp_path / "rows.npz", data=data, test_mask=mask)
    parts = prepared(tmp_path / "rows.npz")
    assert [len(part) for part in parts] == [1620, 180, 200]
    np.testing.assert_allclose(parts.train.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(parts.train.std(axis=0), 1.0, atol=1e-12)
    everything = np.concatenate(parts)
    assert len(np.unique(everything[:, 0])) == len(np.unique(everything[:, 1])) == 2000  # none twice, none on a grid
    # a column of numbers far closer than its width keeps them, in order, and those on a grid stay in their bins
    test = data[mask]
    assert np.corrcoef(parts.test[:, 1], test[:, 1])[0, 1] > 1.0 - 1e-6
    slope, offset = np.polyfit(test[:, 0], parts.test[:, 0], 1)
    bins = (parts.test[:, 0] - offset) / slope - test[:, 0]
    assert 0.45 < np.abs(bins).max() < 0.6


def test_the_seed_divides_training_rows_alone(tmp_path):
    data = np.random.default_rng(0).standard_normal((500, 2))
    np.savez(tmp_path / "rows.npz", data=data, test_mask=np.arange(500) < 50)
    for seed in (0, 1):
        test = prepared(tmp_path / "rows.npz", seed).test
        assert np.corrcoef(test[:, 0], data[:50, 0])[0, 1] > 1.0 - 1e-4
