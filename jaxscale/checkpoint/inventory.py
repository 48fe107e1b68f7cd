"""What checkpoints there are under a place, told from files and metadata alone, and taking some away. No jax."""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etils import epath

from jaxscale.files.lock import Lock
from jaxscale.files.places import HALF_WRITTEN, File, aside, files, open_place, remove
from jaxscale.files.reading import parse_yaml
from jaxscale.files.urls import is_url, moved_along

METADATA = "meta/metadata"
COMMIT = "commit_success.txt"  # orbax's; written last
# what a restore reads beside the arrays' own files, whose names only the manifest knows
NEEDED = (METADATA, "state/_METADATA", "state/manifest.ocdbt")


@dataclass(frozen=True)
class Kept:
    """One directory under a place of checkpoints; `status` is committed, half-written or set aside."""

    name: str
    step: int | None
    status: str
    modified: float  # seconds since 1970, of the newest file
    bytes: int
    files: dict[str, File] = field(repr=False)
    about: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def whole(self) -> bool:
        return self.status == "committed" and not self.problem


def find_place(directory: str) -> epath.Path:
    """Where the checkpoints of a run are: of its directory, of its checkpoints' directory, or of a URL.

    Raises:
        ValueError: there is nothing, or a store that does not answer.
    """
    given = open_place(directory)
    if is_url(given):
        return given / "checkpoints" if (given / "checkpoints").is_dir() else given
    if (given / "config.yaml").is_file():
        elsewhere = configured(Path(given) / "config.yaml")
        return open_place(elsewhere) if elsewhere else given / "checkpoints"
    if not given.is_dir():
        raise ValueError(f"{directory} is no directory; give a run's, its checkpoints', or s3://bucket/prefix")
    return given / "checkpoints" if (given / "checkpoints").is_dir() else given


def configured(path: Path) -> str | None:
    """checkpoint.directory of a run's config.yaml, where the run's directory is now."""
    try:
        values = parse_yaml(path.read_text())
        elsewhere = (values.get("checkpoint") or {}).get("directory")
        return elsewhere and moved_along(elsewhere, values.get("out"), path.parent)
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"cannot read {path}: {' '.join(str(error).split())}; give its checkpoints' directory"
        ) from error


def inventory(place: epath.Path) -> list[Kept]:
    """Everything under a place, by step, then what was set aside as damaged."""
    entries = [looked_at(place, name, below) for name, below in by_directory(files(place)).items()]
    other = aside(place)
    entries += [looked_at(other, name, below, status="set aside") for name, below in by_directory(files(other)).items()]
    kept = [k for k in entries if k.step is not None]
    return sorted(kept, key=lambda k: (k.status == "set aside", k.step, k.name))


def committed_steps(place: epath.Path) -> list[int]:
    """What `steps_of` would tell, from names alone; nothing is read."""
    if not is_url(place):
        return [int(p.name) for p in Path(place).iterdir() if p.name.isdigit()] if Path(place).is_dir() else []
    return [int(name) for name, below in by_directory(files(place)).items() if name.isdigit() and COMMIT in below]


def by_directory(by_path: dict[str, File]) -> dict[str, dict[str, File]]:
    """Top directory -> its files."""
    groups: dict[str, dict[str, File]] = {}
    for path, file in by_path.items():
        top, slash, rest = path.partition("/")
        if slash:
            groups.setdefault(top, {})[rest] = file
    return groups


def looked_at(place: epath.Path, name: str, below: dict[str, File], status: str = "") -> Kept:
    number = re.match(r"\d+", name)
    if not status:
        half = HALF_WRITTEN in name or (is_url(place) and COMMIT not in below)
        status = "half-written" if half else "committed"
        if not half and not name.isdigit():
            number = None  # something else, of somebody else
    about, problem = ({}, "") if status == "half-written" else told_by_metadata(place / name / METADATA)
    missing = [f for f in NEEDED if f not in below and f != METADATA]
    if missing and not problem and status != "half-written":
        problem = f"{missing[0]} is missing"
    return Kept(
        name=name,
        step=int(number[0]) if number else None,
        status=status,
        modified=max((f.modified for f in below.values()), default=0.0),
        bytes=sum(f.bytes for f in below.values()),
        files=below,
        about=about,
        problem=problem,
    )


def told_by_metadata(path: epath.Path) -> tuple[dict[str, Any], str]:
    """Model, parameters, mesh and data of a checkpoint, or why they cannot be told."""
    try:
        meta = json.loads(path.read_text())
        config, data = meta["config"], meta["data"]
        outer = any(name.startswith("outer.params.") for name in meta["state"])  # beside each replica's own
        counted = ("outer.params." if outer else "params.", "frozen.")
        shapes = [s for name, s in meta["state"].items() if name.startswith(counted)]
        return {
            "name": config["name"],
            "model": config["model"]["name"],
            "parameters": sum(map(elements, shapes)),
            "mesh": {a: n for a, n in config["mesh"].items() if isinstance(n, int) and n != 1},
            "data": data,
            "fingerprints": len(meta.get("fingerprints") or {}),
        }, ""
    except FileNotFoundError:
        return {}, f"{METADATA} is missing"
    except Exception as error:  # whatever a damaged file leads to
        return {}, f"{METADATA} cannot be read ({type(error).__name__})"


def elements(shape: Any) -> int:
    """Of `float32[8, 16]`: 128."""
    return math.prod(int(n) for n in re.findall(r"\d+", str(shape).partition("[")[2]))


def steps_of(kept: list[Kept]) -> list[int]:
    return [k.step for k in kept if k.status == "committed" and k.step is not None]


def chosen(kept: list[Kept], steps: list[int], keep_last: int | None, *, where: Any, force: bool) -> list[Kept]:
    """What `rm` is to remove; ValueError for a step that is not there, and for the last whole one without force."""
    committed = [k for k in kept if k.status == "committed"]
    there = steps_of(kept)
    if keep_last is not None:
        gone = committed[:-keep_last]
    else:
        if missing := [s for s in steps if s not in there]:
            raise ValueError(f"{where} has no checkpoint of step {missing[0]}; it has {there or 'none'}")
        gone = [k for k in committed if k.step in steps]
    whole = [k for k in committed if k.whole]
    if whole and all(k in gone for k in whole) and not force:
        raise ValueError(
            f"step {whole[-1].step} is the last whole checkpoint of {where}; nothing was removed (--force would)"
        )
    return gone


@contextlib.contextmanager
def alone(place: epath.Path) -> Iterator[None]:
    """No run trains there meanwhile; ValueError where one does. Of a bucket nobody knows: there is no lock."""
    if is_url(place) or not Path(place).is_dir():
        yield
        return
    try:
        lock = Lock(Path(place))
    except ValueError as error:
        raise ValueError(f"{error}; nothing was removed: stop it first, or have it keep less") from None
    with contextlib.closing(lock):
        yield


def take_away(place: epath.Path, kept: Kept) -> None:
    """Remove a checkpoint; one that is cut short leaves what nobody takes for a whole one."""
    target = place / kept.name
    if not is_url(place):  # first out of the steps, in one move: orbax clears such names away when a run starts
        renamed = place / f"{kept.name}{HALF_WRITTEN}"
        os.replace(target, renamed)
        target = renamed
    remove(target, first=COMMIT)
