"""Where a run's batches come from: rows of data, or samples of the model."""

from collections.abc import Callable, Mapping
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


def open_feeds(
    config: cfg.Config,
    program: Program,
    mesh: jax.sharding.Mesh,
    rules: Rules,
    rows: Any,
    judges: Judges,
    *,
    events: Events,
    write: Write,
    say: Callable[[str], None],
) -> Feeds:
    """How batches are opened: of rows of data, or of prompts, whose samples the judges reward.

    Rounds of samples are told to `events`, `write` and `say`.
    """

    def open_feed(first: int, offset: int) -> Batches:
        if isinstance(rows, PromptRows):
            return RolloutFeed(
                config,
                program,
                mesh,
                rules,
                rows,
                judges.worth(rows, mesh),
                start_step=first,
                offset=offset,
                during=events.during,
                tell=lambda step, values: write("rollout", step, values),
                say=say,
            )
        return Feed(
            rows,
            config,
            batch_sharding(mesh),
            start_step=first,
            stop_step=max(first, config.steps),
            offset=offset,
            microbatches=config.step.microbatches,
            shuffle=config.data.shuffle,
        )

    return open_feed
