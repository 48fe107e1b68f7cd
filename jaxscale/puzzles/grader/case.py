"""What a puzzle is graded on: operands, numpy's answer, the layout wanted, and what may be sent and held."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxscale.compiled.collectives import wire_share
from jaxscale.explain import rows

UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


@dataclass(frozen=True)
class Array:
    """An operand or a result: its name, a letter for each dim, global shape, layout and dtype."""

    name: str
    dims: str
    shape: tuple[int, ...]
    spec: jax.P
    dtype: str = "float32"

    def sharding(self, mesh: jax.sharding.Mesh) -> jax.NamedSharding:
        return jax.NamedSharding(mesh, self.spec)

    def device_bytes(self, sizes: Mapping[str, int]) -> int:
        """Of one device's block."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize // cuts(self.spec, sizes)


@dataclass(frozen=True)
class Send:
    """A collective that suffices: V bytes as `compiled.collectives.Collective` counts them, `times` of it."""

    kind: str
    axis: str
    bytes: int
    times: int = 1

    def sent(self, sizes: Mapping[str, int]) -> float:
        """Bytes that one device sends, by a ring."""
        return wire_share(self.kind, sizes[self.axis]) * self.bytes * self.times


@dataclass(frozen=True)
class Case:
    """A puzzle on one mesh.

    Attributes:
        run: what is compiled: the learner's function, of the operands.
        reference: numpy's answer, in float64: a tuple, one entry a result.
        sends: what suffices.
        kinds: only these collectives may be used; None where any may.
        memory: what suffices a device, where that is checked: in words, bytes.
        draw: makes the operands' values, where they are not just normal numbers.
    """

    sizes: dict[str, int]
    operands: tuple[Array, ...]
    results: tuple[Array, ...]
    run: Callable[..., Any]
    reference: Callable[..., tuple[np.ndarray, ...]]
    sends: tuple[Send, ...] = ()
    kinds: tuple[str, ...] | None = None
    memory: dict[str, int] | None = None
    draw: Callable[[np.random.Generator, int], list[np.ndarray]] | None = field(default=None)

    def values(self, seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        if self.draw:
            return self.draw(rng, seed)
        return [rng.standard_normal(a.shape).astype(a.dtype) for a in self.operands]


def cuts(spec: jax.P, sizes: Mapping[str, int]) -> int:
    """Into how many blocks a layout cuts an array."""
    return math.prod(sizes[axis] for entry in spec for axis in axes_of(entry))


def axes_of(entry: Any) -> tuple[str, ...]:
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def notation(array: Array, spec: jax.P) -> str:
    """`out[B_data, F_{data,tensor}]`, as the scaling book writes it."""
    entries = [*spec, *[None] * (len(array.dims) - len(spec))]
    return rows.notation(array.name, tuple(array.dims), tuple(map(axes_of, entries)))


def size(count: float) -> str:
    for unit, name in UNITS:
        if count >= unit:
            return f"{count / unit:,.4g} {name}"
    return f"{count:,.4g} bytes"
