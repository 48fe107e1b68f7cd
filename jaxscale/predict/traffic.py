"""What a step should send, by arithmetic alone: every collective that the rules ask for. No jax.

Figures are of one device and one step; dims as in `predict.costs`. Where each comes from: `blueprint.passes`, and
for what no matmul sends, the functions here.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from jaxscale import config as cfg
from jaxscale.blueprint.cases import Axes, both, without
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.passes import Pass, Send
from jaxscale.blueprint.rules import REPLICA_AXES, count, key_of, rules_of, schedule, split_by
from jaxscale.blueprint.sequence import halo
from jaxscale.blueprint.table import RESIDUAL, SEQUENCE
from jaxscale.predict import costs
from jaxscale.predict.attention import kernel_of, split_ways
from jaxscale.predict.costs import BYTES, elements, letter_sizes
from jaxscale.predict.experts import Exchange, exchange, times


@dataclass(frozen=True)
class Traffic:
    """A collective that a step needs: V bytes (see `compiled.collectives.Collective`), `times` a step.

    Attributes:
        phase: `forward`, `backward`, `recomputed` or `outer`; `overlaps`: other matmuls of the step do not wait for it.
        weight: it gathers a weight or scatters its gradient.
    """

    what: str
    kind: str
    axes: tuple[str, ...]
    bytes: float
    times: int
    phase: str
    overlaps: bool
    weight: bool = False

    @property
    def step_bytes(self) -> float:
        return self.bytes * self.times


def traffic(config: cfg.Config, sizes: Mapping[str, int], *, platform: str = "tpu") -> list[Traffic]:
    """What the rules send (scaling book, sharding.md and training.md): see `docs/architecture.md`, Sharding.

    Scalars and vectors (norms' gradients, losses) are left out.

    Args:
        platform: `tpu`, `gpu` or `cpu`; it has a say in how split sequences attend, and how rows go to experts.
    """
    ways = partial(split_sequences, platform=platform), partial(experts, platform=platform)
    rest = (repeated_heads, shared_keys, lookups, *ways, idle_axes, losses, stages)
    all_traffic = [*matmul_traffic(config, sizes), *(t for part in rest for t in part(config, sizes))]
    return [t for t in all_traffic if t.times and t.bytes]


def matmul_traffic(config: cfg.Config, sizes: Mapping[str, int]) -> list[Traffic]:
    """What the matmuls of all passes send."""
    whole = letter_sizes(config, sizes)
    return [sent(one, send, config, whole, sizes) for one in costs.passes(config, sizes) for send in one.sends]


def sent(one: Pass, send: Send, config: cfg.Config, whole: Mapping[str, int], sizes: Mapping[str, int]) -> Traffic:
    """V counts the gathered operand, the whole partial sum, or the shard that is left to be summed."""
    operand = getattr(one, send.operand)
    layout = operand.used
    if send.operand == "out" and send.kind == "reduce-scatter":
        layout = operand.stored
    float32 = blueprint(config.model).op(one.name).float32
    size = elements(operand.letters, layout, whole, sizes) * BYTES["float32" if float32 else config.step.compute_dtype]
    of_gradient = one.what == "gradient of w"
    weight = send.operand == ("out" if of_gradient else "w")
    name = f"{one.name} {('gradient' if of_gradient else 'weight') if weight else 'rows'}"
    return Traffic(
        name, send.kind, send.axes, size, costs.runs_of(one, config, sizes), one.phase, send.overlaps, weight
    )


def repeated_heads(config: cfg.Config, sizes: Mapping[str, int]) -> Iterator[Traffic]:
    """Few kv heads are kept whole, and each device takes the one that its queries read: their gradients are
    gathered."""
    model, rules, whole = blueprint(config.model), rules_of(config, sizes), letter_sizes(config, sizes)
    few = costs.few_dims(config, sizes)
    for one in (p for p in costs.passes(config, sizes) if p.what == "gradient of w"):
        for letter in (c for c in one.out.letters if model.dims[c].axis in few):
            axes = split_by(rules.activations[model.dims[letter].axis], sizes)
            layout = tuple(() if c == letter else at for c, at in zip(one.out.letters, one.out.used, strict=True))
            size = elements(one.out.letters, layout, whole, sizes) * BYTES[config.step.compute_dtype]
            yield Traffic(
                f"{one.name} gradient", "all-gather", axes, size, costs.runs_of(one, config, sizes), "backward", True
            )


def shared_keys(config: cfg.Config, sizes: Mapping[str, int]) -> Iterator[Traffic]:
    """The part of keys that all heads share, from where tokens lie between matmuls to where attention runs; and its
    gradient, summed over the heads: see `models.latent`."""
    attention, rules = blueprint(config.model).attention, rules_of(config, sizes)
    if attention is None or not attention.shared:
        return
    runs, again = costs.layer_runs(config, sizes), int(costs.kept(config) is not None)
    size = costs.activation_elements(config, sizes, attention.shared) * BYTES[config.step.compute_dtype]
    residual, sequence = (split_by(rules.activations[name], sizes) for name in (RESIDUAL, SEQUENCE))
    gathered = without(residual, sequence)
    heads = split_by(rules.activations[blueprint(config.model).dims[attention.q[2]].axis], sizes)
    if gathered:
        yield Traffic("shared keys", "all-gather", gathered, size, runs * (1 + again), "forward", False)
    if heads:
        yield Traffic("shared keys' gradients", "all-reduce", heads, size, runs, "backward", True)


def lookups(config: cfg.Config, sizes: Mapping[str, int]) -> Iterator[Traffic]:
    """A table's rows by token: see `models.embedding.lookup`. Its gradient is added up in float32 where it lives."""
    model, ticks, width = blueprint(config.model), schedule(config, sizes), BYTES[config.step.compute_dtype]
    parts, again = ticks.ticks, 1 if ticks.stages == 1 else 2  # backward comes in a later tick, and reads ids again
    rules, tokens = rules_of(config, sizes), costs.microbatch_tokens(config, sizes)
    lies = ("batch", "sequence", "residual_sequence")
    batch, sequence, residual = (split_by(rules.activations[name], sizes) for name in lies)
    batch = without(batch, REPLICA_AXES)
    for name in model.lookups:
        table = model.weight(name)
        back = parts if table.trained else 0
        ids_split, embed = (split_by(rules.parameters[axis], sizes) for axis in model.axes(table))
        vocab, trades = without(ids_split, (*batch, *sequence)), (both(embed, batch), both(embed, sequence))
        trade = (*trades[0], *trades[1])
        scatter = residual[len(sequence) :]
        if residual[: len(sequence)] != sequence or without(scatter, vocab):
            scatter = ()
        rows = float(tokens * model.shape(table)[1] * width)
        layout, whole = (vocab, trade), {c: model.dims[c].size for c in table.letters}
        if gathered := without((*ids_split, *embed), (*vocab, *trade)):
            size = elements(table.letters, layout, whole, sizes) * BYTES[config.step.param_dtype]
            yield Traffic(f"{name} weight", "all-gather", gathered, size, parts, "forward", False, weight=True)
        ids = tokens * 4.0
        for axes in trades:  # of rows, then of their tokens
            if axes:
                ids *= count(axes, sizes)
                yield Traffic("token ids", "all-gather", axes, ids, again * parts, "forward", False)
                traded = rows / count(scatter, sizes)
                yield Traffic("looked-up rows", "all-to-all", axes, traded, parts + back, "forward", False)
        if scatter:
            yield Traffic("looked-up rows", "reduce-scatter", scatter, rows, parts, "forward", False)
            yield Traffic("rows' gradients", "all-gather", scatter, rows, back, "backward", False)
        if summed := without(vocab, scatter):
            yield Traffic("looked-up rows", "all-reduce", summed, rows / count(scatter, sizes), parts, "forward", False)
        if sliced := without(residual, (*sequence, *scatter)):
            yield Traffic("rows' gradients", "all-gather", sliced, rows, back, "backward", False)
        if tokens_over := without((*batch, *sequence), (*vocab, *trade)):
            size = elements(table.letters, layout, whole, sizes) * 4
            yield Traffic(f"{name} gradient", "all-reduce", tokens_over, size, back, "backward", True, weight=True)


def split_sequences(config: cfg.Config, sizes: Mapping[str, int], *, platform: str) -> Iterator[Traffic]:
    """Keys and values where sequences are split, and their gradients: see `models.context`.

    V of a gather is all keys and values of the rows: 2 B S K H, or B S N (H + O). A ring sends a C-th of it in
    each of its turns; a halo sends what the window shows of the tokens before. Gradients go round in float32. Layers
    differ by window.
    """
    model, rules = blueprint(config.model), rules_of(config, sizes)
    axes = split_by(rules.activations["sequence"], sizes)
    if model.attention is None or not axes:
        return
    shards, width = count(axes, sizes), BYTES[config.step.compute_dtype]
    both = (costs.activation_elements(config, sizes, x) for x in (model.attention.k, model.attention.values))
    local_elements = sum(both)  # of keys and values
    names, ways = costs.kept(config), split_ways(config, platform)
    again = names is not None and model.attention.result not in names
    keys, gradients = "keys and values", "gradients of keys and values"
    for window, share in model.attention.shares:
        runs, chosen = round(costs.layer_runs(config, sizes) * share), ways[window]
        if chosen == "gather":  # of the recomputed and of the backward pass one gather is left: they have one operand
            yield Traffic(keys, "all-gather", axes, local_elements * shards * width, 2 * runs, "forward", True)
            yield Traffic(gradients, "reduce-scatter", axes, local_elements * shards * width, runs, "backward", True)
        elif chosen == "ring":
            turns = 3 * (shards - 1) - 1 if again else 2 * (shards - 1)  # the first turn of both later passes is one
            yield Traffic(keys, "collective-permute", axes, local_elements * width, turns * runs, "forward", True)
            yield Traffic(gradients, "collective-permute", axes, local_elements * 4, shards * runs, "backward", True)
        else:
            here = config.data.seq_len // shards
            for tokens in halo(here, shards, window or 0, kernel_of(config, platform)):
                size = local_elements / here * tokens * width
                yield Traffic(keys, "collective-permute", axes, size, (2 if again else 1) * runs, "forward", False)
                yield Traffic(gradients, "collective-permute", axes, size, runs, "backward", False)


def experts(config: cfg.Config, sizes: Mapping[str, int], *, platform: str) -> Iterator[Traffic]:
    """Rows to experts on other devices and back, and their gradients: see `models.dispatch`.

    Each row has its weight with it, a number.
    """
    at, routed = exchange(config, sizes), blueprint(config.model).routed
    if at is None or routed is None:
        return
    runs, names, width = costs.layer_runs(config, sizes, routed.layers), costs.kept(config), at.width
    again, (there, back) = int(names is not None), times(config)
    wide = BYTES[config.step.compute_dtype] * width

    def each(what: str, kind: str, axes: Axes, size: float, times: int, phase: str = "forward") -> Traffic:
        return Traffic(what, kind, axes, float(size), times * runs, phase, False)

    residual = rules_of(config, sizes).activations[RESIDUAL]
    for axes, scattered in ((both(at.split, residual), True), (without(at.split, residual), False)):
        if axes:
            size, numbers = at.tokens * wide, at.rows * 4
            if scattered:
                yield each("tokens for experts", "all-gather", axes, size, there)
                yield each("weights and numbers of experts", "all-gather", axes, numbers, 2 * (1 + again))
                yield each("gradients of experts' weights", "reduce-scatter", axes, numbers, 1, "backward")
            kind = "reduce-scatter" if scattered else "all-reduce"
            yield each("experts' partial sums", kind, axes, size, 1)
            yield each("experts' partial sums", kind, axes, size, 1, "backward")
    yield from over_experts(at, platform, each, wide, there, back, again)


def over_experts(
    at: Exchange, platform: str, each: Callable[..., Traffic], wide: int, there: int, back: int, again: int
) -> Iterator[Traffic]:
    """The same over the axes that split the experts.

    Args:
        wide: bytes of a row; `there`, `back`: how often rows go each way; `again`: their weights are made again.
    """
    if at.how == "all_to_all":
        kind, rows = at.sent(platform)
        yield each("rows to experts", kind, at.axes, rows * wide, there)
        yield each("rows from experts", kind, at.axes, rows * wide, back)
        yield each("rows' weights", kind, at.axes, rows * at.number_bytes(platform), 2 + again)
        yield each("experts' counts", "all-gather", at.axes, at.shards * at.num_experts * 4, 1 + again)
    elif at.how == "gather":
        whole = at.shards * at.tokens
        yield each("tokens for experts", "all-gather", at.axes, whole * wide, there)
        yield each("experts' partial sums", "reduce-scatter", at.axes, whole * wide, 1)
        yield each("experts' partial sums", "reduce-scatter", at.axes, whole * wide, 1, "backward")
        numbers = at.shards * at.rows * 4
        yield each("weights and numbers of experts", "all-gather", at.axes, numbers, 2 * (1 + again))
        yield each("gradients of experts' weights", "reduce-scatter", at.axes, numbers, 1, "backward")


def outer_traffic(config: cfg.Config, sizes: Mapping[str, int]) -> list[Traffic]:
    """What replicas send in their outer step, a program of its own: the mean of what they learnt, in float32."""
    axes, parameters = split_by(REPLICA_AXES, sizes), costs.parameter_elements(key_of(config, sizes))
    return [Traffic("outer step", "all-reduce", axes, 4.0 * parameters, 1, "outer", False)] if axes else []


def idle_axes(config: cfg.Config, sizes: Mapping[str, int]) -> Iterator[Traffic]:
    """Attention's gradients over axes along which all devices attend to the same heads and rows: `shard_map` adds them
    up and divides. Only overrides make such axes."""
    model, rules = blueprint(config.model), rules_of(config, sizes)
    if model.attention is None:
        return
    used = [a for axis in ("batch", "sequence", model.dims[model.attention.q[2]].axis) for a in rules.activations[axis]]
    axes = without(split_by(cfg.AXES, sizes), (*used, *rules.parameters["layers"]))
    for letters in (model.attention.q, model.attention.k, model.attention.values) if axes else ():
        size = costs.activation_elements(config, sizes, letters) * BYTES[config.step.compute_dtype]
        runs = costs.layer_runs(config, sizes)
        yield Traffic("attention's gradients", "all-reduce", axes, size, runs, "backward", True)


def losses(config: cfg.Config, sizes: Mapping[str, int]) -> Iterator[Traffic]:
    """Three numbers a token over the shards of the vocabulary: see `objectives.next_token.cross_entropy_sums`."""
    axes = split_by(rules_of(config, sizes).activations["vocab"], sizes)
    if blueprint(config.model).head and axes:
        size = costs.microbatch_tokens(config, sizes) * 4.0
        yield Traffic("losses", "all-reduce", axes, size, 3 * config.step.microbatches, "forward", False)


def stages(config: cfg.Config, sizes: Mapping[str, int]) -> Iterator[Traffic]:
    """From stage to stage of a pipeline, and to all of them what the head reads and the lookup's gradient: see
    `training.pipeline`."""
    model, ticks = blueprint(config.model), schedule(config, sizes)
    axes = split_by(rules_of(config, sizes).parameters["layers"], sizes)
    if not axes:
        return
    stream = model.activation(model.stream)
    size = costs.activation_elements(config, sizes, stream.letters, stream.at) * BYTES[config.step.compute_dtype]
    yield Traffic("stage's output", "collective-permute", axes, size, ticks.ticks, "forward", True)
    yield Traffic("stage's gradient", "collective-permute", axes, size, ticks.ticks, "backward", True)
    yield Traffic("last stage's output", "all-reduce", axes, size, ticks.microbatches, "forward", False)
    yield Traffic("first stage's gradient", "all-reduce", axes, size, ticks.ticks, "backward", False)
