"""Where a run's batches come from: rows of data, or samples of the model."""

from collections.abc import Callable
from typing import Any

from jaxscale import config as cfg
from jaxscale.rollouts.feed import RolloutFeed
from jaxscale.rollouts.prompts import PromptRows
from jaxscale.rollouts.worth import Judges
from jaxscale.training.build import Setup
from jaxscale.training.feed import Batches, Feed
from jaxscale.training.journal import Journal

Feeds = Callable[[int, int], Batches]  # (first step, offset in rows) -> the batches from there on


def open_feeds(config: cfg.Config, setup: Setup, rows: Any, judges: Judges, journal: Journal) -> Feeds:
    """How batches are opened: of rows of data, or of prompts, whose samples the judges reward.

    Args:
        config: that of `setup`, with the step of `init.from` that the run began from.
    """

    def open_feed(first: int, offset: int) -> Batches:
        if isinstance(rows, PromptRows):
            worth = judges.worth(rows, setup.mesh)
            return RolloutFeed(config, setup, rows, worth, journal, start_step=first, offset=offset)
        return Feed(
            rows,
            config,
            setup.batch_sharding,
            start_step=first,
            stop_step=max(first, config.steps),
            offset=offset,
            microbatches=config.step.microbatches,
            shuffle=config.data.shuffle,
        )

    return open_feed
