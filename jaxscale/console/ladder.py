"""What `ladder` prints."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxscale.console.tables import make_console, make_table, tell
from jaxscale.hardware.topology import Topology
from jaxscale.scaling.costed import Ladders
from jaxscale.scaling.counts import short
from jaxscale.scaling.ladder import Ladder
from jaxscale.scaling.record import read_ladder_record
from jaxscale.scaling.verdicts import LEAST_RUNGS, Curve, curves_of


def show_plan(ladder: Ladder, costed: Ladders, topology: Topology | None) -> None:
    console = make_console()
    where = f" on {topology.name}, seconds predicted" if topology else "; give --topology for seconds"
    tell(console, f"Ladder {ladder.name}: {len(costed.costs)} runs for law={ladder.law}{where}")
    last = ["seconds", "<mesh"] if topology else []
    table = make_table(
        "The cheapest first", "<rung", "N", "D", "D/N", "FLOPs", "lr", "steps", *last, spare=("D/N", "lr"), ruled=False
    )
    for cost in costed.costs:
        r = cost.rung
        cells = [r.name + " (held out)" * r.held_out, short(r.parameters), short(r.tokens)]
        cells += [f"{r.tokens / r.parameters:.3g}", f"{r.flops:.2e}"]
        cells += [f"{r.config.optimizer.learning_rate:.2e}", f"{r.config.steps:,}"]
        table.add_row(*cells, *([f"{cost.seconds:,.3g}", cost.mesh] if topology else []))
    console.print(table)
    for line in totals(costed):
        tell(console, line)


def totals(costed: Ladders) -> list[str]:
    lines = [f"all of them: {costed.flops:.3g} FLOPs (6 N D; N leaves out the table of embeddings)"]
    if all(c.seconds is not None for c in costed.costs):
        lines[0] += f", {sum(c.seconds or 0 for c in costed.costs):,.0f} s predicted, without starting and compiling"
    if costed.target_flops:
        lines.append(
            f"the target: {costed.target_flops:.3g} FLOPs; the ladder costs {costed.flops / costed.target_flops:.2%}"
        )
    return lines


def plan_as_json(ladder: Ladder, costed: Ladders, topology: Topology | None) -> dict[str, Any]:
    rungs = []
    for cost in costed.costs:
        row = {k: v for k, v in asdict(cost.rung).items() if k != "config"}
        config = cost.rung.config
        row |= {"steps": config.steps, "batch_size": config.data.batch_size, "seconds": cost.seconds, "mesh": cost.mesh}
        rungs.append(row | {"learning_rate": config.optimizer.learning_rate})
    return {
        "kind": "ladder plan",
        "name": ladder.name,
        "law": ladder.law,
        "topology": topology.name if topology else None,
        "basis": "predicted",
        "flops": costed.flops,
        "target_flops": costed.target_flops,
        "rungs": rungs,
    }


def show_record(path: Path) -> None:
    """The rungs of a record, and the kind of each ability's curve."""
    record = read_ladder_record(path)
    console = make_console()
    table = make_table(f"Ladder {record.name}, measured", "<rung", "N", "D", "FLOPs", "loss", "s", ruled=False)
    for row in record.rungs:
        name = row.name + " (held out)" * row.held_out
        cells = [short(row.parameters), short(row.tokens), f"{row.flops:.2e}", f"{row.loss:.4f}"]
        table.add_row(name, *cells, f"{row.seconds:.0f}")
    console.print(table)
    for curve in curves_of(record):
        tell(console, told(curve))
    tell(console, f"the record is in {path}")


def told(curve: Curve) -> str:
    """An ability's verdict in a line, with its continuous partner's kind."""
    if curve.verdict is None:
        return f"{curve.name}: {len(curve.points)} runs, no kind below {LEAST_RUNGS} rungs"
    partner = f"; {curve.partner_metric}: {curve.partner.kind}" if curve.partner else ""
    return f"{curve.name}, {curve.metric}: {curve.verdict}{partner}"
