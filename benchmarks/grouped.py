"""What a dropless mixture of experts costs on this CPU beside dense matmuls of the same FLOPs.

    python benchmarks/grouped.py             # about 3 minutes on 2 cores

The dense layer is three matmuls with silu, forward and backward, with one expert's matrices. Beside it stand the same
matmuls grouped by expert, and the model's whole layer: the router, sorting the rows, these matmuls, and adding them up
again, each token going to two experts. All take turns, so that all meet the same noise.
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
from flax import nnx

from jaxscale import config as cfg
from jaxscale.blueprint.rules import make_rules
from jaxscale.kernels.grouped import grouped_matmul
from jaxscale.models.experts import Experts
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.sharding import on_mesh
from jaxscale.process.heap import keep_heap

TOP_K = 2
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


def whole(tokens: int, embed: int, mlp: int, experts: int, dtype: Any) -> tuple[Any, ...]:
    """The model's layer and its arguments: a run gives its result, and gradients of its parameters and input."""
    moe = {"num_experts": experts, "top_k": TOP_K, "mlp_dim": mlp}
    sizes = {"embed_dim": embed, "mlp_dim": mlp, "num_layers": 1, "num_heads": 1}
    model, step = cfg.Model.model_validate(sizes | {"moe": moe}), cfg.Step(compute_dtype=jnp.dtype(dtype).name)
    with on_mesh(make_mesh(data=1), make_rules(cfg.Sharding())):
        graph, params = nnx.split(Experts(model, step, nnx.Rngs(0)))

    @jax.jit
    def run(params: Any, x: jax.Array, dy: jax.Array) -> Any:
        y, pull = jax.vjp(lambda params, x: nnx.merge(graph, params)(x, None)[0], params, x)
        return y, pull(dy)

    def on_one(*arguments: Any) -> Any:
        with on_mesh(make_mesh(data=1), make_rules(cfg.Sharding())):
            return run(*arguments)

    x, dy = (jax.random.normal(jax.random.key(i), (1, tokens, embed), dtype) for i in range(2))
    return on_one, params, x, dy


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
        "whole": whole(rows // TOP_K, embed, mlp, experts, dtype),
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
                ratios = {k: [r[k] / r["dense"] for r in rounds] for k in ("grouped", "whole")}
                name = f"{jnp.dtype(dtype).name}, {rows} rows, {embed} x {mlp}, {experts} experts"
                text = ", ".join(f"{k} to dense {spread_text(found)}" for k, found in ratios.items())
                print(f"{name}: {text}", flush=True)
                cases.append({"case": name, "ratio": {k: spread(r) for k, r in ratios.items()}, "seconds": rounds})
    record = {"machine": about_machine, "load_after": os.getloadavg()[0], "cases": cases}
    print(f"recorded in {write_record('grouped', record, arguments.out)}")


if __name__ == "__main__":
    main()
