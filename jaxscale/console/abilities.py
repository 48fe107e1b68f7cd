"""What `evaluate --tasks` prints."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape

from jaxscale.config.mesh_text import mesh_text
from jaxscale.console.tables import make_console, make_table, tell
from jaxscale.scaling.classes import wilson

Z = 1.959964  # of a normal distribution, 95 %


def show(records: Sequence[dict[str, Any]]) -> None:
    """A table for each checkpoint: the main metric with its interval, chance, and the continuous partner."""
    console = make_console()
    for record in records:
        mesh = mesh_text(record["mesh"]) or "one device"
        tell(console, f"{record['model']}; mesh {mesh}")
        names = ("shots", "examples", "<metric", "value", "95 %", "chance", "<partner", "its\nvalue", "its\nstd")
        table = make_table("", "task", *names, spare=("its\nstd", "shots", "examples"))
        for one in record["abilities"]:
            table.add_row(*cells(one))
        console.print(table)


def cells(one: dict[str, Any]) -> list[str]:
    main = one["metrics"][one["main"]]
    partner = one["metrics"].get(main["partner"])
    middle, half = wilson(main["value"], main["n"], Z) if main["sharp"] else (0.0, None)
    return [
        escape(one["ability"]),
        str(one["shots"]),
        str(one["examples"]),
        one["main"],
        f"{main['value']:.3f}",
        "" if half is None else f"{max(0.0, middle - half):.3f} to {min(1.0, middle + half):.3f}",
        "" if one["chance"] is None else f"{one['chance']:.3f}",
        main["partner"] if partner else "",
        f"{partner['value']:.3f}" if partner else "",
        f"{partner['std']:.3f}" if partner and "std" in partner else "",
    ]
