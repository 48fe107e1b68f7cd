"""What a dropless mixture of experts costs on this CPU beside dense matmuls of the same FLOPs.

    python benchmarks/grouped.py             # about 3 minutes on 2 cores

A layer is three matmuls with silu, forward and backward: grouped by expert, or dense with one expert's matrices.
Sorting the rows and adding them up again are not in it. Both take turns, so that both meet the same noise.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import HERE, machine, spread, spread_text, write_record

from jaxscale.kernels.grouped import grouped_matmul
from jaxscale.process.heap import keep_heap

SHAPES = ((4096, 256, 512), (8192, 512, 1024))  # rows, width of the model, width of an expert
EXPERTS = (8, 64)


def layer(matmul: Callable[..., jax.Array]) -> Callable[..., Any]:
    """(x, gate, up, down, sizes, dy) -> the layer's result and its gradients."""

    @jax.jit
    def run(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array, sizes: jax.Array, dy: jax.Array) -> Any:
        def forward(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
            return matmul(jax.nn.silu(matmul(x, gate, sizes)) * matmul(x, up, sizes), down, sizes)

        y, pull = jax.vjp(forward, x, gate, up, down)
        return y, pull(dy)

    return run


def seconds(run: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return time.perf_counter() - start


def compare(rows: int, embed: int, mlp: int, experts: int, dtype: Any, rounds: int) -> list[dict[str, float]]:
    """Seconds of both, a round after the other; loads differ by a factor of two between experts."""
    rng = np.random.default_rng(0)
    sizes = jnp.asarray(rng.multinomial(rows, rng.dirichlet(np.full(experts, 8.0))), jnp.int32)
    x, dy, gate, up, down = (
        jnp.asarray(rng.standard_normal(shape), dtype)
        for shape in ((rows, embed), (rows, embed), *2 * [(experts, embed, mlp)], (experts, mlp, embed))
    )
    grouped = layer(lambda x, w, sizes: grouped_matmul(x, w, sizes, platform="cpu"))
    dense = layer(lambda x, w, sizes: x @ w)
    calls = {
        "grouped": (grouped, x, gate, up, down, sizes, dy),
        "dense": (dense, x, gate[0], up[0], down[0], sizes, dy),
    }
    for call in calls.values():
        seconds(*call)
    return [{name: seconds(*call) for name, call in calls.items()} for _ in range(rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    keep_heap()  # as the trainer does
    about_machine, cases = machine(), []
    for dtype in (jnp.float32, jnp.bfloat16):
        for rows, embed, mlp in SHAPES:
            for experts in EXPERTS:
                rounds = compare(rows, embed, mlp, experts, dtype, arguments.rounds)
                ratios = [r["grouped"] / r["dense"] for r in rounds]
                name = f"{jnp.dtype(dtype).name}, {rows} rows, {embed} x {mlp}, {experts} experts"
                print(f"{name}: grouped to dense {spread_text(ratios)}", flush=True)
                cases.append({"case": name, "ratio": spread(ratios), "seconds": rounds})
    record = {"machine": about_machine, "load_after": os.getloadavg()[0], "cases": cases}
    print(f"recorded in {write_record('grouped', record, arguments.out)}")


if __name__ == "__main__":
    main()
