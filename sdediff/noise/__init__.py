"""Noise as a function of ``(seed, sample, step, stage)``, the same on every device."""

from sdediff.noise.brownian import BrownianPath
from sdediff.noise.source import NoiseSource
from sdediff.noise.stages import BROWNIAN_STEP, Stage, probe_step, sign_step
from sdediff.noise.strata import stratified
from sdediff.noise.words import STREAM

__all__ = ["BROWNIAN_STEP", "STREAM", "BrownianPath", "NoiseSource", "Stage", "probe_step", "sign_step", "stratified"]
