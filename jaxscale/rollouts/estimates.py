"""What rewards of several samples a prompt say. No jax."""

from collections.abc import Iterable, Sequence
from math import comb


def best_of(rewards: Sequence[float], n: int) -> float:
    """The expected largest of n of these samples, drawn without replacement: unbiased for n new samples.

    sum_i r_(i) C(i - 1, n - 1) / C(N, n) over the rewards in ascending order, as of pass@k (arXiv:2107.03374).
    """
    assert 1 <= n <= len(rewards)
    total = comb(len(rewards), n)
    return sum(r * (comb(i, n - 1) / total) for i, r in enumerate(sorted(rewards)))


def powers(n: int) -> Iterable[int]:
    """1, 2, 4, ... up to n."""
    k = 1
    while k <= n:
        yield k
        k *= 2


def mean(values: Iterable[float]) -> float | None:
    """None for no values."""
    every = list(values)
    return sum(every) / len(every) if every else None
