"""Where a run's batches come from: rows of data, or samples of the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxscale import config as cfg
from jaxscale.blueprint.rules import Rules
from jaxscale.rollouts.feed import RolloutFeed
from jaxscale.rollouts.prompts import PromptRows
from jaxscale.rollouts.worth import Judges
from jaxscale.training.events import Events
from jaxscale.training.feed import Batches, Feed
from jaxscale.training.step import Program, batch_sharding

Feeds = Callable[[int, int], Batches]  # (first step, offset in rows) -> the batches from there on
Write = Callable[[str, int, Mapping[str, Any]], None]


@dataclass(frozen=True)
class FeedSource:
    """What batches are made of: rows of data, or prompts, whose samples the judges reward."""

    config: cfg.Config
    program: Program
    mesh: jax.sharding.Mesh
    rules: Rules
    rows: Any
    judges: Judges

    def feeds(self, events: Events, write: Write, say: Callable[[str], None]) -> Feeds:
        """How batches are opened; rounds of samples are told to `events`, `write` and `say`."""

        def open_feed(first: int, offset: int) -> Batches:
            config = self.config
            if isinstance(self.rows, PromptRows):
                return RolloutFeed(
                    config,
                    self.program,
                    self.mesh,
                    self.rules,
                    self.rows,
                    self.judges.worth(self.rows, self.mesh),
                    start_step=first,
                    offset=offset,
                    during=events.during,
                    tell=lambda step, values: write("rollout", step, values),
                    say=say,
                )
            return Feed(
                self.rows,
                config,
                batch_sharding(self.mesh),
                start_step=first,
                stop_step=max(first, config.steps),
                offset=offset,
                microbatches=config.step.microbatches,
                shuffle=config.data.shuffle,
            )

        return open_feed
