"""What kind of curve an ability draws over compute: flat, smooth, emergent, inverse, U-shaped, or none of them. No jax.

A verdict holds up to the compute of the largest rung, and says so: what does not work there does not work *yet*.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.stats import chi2

Kind = Literal["flat", "smooth", "emergent", "inverse", "U-shaped", "not correlated"]
KINDS: tuple[Kind, ...] = ("smooth", "flat", "inverse", "U-shaped", "not correlated", "emergent")
BIG_BENCH = {"smooth": 0.29, "flat": 0.22, "inverse": 0.025, "not correlated": 0.13, "emergent": 0.33}
"""Shares of 202 BIG-bench tasks, labelled by hand (Wei et al., arXiv:2206.07682, and its appendix)."""

LEAST_RUNGS = 4
FLAT_CHANCE = 0.001  # a constant is given up below this p
LEAST_RANGE = 0.1  # what varies by less is flat, and what rises by less did not emerge
EXPLAINED = 0.85  # of the weighted variance, by a monotone curve
ERRORS = 3.0  # standard errors that count as a difference
SAME = 0.15  # of the range: a continuous metric that has moved by less has not moved
DECADE = 10.0  # of compute, from the first rung to the first that leaves chance
MOST_BREAKTHROUGH = 100.0  # it grows without bound where most steps are 0


@dataclass(frozen=True)
class Point:
    """One rung of one seed.

    Attributes:
        flops: of its training.
        value: the metric's mean over the examples, higher is better.
        examples: how many.
        deviation: the standard deviation over examples; None for a share of right ones, which implies it.
    """

    flops: float
    value: float
    examples: int
    deviation: float | None = None


@dataclass(frozen=True)
class Rung:
    """All seeds of one compute, pooled. `error`: the standard error, with the seeds' spread; `apart`: they disagree."""

    flops: float
    value: float
    error: float
    seeds: tuple[float, ...]
    apart: bool


@dataclass(frozen=True)
class Verdict:
    """A curve's kind and the numbers behind it.

    Attributes:
        up_to: FLOPs of the largest rung.
        why: the numbers that decided, in words.
        breakthrough, linearity: BIG-bench's (arXiv:2206.04615, appendix B).
        discontinuity: the last value over the log-linear line through the two before it (PaLM, arXiv:2204.02311).
        seeds: where seeds disagree, in words; empty where none do.
    """

    kind: Kind
    up_to: float
    why: str
    breakthrough: float
    linearity: float
    discontinuity: float
    seeds: str
    rungs: tuple[Rung, ...]

    def __str__(self) -> str:
        up_to = f" up to {self.up_to:.2g} FLOPs"
        return f"{self.kind}{up_to}: {self.why}" + (f"; {self.seeds}" if self.seeds else "")


def classify(points: Sequence[Point], chance: float | None) -> Verdict:
    """The kind of a curve.

    Args:
        points: of all rungs and seeds, in any order.
        chance: what guessing gives; None for a continuous metric, whose first rungs stand for it.

    Raises:
        ValueError: fewer than four rungs, or a value that is no number.
    """
    if not all(math.isfinite(p.value) and p.flops > 0 and p.examples > 0 for p in points):
        raise ValueError("a curve has a value that is no number, or a rung without compute or examples")
    rungs = pooled(points)
    if len(rungs) < LEAST_RUNGS:
        raise ValueError(f"a curve of {len(rungs)} rungs has no kind; give {LEAST_RUNGS} or more")
    kind, why = decided(rungs, chance)
    values = np.array([r.value for r in rungs])
    apart = [f"{r.flops:.2g} FLOPs ({', '.join(f'{v:.2f}' for v in r.seeds)})" for r in rungs if r.apart]
    seeds = f"seeds disagree at {', '.join(apart)}" if apart else ""
    b, line = breakthrough(values), linearity(values)
    return Verdict(kind, rungs[-1].flops, why, b, line, discontinuity(rungs), seeds, tuple(rungs))


def decided(rungs: Sequence[Rung], chance: float | None) -> tuple[Kind, str]:
    """The kind, and why, in the order in which the kinds are asked for."""
    values, errors = np.array([r.value for r in rungs]), np.array([r.error for r in rungs])
    spread = float(np.ptp(values))
    constant = chi2.sf(float((((values - weighted(values, errors)) / errors) ** 2).sum()), len(values) - 1)
    if spread < LEAST_RANGE or constant > FLAT_CHANCE:
        return "flat", f"from {values.min():.2f} to {values.max():.2f}; a constant explains it with p = {constant:.2g}"
    if trough := u_shape(values, errors, chance):
        return "U-shaped", trough
    up, down = explained(values), explained(-values)
    if up > EXPLAINED:
        quiet = quiet_rungs(rungs, chance)
        gained = values[-1] - (values[0] if chance is None else chance)
        if quiet and gained > LEAST_RANGE and gained > ERRORS * errors[-1]:
            level = "as the first" if chance is None else f"at chance ({chance:.2f})"
            return "emergent", f"{quiet} rungs {level}, up to {rungs[quiet - 1].flops:.2g} FLOPs, then {values[-1]:.2f}"
        return "smooth", f"rises from {values[0]:.2f} to {values[-1]:.2f}; a rise explains {up:.0%} of the variance"
    if down > EXPLAINED:
        return "inverse", f"falls from {values[0]:.2f} to {values[-1]:.2f}; a fall explains {down:.0%} of the variance"
    return "not correlated", f"a rise explains {up:.0%} of the variance, a fall {down:.0%}"


def pooled(points: Sequence[Point]) -> list[Rung]:
    """Points of equal compute together, in the order of compute."""
    rungs = []
    for flops in sorted({p.flops for p in points}):
        here = [p for p in points if p.flops == flops]
        values = np.array([p.value for p in here])
        errors = np.array([standard_error(p) for p in here])
        within = float(np.sqrt((errors**2).sum())) / len(here)
        between = float(values.std(ddof=1)) / math.sqrt(len(here)) if len(here) > 1 else 0.0
        off = float((((values - weighted(values, errors)) / errors) ** 2).sum())
        apart = len(here) > 1 and chi2.sf(off, len(here) - 1) < FLAT_CHANCE and float(np.ptp(values)) > LEAST_RANGE
        rungs.append(Rung(flops, float(values.mean()), max(within, between), tuple(values.tolist()), apart))
    return rungs


def standard_error(point: Point) -> float:
    """Of a mean; for a share, half of Wilson's interval at one standard deviation, which is above 0 at 0 and 1."""
    if point.deviation is not None:
        return max(point.deviation / math.sqrt(point.examples), 1e-9)
    return wilson(min(max(point.value, 0.0), 1.0), point.examples, 1.0)[1]


def wilson(share: float, n: int, z: float) -> tuple[float, float]:
    """(middle, half the width) of the interval of a share of n, z standard deviations wide each way (Wilson, 1927)."""
    scale = 1 + z**2 / n
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / scale
    return (share + z**2 / (2 * n)) / scale, half


def weighted(values: np.ndarray, errors: np.ndarray) -> float:
    return float((values / errors**2).sum() / (1 / errors**2).sum())


def explained(values: np.ndarray) -> float:
    """The share of the variance that the best rising curve explains (isotonic regression)."""
    whole = float(((values - values.mean()) ** 2).sum())
    rest = float(((values - isotonic_regression(values).x) ** 2).sum())
    return 1 - rest / whole if whole else 0.0


def u_shape(values: np.ndarray, errors: np.ndarray, chance: float | None) -> str:
    """Why a curve falls, below chance, and then rises; empty where it does not."""
    low = int(values.argmin())
    if chance is None or low in (0, len(values) - 1) or values[low] > chance - ERRORS * errors[low]:
        return ""
    falls = values[0] - values[low] > ERRORS * math.hypot(errors[0], errors[low])
    rises = values[-1] - values[low] > max(LEAST_RANGE, ERRORS * math.hypot(errors[-1], errors[low]))
    fit = np.concatenate([-isotonic_regression(-values[:low]).x, values[low : low + 1],
                          isotonic_regression(values[low + 1 :]).x])  # fmt: skip
    whole = float(((values - values.mean()) ** 2).sum())
    share = 1 - float(((values - fit) ** 2).sum()) / whole if whole else 0.0
    if not (falls and rises and share > EXPLAINED):
        return ""
    return (
        f"falls from {values[0]:.2f} to {values[low]:.2f}, below chance ({chance:.2f}), then rises to {values[-1]:.2f}"
    )


def quiet_rungs(rungs: Sequence[Rung], chance: float | None) -> int:
    """How many of the first rungs are where guessing is; 0 where they are fewer than two, or left within a decade."""
    count = 0
    spread = max(r.value for r in rungs) - min(r.value for r in rungs)
    for rung in rungs:
        near = SAME * spread if chance is None else ERRORS * rung.error
        if abs(rung.value - (rungs[0].value if chance is None else chance)) > near:
            break
        count += 1
    left = rungs[min(count, len(rungs) - 1)].flops
    return count if count >= 2 and left >= DECADE * rungs[0].flops else 0


def signed_range(values: np.ndarray) -> float:
    return float(np.sign(int(values.argmax()) - int(values.argmin())) * np.ptp(values))


def breakthrough(values: np.ndarray) -> float:
    """I / sqrt(median of squared steps), at most 100 either way."""
    step = math.sqrt(float(np.median(np.diff(values) ** 2)))
    whole = signed_range(values)
    return math.copysign(min(abs(whole) / step if step else math.inf, MOST_BREAKTHROUGH), whole) if whole else 0.0


def linearity(values: np.ndarray) -> float:
    """I / (steps x root mean square of the steps): 1 for a straight rise."""
    steps = np.diff(values)
    size = math.sqrt(float((steps**2).mean()))
    return signed_range(values) / (len(steps) * size) if size else 0.0


def discontinuity(rungs: Sequence[Rung]) -> float:
    """The last rung's value over the line, in log compute, through the two before it."""
    (a, b, c), (x, y, z) = [r.value for r in rungs[-3:]], [math.log(r.flops) for r in rungs[-3:]]
    return c - (b + (b - a) / (y - x) * (z - y))
