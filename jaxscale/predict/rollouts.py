"""What sampling costs a run that trains on samples of its own model: seconds of a step, bytes of a device. No jax.

The formulas are a roofline's, as in the scaling book's chapter on inference (jax-ml.github.io/scaling-book/inference):
prompts are bound by FLOPs, a token after another by what is read for it.

    prefill    2 P B Tp / FLOP/s                              Tp tokens of a prompt as it is padded
    decode     (new - 1) (max(2 P B / FLOP/s, bytes(P + cache) / HBM bytes/s) + collectives of a token's activations)
    reference  2 P B T / FLOP/s                               its forward pass over rows of T tokens, where it is read

P: parameters that multiply a token, B: rows, both of a device. The cache is read whole for each token, as it is laid
out for the longest sample, and the loop ends when the last row does: so a round of short samples takes less. Not
counted: starts of kernels, rows that go to experts on other devices, and what a reward takes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxscale import config as cfg
from jaxscale.blueprint.cases import Axes, without
from jaxscale.blueprint.decoding import (
    Need,
    bucket,
    decode_rules,
    gathered_rules,
    logits_bytes,
    multiplied,
    whole_rows,
)
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.passes import Passes
from jaxscale.blueprint.rules import Rules, count, few_axes, make_rules, rules_of, split_by
from jaxscale.blueprint.table import Weight
from jaxscale.data.index import read_index
from jaxscale.hardware.topology import Link
from jaxscale.predict import costs
from jaxscale.predict.attention import attention_cost
from jaxscale.predict.costs import BYTES
from jaxscale.predict.timing import Rates, collective_seconds


@dataclass(frozen=True)
class Sampling:
    """What one step's samples take: a round's, divided by the steps that train on it. Predicted.

    Attributes:
        rows: of a device, at one time; `tokens`: most of a sample.
        prompt: tokens of the longest prompt, as it is padded; `prompt_from`: where its length is known from.
        prefill, decode, reference, gather: seconds; the last is of the weights, where they are gathered once.
        binds: what a token of decoding waits for most: compute, HBM, weights (that are gathered for it) or collectives.
        gathered: are the weights gathered once, before the first token, and not for each?
        need: bytes of a device with gathered weights, of which `gathered` follows.
    """

    rows: int
    tokens: int
    prompt: int
    prompt_from: str
    prefill: float
    decode: float
    reference: float
    gather: float
    binds: str
    gathered: bool
    need: Need

    @property
    def seconds(self) -> float:
        return self.prefill + self.decode + self.reference + self.gather

    def share_of_decode(self, training: float) -> float:
        """Of the whole step: `training` seconds and the samples'."""
        return self.decode / (training + self.seconds)


def sampling(
    config: cfg.Config,
    memory: float,
    sizes: Mapping[str, int],
    speed: Rates,
    attention_flops: float,
    links: Mapping[str, Link],
) -> Sampling | None:
    """Predict the samples of a step; None where the objective has none.

    Args:
        memory: bytes of a device that a program may use.
        attention_flops: FLOP/s of a device in attention, for the reference.
        links: of the mesh axes.
    """
    objective = config.objective
    if not objective.samples:
        return None
    at, (prompt, source) = Layout(config, sizes), longest_prompt(config)
    need = at.need()
    gathered = need.fits(memory)
    each, last = at.flops_per_token()

    def seconds(gathers: Mapping[Axes, float]) -> float:
        return sum(collective_seconds("all-gather", axes, n, links, speed.network)[0] for axes, n in gathers.items())

    sums = sum(collective_seconds(kind, axes, n, links, speed.network)[0] * k for kind, axes, n, k in at.activations())
    token = {
        "compute": at.rows * (each + last) / speed.matmul_flops,
        "HBM": (at.read_bytes(gathered=gathered) + need.cache) / speed.memory,
        "weights": 0.0 if gathered else seconds(at.gathers(at.kept, at.taken)),
    }
    prefill = at.rows * (bucket(prompt) * each + last) / speed.matmul_flops
    reference = forward_seconds(config, sizes, speed, attention_flops) if objective.reads_reference else 0.0
    once = seconds(at.gathers(at.trained, at.taken if gathered else at.kept))
    decode = (objective.max_new - 1) * (max(token.values()) + sums)
    every = token | {"collectives": sums}
    return Sampling(
        rows=at.rows,
        tokens=objective.max_new,
        prompt=bucket(prompt),
        prompt_from=source,
        prefill=prefill / objective.updates,
        decode=decode / objective.updates,
        reference=reference / objective.updates,
        gather=once / objective.updates,
        binds=max(every, key=every.__getitem__),
        gathered=gathered,
        need=need,
    )


def samples_of_round(config: cfg.Config) -> int:
    """Samples that are made at one time, of all devices."""
    return config.objective.prompts_of_round(config.data.batch_size) * config.objective.group


def longest_prompt(config: cfg.Config) -> tuple[int, str]:
    """Tokens of the longest prompt that is trained on, and where that is known from: the data's index, or none."""
    room = config.data.seq_len - config.objective.max_new
    try:
        examples = read_index(Path(config.data.path or "")).examples
    except ValueError:  # the data need not be where a plan is made
        examples = None
    if examples is None or examples.kind != "prompts":
        return room, "data.seq_len - objective.max_new, as the data is not here"
    return min(room, examples.splits["train"].longest), f"the longest of {config.data.path}"


def forward_seconds(config: cfg.Config, sizes: Mapping[str, int], speed: Rates, attention_flops: float) -> float:
    """Of a forward pass of a step's rows, as training splits them."""
    attention = attention_cost(config, sizes)
    matmuls = sum(m.flops * m.forward for m in costs.matmuls(config, sizes)) / speed.matmul_flops
    return matmuls + attention.forward_flops * attention.backward_calls / attention_flops


def reference_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> int:
    """Of a device: the parameters that the run began with, laid out as those that are trained; 0 where none stay."""
    if not (config.objective.samples and config.objective.reads_reference):
        return 0  # of pairs the log-probabilities are kept
    return sum(costs.bytes_held(config, sizes, which) for which in ("trained", "frozen", "ruled"))


def sampling_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> dict[str, float]:
    """Of a device, beside the state, while it samples; the weights are gathered once only where they fit beside it."""
    at = Layout(config, sizes)
    need, layers = at.need(), blueprint(config.model).num_layers
    moved = at.bytes(at.kept) - at.bytes(at.trained)  # stages of a pipeline, which are joined for it
    return {
        "cache of keys and values": float(need.cache),
        "logits of a token": float(need.logits),
        "weights of a layer, gathered": need.weights / layers,
        **({"layers of other stages": float(moved)} if moved > 0 else {}),
    }


class Layout:
    """Where weights and rows of a model lie while it samples on a mesh of these sizes.

    Attributes:
        trained, kept, taken: rules of training; of decoding; of decoding with gathered weights.
        rows: of a device.
    """

    def __init__(self, config: cfg.Config, sizes: Mapping[str, int]):
        self.config, self.sizes, self.model = config, sizes, blueprint(config.model)
        self.trained = rules_of(config, sizes)
        self.kept = decode_rules(self.trained)
        self.taken = gathered_rules(self.kept)
        self.narrow = multiplied(config.model)
        batch = self.kept.activations["batch"]
        self.rows = whole_rows(self.kept, sizes, samples_of_round(config)) // count(batch, sizes)

    def elements(self, weight: Weight, rules: Rules) -> int:
        """Of a weight, all layers, that one device holds."""
        dims = zip(self.model.shape(weight), self.model.axes(weight), strict=True)
        return math.prod(n // count(rules.parameters[axis], self.sizes) for n, axis in dims)

    def width(self, weight: Weight) -> int:
        """Bytes of an element as it is gathered: see `rollouts.sampler`."""
        kept, step = weight.kept_in(self.config.step.param_dtype), self.config.step
        return min(BYTES[kept], BYTES[step.compute_dtype]) if weight.name in self.narrow else BYTES[kept]

    def bytes(self, rules: Rules) -> int:
        """Of all weights, as they are kept."""
        dtype = self.config.step.param_dtype
        return sum(self.elements(w, rules) * BYTES[w.kept_in(dtype)] for w in self.model.weights)

    def flops_per_token(self) -> tuple[float, float]:
        """Of a row's token on its device: of the layers, and of the head, which only a prompt's last token passes."""
        batch, flops = self.kept.activations["batch"], {True: 0.0, False: 0.0}
        for op in self.model.ops:
            weight = self.model.weight(op.weight_name)
            axes = [without(self.taken.parameters[axis], batch) for axis in self.model.axes(weight)]
            shards = math.prod(count(a, self.sizes) for a in axes)
            flops[op.once] += 2.0 * self.model.active(weight) * self.model.size(weight) / shards
        return flops[False], flops[True]

    def read_bytes(self, *, gathered: bool) -> float:
        """Of the weights, for one token of all rows; those gathered for it are read, written and read again."""
        total = 0.0
        for name in {op.weight_name for op in self.model.ops}:
            weight = self.model.weight(name)
            whole = self.elements(weight, self.taken) * BYTES[self.config.step.compute_dtype]
            if gathered:
                total += whole * self.touched(weight)
            else:
                stored = self.elements(weight, self.kept) * BYTES[weight.kept_in(self.config.step.param_dtype)]
                total += stored + (2 * whole if self.moves(weight, self.kept, self.taken) else 0)
        return total

    def touched(self, weight: Weight) -> float:
        """The share of a weight that any row needs: of experts, those that a token of some row goes to."""
        share = self.model.active(weight)
        if share == 1 or self.model.routed is None:
            return 1.0
        arrived = self.rows * count(self.kept.activations[self.model.dims[self.model.routed.experts].axis], self.sizes)
        return 1 - (1 - share) ** arrived

    def moves(self, weight: Weight, before: Rules, after: Rules) -> Axes:
        """Mesh axes over which a weight is gathered from one layout to the other."""
        pairs = ((before.parameters[a], after.parameters[a]) for a in self.model.axes(weight))
        return split_by([a for old, new in pairs for a in without(old, new)], self.sizes)

    def gathers(self, before: Rules, after: Rules) -> dict[Axes, float]:
        """Mesh axes -> bytes of a device after all weights are gathered over them."""
        gathered: dict[Axes, float] = {}
        for weight in self.model.weights:
            if axes := self.moves(weight, before, after):
                gathered[axes] = gathered.get(axes, 0.0) + self.elements(weight, after) * self.width(weight)
        return gathered

    def activations(self) -> list[tuple[str, Axes, float, int]]:
        """Collectives of one token's activations: kind, mesh axes, bytes of a device, and how many."""
        axes, width = split_by(cfg.AXES, self.sizes), BYTES[self.config.step.compute_dtype]
        few = few_axes(make_rules(self.config.sharding), self.sizes, self.model)
        passes, collectives = Passes(self.model, self.taken, None, axes, few), []
        for op in self.model.ops:
            for send in passes.forward(op).sends if not op.rows_move else ():
                if send.operand != "w":
                    size = self.elements_of_rows(op.x if send.operand == "x" else op.y) * width
                    collectives.append((send.kind, send.axes, size, self.model.layers_with(op) if op.stacked else 1))
        if self.model.head and (split := split_by(self.kept.activations["vocab"], self.sizes)):
            collectives.append(("all-gather", split, 4.0 * self.rows * self.config.model.padded_vocab_size, 1))
        return collectives

    def elements_of_rows(self, letters: str) -> float:
        """Of an array of one token of each row, whole but for the rows."""
        return math.prod(self.rows if c == "B" else 1 if c == "T" else self.model.dims[c].size for c in letters)

    def need(self) -> Need:
        """Bytes of a device with gathered weights, as `rollouts.sampler` counts them."""
        state = sum(costs.state_bytes(self.config, self.sizes).values())
        weights = sum(self.elements(w, self.taken) * self.width(w) for w in self.model.weights)
        logits = logits_bytes(self.rows, self.config.model.padded_vocab_size)
        held = state + reference_bytes(self.config, self.sizes)
        return Need(held, weights, self.cache_bytes(), logits)

    def cache_bytes(self) -> int:
        """Of keys and values (or latents) of this device's rows, all layers, up to the longest sample."""
        length = bucket(longest_prompt(self.config)[0]) + self.config.objective.max_new
        split, model, elements = self.kept.activations, self.model, 0
        for letters in model.attention.cached if model.attention else ():
            local_dims = {"B": self.rows, "T": length}
            for c in letters.replace("B", "").replace("T", ""):
                dim, shards = model.dims[c], count(split[model.dims[c].axis], self.sizes)
                local_dims[c] = (max(dim.size, shards) if dim.repeats else dim.size) // shards
            elements += math.prod(local_dims[c] for c in letters)
        return model.num_layers * elements * BYTES[self.config.step.compute_dtype]
