"""Is a checkpoint what was saved? Every array is read, one at a time, and compared with the sum of its bits.

The host holds one array at a time, on a CPU: no device of a run is touched.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import tensorstore
from etils import epath

from jaxscale import private
from jaxscale.checkpoint.fingerprint import weighted_sum
from jaxscale.checkpoint.identity import digest
from jaxscale.checkpoint.inventory import METADATA, NEEDED, Kept, elements
from jaxscale.checkpoint.metadata import listing_problem
from jaxscale.checkpoint.noise import reason
from jaxscale.checkpoint.object_store import reach

SECONDS = 600.0  # for one array
take_sum = jax.jit(weighted_sum)


@dataclass(frozen=True)
class Verdict:
    """What was found of one checkpoint: problems by array or file; `comparable` is False for one without sums."""

    step: int
    arrays: int
    bytes: int
    comparable: bool
    problems: tuple[str, ...]

    def lines(self) -> list[str]:
        if self.problems:
            return [f"step {self.step}: {problem}" for problem in self.problems]
        read = f"step {self.step}: {self.arrays} arrays, {self.bytes:,} bytes"
        if not self.comparable:
            return [f"{read}, all readable, but not verifiable (made before checkpoints held the sums of their bits)"]
        return [f"{read}, all as they were saved"]


def verify(place: epath.Path, kept: Kept) -> Verdict:
    """Read a whole checkpoint and compare it with what its metadata says was saved."""
    assert kept.step is not None
    problems = [f"{name} is missing" for name in NEEDED if name not in kept.files]
    meta, cause = read_meta(place / kept.name)
    if meta is None:
        return Verdict(kept.step, 0, 0, True, (*problems, f"{METADATA}: {cause}"))
    sums, size = meta.get("fingerprints") or {}, 0
    names = sorted(meta["state"], key=lambda name: (-elements(meta["state"][name]), name))
    for name, total, nbytes, problem in read_sums(place / kept.name / "state", names):
        size += nbytes
        if problem:
            problems.append(f"{name}: {problem}")
        elif sums and sums.get(name) != total:
            problems.append(f"{name}: not what was saved (its bits sum to {total}, saved {sums.get(name, 'none')})")
    return Verdict(kept.step, len(names), size, bool(sums), tuple(problems))


def read_meta(directory: epath.Path) -> tuple[dict | None, str]:
    """The JSON beside a state, or None and why not."""
    if problem := listing_problem(directory):
        return None, problem
    try:
        meta = json.loads((directory / METADATA).read_text())
        if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
            return None, "it does not say which arrays there are"
        if "sha256" in meta and meta["sha256"] != digest(meta):
            return None, "not what was saved (its sha256 differs)"
    except Exception as error:  # a client of a store has its own kinds
        return None, reason(error)
    return meta, ""


def read_sums(state: epath.Path, names: list[str]) -> Iterator[tuple[str, str, int, str]]:
    """(name, sum, bytes, problem) of each array of a state, as it is read; the largest should come first."""
    reach(state)
    jax.config.update("jax_platforms", "cpu")
    context, room = private.find("tensorstore_context")(), Room()
    for name in names:
        try:
            array = read_array(state, name, context, room)
            yield name, f"{int(take_sum(array)):08x}", array.nbytes, ""
        except Exception as error:  # tensorstore says "damaged" in many ways
            yield name, "", 0, f"cannot be read ({in_short(error)})"


class Room:
    """Memory for one array after the other: jax would keep arrays of their own until garbage is collected."""

    def __init__(self) -> None:
        self.bytes = np.empty(0, np.uint8)

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        wanted = math.prod(shape) * dtype.itemsize
        if wanted > self.bytes.size:
            self.bytes = np.empty(wanted, np.uint8)
        return self.bytes[:wanted].view(dtype).reshape(shape)


def open_array(state: epath.Path, name: str, context: tensorstore.Context) -> tensorstore.TensorStore:
    """An array of a state, of which nothing is read yet."""
    kvstore = private.find("kvstore_spec")(os.fspath(state), name)
    spec: dict[str, Any] = {"driver": "zarr", "kvstore": kvstore, "fill_missing_data_reads": False}
    return tensorstore.open(spec, open=True, read=True, context=context).result(SECONDS)


def read_array(state: epath.Path, name: str, context: tensorstore.Context, room: Room) -> np.ndarray:
    stored = open_array(state, name, context)
    array = room.take(stored.shape, stored.dtype.numpy_dtype)
    tensorstore.array(array).write(stored).result(SECONDS)
    return array


def in_short(error: Exception) -> str:
    """tensorstore's cause, without the chain of drivers and paths that it went through."""
    text = re.sub(r"\s*\[\w+_spec=.*", "", " ".join(str(error).split()))
    return (
        re.sub(r'Error \w+ (?:"[^"]*"|Byte range [^"]*)[^:"]*(?:"[^"]*"[^:"]*)*: ', "", text)[:160]
        or type(error).__name__
    )
