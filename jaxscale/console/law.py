"""What the `law` verbs print."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.markup import escape

from jaxscale.config.mesh_text import mesh_text
from jaxscale.console.tables import FittedTable, make_console, make_table, tell
from jaxscale.scaling.counts import COUNTS
from jaxscale.scaling.forecast import Estimate, Forecast, beyond_words
from jaxscale.scaling.law import Law, LeaveOut
from jaxscale.scaling.optimum import Optimum
from jaxscale.scaling.register import Verdict

SHOWN = 5  # rungs that were left out, the largest


def print_json(found: BaseModel) -> None:
    print(json.dumps(found.model_dump(mode="json"), indent=1))


def say(lines: Iterable[str]) -> None:
    console = make_console()
    for line in lines:
        tell(console, line)


def number(x: float) -> str:
    return f"{x:.4g}" if 1e-3 <= abs(x) < 1e5 or x == 0 else f"{x:.3e}"


# --- fit ---------------------------------------------------------------------------------------------------------


def show_law(law: Law, path: Path, not_read: tuple[str, ...]) -> None:
    """Parameters with intervals, then what the law makes of rungs that it was fitted without."""
    fitted = law.fitted_rows
    say([f"{law.form}: {law.formula}, of {len(fitted)} runs of {law.source}; N {COUNTS[law.counts]}"])
    table = make_table("", "parameter", "value", "90 % interval", "<doubt", ruled=False)
    for name, value in law.parameters.items():
        low, high = law.intervals[name]
        doubt = "not identified" if name in law.not_identified else ""
        table.add_row(name, number(value), f"{number(low)} to {number(high)}", doubt)
    make_console().print(table)
    for title, rows in (("Left out, each in turn", law.leave_out[:SHOWN]), ("Held out", law.held_out)):
        if rows:
            make_console().print(errors_table(title, rows))
    lines = [f"not identified: {words}" for words in law.not_identified.values()]
    lines += [f"warning: {line}" for line in law.warnings]
    if largest := law.largest:
        lines.append(
            f"leave-largest-out: {percent(largest)} ({largest.what}, from the {len(fitted)} runs less its own)"
        )
    what = "N*" if law.form == "isoflop" else "the loss"
    lines.append(
        f"half of the runs lie within {law.spread:.2%} of the law ({what}); intervals are of the law, not of a run, "
        "and suppose that its form is right"
    )
    if not_read:
        lines.append(f"columns that were not read: {', '.join(not_read)}")
    say([*lines, f"written to {path}"])


def errors_table(title: str, rows: list[LeaveOut]) -> FittedTable:
    interval = ["90 % interval"] if rows[0].low is not None else []
    spare = ("FLOPs", *interval)
    columns = "FLOPs", "<quantity", "measured", "predicted", "error", *interval
    table = make_table(title, "<rung", *columns, spare=spare, ruled=False)
    for row in rows:
        cells = [f"{row.flops:.3g}", row.quantity, number(row.measured), number(row.predicted), percent(row)]
        if row.low is not None and row.high is not None:
            cells.append(f"{number(row.low)} to {number(row.high)}")
        table.add_row(escape(row.what), *cells)
    return table


def percent(row: LeaveOut) -> str:
    return f"{row.error:+.3f}" if row.quantity == "accuracy" else f"{row.error:+.2%}"


# --- forecast ----------------------------------------------------------------------------------------------------


def between(found: Estimate, digits: int = 4) -> str:
    return f"{found.value:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f}, 90 %)"


def show_forecast(found: Forecast, registered: Path | None, *, new: bool | None) -> None:
    unit = "the task's loss" if found.form == "task" else "nats per token"
    lines = [
        f"{found.name}: {found.parameters:.4g} parameters {found.counts}, {found.tokens:.4g} tokens, "
        f"{found.flops:.4g} FLOPs",
        f"predicted loss {between(found.loss)}, {unit}, by {found.form}",
    ]
    if found.accuracy:
        lines.append(f"predicted accuracy {between(found.accuracy, 3)}")
    lines.append(f"against the data: {beyond_words(found.beyond)}")
    if found.left_out_error is not None:
        error = f"{found.left_out_error:+.2%}" if found.form != "task" else f"{found.left_out_error:+.3f} of accuracy"
        lines.append(f"leave-largest-out error of this law: {error}; half of its runs lie within {found.spread:.2%}")
    lines += [f"doubt: {line}" for line in found.doubts]
    if registered is not None:
        lines.append(
            f"registered in {registered}" if new else f"registered in {registered} already, with the same bytes"
        )
    say(lines)


# --- verify ------------------------------------------------------------------------------------------------------


def show_verdict(found: Verdict) -> None:
    loss = found.registered.forecast.loss
    where = (
        "inside"
        if found.inside
        else f"outside by {abs(found.outside):.4f} nats, {'above' if found.outside > 0 else 'below'}"
    )
    lines = [
        f"predicted {between(loss)}",
        f"measured {found.measured:.4f} at step {found.step} of {found.run} ({found.tokens:.4g} tokens)",
        f"{where}; the prediction is {found.error:+.2%} off",
    ]
    if found.late:
        lines.append("the forecast's file is younger than the run's first step: it proves nothing by itself")
    say(lines)


def print_verdict_json(found: Verdict) -> None:
    values = {
        "inside": found.inside,
        "outside": found.outside,
        "error": found.error,
        "predicted": found.registered.forecast.loss.model_dump(),
        "measured": found.measured,
        "step": found.step,
        "tokens": found.tokens,
        "run": found.run,
        "late": found.late,
    }
    print(json.dumps(values, indent=1))


# --- optimum -----------------------------------------------------------------------------------------------------


def show_optimum(found: Optimum) -> None:
    model = found.config.model
    budget = f"{found.flops:.4g} FLOPs"
    if found.rounds:
        budget += f", which the days hold (found in {found.rounds} rounds)"
    lines = [
        budget,
        f"N* = {spread(found.size)} parameters {found.counts}; D* = {spread(found.tokens)} tokens",
        f"model: {model.num_layers} layers of width {model.embed_dim:,}, {model.num_heads} heads of {model.head_size} "
        f"({model.num_kv_heads} for keys), MLP {model.mlp_dim:,}: {found.parameters:.4g} parameters, "
        f"{found.trains:.4g} tokens in {found.config.steps:,} steps",
    ]
    if found.loss:
        lines.append(f"predicted loss {between(found.loss)}")
    else:
        lines.append("no loss: the law has fewer than 5 budgets")
    if found.accuracy:
        lines.append(f"predicted accuracy {between(found.accuracy, 3)}")
    lines.append(f"against the data: {beyond_words(found.beyond)}")
    if found.choice and found.days is not None:
        choice = found.choice
        lines.append(
            f"mesh {mesh_text(choice.mesh) or 'one device'}, {choice.config.step.microbatches} microbatches, remat "
            f"{choice.remat}: {choice.forecast.time.best:.3g} s a step, MFU {choice.forecast.mfu:.1%}, "
            f"{found.days:.3g} days on {choice.forecast.topology.name} (predicted)"
        )
    say([*lines, found.command])


def spread(found: Estimate) -> str:
    return f"{found.value:.3g} ({found.low:.3g} to {found.high:.3g}, 90 %)"


def print_optimum_json(found: Optimum) -> None:
    choice = found.choice
    values: dict[str, Any] = {
        "flops": found.flops,
        "size": found.size.model_dump(),
        "tokens": found.tokens.model_dump(),
        "counts": found.counts,
        "model": found.config.model.model_dump(mode="json"),
        "parameters": found.parameters,
        "trains_tokens": found.trains,
        "steps": found.config.steps,
        "loss": found.loss and found.loss.model_dump(),
        "accuracy": found.accuracy and found.accuracy.model_dump(),
        "beyond": found.beyond,
        "mesh": choice and choice.mesh,
        "remat": choice and choice.remat,
        "microbatches": choice and choice.config.step.microbatches,
        "step_seconds": choice and choice.forecast.time.best,
        "mfu": choice and choice.forecast.mfu,
        "days": found.days,
        "command": found.command,
        "rounds": found.rounds,
    }
    print(json.dumps(values, indent=1))
