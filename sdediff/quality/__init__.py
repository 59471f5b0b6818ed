"""The quality of samples: distances between samples and data in a feature space, with intervals."""

from sdediff.quality.evaluate import MEASURES, evaluate
from sdediff.quality.features import FEATURES
from sdediff.quality.frechet import Frechet, frechet_distance
from sdediff.quality.measure import Figure, Measure
from sdediff.quality.neighbours import PrecisionRecall, precision_and_recall
from sdediff.quality.quality import Quality
from sdediff.quality.scripted import Scripted
from sdediff.quality.sliced import SlicedWasserstein
from sdediff.quality.two_sample import TwoSample

__all__ = [
    "FEATURES",
    "MEASURES",
    "Figure",
    "Frechet",
    "Measure",
    "PrecisionRecall",
    "Quality",
    "Scripted",
    "SlicedWasserstein",
    "TwoSample",
    "evaluate",
    "frechet_distance",
    "precision_and_recall",
]
