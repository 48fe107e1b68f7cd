"""What `evaluate` prints."""

import math
from typing import Any

from rich.markup import escape

from jaxscale.config.mesh_text import mesh_text
from jaxscale.console.tables import make_console, make_table, tell
from jaxscale.serving.evaluated import Evaluated, Evaluation


def show(evaluation: Evaluation) -> None:
    """A line on what was evaluated, and a row for each source."""
    console = make_console()
    seen = "documents apart" if evaluation.masked else "documents as one text"
    mesh = mesh_text(evaluation.mesh) or "one device"
    tell(console, f"{evaluation.model}; mesh {mesh}; rows of {evaluation.seq_len:,} tokens, {seen}")
    columns = ("<source", "tokens", "loss\nnats per token", "perplexity", "bytes", "bits\nper byte")
    table = make_table("", *columns, spare=("bytes", "tokens"))
    for one in evaluation.rows:
        table.add_row(escape(one.source), *cells(one), style="bold" if one not in evaluation.sources else None)
    console.print(table)


def cells(one: Evaluated) -> list[str]:
    bits = one.bits_per_byte
    return [
        f"{one.tokens:,}",
        f"{one.loss:.4f}",
        f"{one.perplexity:,.3f}" if one.perplexity < 1e5 else f"{one.perplexity:.3e}",
        "not known" if one.bytes is None else f"{one.bytes:,}",
        "" if bits is None else f"{bits:.4f}",
    ]


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Everything, for programs; null for what is not known, or is no number."""
    return {
        "model": evaluation.model,
        "step": evaluation.step,
        "averaged": evaluation.averaged,
        "mesh": evaluation.mesh,
        "seq_len": evaluation.seq_len,
        "mask_documents": evaluation.masked,
        "sources": [values(one) for one in evaluation.sources],
        "total": values(evaluation.total),
    }


def values(one: Evaluated) -> dict[str, Any]:
    figures = {"nats": one.nats, "loss": one.loss, "perplexity": one.perplexity, "bits_per_byte": one.bits_per_byte}
    numbers = {name: x if x is not None and math.isfinite(x) else None for name, x in figures.items()}
    return {"source": one.source, "tokens": one.tokens, "bytes": one.bytes} | numbers
