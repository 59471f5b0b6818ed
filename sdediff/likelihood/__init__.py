"""Likelihood: through the probability-flow ODE, by the chain's variational bound, and in bits a dimension."""

from sdediff.likelihood.bits_per_dim import BitsPerDim, bits_per_dim
from sdediff.likelihood.elbo import Elbo, elbo
from sdediff.likelihood.log_likelihood import log_likelihood
from sdediff.likelihood.result import LogLikelihood

__all__ = ["BitsPerDim", "Elbo", "LogLikelihood", "bits_per_dim", "elbo", "log_likelihood"]
