"""Synthetic ladders of each form, drawn from a law that is known. Noise is log-normal on each run's loss."""

import numpy as np

from jaxscale.scaling.curves import power_sum, repeated, sigmoid
from jaxscale.scaling.table import Table, make_table

EPOCH = np.array([1.81724, 477.84, 0.34731, 2143.86, 0.36718])  # E, A, alpha, B, beta: arXiv:2404.10102, refitted
MUENNIGHOFF = np.array(
    [np.exp(0.6254804), np.exp(6.255414), 0.3526596, np.exp(7.3049974), 0.3526596, 15.387756, 5.309743]
)
EQUAL = np.array([1.8, 480.0, 0.36, 1600.0, 0.36])  # alpha = beta: parabolas in log N are then unbiased
SIGMOID = np.array([-0.72, 6.0, 0.85, 0.97])  # a, k, x0, b
NOISE = 0.01


def noisy(rng: np.random.Generator | None, value, noise: float = NOISE):
    return float(value) if rng is None else float(value * np.exp(noise * rng.standard_normal()))


def compute_rows(rng=None, noise=NOISE):
    law = np.array([1.7, 900.0, 0.155])
    return [{"flops": C, "loss": noisy(rng, power_sum(law, C), noise)} for C in np.geomspace(1e16, 1e21, 14)], law


def chinchilla_rows(rng=None, noise=NOISE):
    rows = []
    for N in np.geomspace(1e7, 2e9, 6):
        for ratio in (5, 20, 80, 320):
            loss = noisy(rng, power_sum(EPOCH, N, ratio * N), noise)
            rows.append({"parameters": N, "tokens": ratio * N, "loss": loss})
    return rows, EPOCH


def isoflop_rows(rng=None, noise=NOISE, budgets=5):
    rows = []
    for C in np.geomspace(1e18, 1e21, budgets):
        best = size_of(EQUAL, C)
        for share in np.geomspace(0.2, 5, 9):
            N = best * share
            rows.append({"parameters": N, "flops": C, "loss": noisy(rng, power_sum(EQUAL, N, C / 6 / N), noise)})
    return rows, EQUAL


def envelope_rows(rng=None, noise=NOISE):
    """A run's whole curve is shifted by its noise, as a seed shifts it."""
    rows = []
    for N in np.geomspace(1e7, 1e10, 32):
        D, shift = 100 * N, noisy(rng, 1.0, noise)
        curve = tuple((t, float(power_sum(EQUAL, N, t)) * shift) for t in np.geomspace(D / 300, D, 80))
        rows.append({"parameters": N, "tokens": D, "loss": curve[-1][1], "curve": curve})
    return rows, EQUAL


def data_rows(rng=None, noise=NOISE):
    rows = []
    for N in np.geomspace(5e7, 5e9, 5):
        for U in (2e9, 2e10):
            for epochs in (1, 4, 16, 64):
                loss = noisy(rng, repeated(MUENNIGHOFF, N, U * epochs, U), noise)
                rows.append({"parameters": N, "tokens": U * epochs, "unique_tokens": U, "loss": loss})
    return rows, MUENNIGHOFF


def task_rows(rng=None, noise=NOISE):
    law = np.array([0.45, 250.0, 0.33, 900.0, 0.36])
    rows = []
    for N in np.geomspace(1e7, 2e9, 6):
        for ratio in (5, 20, 80, 320):
            x = float(power_sum(law, N, ratio * N))
            accuracy = sigmoid(SIGMOID, x) + (0 if rng is None else 0.01 * rng.standard_normal())
            bits = noisy(rng, x, noise)
            rows.append({"parameters": N, "tokens": ratio * N, "bits_per_byte": bits, "accuracy": float(accuracy)})
    return rows, np.concatenate([law, SIGMOID])


def size_of(p: np.ndarray, C: float) -> float:
    """N* of E, A, alpha, B, beta by bisection of dL/dlog N at C = 6 N D: no formula of the library."""
    _, A, alpha, B, beta = p
    low, high = 1.0, C / 6
    for _ in range(200):
        N = (low * high) ** 0.5
        slope = -alpha * A * N**-alpha + beta * B * (C / 6 / N) ** -beta
        low, high = (N, high) if slope < 0 else (low, N)
    return N


ROWS = {
    "compute": compute_rows, "chinchilla": chinchilla_rows, "isoflop": isoflop_rows, "envelope": envelope_rows,
    "data": data_rows, "task": task_rows,
}  # fmt: skip


def ladder(form: str, rng=None, **options) -> tuple[Table, np.ndarray]:
    rows, truth = ROWS[form](rng, **options)
    return make_table(rows, f"a ladder of {form}"), truth
