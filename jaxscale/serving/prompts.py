"""Records in a file of JSONL: prompts, a text each, with columns for a reward function. No jax."""

from pathlib import Path
from typing import Any

from jaxscale.files.reading import parse_json

TAKEN = ("prompts", "completions", "samples")  # a reward function's own arguments, and what is written


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The records of a file. Raises ValueError with the line of one that has no text `prompt`."""
    records = []
    for number, record in read_lines(path, "--prompts", '{"prompt": "..."}'):
        if not isinstance(record.get("prompt"), str):
            raise ValueError(f'{path}, line {number}: it has no text "prompt"; give {{"prompt": "...", ...}}')
        if wrong := [name for name in TAKEN if name in record]:
            raise ValueError(f"{path}, line {number}: the column {wrong[0]} is taken; give it another name")
        records.append(record)
    return records


def read_lines(path: Path, option: str, form: str) -> list[tuple[int, dict[str, Any]]]:
    """The line's number and the object of each line that is not blank.

    Args:
        option: which named the file. `form`: what a line should be.

    Raises:
        ValueError: no such file, a line that is no object, or none at all.
    """
    if not path.is_file():
        raise ValueError(f"{option} {path} is no file; give JSONL with {form} in each line")
    numbered = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line.decode("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error})") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: it is no object; give {form}")
        numbered.append((number, record))
    if not numbered:
        raise ValueError(f"{path} has no records; give JSONL with {form} in each line")
    return numbered


def columns_of(records: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """What stands beside the prompts, None where a record has no such key."""
    names = dict.fromkeys(name for record in records for name in record if name != "prompt")
    return {name: [record.get(name) for record in records] for name in names}
