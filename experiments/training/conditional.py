"""Does a model of labelled digits draw what it is told? Its samples before a classifier, by the scale of guidance.

    python -m experiments.training.conditional RUN

``RUN`` is a run of ``conditional.toml``. A perceptron of scikit-learn, trained on the real training digits, names 50
samples of each class in 20 steps; printed are the share that it names as asked, and the energy distance to the held-out
digits, which guidance gives away for it. Its accuracy on held-out digits, 97 %, is printed first; the figures of the
samples are not measured yet. Cost: a minute.
"""

from __future__ import annotations

import sys

import click
import numpy as np
import torch
from sklearn.neural_network import MLPClassifier

import sdediff
from experiments.digits_quality import energy_distance, flat
from sdediff.data import load_dataset, to_levels


@click.command()
@click.argument("run", type=click.Path(exists=True))
@click.option("--guidance", "scales", multiple=True, default=(0.0, 1.0, 2.0, 4.0), show_default=True)
@click.option("--each", default=50, show_default=True, help="Samples of each class.")
@click.option("--steps", default=20, show_default=True)
def main(run: str, scales: tuple[float, ...], each: int, steps: int) -> None:
    torch.set_num_threads(1)
    model, data = sdediff.load(run), load_dataset("digits")
    if model.data is None or model.data.shape != data.info.shape:
        sys.exit(f"{run} is no model of the digits")
    classifier = MLPClassifier((128,), alpha=1e-2, max_iter=300, random_state=0)
    classifier.fit(flat(data.train), data.train_labels.numpy())
    real = flat(data.held_out)
    named = np.mean(classifier.predict(real) == data.held_out_labels.numpy())
    print(f"held-out digits: {named:.1%} named as labelled")
    labels = torch.arange(10).repeat_interleave(each)
    for scale in scales:
        x = sdediff.sample(
            model, (len(labels), *data.info.shape), steps=steps, condition=labels, guidance=scale, null=10, seed=0
        )
        samples = flat(to_levels(x, model.data))
        named, distance = np.mean(classifier.predict(samples) == labels.numpy()), energy_distance(samples, real)
        print(f"guidance {scale:3g}: {named:.1%} named as asked, energy distance {distance:.3f}")


if __name__ == "__main__":
    main()
