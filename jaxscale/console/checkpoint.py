"""Checkpoints as a table in a terminal. No jax."""

import time
from dataclasses import asdict
from typing import Any

from rich.markup import escape

from jaxscale.checkpoint.inventory import Kept
from jaxscale.config.mesh_text import mesh_text
from jaxscale.console.tables import make_console, make_table, tell
from jaxscale.files.places import aside
from jaxscale.training.position import require_position, rows_read

UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def show(place: Any, kept: list[Kept]) -> None:
    console = make_console()
    if not kept:
        tell(console, f"no checkpoints in {place}")
        return
    names = ("<status", "<saved", "size", "<run, model", "parameters", "<mesh", "<data read so far")
    table = make_table(str(place), ">step", *names, spare=("parameters", "mesh"))
    for one in kept:
        about = one.about
        table.add_row(
            str(one.step),
            one.status if not one.problem else escape(f"{one.status}; damaged: {one.problem}"),
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.modified)),
            size(one.bytes),
            escape(f"{about['name']}, {about['model']}") if about else "",
            f"{about['parameters']:,}" if about else "",
            escape(mesh_text(about["mesh"]) or "one device") if about else "",
            escape(data_read(one)),
        )
    console.print(table)
    if any(one.status == "half-written" for one in kept):
        note = "half-written: being written just now, or left by a run that was killed; the next start clears it away"
        tell(console, note)
    if any(one.status == "set aside" for one in kept):
        tell(console, f"set aside as damaged, in {aside(place)}")


def data_read(one: Kept) -> str:
    """Rows of the data's order that the steps so far have seen."""
    data = one.about.get("data") or {}
    if one.step is None or not isinstance(data.get("batch_size"), int):
        return ""
    try:
        require_position(data)
    except ValueError:
        return ""
    read = rows_read(data, one.step, data["batch_size"])
    return f"{read:,} rows of {data.get('seq_len')} tokens, seed {data.get('seed')}"


def size(count: int) -> str:
    for unit, name in UNITS:
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count} bytes"


def as_json(one: Kept) -> dict[str, Any]:
    values = asdict(one)
    return values | {"files": len(one.files), "whole": one.whole}
