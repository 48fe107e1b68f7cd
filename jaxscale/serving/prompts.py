"""Prompts in a file of JSONL: a text each, with columns for a reward function. No jax."""

from pathlib import Path
from typing import Any

from jaxscale.files.reading import parse_json

TAKEN = ("prompts", "completions", "samples")  # a reward function's own arguments, and what is written


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The records of a file. Raises ValueError with the line of one that has no text `prompt`."""
    if not path.is_file():
        raise ValueError(f'--prompts {path} is no file; give JSONL with {{"prompt": "..."}} in each line')
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line.decode("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error})") from None
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
            raise ValueError(f'{path}, line {number}: it has no text "prompt"; give {{"prompt": "...", ...}}')
        if wrong := [name for name in TAKEN if name in record]:
            raise ValueError(f"{path}, line {number}: the column {wrong[0]} is taken; give it another name")
        records.append(record)
    if not records:
        raise ValueError(f"{path} has no prompts")
    return records


def columns_of(records: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """What stands beside the prompts, None where a record has no such key."""
    names = dict.fromkeys(name for record in records for name in record if name != "prompt")
    return {name: [record.get(name) for record in records] for name in names}
