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


def print_json(record: BaseModel) -> None:
    print(json.dumps(record.model_dump(mode="json"), indent=1))


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
    lines = [f"not identified: {interval}" for interval in law.not_identified.values()]
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


def between(estimate: Estimate, digits: int = 4) -> str:
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f}, 90 %)"


def show_forecast(forecast: Forecast, registered: Path | None, *, new: bool | None) -> None:
    unit = "the task's loss" if forecast.form == "task" else "nats per token"
    lines = [
        f"{forecast.name}: {forecast.parameters:.4g} parameters {forecast.counts}, {forecast.tokens:.4g} tokens, "
        f"{forecast.flops:.4g} FLOPs",
        f"predicted loss {between(forecast.loss)}, {unit}, by {forecast.form}",
    ]
    if forecast.accuracy:
        lines.append(f"predicted accuracy {between(forecast.accuracy, 3)}")
    lines.append(f"against the data: {beyond_words(forecast.beyond)}")
    if forecast.left_out_error is not None:
        error = (
            f"{forecast.left_out_error:+.2%}"
            if forecast.form != "task"
            else f"{forecast.left_out_error:+.3f} of accuracy"
        )
        lines.append(f"leave-largest-out error of this law: {error}; half of its runs lie within {forecast.spread:.2%}")
    lines += [f"doubt: {line}" for line in forecast.doubts]
    if registered is not None:
        lines.append(
            f"registered in {registered}" if new else f"registered in {registered} already, with the same bytes"
        )
    say(lines)


# --- verify ------------------------------------------------------------------------------------------------------


def show_verdict(verdict: Verdict) -> None:
    loss = verdict.registered.forecast.loss
    where = (
        "inside"
        if verdict.inside
        else f"outside by {abs(verdict.outside):.4f} nats, {'above' if verdict.outside > 0 else 'below'}"
    )
    lines = [
        f"predicted {between(loss)}",
        f"measured {verdict.measured:.4f} at step {verdict.step} of {verdict.run} ({verdict.tokens:.4g} tokens)",
        f"{where}; the prediction is {verdict.error:+.2%} off",
    ]
    if verdict.late:
        lines.append("the forecast's file is younger than the run's first step: it proves nothing by itself")
    say(lines)


def print_verdict_json(verdict: Verdict) -> None:
    values = {
        "inside": verdict.inside,
        "outside": verdict.outside,
        "error": verdict.error,
        "predicted": verdict.registered.forecast.loss.model_dump(),
        "measured": verdict.measured,
        "step": verdict.step,
        "tokens": verdict.tokens,
        "run": verdict.run,
        "late": verdict.late,
    }
    print(json.dumps(values, indent=1))


# --- optimum -----------------------------------------------------------------------------------------------------


def show_optimum(optimum: Optimum) -> None:
    model = optimum.config.model
    budget = f"{optimum.flops:.4g} FLOPs"
    if optimum.rounds:
        budget += f", which the days hold (found in {optimum.rounds} rounds)"
    lines = [
        budget,
        f"N* = {spread(optimum.size)} parameters {optimum.counts}; D* = {spread(optimum.tokens)} tokens",
        f"model: {model.num_layers} layers of width {model.embed_dim:,}, {model.num_heads} heads of {model.head_size} "
        f"({model.num_kv_heads} for keys), MLP {model.mlp_dim:,}: {optimum.parameters:.4g} parameters, "
        f"{optimum.trains:.4g} tokens in {optimum.config.steps:,} steps",
    ]
    if optimum.loss:
        lines.append(f"predicted loss {between(optimum.loss)}")
    else:
        lines.append("no loss: the law has fewer than 5 budgets")
    if optimum.accuracy:
        lines.append(f"predicted accuracy {between(optimum.accuracy, 3)}")
    lines.append(f"against the data: {beyond_words(optimum.beyond)}")
    if optimum.choice and optimum.days is not None:
        choice = optimum.choice
        lines.append(
            f"mesh {mesh_text(choice.mesh) or 'one device'}, {choice.config.step.microbatches} microbatches, remat "
            f"{choice.remat}: {choice.forecast.time.best:.3g} s a step, MFU {choice.forecast.mfu:.1%}, "
            f"{optimum.days:.3g} days on {choice.forecast.topology.name} (predicted)"
        )
    say([*lines, optimum.command])


def spread(estimate: Estimate) -> str:
    return f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g}, 90 %)"


def print_optimum_json(optimum: Optimum) -> None:
    choice = optimum.choice
    values: dict[str, Any] = {
        "flops": optimum.flops,
        "size": optimum.size.model_dump(),
        "tokens": optimum.tokens.model_dump(),
        "counts": optimum.counts,
        "model": optimum.config.model.model_dump(mode="json"),
        "parameters": optimum.parameters,
        "trains_tokens": optimum.trains,
        "steps": optimum.config.steps,
        "loss": optimum.loss and optimum.loss.model_dump(),
        "accuracy": optimum.accuracy and optimum.accuracy.model_dump(),
        "beyond": optimum.beyond,
        "mesh": choice and choice.mesh,
        "remat": choice and choice.remat,
        "microbatches": choice and choice.config.step.microbatches,
        "step_seconds": choice and choice.forecast.time.best,
        "mfu": choice and choice.forecast.mfu,
        "days": optimum.days,
        "command": optimum.command,
        "rounds": optimum.rounds,
    }
    print(json.dumps(values, indent=1))
