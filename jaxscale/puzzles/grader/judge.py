"""The checks: numbers against numpy, the result's layout, what the compiled program sends and holds."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxscale.compiled.collectives import Collective, collectives, wire_share
from jaxscale.compiled.hlo import Program, parse
from jaxscale.config.mesh_text import mesh_text
from jaxscale.puzzles.catalogue import Puzzle
from jaxscale.puzzles.grader.case import Array, Case, axes_of, notation, size
from jaxscale.puzzles.grader.errors import Stop
from jaxscale.puzzles.grader.tasks import TASKS
from jaxscale.puzzles.verdict import Check

SEEDS = (0, 1)
TOLERANCE = 1e-5  # of the largest element: float32 sums in another order differ by less
RUNNABLE = 2**28  # bytes of all devices together: what is larger is not run
Say = Callable[[str], None]


def judge(puzzle: Puzzle, load: Callable[[], Any], say: Say) -> list[Check]:
    """Every check on every case: of each check the first that fails, or else what the first case gave.

    The exercise is loaded anew for each mesh: a `shard_map` stays with the mesh on which it is first called.

    Raises Stop for an answer that cannot be judged, and whatever the learner's code raises.
    """
    checks_by_name: dict[str, list[Check]] = {}
    make, meshes = TASKS[puzzle.name]
    for sizes in meshes:
        mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), devices=jax.devices()[: math.prod(sizes.values())])
        exercise = load()
        say(f"while {puzzle.function} was called")
        with jax.set_mesh(mesh):
            case = make(exercise, sizes)
            for check in judge_case(puzzle, case, mesh, say):
                checks_by_name.setdefault(check.name, []).append(check)
    worst = [next((c for c in checks if not c.passed), checks[0]) for checks in checks_by_name.values()]
    return [c if c.passed else Check(c.name, False, c.seen, c.suffices, puzzle.think.get(c.name, "")) for c in worst]


def judge_case(puzzle: Puzzle, case: Case, mesh: jax.sharding.Mesh, say: Say) -> Iterator[Check]:
    abstract = [jax.ShapeDtypeStruct(a.shape, np.dtype(a.dtype), sharding=sharding_of(a, mesh)) for a in case.operands]
    say(f"while {puzzle.function} was traced")
    traced = jax.jit(case.run).trace(*abstract)
    require_shapes(traced.out_info, case)
    say(f"while {puzzle.function} was compiled")
    compiled = traced.lower().compile()
    if size_of(compiled) * mesh.size > RUNNABLE:
        raise Stop(f"the compiled program needs {size(size_of(compiled))} on each device; too much to be run here")
    require_no_callback(parse(compiled.as_text()))
    say(f"while {puzzle.function} ran on the devices")
    yield numbers(case, mesh, compiled)
    yield layout(case, mesh, compiled)
    yield communication(case, compiled)
    if case.memory is not None:
        yield memory(case, compiled)


def sharding_of(array: Array, mesh: jax.sharding.Mesh) -> jax.NamedSharding:
    """Raises Stop where jax refuses a layout that the learner chose."""
    try:
        sharding = array.sharding(mesh)
        sharding.shard_shape(array.shape)
        return sharding
    except Exception as error:
        raise Stop(f"{array.name} cannot be laid out as {array.spec}: {error}") from None


def require_shapes(outputs: Any, case: Case) -> None:
    """Raises Stop where the result is of another shape or dtype than asked for."""
    leaves = jax.tree.leaves(outputs)
    if len(leaves) != len(case.results):
        raise Stop(f"{len(leaves)} arrays were returned; wanted {len(case.results)}")
    for got, want in zip(leaves, case.results, strict=True):
        if (got.shape, got.dtype) != (want.shape, np.dtype(want.dtype)):
            got_shape, want_shape = block_shape(got.shape, want, case), block_shape(want.shape, want, case)
            if got_shape is None or want_shape is None:
                got_shape, want_shape = got.shape, want.shape
            here = "on each device" if got_shape != got.shape else "in all"
            raise Stop(
                f"{want.name} is {typed(got.dtype, got_shape)} {here}; wanted {typed(want.dtype, want_shape)} "
                f"(mesh {mesh_text(case.sizes)})"
            )


def block_shape(shape: tuple[int, ...], array: Array, case: Case) -> tuple[int, ...] | None:
    """One device's part of `shape`, cut as `array` is to be; None where that does not go."""
    parts = [math.prod(case.sizes[axis] for axis in axes_of(entry)) for entry in array.spec]
    parts += [1] * (len(shape) - len(parts))
    if len(shape) != len(array.shape) or any(dim % n for dim, n in zip(shape, parts, strict=True)):
        return None
    return tuple(dim // n for dim, n in zip(shape, parts, strict=True))


def require_no_callback(program: Program) -> None:
    """Raises Stop where Python's answer comes back into the program; one that only prints is welcome."""
    for computation in program.computations.values():
        for call in computation:
            if "callback" in call.target and any(a.dtype != "token" for a in call.arrays):
                name = call.source.rpartition("/")[2] or call.target
                raise Stop(f"a callback leaves the devices ({name}); send with jax.lax")


def typed(dtype: Any, shape: tuple[int, ...]) -> str:
    return f"{np.dtype(dtype)}[{','.join(map(str, shape))}]"


# --- numbers and layout -------------------------------------------------------------------------------------------


def numbers(case: Case, mesh: jax.sharding.Mesh, compiled: Any) -> Check:
    """Every device's blocks against numpy's, in float64, for each seed."""
    for seed in SEEDS:
        values = case.values(seed)
        placed = [jax.device_put(v, a.sharding(mesh)) for v, a in zip(values, case.operands, strict=True)]
        got = jax.block_until_ready(jax.tree.leaves(compiled(*placed)))
        want = case.reference(*(v.astype(np.float64) if v.dtype.kind == "f" else v for v in values))
        for array, result, answer in zip(case.results, got, want, strict=True):
            if wrong := difference(array, result, answer):
                return Check("numbers", False, f"{wrong} (mesh {mesh_text(case.sizes)}, seed {seed})")
    return Check("numbers", True, "numpy's to 1e-5 of the largest element, on each device, on each mesh, for each seed")


def difference(array: Array, got: jax.Array, want: np.ndarray) -> str:
    """What is wrong with a result, in words; "" where nothing is."""
    allowed = TOLERANCE * np.abs(want).max()
    blocks = [(np.asarray(s.data), want[s.index], s) for s in got.addressable_shards]
    wrong = [(b, w, s) for b, w, s in blocks if not np.abs(b - w).max() <= allowed]
    if not wrong:
        return ""
    block, answer, shard = wrong[0]
    far = np.where(np.isfinite(block), np.abs(block - answer), np.inf)
    at = np.unravel_index(int(far.argmax()), far.shape)
    place = [int(i) + (part.start or 0) for i, part in zip(at, shard.index, strict=True)]
    text = f"{array.name}{place} is {block[at]:.6g}, numpy says {answer[at]:.6g}"
    ratios = block[np.abs(answer) > 1e3 * allowed] / answer[np.abs(answer) > 1e3 * allowed]
    if len(wrong) < len(blocks):
        text += f"; wrong on {len(wrong)} of {len(blocks)} devices"
    elif ratios.size and np.isfinite(ratios).all() and np.ptp(ratios) < 0.01 * abs(ratios.mean()) > 0:
        text += f"; each element is {ratios.mean():.4g} times what it should be"
    return text


def layout(case: Case, mesh: jax.sharding.Mesh, compiled: Any) -> Check:
    layouts = []
    for array, sharding in zip(case.results, jax.tree.leaves(compiled.output_shardings), strict=True):
        want = array.sharding(mesh)
        layouts.append(
            f"{notation(array, array.spec)}, {typed(array.dtype, want.shard_shape(array.shape))} on each device"
        )
        if not sharding.is_equivalent_to(want, len(array.shape)):
            block = typed(array.dtype, sharding.shard_shape(array.shape))
            seen = f"{notation(array, sharding.spec)}, {block} on each device"
            return Check("layout", False, f"{seen} (mesh {mesh_text(case.sizes)})", layouts[-1])
    return Check("layout", True, "; ".join(layouts))


# --- what the compiled program sends and holds --------------------------------------------------------------------


def communication(case: Case, compiled: Any) -> Check:
    """Bytes that a device sends, by the compiled program, against what suffices."""
    program = parse(compiled.as_text())
    sent = [as_written(c) for c in collectives(program, case.sizes)]
    spent = sum(wire_share(kind, c.groups) * c.bytes * c.times for kind, c in sent)
    budget = sum(s.sent(case.sizes) for s in case.sends)
    seen = f"{spent_words(sent, spent)} (compiled, mesh {mesh_text(case.sizes)})"
    if program.unknown_loops and sent:
        return Check(
            "communication", False, f"{seen}; in a loop of unknown length", "a loop whose length is a constant"
        )
    if case.kinds is not None and (other := {kind for kind, _ in sent} - set(case.kinds)):
        suffices = f"{' and '.join(case.kinds)}, without {' and '.join(sorted(other))}"
        return Check("communication", False, seen, suffices)
    return Check("communication", spent <= budget * (1 + 1e-9), seen, budget_words(case, budget))


def as_written(c: Collective) -> tuple[str, Collective]:
    """A psum of which a slice is kept stays an all-reduce, as the learner wrote it.

    The reader counts an all-reduce with a slice as a reduce-scatter, for that is how XLA's CPU backend writes those
    that follow from layouts.
    """
    psum = re.search(r"/psum(_invariant)?$", c.source)
    return ("all-reduce" if c.kind == "reduce-scatter" and psum else c.kind), c


def spent_words(sent: list[tuple[str, Collective]], spent: float) -> str:
    if not sent:
        return "nothing is sent"
    times: Counter = Counter()
    for kind, c in sent:
        over = f" over {', '.join(c.axes)}" if c.axes else " over some devices"
        times[f"{kind}{over} of {size(c.bytes)}"] += c.times
    return f"{' + '.join(f'{what}{often(n)}' for what, n in times.items())}: each device sends {size(spent)}"


def budget_words(case: Case, budget: float) -> str:
    if not case.sends:
        return "nothing needs to be sent"
    parts = [f"{s.kind} over {s.axis} of {size(s.bytes)}{often(s.times)}" for s in case.sends]
    return f"{' + '.join(parts)}: each device sends {size(budget)}"


def often(times: int) -> str:
    return "" if times == 1 else f", {times} times"


def size_of(compiled: Any) -> int:
    """Bytes of one device while the program runs."""
    stats = compiled.memory_analysis()
    arguments, out = stats.argument_size_in_bytes, stats.output_size_in_bytes
    return arguments + out + stats.temp_size_in_bytes - stats.alias_size_in_bytes


def memory(case: Case, compiled: Any) -> Check:
    assert case.memory is not None
    used, allowed = size_of(compiled), sum(case.memory.values())
    seen = f"{size(used)} on each device (compiled, mesh {mesh_text(case.sizes)})"
    parts = " + ".join(f"{what} {size(count)}" for what, count in case.memory.items())
    return Check("memory", used <= allowed, seen, f"{parts}: {size(allowed)}")
