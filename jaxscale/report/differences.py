"""Which settings differ between runs."""

import json
from collections.abc import Iterator
from typing import Any

from jaxscale.files.redact import redact
from jaxscale.report.inputs import Run
from jaxscale.report.plots import Row, Table

APART = ("name", "out")  # what a run is called and where it is kept always differ, and change nothing
MISSING = object()


def differences(runs: list[Run], names: list[str]) -> list[Table]:
    """A table of the keys that differ, a column for each run; none where nothing does."""
    configs = [dict(flat(run.config)) for run in runs]
    keys = [k for k in dict.fromkeys(k for config in configs for k in config) if k not in APART]
    differ = [k for k in keys if any(c.get(k, MISSING) != configs[0].get(k, MISSING) for c in configs)]
    if not differ:
        return []
    rows: list[Row] = [[key, *(said(config.get(key, MISSING)) for config in configs)] for key in differ]
    return [Table("Settings that differ", ["setting", *names], rows, [])]


def flat(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """`section.key` and its value, as the command line writes them; an empty mapping is a value."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def said(value: Any) -> str:
    if value is MISSING:
        return "not set"
    return redact(value if isinstance(value, str) else json.dumps(value, default=str))
