"""The other side: jaxscale's own step (`make_program`) of the same objective, model and batches, on the CPU."""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.common import serve, time_steps
from jaxscale import config as cfg
from jaxscale.data.columns import DTYPES
from jaxscale.objectives import make_objective
from jaxscale.objectives.token_values import token_values
from jaxscale.parallel.mesh import start_devices
from jaxscale.process.heap import keep_heap
from jaxscale.training.build import Setup, build
from jaxscale.training.initial import initial_state
from jaxscale.training.step import TrainState, all_parameters

OVERRIDES = [
    "step.compute_dtype=float32", "step.remat=none", "optimizer.learning_rate=1e-4", "optimizer.b1=0.9",
    "optimizer.b2=0.999", "optimizer.eps=1e-8", "optimizer.weight_decay=0", "optimizer.warmup_steps=0",
    "optimizer.schedule=constant", "optimizer.clip_norm=null", "mesh={data: 1}", "runtime.platform=cpu",
    "data.kind=synthetic", "data.path=null",
]  # fmt: skip


def main(kind: str, folder: Path) -> None:
    keep_heap()  # as the command line does
    arrays = dict(np.load(folder / "batches.npz"))
    _, rows, length = arrays["tokens"].shape
    sizes = [f"data.batch_size={rows}", f"data.seq_len={length}", f"objective.kind={kind}"]
    config = cfg.load_config(f"hf:{folder / 'llama'}", [*OVERRIDES, *sizes])
    setup = build(config, start_devices(config.runtime)[:1])
    with setup.context():
        held = {"state": initial_state(config, setup.program, lambda line: None), "done": 0}
        batches = [columns(kind, tokens, int(arrays["prompt"])) for tokens in arrays["tokens"]]
        if kind == "dpo":
            reference = log_probs(config, setup, held["state"])
            batches = [one | {"reference": np.asarray(reference(placed(setup, one)))} for one in batches]
        read = make_objective(config).reads(documents=True)
        batches = [{name: one[name] for name in read} for one in batches]

        def one() -> float:
            batch = placed(setup, batches[held["done"] % len(batches)])
            held["done"] += 1
            held["state"], metrics = setup.program.step(held["state"], batch)
            loss = float(jax.device_get(metrics["loss"]))
            jax.block_until_ready(held["state"])
            return loss

        serve({"optimizer": "AdamW, optax"}, steps=lambda count: time_steps(one, count))


def columns(kind: str, tokens: np.ndarray, prompt: int) -> dict[str, np.ndarray]:
    """One text a row, or a pair: the chosen text and the rejected one, equally long, as two documents."""
    rows, length = tokens.shape
    texts = 2 if kind == "dpo" else 1
    size = length // texts
    place = np.arange(length) % size
    text = np.arange(length) // size
    trained = ((place >= prompt - 1) & (place < size - 1)) * (1 - 2 * text)
    one = {"segments": 1 + text, "positions": place, "weights": trained, "ends": (place == size - 1) * (1 - 2 * text)}
    every = {"tokens": tokens, "targets": np.roll(tokens, -1, 1)}
    every |= {name: np.tile(value, (rows, 1)) for name, value in one.items()}
    return {name: value.astype(DTYPES.get(name, np.float32)) for name, value in every.items()}


def placed(setup: Setup, columns: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    return {name: jax.device_put(value[None], setup.batch_sharding) for name, value in columns.items()}


def log_probs(config: cfg.Config, setup: Setup, state: TrainState) -> Any:
    """batch -> the log-probability of each target by the model as it is now."""
    params = jax.tree.map(lambda x: x.copy(), all_parameters(state, state.params))  # a step donates its own

    def run(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        part, size = jax.tree.map(lambda x: x[0], batch), config.model.vocab_size
        return token_values(setup.program.merge(params), part, vocab_size=size, chunk=None)["log_p"]

    compiled = jax.jit(run)
    return lambda batch: compiled(params, batch)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
