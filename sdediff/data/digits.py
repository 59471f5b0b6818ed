"""The handwritten digits of scikit-learn: 1,797 scans of 8 x 8 pixels with 17 grey levels (Alpaydin & Kaynak 1998)."""

from __future__ import annotations

import numpy as np
import torch

from sdediff.data.dataset import Dataset
from sdediff.extras import extra
from sdediff.types import DataInfo

HELD_OUT = 360


def digits(seed: int = 0) -> Dataset:
    """All digits, 360 of them held out with the classes in their proportions, chosen by ``seed``."""
    with extra("train", "the digits are scikit-learn's: they need"):
        from sklearn.datasets import load_digits  # slow to import, and used nowhere else
        from sklearn.model_selection import train_test_split

    source = load_digits()
    images = torch.from_numpy(source.images).to(torch.int64)[:, None]
    labels = torch.from_numpy(source.target).to(torch.int64)
    train, held_out = train_test_split(
        range(len(images)), test_size=HELD_OUT, stratify=source.target, random_state=seed % (1 << 32)
    )
    return Dataset(
        train=images[train],
        held_out=images[held_out],
        info=DataInfo(shape=(1, 8, 8), levels=17, name="digits"),
        train_labels=labels[train],
        held_out_labels=labels[held_out],
        train_ids=np.asarray(train),
        held_out_ids=np.asarray(held_out),
    )
