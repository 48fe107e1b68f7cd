"""Batches made of samples of the model as it is at that step: sampled, rewarded and placed on the mesh.

A round of samples serves `objective.updates` steps. Its samples are a function of the parameters, the seed, the round,
the prompt and the sample's number alone: a run that goes on makes them again.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxscale import config as cfg
from jaxscale.data.order import row_indices
from jaxscale.objectives import make_objective
from jaxscale.objectives.objective import Batch
from jaxscale.rollouts.flag import overoptimised
from jaxscale.rollouts.kept import keep_round, kept_round
from jaxscale.rollouts.layouts import bytes_of
from jaxscale.rollouts.prompts import PromptRows
from jaxscale.rollouts.round import Round, advantages, numbers, rows_of, rows_of_step, winners
from jaxscale.rollouts.sampler import Sampler
from jaxscale.rollouts.worth import Worth
from jaxscale.training.build import Setup
from jaxscale.training.initial import first_parameters
from jaxscale.training.journal import Journal
from jaxscale.training.log_probs import log_probs_program
from jaxscale.training.places import Places
from jaxscale.training.step import TrainState, all_parameters, state_of

HELD = ("params", "frozen", "opt_state", "ema")  # of a state, what takes memory


class RolloutFeed:
    """Batches of consecutive steps; `take` makes the next one. See `training.feed.Feed`."""

    def __init__(
        self,
        config: cfg.Config,
        setup: Setup,
        prompts: PromptRows,
        worth: Worth,
        journal: Journal,
        *,
        start_step: int,
        offset: int = 0,
    ):
        self.config, self.objective, self.prompts, self.worth = config, config.objective, prompts, worth
        self.journal, program = journal, setup.program
        held = bytes_of([getattr(program.abstract, name) for name in HELD])
        if self.objective.reads_reference:  # a second set of parameters
            held += bytes_of([program.abstract.params, program.abstract.frozen])
        self.sampler = Sampler(config, setup.mesh, setup.rules, vocab_size=prompts.vocab_size, held_bytes=held)
        self.step, self.skipped = start_step, offset // config.data.batch_size
        self.wait_seconds = 0.0
        self.round: Round | None = None
        self.history: list[Mapping[str, float]] = []
        self.flagged = False
        self.places = Places(config, setup.batch_sharding, microbatches=config.step.microbatches)
        self.names = make_objective(config).reads(documents=False)
        self.run = log_probs_program(config, program.merge)
        self.reference = state_of(first_parameters(config, program)) if self.objective.reads_reference else None
        self.of_round: Batch | None = None  # where all steps of a round take the same

    def take(self, state: TrainState) -> Batch:
        """The batch of the next step, sampled by this state where a round begins."""
        number, update = divmod(self.step + self.skipped, self.objective.updates)
        start = time.perf_counter()
        if self.round is None or self.round.number != number:
            self.round, self.of_round = self.resumed(number, update) or self.make(state, number), None
        batch = self.batch(self.round, update)
        self.step += 1
        self.wait_seconds = time.perf_counter() - start
        return batch

    @property
    def ahead(self) -> bool:
        """Is the next step's round there already? A new one is sampled by the model of the step before."""
        return self.round is not None and self.round.number == (self.step + self.skipped) // self.objective.updates

    def close(self) -> None:
        """Nothing is read ahead."""

    # --- a round

    def resumed(self, number: int, update: int) -> Round | None:
        """A round that a run was stopped in the middle of."""
        if not update:
            return None
        saved = kept_round(self.config.out_dir, number)
        if saved is None:
            self.journal.say(f"the samples of round {number} are gone: they are made anew, by the model as it is now")
        return saved

    def make(self, state: TrainState, number: int) -> Round:
        """Sample, and ask what the samples are worth."""
        objective, size = self.objective, self.objective.prompts_of_round(self.config.data.batch_size)
        seed, shuffle = self.config.seed, self.config.data.shuffle
        chosen = row_indices(seed, number, size, len(self.prompts), shuffle=shuffle)
        rows, samples = np.repeat(chosen, objective.group), np.tile(np.arange(objective.group), size)
        prompts, seconds = [self.prompts.tokens(int(i)) for i in rows], dict[str, float]()
        with self.journal.during("rollout", self.step), timed(seconds, "generate_seconds"):
            params = all_parameters(state, state.params)
            made = self.sampler(
                params,
                prompts,
                keys=self.prompts.keys(seed, number, rows, samples),
                max_new=objective.max_new,
                temperature=objective.temperature,
                stop_ids=self.prompts.stop_ids,
            )
        with self.journal.during("reward", self.step), timed(seconds, "reward_seconds"):
            rewards, judged = self.worth(rows, made, objective.group)
        round_ = Round(number, prompts, *made, rewards, judged)
        if objective.updates > 1:
            keep_round(self.config.out_dir, round_)
        self.tell_of(round_, seconds)
        return round_

    def tell_of(self, round_: Round, seconds: dict[str, float]) -> None:
        values = {"round": float(round_.number)} | numbers(round_) | seconds
        self.history.append(values)
        flag = overoptimised(self.history, round_.rewards.size)
        values["overoptimised"] = float(flag is not None)
        shown = round_.number % max(1, self.config.steps // self.objective.updates // 20) == 0
        self.journal.record("rollout", self.step + 1, values, line=round_line(values) if shown else "")
        for line in self.worth.told():
            self.journal.say(line)
        if flag and not self.flagged:  # once, until all is well again
            self.journal.say(f"step {self.step + 1}: {flag}")
        self.flagged = flag is not None

    # --- a step of it

    def batch(self, round_: Round, update: int) -> Batch:
        if self.objective.kind == "raft":
            chosen = rows_of_step(winners(round_.rewards), update, self.config.data.batch_size)
            return self.placed(rows_of(round_, chosen, self.config.data.seq_len))
        if self.of_round is None:
            self.of_round = self.policy_batch(round_)
        return self.of_round

    def placed(self, columns: dict[str, np.ndarray]) -> Batch:
        return self.places.every({name: x for name, x in columns.items() if name in self.names})

    def policy_batch(self, round_: Round) -> Batch:
        """All samples of a round, with their advantages and what the reference says of them: for all its updates."""
        objective, data = self.objective, self.config.data
        extra = {"advantages": advantages(round_.rewards, objective.scale).ravel()}
        columns = rows_of(round_, np.arange(data.batch_size), data.seq_len, aggregate=objective.aggregate, extra=extra)
        batch = self.placed(columns)
        if self.reference is None:
            return batch
        with self.journal.during("reference", self.step):
            log_probs = self.places.read(self.run(self.reference, batch))
        return batch | self.placed({"reference": np.where(columns["weights"] > 0, log_probs, 0).astype(np.float32)})


def round_line(values: Mapping[str, float]) -> str:
    judge = f", judge {values['judge']:.3f}" if "judge" in values else ""
    return (
        f"round {values['round'] + 1:.0f}: reward {values['reward']:.3f} (best of each prompt {values['best']:.3f})"
        f"{judge}, {values['length']:.1f} tokens a sample, {values['cut_off']:.0%} cut off"
    )


class timed:
    """Seconds of what is done inside, into a dict."""

    def __init__(self, into: dict[str, float], name: str):
        self.into, self.name = into, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: Any) -> None:
        self.into[self.name] = time.perf_counter() - self.start
