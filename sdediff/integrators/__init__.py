"""Bridges to general-purpose integrators; the only importers of torchdiffeq and torchsde."""
