"""What a model is, as data: its dims, weights, matmuls and activations, each stated once. No jax.

Everything that predicts, draws or checks a step derives from these rows: parameters, state, FLOPs, what is sent,
memory.
A model of your own describes itself with the same rows (`described.described_by`).
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

SEQUENCE = "sequence"  # where a matmul's rows lie while it runs
RESIDUAL = "residual_sequence"  # where they lie between matmuls: sequence parallelism splits them further


@dataclass(frozen=True)
class Dim:
    """A dim, by the letter that formulas use for it.

    Attributes:
        axis: its logical axis, by which the rules split it.
        size: its global size.
        label: the config key that sets the size, for messages.
        repeats: fewer of it than shards are repeated, so that each shard holds one (kv heads).
        wide: it grows with the model's width.
    """

    axis: str
    size: int
    label: str = ""
    repeats: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Weight:
    """One parameter.

    Attributes:
        part: its line in tables of parameters.
        letters: its dims; without `layers`, of which a stacked weight has one more in front.
        stacked: every layer has one.
        scale: spread at the start, in units of `model.init_std`; 0 gives zeros, None ones.
        only: of which layers, where not all have one (`Blueprint.kinds`).
        std: spread at the start, whatever `model.init_std`; None: as `scale` says.
        trained: False: it has no gradient and no optimizer state.
        ruled: the step sets it by a rule of its own; it is not trained.
        float32: it is kept so, whatever `step.param_dtype`.
    """

    name: str
    part: str
    letters: str
    stacked: bool = True
    scale: float | None = 1.0
    only: str = ""
    std: float | None = None
    trained: bool = True
    ruled: bool = False
    float32: bool = False

    @property
    def frozen(self) -> bool:
        """It stays as it is: the model's own, with LoRA."""
        return not self.trained and not self.ruled

    def kept_in(self, dtype: str) -> str:
        """Its dtype, where parameters have this one."""
        return "float32" if self.float32 else dtype


@dataclass(frozen=True)
class Op:
    """One matmul with a weight: x · w -> y.

    Attributes:
        name: its title; `weight`: the name of its weight where that is another (a tied head reads the embedding).
        x, y: letters of the operand and of the result.
        saves: the name of its result for `step.remat`.
        group: the matmuls that read the same x have one name here; x is gathered once for all of them.
        x_at, y_at: logical axis of the sequence where x lies before the matmul, and y after it; `x_in`: during it.
        stacked: every layer has one.
        once: gathered once, outside the layers, and kept for the backward pass.
        needed: something of the backward pass reads y.
        exposed: in which passes its gathers of activations run with nothing beside them. Read from libtpu's programs of
            Llama-3.1-8B on v5p, fsdp=2, tensor=4: the gathers that a layer's first matmuls wait for have nothing to
            run beside; scatters run beside later matmuls.
        only: as `Weight.only`.
        rows_move: x is gathered, and partial sums of y are added, not here but where rows go to experts and come back.
        float32: whatever the compute dtype is.
        whole: XLA's GPU programs hold this weight gathered beside others of its layer in the backward pass.
    """

    name: str
    x: str
    y: str
    saves: str
    group: str
    weight: str = ""
    x_at: str = SEQUENCE
    y_at: str = SEQUENCE
    stacked: bool = True
    once: bool = False
    needed: bool = True
    exposed: tuple[str, ...] = ()
    whole: bool = False
    only: str = ""
    rows_move: bool = False
    float32: bool = False
    x_in: str = SEQUENCE

    @property
    def weight_name(self) -> str:
        return self.weight or self.name


@dataclass(frozen=True)
class Activation:
    """A named activation of one layer, which `step.remat` may keep; `at` as `Op.x_at`.

    Attributes:
        padded: its last dim is padded to a TPU's lanes where it is kept.
        read: something of the backward pass reads it.
        only: as `Weight.only`.
    """

    name: str
    letters: str
    at: str = SEQUENCE
    padded: bool = False
    read: bool = True
    only: str = ""


@dataclass(frozen=True)
class Kept:
    """Arrays that JAX's differentiation keeps of a layer when remat is none: `copies` of an activation.

    Attributes:
        at: where the sequence lies, if not as the activation's.
        float32: whatever the compute dtype is.
    """

    activation: str
    copies: float
    at: str = ""
    float32: bool = False


@dataclass(frozen=True)
class Attention:
    """Scores and weighted sums of one layer. `q`, `k`: letters; `k` is that of keys, and of values without `v`.

    Attributes:
        v: letters of values, and of what a query gathers of them, where they are not those of keys and queries.
        shared: letters of the part of keys that all heads share, which no matmul moves to where attention runs.
        result: the name of what it computes, for `step.remat`.
        windows: keys that a query can see at most (None: all before it), each with how many layers have it so.
        cache: letters of each array that decoding keeps of a layer, where they are not keys and values.
    """

    q: str
    k: str
    result: str
    windows: tuple[tuple[int | None, int], ...] = ((None, 1),)
    v: str = ""
    shared: str = ""
    cache: tuple[str, ...] = ()

    @property
    def cached(self) -> tuple[str, ...]:
        """Letters of each array that decoding keeps of a layer."""
        return self.cache or (self.k, self.values)

    @property
    def values(self) -> str:
        """Letters of values."""
        return self.v or self.k

    @property
    def gathered(self) -> str:
        """Letters of the result."""
        return self.v or self.q

    @property
    def both(self) -> tuple[str, str]:
        """Letters of the queries and of the result: each is as large as one of the two matmuls for each key."""
        return self.q, self.gathered

    @property
    def shares(self) -> tuple[tuple[int | None, float], ...]:
        """Windows, each with the share of the layers that have it."""
        layers = sum(number for _, number in self.windows)
        return tuple((window, number / layers) for window, number in self.windows)


@dataclass(frozen=True)
class Routed:
    """Tokens of which each goes to `top_k` of the experts.

    Attributes:
        layers: the kind of layers that have experts.
        experts: letter of the experts; `rows`: of the rows of one of them; `mlp`: of its width.
        stream: letters of what goes there; `arrived`: the activation that it is there.
    """

    layers: str
    experts: str
    rows: str
    mlp: str
    stream: str
    arrived: str
    top_k: int


@dataclass(frozen=True, eq=False)  # equal to itself alone: what follows from it is cached by it
class Blueprint:
    """A model. `dims` maps letters; B and T, rows and tokens of a batch, are the data's, and so is C, an expert's rows.

    Attributes:
        lookups: names of the weights whose rows are looked up by token or by position.
        attention: None for a model without.
        stream: the activation that a layer begins with; `widest`: the activation that its elementwise operations read.
        kept: what remat `none` keeps of a layer.
        elementwise: activation -> how often a layer's elementwise operations read or write it, forward, where XLA
            fuses them.
        padding: letter -> how many of that dim are padding, and count as no parameters.
        parts: lines of a table of parameters, in order.
        longest: the longest sequence that it can read; None: any.
        kinds: the layers of each kind, where they are not all alike.
        routed: None for a model without experts.
    """

    dims: Mapping[str, Dim]
    weights: tuple[Weight, ...]
    ops: tuple[Op, ...] = ()
    activations: tuple[Activation, ...] = ()
    lookups: tuple[str, ...] = ()
    attention: Attention | None = None
    num_layers: int = 1
    stream: str = ""
    widest: str = ""
    kept: tuple[Kept, ...] = ()
    elementwise: Mapping[str, float] = field(default_factory=dict)
    padding: Mapping[str, int] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    longest: int | None = None
    kinds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    routed: Routed | None = None

    def layers_with(self, row: Weight | Op | Activation) -> int:
        """How many layers have it."""
        return len(self.kinds[row.only]) if row.only else self.num_layers

    def active(self, weight: Weight) -> float:
        """The share of a weight that one token is multiplied by."""
        if self.routed is None or self.routed.experts not in weight.letters:
            return 1.0
        return self.routed.top_k / self.dims[self.routed.experts].size

    def weight(self, name: str) -> Weight:
        return self._by_name[name]

    @functools.cached_property
    def _by_name(self) -> dict[str, Weight]:
        return {w.name: w for w in self.weights}

    def has(self, name: str) -> bool:
        return name in self._by_name

    def layer_shape(self, weight: Weight) -> tuple[int, ...]:
        """Global dims of a weight, of one layer."""
        return tuple(self.dims[c].size for c in weight.letters)

    def axis(self, letter: str, at: str = SEQUENCE) -> str:
        """The logical axis of an activation's dim; `at`: where its sequence lies."""
        return {"B": "batch", "T": at, "C": "expert_rows"}.get(letter) or self.dims[letter].axis

    def layer_axes(self, weight: Weight) -> tuple[str, ...]:
        """Logical axes of these dims."""
        return tuple(self.dims[c].axis for c in weight.letters)

    def shape(self, weight: Weight) -> tuple[int, ...]:
        """Global dims of a weight, all layers."""
        return (self.layers_with(weight), *self.layer_shape(weight)) if weight.stacked else self.layer_shape(weight)

    def axes(self, weight: Weight) -> tuple[str, ...]:
        """Logical axes of all its dims."""
        return ("layers", *self.layer_axes(weight)) if weight.stacked else self.layer_axes(weight)

    def size(self, weight: Weight) -> int:
        return math.prod(self.shape(weight))

    def published_shape(self, weight: Weight) -> tuple[int, ...]:
        """Global dims without padding."""
        dims = zip(self.letters(weight), self.shape(weight), strict=True)
        return tuple(n - self.padding.get(c, 0) for c, n in dims)

    def published_size(self, weight: Weight) -> int:
        return math.prod(self.published_shape(weight))

    def letters(self, weight: Weight) -> str:
        """Letters of all its dims; L is that of layers."""
        return f"L{weight.letters}" if weight.stacked else weight.letters

    def activation(self, name: str) -> Activation:
        return next(a for a in self.activations if a.name == name)

    def op(self, name: str) -> Op:
        return next(op for op in self.ops if op.name == name)

    @functools.cached_property
    def matrices(self) -> frozenset[str]:
        """Names of the weights that a layer multiplies by."""
        return frozenset(op.weight_name for op in self.ops if op.stacked)

    @functools.cached_property
    def head(self) -> Op | None:
        """The matmul that makes the logits."""
        return next((op for op in self.ops if op.once), None)

    @property
    def trains_head(self) -> bool:
        """Has the last matrix a gradient?"""
        return self.head is not None and self.weight(self.head.weight_name).trained

    @functools.cached_property
    def saved_by_dots(self) -> tuple[str, ...]:
        """What remat `dots` keeps: the matmuls' results, by name.

        JAX's own policy for dots would keep partial sums from before their reduction.
        """
        return tuple(op.saves for op in self.ops if op.stacked)
