"""Lines of JSON that a run leaves behind (metrics.jsonl, events.jsonl), read without jax."""

import json
from pathlib import Path
from typing import Any


def read_records(path: Path) -> list[dict[str, Any]]:
    """Objects of a file, one a line; a line cut short by a crash is left out. Empty where there is no file."""
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):  # what is left of a line may be a number
            records.append(value)
    return records
