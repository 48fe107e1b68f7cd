"""Lines of JSON that a run leaves behind (metrics.jsonl, events.jsonl), read without jax."""

from pathlib import Path
from typing import Any

from jaxscale.reading import parse_json


def read_records(path: Path) -> list[dict[str, Any]]:
    """Objects of a file, one a line; a line cut short by a crash is left out. Empty where there is no file."""
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            value = parse_json(line)
        except ValueError:
            continue
        if isinstance(value, dict):  # what is left of a line may be a number
            records.append(value)
    return records
