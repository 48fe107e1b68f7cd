"""The ten cases: what each puzzle's answer is tried on. Sizes differ between meshes, so that no constant will do.

Budgets are the formulas that the exercises' docstrings give, in float32.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import P

from jaxscale.puzzles.grader.case import Array, Case, Send
from jaxscale.puzzles.grader.errors import Stop

DEVICES = 8
FLOAT = 4  # bytes
ORDER = ("first", "second", "third")
Sizes = dict[str, int]


def specs(exercise: Any, sizes: Sizes) -> Case:
    rows, columns = 8 * sizes["tensor"], 16 * sizes["data"]
    given = ((P("data"), P(None, "tensor")), (P(), P(None, ("data", "tensor"))), (P("tensor"), P()))
    wanted = (P("data", "tensor"), P(None, ("data", "tensor")), P("tensor", None))
    chosen = as_specs(exercise.specs(), count=3, entries=2, sizes=sizes)

    def run(*operands: jax.Array) -> list[jax.Array]:
        pairs = zip(operands[::2], operands[1::2], chosen, strict=True)
        return [jnp.einsum("ij,jk->ik", x, w, out_sharding=spec) for x, w, spec in pairs]

    operands = [(Array("x", "ij", (rows, 24), x), Array("w", "jk", (24, columns), w)) for x, w in given]
    return Case(
        sizes,
        operands=tuple(a for pair in operands for a in pair),
        results=tuple(
            Array(f"{which} out", "ik", (rows, columns), spec) for which, spec in zip(ORDER, wanted, strict=True)
        ),
        run=run,
        reference=lambda *v: tuple(x @ w for x, w in zip(v[::2], v[1::2], strict=True)),
    )


def operands(exercise: Any, sizes: Sizes) -> Case:
    B, T, S, N, H = 2 * sizes["data"], 16, 8, 2 * sizes["tensor"], 32
    out = P("data", "tensor", None, None)
    q, k = as_specs(exercise.layouts(), count=2, entries=4, sizes=sizes)
    best = B * N * H * (T + S) * FLOAT // DEVICES
    chosen = (Array("q", "BTNH", (B, T, N, H), q), Array("k", "BSNH", (B, S, N, H), k))
    scores = Array("scores", "BNTS", (B, N, T, S), out)
    return Case(
        sizes,
        operands=chosen,
        results=(scores,),
        run=lambda q, k: jnp.einsum("btnh,bsnh->bnts", q, k, out_sharding=out),
        reference=lambda q, k: (np.einsum("btnh,bsnh->bnts", q, k),),
        memory={
            "1/8 of q and k, and of the scores": best + scores.device_bytes(sizes),
            "a copy of them that XLA transposes": best + scores.device_bytes(sizes),
        },
    )


def partial_sums(exercise: Any, sizes: Sizes) -> Case:
    n = sizes["tensor"]
    B, F, D = 4 * n, 8 * n, 24
    return Case(
        sizes,
        operands=(Array("x", "BF", (B, F), P(None, "tensor")), Array("w", "FD", (F, D), P("tensor", None))),
        results=(Array("out", "BD", (B, D), P("tensor", None)),),
        run=exercise.project,
        reference=lambda x, w: (x @ w,),
        sends=(Send("reduce-scatter", "tensor", B * D * FLOAT),),
    )


def all_reduce(exercise: Any, sizes: Sizes) -> Case:
    n = sizes["data"]
    B, D = 6, 4 * n
    block = Array("x", "BD", (n * B, D), P("data", None))
    return Case(
        sizes,
        operands=(block,),
        results=(Array("out", "BD", block.shape, block.spec),),
        run=exercise.all_reduce,
        reference=lambda x: (np.tile(x.reshape(n, B, D).sum(axis=0), (n, 1)),),
        sends=(Send("collective-permute", "data", B * D * FLOAT // n, 2 * (n - 1)),),
        kinds=("collective-permute",),
    )


def fsdp(exercise: Any, sizes: Sizes) -> Case:
    n = sizes["fsdp"]
    B, D, F = 16 * n, 4 * n, 40
    x, w = Array("x", "BD", (B, D), P("fsdp", None)), Array("w", "DF", (D, F), P("fsdp", None))
    y = Array("y", "BF", (B, F), P("fsdp", None))

    def run(x: jax.Array, w: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, back = jax.vjp(lambda w: exercise.layer(x, w), w)
        return y, back(c / c.size)[0]

    return Case(
        sizes,
        operands=(x, w, Array("c", "BF", (B, F), P("fsdp", None))),
        results=(y, Array("gradient of w", "DF", (D, F), P("fsdp", None))),
        run=run,
        reference=lambda x, w, c: (x @ w, x.T @ c / c.size),
        sends=(Send("all-gather", "fsdp", D * F * FLOAT), Send("reduce-scatter", "fsdp", D * F * FLOAT)),
    )


def accumulation(exercise: Any, sizes: Sizes) -> Case:
    n = sizes["data"]
    M, b, D, F = 64 // n, 16, 24, 192
    rows = P(None, "data", None)
    up, down = Array("up", "DF", (D, F), P()), Array("down", "FD", (F, D), P())

    def reference(up: np.ndarray, down: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
        x, y = x.reshape(-1, D), y.reshape(-1, D)
        h = np.maximum(x @ up, 0)
        error = 2 * (h @ down - y)
        return x.T @ ((error @ down.T) * (h > 0)), h.T @ error

    return Case(
        sizes,
        operands=(up, down, Array("x", "MBD", (M, n * b, D), rows), Array("y", "MBD", (M, n * b, D), rows)),
        results=(Array("gradient of up", "DF", (D, F), P()), Array("gradient of down", "FD", (F, D), P())),
        run=exercise.gradients,
        reference=reference,
        sends=(Send("all-reduce", "data", 2 * D * F * FLOAT),),
        memory={
            "operands and results": (4 * D * F + 2 * M * b * D) * FLOAT,
            "both gradients twice": 4 * D * F * FLOAT,
            "four times a microbatch's activations": 4 * b * (F + 2 * D) * FLOAT,
        },
    )


def megatron(exercise: Any, sizes: Sizes) -> Case:
    n = sizes["tensor"]
    B, D, F = 8, 24, 32 * n
    up, down = as_specs(exercise.layouts(), count=2, entries=2, sizes=sizes)
    x, chosen = Array("x", "BD", (B, D), P()), (Array("up", "DF", (D, F), up), Array("down", "FD", (F, D), down))

    def reference(x: np.ndarray, up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, ...]:
        h = x @ up
        return ((h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))) / 2) @ down,)

    return Case(
        sizes,
        operands=(x, *chosen),
        results=(Array("out", "BD", (B, D), P()),),
        run=exercise.mlp,
        reference=reference,
        sends=(Send("all-reduce", "tensor", B * D * FLOAT),),
        memory={
            "1/n of both weights": 2 * D * F * FLOAT // n,
            "x, out and two more [B, D]": 4 * B * D * FLOAT,
            "three arrays [B, F/n]": 3 * B * F * FLOAT // n,
        },
    )


def cross_entropy(exercise: Any, sizes: Sizes) -> Case:
    n = sizes["tensor"]
    B, V = 32, 96 * n

    def draw(rng: np.random.Generator, seed: int) -> list[np.ndarray]:
        logits = rng.standard_normal((B, V)) * (2 if seed == 0 else 60) + 100 * seed  # exp of the larger overflows
        return [logits.astype(np.float32), rng.permutation(V)[:B].astype(np.int32)]

    def reference(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, ...]:
        largest = logits.max(axis=1)
        total = np.exp(logits - largest[:, None]).sum(axis=1)
        return (np.log(total) + largest - logits[np.arange(B), targets],)

    return Case(
        sizes,
        operands=(Array("logits", "BV", (B, V), P(None, "tensor")), Array("targets", "B", (B,), P(), "int32")),
        results=(Array("loss", "B", (B,), P()),),
        run=exercise.cross_entropy,
        reference=reference,
        draw=draw,
        sends=(Send("all-reduce", "tensor", B * FLOAT, 3),),
        memory={"a device's part of the logits, four times": 4 * B * V * FLOAT // n},
    )


def collective_matmul(exercise: Any, sizes: Sizes) -> Case:
    n = sizes["tensor"]
    B, D, F = 8 * n, 256, 8 * n
    block = B // n * D * FLOAT
    y = Array("y", "BF", (B, F), P(None, "tensor"))
    return Case(
        sizes,
        operands=(Array("x", "BD", (B, D), P("tensor", None)), Array("w", "DF", (D, F), P(None, "tensor"))),
        results=(y,),
        run=exercise.matmul,
        reference=lambda x, w: (x @ w,),
        sends=(Send("collective-permute", "tensor", block, n - 1),),
        memory={
            "x, w and y": block + D * F * FLOAT // n + y.device_bytes(sizes),
            "three blocks of x": 3 * block,
            "y twice": 2 * y.device_bytes(sizes),
        },
    )


def ring_attention(exercise: Any, sizes: Sizes) -> Case:
    n = sizes["context"]
    T, H = 16 * n, 16
    block = T // n * H * FLOAT
    operands = tuple(Array(name, "TH", (T, H), P("context", None)) for name in "qkv")

    def draw(rng: np.random.Generator, seed: int) -> list[np.ndarray]:
        q, k, v = rng.standard_normal((3, T, H))
        if seed:  # scores whose exp overflows, and which float32 holds exactly, however they are summed
            q, k = np.rint(16 * q), np.rint(3 * k)
        return [q.astype(np.float32), k.astype(np.float32), v.astype(np.float32)]

    def reference(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
        scores = q @ k.T / np.sqrt(H)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        return (weights / weights.sum(axis=1, keepdims=True) @ v,)

    return Case(
        sizes,
        operands=operands,
        results=(Array("out", "TH", (T, H), P("context", None)),),
        run=exercise.attention,
        reference=reference,
        draw=draw,
        sends=(Send("collective-permute", "context", block, 2 * (n - 1)),),
        memory={
            "q, k, v and out": 4 * block,
            "eight more blocks": 8 * block,
            "four arrays of scores [T/n, T/n]": 4 * (T // n) ** 2 * FLOAT,
        },
    )


def as_specs(given: Any, *, count: int, entries: int, sizes: Sizes) -> tuple[jax.P, ...]:
    """What a learner returned as layouts. Raises Stop for anything else."""
    if given is Ellipsis or not isinstance(given, tuple | list) or any(not isinstance(p, P) for p in given):
        raise Stop(f"{given!r} came out; wanted {count} layouts: return {', '.join(['P(...)'] * count)}")
    if len(given) != count:
        raise Stop(f"{len(given)} layouts came out; wanted {count}")
    for spec in given:
        names = [axis for entry in spec for axis in (entry if isinstance(entry, tuple) else (entry,)) if axis]
        if len(spec) > entries:
            raise Stop(f"{spec} has {len(spec)} entries for an array of {entries} dims; one entry a dim")
        if unknown := [axis for axis in names if axis not in sizes]:
            raise Stop(f"{spec} names an axis {unknown[0]!r}; the mesh has {' and '.join(sizes)}")
        if len(set(names)) < len(names):
            raise Stop(f"{spec} names an axis twice; an axis cuts one dim of an array")
    return tuple(given)


TWO_AXES: tuple[Sizes, ...] = ({"data": 2, "tensor": 4}, {"data": 4, "tensor": 2})


def along(axis: str) -> tuple[Sizes, ...]:
    return ({axis: 8}, {axis: 4})


TASKS: dict[str, tuple[Callable[[Any, Sizes], Case], tuple[Sizes, ...]]] = {
    "specs": (specs, TWO_AXES),
    "operands": (operands, TWO_AXES),
    "partial-sums": (partial_sums, along("tensor")),
    "all-reduce": (all_reduce, along("data")),
    "fsdp": (fsdp, along("fsdp")),
    "accumulation": (accumulation, along("data")),
    "megatron": (megatron, along("tensor")),
    "cross-entropy": (cross_entropy, along("tensor")),
    "collective-matmul": (collective_matmul, along("tensor")),
    "ring-attention": (ring_attention, along("context")),
}
