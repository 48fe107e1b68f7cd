"""What a run that trains on samples measures: rewards of samples for held-out prompts, drawn and greedy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxscale import config as cfg
from jaxscale.rollouts.prompts import PromptRows
from jaxscale.rollouts.sampler import Sampler
from jaxscale.rollouts.worth import Judges
from jaxscale.training.build import rules_for
from jaxscale.training.step import Program, TrainState, used_parameters


@dataclass(eq=False)
class OfRollouts:
    """Rewards of one sample and of the greedy answer to each of the first held-out prompts, always the same ones."""

    config: cfg.Config
    rows: PromptRows
    judges: Judges
    kind: str = "rollout_validation"
    sampler: Sampler | None = None

    def __call__(self, program: Program, mesh: jax.sharding.Mesh, state: TrainState) -> dict[str, Any]:
        objective, count = self.config.objective, min(len(self.rows), self.config.evaluation.examples)
        if self.sampler is None:
            self.sampler = Sampler(self.config, mesh, rules_for(self.config, mesh), vocab_size=self.rows.vocab_size)
        worth, numbers = self.judges.worth(self.rows, mesh), np.arange(count)
        measured: dict[str, Any] = {"prompts": count}
        params = used_parameters(self.config, state)
        for name, temperature in (("", objective.temperature), ("greedy_", 0.0)):
            made = self.sampler(
                params,
                [self.rows.tokens(i) for i in range(count)],
                keys=self.rows.keys(self.config.seed, 2**32 - 1, numbers, np.zeros(count, np.int64)),
                max_new=objective.max_new,
                temperature=temperature,
                stop_ids=self.rows.stop_ids,
            )
            rewards, judged = worth(numbers, made, 1)
            measured[f"{name}reward"] = mean(rewards)
            if judged is not None:
                measured[f"{name}judge"] = mean(judged)
            measured[f"{name}cut_off"] = float(1 - made.stopped.mean())
        return measured

    def numbers(self, measured: Mapping[str, Any]) -> Mapping[str, float]:
        return {name: value for name, value in measured.items() if name != "prompts"}

    def line(self, measured: Mapping[str, Any]) -> str:
        judge = f", judge {measured['judge']:.3f} and {measured['greedy_judge']:.3f}" if "judge" in measured else ""
        return f"held-out reward {measured['reward']:.3f} drawn and {measured['greedy_reward']:.3f} greedy{judge}"


def mean(values: np.ndarray) -> float:
    """Over what has a reward; NaN where nothing has."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
