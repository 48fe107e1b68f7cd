"""Scaling laws: fitted to a ladder of runs, with intervals, and what they forecast. No jax."""
