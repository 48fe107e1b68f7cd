"""Lines of JSON that a run leaves behind (metrics.jsonl, events.jsonl), written and read without jax."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxscale.files.reading import parse_json


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


class Lines:
    """A file to which lines are appended, each whole and at once. Where that fails, as on a full disk, the run goes on:
    the first failure is said, and those that follow are counted until a line can be written again."""

    def __init__(self, path: Path, say: Callable[[str], None]):
        self.path, self.say = path, say
        self.lost = 0
        self.torn = path.exists() and not path.read_bytes().endswith(b"\n")  # by a killed process: it stays alone
        self.file = path.open("ab", buffering=0)

    def write(self, record: dict[str, Any]) -> None:
        data = (b"\n" if self.torn else b"") + json.dumps(record).encode() + b"\n"
        try:
            if not self.path.exists():  # the directory was removed, or moved
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file.close()
                self.file = self.path.open("ab", buffering=0)
            written = self.file.write(data)
            self.torn = written != len(data)
            if self.torn:
                raise OSError(None, "the disk is full")
        except (OSError, ValueError) as error:  # ValueError: a file that could not be opened again
            self.lost += 1
            if self.lost == 1:
                self.say(
                    f"{self.path} cannot be written ({getattr(error, 'strerror', error)}); the run goes on without"
                )
            return
        if self.lost:
            self.say(f"{self.path} can be written again; {self.lost} lines are lost")
            self.lost = 0

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.file.close()
