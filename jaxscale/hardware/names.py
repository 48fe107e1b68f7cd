"""Names of machines as vendors and users write them -> a chip and a shape of it. No jax.

The project's own form is `chip:shape`: `v5p:4x4x8` (chips along each torus dim), `h100:16x8` (nodes x GPUs).
"""

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from jaxscale.files.spelling import nearest
from jaxscale.hardware.chips import CHIPS, Chip

BY_NAME = {chip.name: chip for chip in CHIPS}
ALIASES = {alias: chip.name for chip in CHIPS for alias in chip.aliases}
# Machine types of clouds: (chip, GPUs; None: the name ends in `-Ng`)
MACHINES = {name: (chip, gpus) for chip in CHIPS for name, gpus in chip.machine_types.items()}
SHAPE = re.compile(r"[1-9]\d{0,5}(x[1-9]\d{0,5})*")


@dataclass(frozen=True)
class Named:
    """A chip and its shape (TPU: torus dims; GPU: nodes, GPUs of a node); `how` the name was read, where not as is."""

    chip: Chip
    shape: tuple[int, ...]
    how: str = ""


def read_name(name: str) -> Named:
    """The machine of a name.

    Besides `chip:shape`: `v5p-128` (TensorCores), `v5litepod-16` and `v6e-256` (chips), `v5e:16` (chips), a slice in
    another order (`v5p:8x4x4`), `h100:16` and `16xh100` (GPUs), `a3-highgpu-8g` and `p5.48xlarge` (machine types), with
    `:N` for N of them. Raises ValueError with what would do for anything else.
    """
    text = re.sub(r"[\s_]+", "-", name.strip().lower())
    if named := read_machine(text, name) or read_accelerator_type(text, name):
        return named
    turned = re.fullmatch(r"(\d+)-?x-?([a-z][^:]*)", text)  # 8xh100
    chip_name, _, shape_text = (f"{turned[2]}:{turned[1]}" if turned else text).partition(":")
    chip = find_chip(chip_name, name)
    if not SHAPE.fullmatch(shape_text):
        raise ValueError(f"topology {name!r}: give the shape, as {', '.join(examples(chip))}")
    shape = tuple(int(n) for n in shape_text.split("x"))
    named = (gpu_shape if chip.node else tpu_shape)(chip, shape, name)
    if not named.how and (turned or chip_name != chip.name):
        return Named(chip, named.shape, text_of(chip, named.shape))
    return named


def find_chip(text: str, name: str) -> Chip:
    text = text.removeprefix("nvidia-")
    text = ALIASES.get(text, text)
    if text in BY_NAME:
        return BY_NAME[text]
    raise ValueError(f"topology {name!r}: no chip {text!r}{nearest(text, BY_NAME)}; there are {', '.join(BY_NAME)}")


def text_of(chip: Chip, shape: tuple[int, ...]) -> str:
    return f"{chip.name}:{'x'.join(map(str, shape))}"


# --- vendors' names ---------------------------------------------------------------------------------------------


def read_machine(text: str, name: str) -> Named | None:
    """`a3-highgpu-8g`, `p5.48xlarge:4`: machine types of clouds; None for another name."""
    machine, _, count = text.partition(":")
    cloud = re.fullmatch(r"(.+)-(\d+)g", machine)
    known = MACHINES.get(cloud[1] if cloud else machine)
    if known is None or (known[1] is None) != bool(cloud):
        return None
    chip, gpus = known[0], int(cloud[2]) if cloud else known[1] or 0
    if not re.fullmatch(r"[1-9]\d{0,5}", count or "1") or not 0 < gpus <= chip.node:
        raise ValueError(
            f"topology {name!r}: give 1 to {chip.node} GPUs and how many machines, as {machine.rpartition('-')[0]}-8g:2"
            if cloud
            else f"topology {name!r}: give how many machines, as {machine}:2"
        )
    shape = (int(count or 1), gpus)
    total = math.prod(shape)
    how = f"{text_of(chip, shape)}, {total:,} GPU{'s' if total > 1 else ''}: one {machine} has {gpus}"
    return Named(chip, shape, how)


def read_accelerator_type(text: str, name: str) -> Named | None:
    """`v5p-128`, `v5litepod-16`: the vendor's accelerator types of TPUs; None for another name."""
    parts = re.fullmatch(r"([a-z][a-z0-9]*?)-(\d{1,6})", text)
    chip = BY_NAME.get(ALIASES.get(parts[1], parts[1])) if parts else None
    if parts is None or chip is None or chip.node:
        return None
    number, cores = int(parts[2]), chip.cores
    counted = f"{parts[1]}-N counts {'TensorCores, 2 a chip' if cores == 2 else 'chips'}"
    if number % cores or not shapes_of(chip, number // cores):
        raise no_slice(chip, number / cores, name, lambda chips: f"{parts[1]}-{chips * cores}", counted)
    return slice_of(chip, number // cores, counted)


def slice_of(chip: Chip, chips: int, note: str = "") -> Named:
    """The most even slice of so many chips."""
    shapes = shapes_of(chip, chips)
    even = min(shapes, key=lambda s: distance(s, (chips ** (1 / len(s)),) * len(s)))
    others = [text_of(chip, s) for s in shapes if s != even]
    how = f"{text_of(chip, even)}, {chips:,} chip{'s' if chips > 1 else ''}"
    how += f" (the most even; there are {', '.join(others[:2])} too)" if others else ""
    return Named(chip, even, how + (f": {note}" if note else ""))


def no_slice(chip: Chip, chips: float, name: str, write: Callable[[int], str], note: str = "") -> ValueError:
    """There is no slice of so many chips: the nearest that there are."""
    counts = sorted({math.prod(s) for s in valid_shapes(chip)})
    near = [*[n for n in counts if n < chips][-1:], *[n for n in counts if n > chips][:1]]
    there = " and ".join(f"{write(n)} ({text_of(chip, slice_of(chip, n).shape)})" for n in near)
    suffix = f"; {note}" if note else ""
    return ValueError(
        f"topology {name!r}: {chip.name} has no slice of {chips:g} chips{suffix}; the nearest are {there}"
    )


# --- shapes -----------------------------------------------------------------------------------------------------


def tpu_shape(chip: Chip, shape: tuple[int, ...], name: str) -> Named:
    """A slice by its dims in any order, or by its number of chips."""
    valid = valid_shapes(chip)
    if shape in valid:
        return Named(chip, shape)
    dims = sorted(n for n in shape if n > 1)
    alike = [s for s in valid if sorted(n for n in s if n > 1) == dims]
    if len(shape) > 1 and alike:
        return Named(chip, alike[0], f"{text_of(chip, alike[0])}, the same slice")
    if len(shape) == 1:
        note = f"{chip.name}:N counts chips; the vendor's {chip.name}-N counts TensorCores" if chip.cores > 1 else ""
        if not shapes_of(chip, shape[0]):
            raise no_slice(chip, shape[0], name, lambda chips: f"{chip.name}:{chips}", note)
        return slice_of(chip, shape[0], note)
    count = math.prod(shape)
    near = sorted(valid, key=lambda s: (abs(math.log(math.prod(s) / count)), distance(s, shape)))[:3]
    raise ValueError(
        f"topology {name!r}: {chip.name} has no such slice; the nearest are {', '.join(text_of(chip, s) for s in near)}"
    )


def gpu_shape(chip: Chip, shape: tuple[int, ...], name: str) -> Named:
    """Nodes x GPUs, or a number of GPUs: one node, or whole ones."""
    if len(shape) == 1 and shape[0] > chip.node:
        nodes, rest = divmod(shape[0], chip.node)
        if rest:
            raise ValueError(
                f"topology {name!r}: {shape[0]} {chip.name} are no whole nodes of {chip.node}; take "
                f"{chip.name}:{nodes * chip.node} or {chip.name}:{(nodes + 1) * chip.node}, or write nodes x GPUs"
            )
        shape = (nodes, chip.node)
        return Named(chip, shape, f"{text_of(chip, shape)}, {nodes:,} nodes of {chip.node}")
    shape = (1, *shape) if len(shape) == 1 else shape
    if len(shape) != 2 or shape[1] > chip.node:
        raise ValueError(
            f"topology {name!r}: {chip.name} is nodes x GPUs, at most {chip.node} GPUs a node; "
            f"as {', '.join(examples(chip))}"
        )
    return Named(chip, shape)


def distance(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return sum(abs(math.log(x / y)) for x, y in itertools.zip_longest(a, b, fillvalue=1))


def examples(chip: Chip) -> list[str]:
    shapes = {0: (str(chip.node), f"16x{chip.node}"), 2: ("4x4", "16x16"), 3: ("4x4x4", "8x8x8")}[chip.torus_dims]
    return [f"{chip.name}:{s}" for s in shapes]


def valid_shapes(chip: Chip) -> list[tuple[int, ...]]:
    """The slices of a TPU that can be had: 2D powers of two up to its pod; 3D parts of a 4x4x4 cube, then cubes."""
    if chip.torus_dims == 2:
        shapes: list[tuple[int, ...]] = [
            (1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16), (16, 32), (32, 32)
        ]  # fmt: skip
        return [s for s in shapes if s <= chip.largest]
    cubes = itertools.combinations_with_replacement(range(4, chip.largest[-1] + 1, 4), 3)
    fits = [c for c in cubes if all(a <= b for a, b in zip(c, chip.largest, strict=True))]
    return [(1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), *fits]


def shapes_of(chip: Chip, chips: int) -> list[tuple[int, ...]]:
    return [s for s in valid_shapes(chip) if math.prod(s) == chips]
