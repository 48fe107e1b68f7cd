"""How many rows go to experts on other devices, and how. No jax: `models.dispatch` is what is predicted."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxscale import config as cfg
from jaxscale.blueprint.cases import Axes
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.experts import most_rows, token_axes, way
from jaxscale.blueprint.rules import count, rules_of, split_by
from jaxscale.predict import costs
from jaxscale.predict.timing import LANES


@dataclass(frozen=True)
class Exchange:
    """Of one layer, microbatch and device.

    Attributes:
        how: `all_to_all`, `gather` or `none` over `axes`, which split the experts.
        split: axes that split an expert's mlp: over them tokens are gathered before, and summed after.
        tokens: S, while experts see them; `rows`: S k, what they are on average; `place`: R, what there is room for.
        width: elements of a row.
    """

    how: str
    axes: Axes
    split: Axes
    shards: int
    num_experts: int
    tokens: int
    rows: int
    place: int
    width: int

    @property
    def room(self) -> float:
        """Place for rows over the rows that come where loads are even: arrays are as large as the worst case."""
        return self.place / self.rows

    def sent(self, platform: str) -> tuple[str, int]:
        """Kind of an exchange of rows, and V in rows. XLA's CPU programs send places for all rows to every shard."""
        if platform == "cpu":
            return "all-to-all", self.shards * self.rows
        return "ragged-all-to-all", self.rows

    def number_bytes(self, platform: str) -> int:
        """Of the number that goes with a row: a TPU's arrays are padded to whole lanes."""
        return 4 * (LANES if platform == "tpu" else 1)


# Rows of a kernel's tile (`kernels.grouped_tpu`, `grouped_gpu`; a CPU's blocks are small)
TILE = {"tpu": (128, 256), "gpu": (128, 128), "cpu": (1, 1)}
LARGE = 512  # rows of an expert on average, from which a TPU's tiles are the larger ones


def tiled(at: Exchange, platform: str) -> float:
    """Rows that are multiplied over rows that there are: a tile in which one expert's rows end is not full.

    A TPU's kernel computes such a tile for each of the experts that share it, a GPU's has half an empty tile for each.
    """
    if not at.rows:  # on a mesh that splits fewer rows than it has shards
        return 1.0
    local = at.num_experts // at.shards
    tile = TILE[platform][at.rows >= LARGE * local]
    return 1 + (tile * (local - 1) if platform == "tpu" else tile / 2 * local) / at.rows


def moved_rows(at: Exchange, there: int, back: int) -> float:
    """Elements that sorting rows reads and writes in one layer and microbatch.

    To experts: each row is read and written, and again where it arrives in another order. From experts: as much, and
    each token's rows are read again, and their sum written.

    Args:
        there, back: how often rows go each way.
    """
    sort = 4 if at.how == "all_to_all" else 2
    return at.width * (at.rows * (there * sort + back * (sort + 1)) + back * at.tokens)


def times(config: cfg.Config) -> tuple[int, int]:
    """How often rows go to their experts, and back, in one microbatch: forward, backward, and once more there where the
    backward pass makes them again. No gradient needs what experts make of a row, so the way back is not repeated."""
    names, routed = costs.kept(config), blueprint(config.model).routed
    return 2 + int(names is not None and routed is not None and routed.arrived not in names), 2


def exchange(config: cfg.Config, sizes: Mapping[str, int]) -> Exchange | None:
    """None for a model without experts."""
    model, rules = blueprint(config.model), rules_of(config, sizes)
    if (routed := model.routed) is None:
        return None
    experts, mlp = (split_by(rules.activations[model.dims[c].axis], sizes) for c in (routed.experts, routed.mlp))
    batch, sequence = (count(axes, sizes) for axes in token_axes(rules, sizes))
    rows, length = costs.batch_shape(config)
    tokens, shards, k = rows // batch * (length // sequence), count(experts, sizes), routed.top_k
    number = model.dims[routed.experts].size
    return Exchange(
        way(config.step.expert_exchange, shards, k), experts, mlp, shards, number, tokens, tokens * k,
        most_rows(tokens, shards, k, number // shards), model.dims[routed.stream[-1]].size,
    )  # fmt: skip
