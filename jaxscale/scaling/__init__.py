"""Ladders of small runs, the laws that are fitted to them, and what emerges along them. No jax."""
