"""From the replica groups of a collective, in each of the ways in which HLO writes them, to mesh axes. No jax."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from jaxscale.compiled.instructions import Instruction

Groups = frozenset[frozenset[int]]


@dataclass(frozen=True)
class SubAxis:
    """Part of a mesh axis: of its `before * size * rest` positions those that differ in the middle factor."""

    axis: str
    before: int
    size: int

    @property
    def name(self) -> str:
        """As HLO writes it."""
        return f"{self.axis}:({self.before}){self.size}"


@dataclass(frozen=True)
class Span:
    """What a collective's groups run over.

    Attributes:
        axes: the mesh axes; () where not even parts of axes give these groups.
        count: devices in a group.
        parts: of axes that the groups run over in part, which part; () where all are whole.
    """

    axes: tuple[str, ...]
    count: int
    parts: tuple[SubAxis, ...] = ()


class GroupAxes:
    """From replica groups to mesh axes; partitions are numbered along the mesh, last axis fastest."""

    def __init__(self, mesh: Mapping[str, int]):
        self.names, self.sizes = tuple(mesh), tuple(mesh.values())
        self.count = math.prod(self.sizes)
        self.known = {rows(self.devices(self.sizes), list(k)): k for k in self.subsets()}

    def subsets(self) -> Iterator[tuple[int, ...]]:
        n = len(self.sizes)
        for bits in range(1, 2**n):
            yield tuple(i for i in range(n) if bits >> i & 1)

    def devices(self, sizes: tuple[int, ...]) -> np.ndarray:
        return np.arange(self.count).reshape(sizes)

    def of(self, i: Instruction) -> Span:
        """Raises ValueError, with the instruction's name, where its groups are in a form that is not known."""
        if "source_target_pairs" in i.attributes:
            return self.of_pairs(i)
        try:
            groups = replica_groups(i.attributes, self.count)
        except ValueError as error:
            raise ValueError(f"the compiled program's {i.opcode} {i.name} cannot be read: {error}") from error
        size = len(next(iter(groups)))
        if groups in self.known:
            return Span(tuple(self.names[k] for k in self.known[groups]), size)
        return self.of_parts(groups) or Span((), size)

    def of_parts(self, groups: Groups) -> Span | None:
        """Groups over factors of axes: the axes are cut into primes, and the group of device 0 says which of them."""
        first = next((sorted(g) for g in groups if 0 in g), [])
        for largest_first in (False, True):
            cut = [primes(n, reverse=largest_first) for n in self.sizes]
            factors = [(k, j) for k, axis_primes in enumerate(cut) for j in range(len(axis_primes))]
            shape = tuple(n for axis_primes in cut for n in axis_primes)
            if not first or first[-1] >= self.count:
                return None
            at = np.stack(np.unravel_index(first, shape))
            chosen = [d for d in range(len(shape)) if (at[d] != at[d, 0]).any()]
            if rows(self.devices(shape), chosen) == groups:
                return self.span([factors[d] for d in chosen], cut, len(first))
        return None

    def span(self, chosen: list[tuple[int, int]], cut: list[list[int]], count: int) -> Span:
        axes, parts = sorted({k for k, _ in chosen}), []
        for k in axes:
            indices = [j for axis, j in chosen if axis == k]
            runs: list[list[int]] = []
            for j in indices if len(indices) < len(cut[k]) else []:
                if runs and runs[-1][-1] == j - 1:
                    runs[-1].append(j)
                else:
                    runs.append([j])
            parts += [
                SubAxis(self.names[k], math.prod(cut[k][: run[0]]), math.prod(cut[k][j] for j in run)) for run in runs
            ]
        return Span(tuple(self.names[k] for k in axes), count, tuple(parts))

    def of_pairs(self, i: Instruction) -> Span:
        """The axes along which some pair's ends differ."""
        text = re.search(r"source_target_pairs=\{(.*?)\}\}", i.attributes)
        pairs = re.findall(r"(\d+),(\d+)", text[1]) if text else []
        changed = set()
        for a, b in pairs:
            ends = np.unravel_index([int(a), int(b)], self.sizes)
            changed |= {k for k, (x, y) in enumerate(ends) if x != y}
        return Span(
            tuple(self.names[k] for k in sorted(changed)), math.prod(self.sizes[k] for k in sorted(changed)) or 1
        )


def primes(n: int, *, reverse: bool) -> list[int]:
    """The prime factors of n, the smallest first, or the largest."""
    factors = []
    for p in range(2, n + 1):
        while n % p == 0:
            factors.append(p)
            n //= p
    return factors[::-1] if reverse else factors


LISTS = re.compile(r"replica_groups=\{(\{[\d,{}\s]*\})\}")
IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:,\s*device_ids=\(([^()]*(?:\([\d,]+\))?)\))?\s*\{([^}]*)\}")
NAME = r"(?:'([^']*)'|\"([^\"]*)\"|([^\s,:='\"]+))"


def replica_groups(text: str, count: int) -> Groups:
    """Replica groups in each of the ways in which HLO writes them. Raises ValueError for another.

    `{}` is all of `count` devices; `{{0,1},{2,3}}`; `[2,2]<=[4]`, numbers in rows, also turned; and by names,
    `mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b','a':(2)2}`, where `(2)2` is the sub-axis of size 2 with 2
    positions before it.
    """
    if re.search(r"replica_groups=\{\}", text):
        return frozenset([frozenset(range(count))])
    if m := LISTS.search(text):
        return frozenset(frozenset(numbers(g)) for g in re.findall(r"\{([\d,\s]+)\}", m[1]))
    try:
        if m := MESH.search(text):
            return mesh_groups(m[1], m[2] or "", m[3])
        if m := IOTA.search(text):
            ids = turned(np.arange(math.prod(numbers(m[3]))), numbers(m[3]), m[4])
            return frozenset(map(frozenset, ids.reshape(int(m[1]), int(m[2])).tolist()))
    except (ValueError, KeyError):
        pass  # sizes that do not fit each other, an axis that the mesh has not: told below, with the text
    start = max(text.find("replica_groups"), 0)
    raise ValueError(f"replica groups in a form that is not known: {text[start : start + 200]}")


def mesh_groups(mesh: str, devices: str, axes: str) -> Groups:
    """Groups by names of axes and parts of them. Raises ValueError or KeyError where they do not fit the mesh."""
    sizes = {a or b or c: int(n) for a, b, c, n in re.findall(rf"{NAME}=(\d+)", mesh)}
    ids = np.arange(math.prod(sizes.values()))
    if m := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", devices):
        ids = turned(ids, numbers(m[1]), m[2])
    elif devices:
        ids = np.array(numbers(devices))
    chosen: dict[str, list[tuple[int, int]]] = {}
    pieces = re.findall(rf"\s*{NAME}(?::\((\d+)\)(\d+))?\s*(?:,|$)", axes)
    for a, b, c, before, size in pieces:
        name = a or b or c
        chosen.setdefault(name, []).append((int(before), int(size)) if size else (1, sizes[name]))
    if not pieces or not sizes:
        raise ValueError("no axes")
    shape: list[int] = []
    grouped: list[int] = []
    for name, whole in sizes.items():
        done = 1
        for before, size in sorted(chosen.pop(name, [])):
            if before % done or whole % (before * size):
                raise ValueError(f"{name}:({before}){size} is no part of {whole}")
            shape += [before // done, size]
            grouped.append(len(shape) - 1)
            done = before * size
        shape.append(whole // done)
    if chosen:
        raise KeyError(next(iter(chosen)))
    return rows(ids.reshape(shape), grouped)


def turned(ids: np.ndarray, shape: list[int], order: str | None) -> np.ndarray:
    ids = ids.reshape(shape)
    return ids.transpose(numbers(order)) if order else ids


def rows(ids: np.ndarray, chosen: list[int]) -> Groups:
    rest = [k for k in range(ids.ndim) if k not in chosen]
    size = math.prod(ids.shape[k] for k in chosen)
    return frozenset(map(frozenset, ids.transpose([*rest, *chosen]).reshape(-1, size).tolist()))


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]
