"""The forms of laws, one table, and `fit(form, table) -> Law`.

Sources: Hoffmann et al. (arXiv:2203.15556), Muennighoff et al. (arXiv:2305.16264), Bhagia et al. (OLMo's ladder,
arXiv:2412.04403). The fit itself is `fit.py`, its uncertainty `bootstrap.py`, what is said of it `doubts.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import numpy as np
from pydantic import ValidationError

from jaxscale.scaling.bootstrap import DRAWS, INTERVAL, bootstrap
from jaxscale.scaling.curves import power_sum, repeated
from jaxscale.scaling.doubts import not_identified, warnings_of
from jaxscale.scaling.frontier import Envelope, Isoflop
from jaxscale.scaling.law import LAW_VERSION, Law, LeaveOut, Point, UsedRow
from jaxscale.scaling.problems import Omission, Problem, Task, chinchilla, compute, data
from jaxscale.scaling.table import Table

Array = np.ndarray
MANY_SAME = 5  # distinct rungs that any law of three or more parameters needs


@dataclass(frozen=True)
class Form:
    """A form of law.

    Attributes:
        parameters: their names, in the order of a draw. Of isoflop the last three need five budgets.
        needs: columns of the table that every run must have.
        rungs: the least distinct rungs.
        value: loss (of `task`: its loss) of parameters [..., q] at a point.
        size: parameters [..., q], FLOPs C -> N*, the best size for C = 6 N D; None where the form has none.
    """

    name: str
    formula: str
    source: str
    parameters: tuple[str, ...]
    needs: tuple[str, ...]
    rungs: int
    problem: Callable[[Table], Problem]
    value: Callable[[Array, Point], Array]
    size: Callable[[Array, float], Array] | None = None


def best_size(p: Array, C: float) -> Array:
    """N* = G (C/6)^(beta/(alpha+beta)), G = (alpha A / (beta B))^(1/(alpha+beta)) (arXiv:2203.15556, eq. 4)."""
    A, alpha, B, beta = np.moveaxis(p[..., 1:5], -1, 0)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        both = alpha + beta
        return np.exp((np.log(alpha * A) - np.log(beta * B)) / both + beta / both * np.log(C / 6))


def frontier_size(p: Array, C: float) -> Array:
    return p[..., 0] * C ** p[..., 1]


def frontier_loss(p: Array, at: Point) -> Array:
    if p.shape[-1] < 5:
        raise ValueError(
            "the law has fewer than 5 budgets and so says N* and D* alone, no loss; fit --form compute or chinchilla"
        )
    return power_sum(p[..., 2:], at.flops)


FRONTIER = ("k", "power", "E", "A", "alpha")
FORMS = {
    form.name: form
    for form in (
        Form("compute", "L = E + A C^-alpha", "arXiv:2001.08361, with a floor E", ("E", "A", "alpha"),
             ("flops", "loss"), 5, compute, lambda p, at: power_sum(p, at.flops)),
        Form("chinchilla", "L = E + A N^-alpha + B D^-beta", "arXiv:2203.15556, approach 3",
             ("E", "A", "alpha", "B", "beta"), ("parameters", "tokens", "loss"), 6, chinchilla,
             lambda p, at: power_sum(p, at.parameters, at.tokens), best_size),
        Form("isoflop", "N* = k C^power; L* = E + A C^-alpha", "arXiv:2203.15556, approach 2", FRONTIER,
             ("parameters", "flops", "loss"), 9, Isoflop, frontier_loss, frontier_size),
        Form("envelope", "N* = k C^power; L* = E + A C^-alpha", "arXiv:2203.15556, approach 1", FRONTIER,
             ("parameters", "tokens", "flops", "loss"), 5, Envelope, frontier_loss, frontier_size),
        Form("data", "L = E + A N'^-alpha + B D'^-beta, D' = U + U rD (1 - exp(-(D/U - 1)/rD)), N' alike",
             "arXiv:2305.16264", ("E", "A", "alpha", "B", "beta", "rD", "rN"), ("parameters", "tokens", "loss"), 8,
             data, lambda p, at: repeated(p, at.parameters, at.tokens, at.unique_tokens), best_size),
        Form("task", "x = E + A N^-alpha + B D^-beta; accuracy = a/(1 + exp(-k (x - x0))) + b", "arXiv:2412.04403",
             ("E", "A", "alpha", "B", "beta", "a", "k", "x0", "b"),
             ("parameters", "tokens", "bits_per_byte", "accuracy"), 6, Task,
             lambda p, at: power_sum(p[..., :5], at.parameters, at.tokens), best_size),
    )
}  # fmt: skip


def form_of(name: str) -> Form:
    if name not in FORMS:
        raise ValueError(f"--form {name}: no such form; there are {', '.join(FORMS)}")
    return FORMS[name]


def fit(form: str, table: Table, *, draws: int = DRAWS, seed: int = 0) -> Law:
    """A law of the runs that are not held out, with its interval, and its errors on runs that it is fitted without.

    The same table gives the same law, to the last bit.

    Raises:
        ValueError: a column or runs that the form needs are missing, or the law is of numbers that are not finite.
    """
    law_form = form_of(form)
    seen = table.fitted
    require(law_form, table, seen)
    try:
        return fit_runs(law_form, table, seen, draws, seed)
    except ValidationError as error:
        one = error.errors()[0]
        where = ".".join(map(str, one["loc"]))
        raise ValueError(
            f"{table.source}: --form {form} comes to {where}={one['input']}; the runs' numbers are too far apart for it"
        ) from error


def fit_runs(form: Form, table: Table, seen: Table, draws: int, seed: int) -> Law:
    """As `fit`, of a form and its runs that fit together. Raises ValidationError for numbers that are not finite."""
    problem = form.problem(seen)
    best, objective = problem.main()
    drawn, fitted = bootstrap(problem, count=draws, seed=seed)
    names = form.parameters[: len(best)]
    low, high = np.percentile(drawn, INTERVAL, axis=0)
    intervals = {n: (float(a), float(b)) for n, a, b in zip(names, low, high, strict=True)}
    omissions = problem.omissions()
    without = problem.many(np.stack([one.weights for one in omissions]))
    left = [left_out(one, p) for one, p in zip(omissions, without, strict=True) if np.isfinite(p).all()]
    return Law(
        kind="law",
        law_version=LAW_VERSION,
        form=form.name,
        formula=form.formula,
        source=table.source,
        counts=table.counts,  # type: ignore[arg-type]  # one of the three
        parameters=dict(zip(names, map(float, best), strict=True)),
        intervals=intervals,
        objective=objective,
        spread=float(np.median(np.abs(problem.residuals(best)))),
        rows=rows_of(table),
        draws=[[float(x) for x in draw] for draw in drawn],
        draws_fitted=fitted,
        leave_out=left,
        held_out=tested(form, best, drawn, table),
        not_identified=not_identified(intervals, float(np.nanmin(losses(form, seen))), seen),
        warnings=[*problem.notes, *warnings_of(form.name, seen, fitted)],
        versions={name: metadata.version(name) for name in ("jaxscale", "numpy", "scipy")},
    )


def losses(form: Form, table: Table) -> Array:
    return table.bits_per_byte if form.name == "task" else table.loss


def require(form: Form, table: Table, seen: Table) -> None:
    """Raise ValueError for runs that the form cannot be fitted to."""
    for name in form.needs:
        missing = np.isnan(getattr(table, name))
        if missing.any():
            where = "has no" if missing.all() else f"has for {table.names[int(missing.argmax())]} no"
            raise ValueError(
                f"{table.source} {where} {name}, which --form {form.name} needs; add it, or fit another form"
            )
    distinct = len(set(seen.rungs.tolist()))
    if distinct < form.rungs:
        held = f" ({table.held_out.sum()} runs are held out)" if table.held_out.any() else ""
        raise ValueError(
            f"{table.source}: {distinct} distinct rungs to fit{held}, and {form.name} with its "
            f"{len(form.parameters)} parameters needs {form.rungs}; run more, or fit a form of fewer parameters"
        )


def rows_of(table: Table) -> list[UsedRow]:
    def known(x: float) -> float | None:
        return None if np.isnan(x) else float(x)

    return [
        UsedRow(
            name=table.names[i],
            seed=table.seeds[i],
            held_out=bool(table.held_out[i]),
            parameters=known(table.parameters[i]),
            tokens=known(table.tokens[i]),
            flops=float(table.flops[i]),
            loss=known(table.loss[i]),
            unique_tokens=known(table.unique_tokens[i]),
            bits_per_byte=known(table.bits_per_byte[i]),
            accuracy=known(table.accuracy[i]),
        )
        for i in range(len(table))
    ]


def left_out(one: Omission, parameters: Array) -> LeaveOut:
    return LeaveOut(
        what=one.what,
        flops=one.flops,
        quantity=one.quantity,
        measured=one.measured,
        predicted=one.predict(parameters),
    )


def tested(form: Form, best: Array, drawn: Array, table: Table) -> list[LeaveOut]:
    """The law on the runs that were held out; a frontier's on the best of them, as it is of the best sizes alone."""
    held = table.take(table.held_out)
    if form.parameters == FRONTIER and len(held):
        held = held.take(held.loss == held.loss.min())
        if len(best) < len(FRONTIER):
            return tested_size(best, drawn, held)
    quantity = "bits_per_byte" if form.name == "task" else "loss"
    between = [np.percentile(form.value(drawn, point_of(held, i)), INTERVAL) for i in range(len(held))]
    return [
        LeaveOut(
            what=held.names[i],
            flops=float(held.flops[i]),
            quantity=quantity,
            measured=float(losses(form, held)[i]),
            predicted=float(form.value(best, point_of(held, i))),
            low=float(between[i][0]),
            high=float(between[i][1]),
        )
        for i in range(len(held))
    ]


def tested_size(best: Array, drawn: Array, held: Table) -> list[LeaveOut]:
    """N* of a frontier that says no loss, beside the best of the sizes that were held out."""
    C = float(held.flops[0])
    low, high = np.percentile(frontier_size(drawn, C), INTERVAL)
    return [
        LeaveOut(
            what=held.names[0],
            flops=C,
            quantity="N*",
            measured=float(held.parameters[0]),
            predicted=float(frontier_size(best, C)),
            low=float(low),
            high=float(high),
        )
    ]


def point_of(table: Table, i: int) -> Point:
    N, D, C, U = (float(x[i]) for x in (table.parameters, table.tokens, table.flops, table.unique_tokens))
    return Point(parameters=N, tokens=D, flops=C, unique_tokens=U)
