"""Abilities measured while a run trains, from its state: `evaluation.abilities` of a run file."""

from collections.abc import Mapping
from typing import Any

import jax

from jaxscale import config as cfg
from jaxscale.abilities.measure import Measure
from jaxscale.abilities.rows import prepare
from jaxscale.abilities.table import tasks_of
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.training.step import Program, TrainState

SEED = 0  # the same examples in every run, so that runs can be compared


class OfAbilities:
    """A measurer of `training.evaluation`; its record in metrics.jsonl is of kind `abilities`."""

    kind = "abilities"

    def __init__(self, config: cfg.Config, tokenizer: Tokenizer | None):
        """Make the examples. Raises ValueError for an unknown ability, or one that this run's context cannot hold."""
        names, count = config.evaluation.abilities, config.evaluation.examples
        tasks = [task for name in names for task in tasks_of(name, seed=SEED, count=count)]
        if tokenizer is None:
            raise ValueError(
                f"evaluation.abilities needs a tokenizer, and data.kind={config.data.kind} has none; use a prepared "
                "dataset, or set evaluation.abilities=[]"
            )
        self.tasks = prepare(tasks, tokenizer, seq_len=config.data.seq_len)
        self.config = config
        self.measure: Measure | None = None

    def __call__(self, program: Program, mesh: jax.sharding.Mesh, state: TrainState) -> dict[str, Any]:
        self.measure = self.measure or Measure(self.config, program, mesh)
        return {"abilities": self.measure(state, self.tasks)}

    def numbers(self, record: Mapping[str, Any]) -> dict[str, float]:
        """What is plotted: every metric by its ability."""
        return {
            f"{title(one)}/{name}": metric["value"]
            for one in record["abilities"]
            for name, metric in one["metrics"].items()
        }

    def line(self, record: Mapping[str, Any]) -> str:
        every = (f"{title(one)} {one['metrics'][one['main']]['value']:.2f}" for one in record["abilities"])
        return ", ".join(every)


def title(one: Mapping[str, Any]) -> str:
    """`copy`, or `rule:4` with solved examples in its prompt."""
    name: str = one["ability"]
    return f"{name}:{one['shots']}" if one["shots"] else name
