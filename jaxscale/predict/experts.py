"""How many rows go to experts on other devices, and how. No jax: `models.dispatch` is what is predicted."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxscale import config as cfg
from jaxscale.blueprint.cases import Axes
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.experts import most_rows, token_axes, way
from jaxscale.blueprint.rules import count, rules_of, split_by
from jaxscale.predict import costs


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

    def sent(self, platform: str) -> tuple[str, int]:
        """Kind of an exchange of rows, and V in rows. XLA's CPU programs send places for all rows to every shard."""
        if platform == "cpu":
            return "all-to-all", self.shards * self.rows
        return "ragged-all-to-all", self.rows


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
