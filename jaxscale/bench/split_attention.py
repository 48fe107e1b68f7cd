"""Attention over sequences that several devices share: each kernel, with gathered keys and with a ring."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.bench.attention import LONGEST, Case, available, both, call, operands, reference
from jaxscale.bench.clock import Effort, time_calls
from jaxscale.bench.record import Figure, Label, Row, measured
from jaxscale.blueprint.rules import SEQUENCE_AXES
from jaxscale.blueprint.sequence import order
from jaxscale.models.attention import Attention, attention
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.sharding import on_mesh, shard

(AXIS,) = SEQUENCE_AXES
WAYS = {"cudnn": ("ring",)}  # its blocks know no places
LAYOUT = ("batch", "sequence", None, None)


def measure(cases: list[Case], devices: list[jax.Device], peak: float | None, effort: Effort) -> Iterator[Row]:
    """Rows of forward, and of forward and backward, for each kernel, way and case; FLOPs are those of all devices."""
    mesh, shards = make_mesh({AXIS: len(devices)}, devices), len(devices)
    for case in cases:
        local_case = replace(case, seq_len=case.seq_len // shards)
        problems = available(local_case, devices[0].platform)
        for kernel, way in ((k, w) for k in problems for w in WAYS.get(k, ("gather", "ring"))):
            labels = labels_of(case, kernel, way, shards)
            if problem := problems[kernel]:
                yield Row(labels=labels, error=problem)
                continue
            try:
                with on_mesh(mesh):
                    rows = list(rows_of(case, kernel, way, labels, shards, peak, effort))
            except (jax.errors.JaxRuntimeError, MemoryError) as error:  # the other rows are still wanted
                rows = [Row(labels=labels, error=" ".join(str(error).split())[:300])]
            yield from rows


def labels_of(case: Case, kernel: str, way: str, shards: int) -> dict[str, Label]:
    return {
        "kernel": kernel, "way": way, AXIS: shards, "seq_len": case.seq_len, "batch": case.batch,
        "heads": case.heads, "kv_heads": case.kv_heads, "head_dim": case.head_dim, "dtype": case.dtype,
    }  # fmt: skip


def run_of(kernel: str, way: str) -> Callable[..., jax.Array]:
    how = Attention(implementation=kernel, split=way)
    return lambda q, k, v: attention(q, k, v, None, how)


def placed(case: Case, shards: int) -> list[jax.Array]:
    """q, k, v and the cotangent in the mesh's order, split."""
    places = order(case.seq_len, shards)
    move = jax.jit(lambda x: shard(x[:, places], *LAYOUT))
    return [move(x) for x in operands(case)]


def largest_error(case: Case, kernel: str, way: str, shards: int) -> tuple[float, float]:
    """Largest difference to the reference, of the result and of any gradient, on the first row's first tokens."""
    small = replace(case, batch=1, seq_len=min(case.seq_len, LONGEST))
    mine = jax.jit(both(run_of(kernel, way)))(*placed(small, shards))
    whole = (x.astype(jnp.float32) for x in operands(small))
    theirs = jax.device_get(jax.jit(both(reference))(*whole))
    back = np.argsort(order(small.seq_len, shards))
    errors = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a, np.float32)[:, back] - b).max()), mine, theirs)
    return errors[0], max(errors[1])


def rows_of(
    case: Case, kernel: str, way: str, labels: dict[str, Label], shards: int, peak: float | None, effort: Effort
) -> Iterator[Row]:
    args, errors, run = placed(case, shards), largest_error(case, kernel, way, shards), run_of(kernel, way)
    passes = {"forward": (run, args[:3], 1.0), "forward and backward": (both(run), args, 3.5)}
    for error, (name, (function, inputs, share)) in zip(errors, passes.items(), strict=True):
        compiled = jax.jit(function).lower(*inputs).compile()
        seconds = time_calls(functools.partial(call, compiled, tuple(inputs)), effort)
        flops = share * case.forward_flops
        figures = {
            "flops_per_second": measured([flops / s for s in seconds], "FLOP/s"),
            "seconds": measured(seconds, "s"),
            "max_error": Figure(value=error, unit="absolute"),
        }
        if memory := compiled.memory_analysis():
            figures["temporary_bytes"] = Figure(value=memory.temp_size_in_bytes, unit="bytes", basis="compiled")
        if peak:
            figures["share_of_peak"] = measured([flops / s / peak / shards for s in seconds], "share")
        yield Row(labels=labels | {"pass": name}, figures=figures)
