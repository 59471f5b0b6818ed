"""The log-density along the probability-flow ODE: the path, the divergence at its nodes, and their errors."""
