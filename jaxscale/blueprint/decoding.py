"""How a model is laid out while it samples, one token of each row after another. No jax: predictions read it too."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jaxscale import config as cfg
from jaxscale.blueprint.cases import without
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.rules import Rules, count

ROOM = 0.9  # of a device's memory that may be planned with
SHORTEST = 16  # tokens of the smallest bucket


def decode_rules(rules: Rules) -> Rules:
    """The rules for decoding: one token has no sequence to split, and a token passes all layers before the next one is
    known, so that stages would wait for each other.
    """
    rules = rules.with_activations(sequence=(), residual_sequence=()).with_parameters(layers=())
    return experts_beside_tokens(rules)


def experts_beside_tokens(rules: Rules) -> Rules:
    """Experts split over axes that split tokens alone: over the others their matrices are kept split, and gathered."""
    experts = rules.activations["experts"]
    if not (idle := without(experts, rules.activations["batch"])):
        return rules
    kept = rules.parameters["expert_embed"]
    experts = without(experts, idle)
    return rules.with_activations(experts=experts).with_parameters(
        experts=experts, expert_embed=(*kept, *without(idle, kept))
    )


def gathered_rules(rules: Rules) -> Rules:
    """The same with each weight as matmuls take it: split only over axes that split the activations of its dims."""
    kept = rules.parameters.items()
    return rules.with_parameters(
        **{name: tuple(a for a in axes if a in rules.activations.get(name, ())) for name, axes in kept}
    )


def whole_rows(rules: Rules, sizes: Mapping[str, int], rows: int) -> int:
    """`rows` rounded up, so that the batch axes divide them."""
    shards = count(rules.activations["batch"], sizes)
    return math.ceil(rows / shards) * shards


def bucket(length: int) -> int:
    """The length that prompts of this one are padded to: a power of two up to 128, then four steps a doubling."""
    power = (length - 1).bit_length()
    if length <= 128:
        return max(SHORTEST, 1 << power)
    step = 1 << (power - 3)
    return -(-length // step) * step


def multiplied(model: cfg.Model) -> frozenset[str]:
    """Names of the weights that only matmuls in the compute dtype read: they may be cast before they are gathered."""
    narrow = {w.name for w in blueprint(model).weights if not w.float32}
    wide = {op.weight_name for op in blueprint(model).ops if op.float32}
    return frozenset({op.weight_name for op in blueprint(model).ops} & narrow - wide)


@dataclass(frozen=True)
class Need:
    """Bytes of one device while a model samples with gathered weights.

    Attributes:
        held: what lies there anyway: the parameters as they are kept, and a trainer's state.
        weights: the gathered weights, beyond that.
        cache: keys and values of this device's rows.
        logits: of one token of its rows, in float32, with what sampling makes of them.
    """

    held: int
    weights: int
    cache: int
    logits: int

    @property
    def total(self) -> int:
        return self.held + self.weights + self.cache + self.logits

    def fits(self, memory: float | None) -> bool:
        """Is there room for all of it? `memory`: of a device; None: not known, so no."""
        return memory is not None and self.total <= ROOM * memory


def logits_bytes(rows: int, padded_vocab_size: int) -> int:
    """Of a token of so many rows, float32: as they come, gathered, truncated, with noise."""
    return 4 * 4 * rows * padded_vocab_size
