"""What a step should send, by arithmetic alone: every collective of the default sharding rules. No jax.

Figures are of one device and one step; dims as in `analysis.costs`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxscale import config as cfg
from jaxscale.analysis.costs import (
    BYTES,
    MATRICES,
    kept,
    microbatch_rows,
    microbatch_tokens,
    parameter_table,
    weights,
)
from jaxscale.parallel.rules import ACTIVATIONS, PARAMETERS


@dataclass(frozen=True)
class Traffic:
    """A collective that a step needs: V bytes (see `analysis.collectives.Collective`), `times` a step.

    Attributes:
        phase: `forward`, `backward` or `update`; `overlaps`: other matmuls of the step do not wait for it.
    """

    what: str
    kind: str
    axes: tuple[str, ...]
    bytes: float
    times: int
    phase: str
    overlaps: bool

    @property
    def step_bytes(self) -> float:
        return self.bytes * self.times


def traffic(config: cfg.Config, sizes: Mapping[str, int]) -> list[Traffic]:
    """What the default rules send (scaling book, sharding.md and training.md): see `docs/architecture.md`, Sharding.

    Scalars and vectors (norms' gradients, losses) are left out.
    """
    return [t for t in (*weight_traffic(config, sizes), *activation_traffic(config, sizes)) if t.times and t.bytes]


def weight_traffic(config: cfg.Config, sizes: Mapping[str, int]) -> list[Traffic]:
    """FSDP gathers each matrix forward and backward and scatters its gradient; the other axes that split the tokens
    (data, expert, context) all-reduce the scattered shard."""
    fsdp, tensor, parts = sizes.get("fsdp", 1), sizes.get("tensor", 1), config.step.microbatches
    width, L = BYTES[config.step.compute_dtype], config.model.num_layers
    table = parameter_table(config, sizes)
    sums = summed_over(sizes)
    found = []
    for weight in weights(config.model):
        head = weight.name == "unembedding" or (weight.name == "embedding" and config.model.tie_embeddings)
        if weight.name not in MATRICES and not head:
            continue
        times = parts * (1 if head else L)
        shard = weight.shard(sizes, table) // (1 if head else L)
        if "kv_heads" in weight.axes and config.model.kv_heads < tensor:
            # few kv heads are kept whole over tensor, and each device takes the one that its queries read
            shard //= config.model.kv_heads
            found.append(Traffic(f"{weight.name} gradient", "all-gather", ("tensor",), shard * tensor * width, times,
                                 "backward", True))  # fmt: skip
        whole = shard * fsdp * width  # what a device multiplies with: all of it but for tensor's split
        if fsdp > 1:
            gathers = 1 if head else 2
            found += [
                Traffic(f"{weight.name} weight", "all-gather", ("fsdp",), whole, times * gathers, "forward", not head),
                Traffic(f"{weight.name} gradient", "reduce-scatter", ("fsdp",), whole, times, "backward", True),
            ]
        if sums:
            found.append(Traffic(f"{weight.name} gradient", "all-reduce", sums, shard * width, times, "backward", True))
    if sums:  # the lookup's gradient, float32, where the table lives
        table_bytes = next(w for w in weights(config.model) if w.name == "embedding").shard(sizes, table) * 4
        found.append(Traffic("embedding gradient", "all-reduce", sums, table_bytes, parts, "backward", True))
    return found


def summed_over(sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Axes that split the tokens and no weight: each device has a part of the sum that a weight's gradient is."""
    split = {axis for axes in PARAMETERS.values() for axis in axes}
    tokens = (*ACTIVATIONS["batch"], *ACTIVATIONS["sequence"])
    return tuple(a for a in tokens if sizes.get(a, 1) > 1 and a not in split)


def activation_traffic(config: cfg.Config, sizes: Mapping[str, int]) -> list[Traffic]:
    """Tensor parallelism with sequence parallelism (arXiv:2205.05198); the embedding's all-to-alls over fsdp."""
    model, step, fsdp, tensor = config.model, config.step, sizes.get("fsdp", 1), sizes.get("tensor", 1)
    width, parts = BYTES[step.compute_dtype], step.microbatches
    rows, tokens = microbatch_rows(config, sizes), microbatch_tokens(config, sizes)
    runs = parts * model.num_layers
    x = float(tokens * model.embed_dim * width)
    found = []
    if fsdp > 1:
        ids = tokens * fsdp * 4
        found += [
            Traffic("token ids", "all-gather", ("fsdp",), ids, parts, "forward", False),
            Traffic("looked-up rows", "all-to-all", ("fsdp",), x / tensor, 2 * parts, "forward", False),
        ]
    if sizes.get("context", 1) > 1:  # keys and values of the whole sequence, gathered; their gradients scattered
        both = 2.0 * rows * config.data.seq_len * max(model.kv_heads // tensor, 1) * model.head_size * width
        names = kept(step)
        again = 0 if names is None or "attended" in names else 1
        found += [
            Traffic("keys and values", "all-gather", ("context",), both, (2 + again) * runs, "forward", True),
            Traffic("their gradients", "reduce-scatter", ("context",), both, runs, "backward", True),
        ]
    if tensor > 1:
        # What overlaps is what libtpu's programs hide (Llama-3.1-8B, v5p, fsdp=2, tensor=4, read by `compile`): the
        # gathers that a layer's first matmuls wait for have nothing beside them, scatters run beside later matmuls.
        names = kept(step)
        again_gather = 0 if names is None else 1
        again_scatter = 0 if names is None or "attention_out" in names else 1
        found += [
            Traffic("layer inputs", "all-gather", ("tensor",), x, 2 * runs + parts, "forward", False),
            Traffic("attention inputs, again", "all-gather", ("tensor",), x, again_gather * runs, "backward", False),
            Traffic("mlp inputs, again", "all-gather", ("tensor",), x, again_gather * runs, "backward", True),
            Traffic("layer outputs", "reduce-scatter", ("tensor",), x, 2 * runs, "forward", True),
            Traffic("layer outputs, again", "reduce-scatter", ("tensor",), x, again_scatter * runs, "backward", True),
            Traffic("mlp outputs' gradients", "all-gather", ("tensor",), x, runs, "backward", False),
            Traffic("attention outputs' gradients", "all-gather", ("tensor",), x, runs, "backward", True),
            Traffic("inputs' gradients", "reduce-scatter", ("tensor",), x, 2 * runs + parts, "backward", True),
            Traffic("looked-up rows", "reduce-scatter", ("tensor",), x, parts, "forward", False),
            Traffic("rows' gradients", "all-gather", ("tensor",), x, parts, "backward", False),
            Traffic("losses", "all-reduce", ("tensor",), tokens * 4.0, 3 * parts, "forward", False),
        ]
    return found
