"""What samples are worth: by a function of the user's, or by a reward model; and by a judge beside it."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from jaxscale import config as cfg
from jaxscale.checkpoint.stored import Stored
from jaxscale.cluster.start import from_all
from jaxscale.data.examples.store import template_of
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.rollouts.prompts import PromptRows
from jaxscale.rollouts.rewards import Function, is_function, open_function
from jaxscale.rollouts.sampler import Sampled
from jaxscale.rollouts.scorer import (
    Scorer,
    require_same_template,
    require_same_tokenizer,
    tail_of,
    template_of_run,
)

COUNT = itertools.count()
SECONDS = 3600.0  # that processes wait for each other's rewards


@dataclass(frozen=True, eq=False)
class Worth:
    """Rewards [P, G] of a round's samples, and what the judge says of them; NaN where there is none.

    A function is asked by each process for its share of the samples, a model by all processes together.
    """

    prompts: PromptRows
    codec: Tokenizer
    reward: Function | Scorer
    judge: Function | Scorer | None

    def __call__(self, rows: np.ndarray, made: Sampled, group: int) -> tuple[np.ndarray, np.ndarray | None]:
        """`rows`: the prompt of each sample."""
        rewards = self.by(self.reward, rows, made).reshape(-1, group)
        return rewards, None if self.judge is None else self.by(self.judge, rows, made).reshape(-1, group)

    def by(self, one: Function | Scorer, rows: np.ndarray, made: Sampled) -> np.ndarray:
        """What one of them says of each sample, float64 [R]."""
        if isinstance(one, Scorer):
            prompts = [self.prompts.tokens(int(i)) for i in rows]
            return one.of_samples(prompts, made.rows(), made.stopped.tolist()).astype(float)
        numbers = range(jax.process_index(), len(rows), jax.process_count())
        texts, samples = [self.text(int(rows[i])) for i in numbers], made.rows(stop=False)
        completions = [self.codec.decode(samples[i]) for i in numbers]
        records = [self.prompts.record(int(rows[i])) for i in numbers]
        names = sorted(set.intersection(*(set(r) for r in records))) if records else []
        columns = {name: [r[name] for r in records] for name in names if name != "prompt"}
        values = one(texts, completions, columns) if texts else []
        rewards = np.full(len(rows), math.nan)
        every = from_all(f"rewards/{next(COUNT)}", json.dumps(values), seconds=SECONDS)
        for rank, text in enumerate(every):
            share = json.loads(text)
            rewards[rank :: len(every)] = [math.nan if v is None else v for v in share]
        return rewards

    def told(self) -> list[str]:
        """Lines on samples without a reward."""
        functions = [one for one in (self.reward, self.judge) if isinstance(one, Function)]
        return [line for one in functions if (line := one.told()) is not None]

    def text(self, i: int) -> str:
        """A prompt as its record has it, or as its tokens spell it."""
        given = self.prompts.record(i).get("prompt")
        return given if isinstance(given, str) else self.codec.decode(self.prompts.tokens(i))


class Judges:
    """The reward and the judge that a config names: opened where samples are first rewarded, ended by `close`."""

    def __init__(self, config: cfg.Config, codec: Tokenizer | None, say: Callable[[str], None]):
        self.config, self.codec, self.say = config, codec, say
        self.known: dict[str, Function | Scorer] = {}
        objective = config.objective
        for name in filter(None, (objective.reward, objective.judge)) if objective.kind in cfg.OF_ROLLOUTS else ():
            if is_function(name):  # a function that is not there is refused before anything is written
                self.known[name] = open_function(name, seconds=objective.reward_seconds)
                say(f"rewards by {name}, code that this run was told to run")
            else:
                Stored(name)  # nor is a run that is not there

    def worth(self, prompts: PromptRows, mesh: jax.sharding.Mesh) -> Worth:
        """What samples for these prompts are worth."""
        objective = self.config.objective
        assert objective.reward is not None
        assert self.codec is not None
        judge = None if objective.judge is None else self.opened(objective.judge, prompts, mesh)
        return Worth(prompts, self.codec, self.opened(objective.reward, prompts, mesh), judge)

    def opened(self, name: str, prompts: PromptRows, mesh: jax.sharding.Mesh) -> Function | Scorer:
        """A function by its name, or a reward model by its run's directory."""
        if name not in self.known:
            require_same_tokenizer(name, prompts.fingerprint)
            data = self.config.data
            assert self.codec is not None
            assert data.path is not None
            template = template_of_run(name, self.codec)
            require_same_template(template, name, template_of(data.path))
            rows, seq_len, tail = data.batch_size, data.seq_len, tail_of(template)
            self.known[name] = Scorer(name, mesh, rows=rows, seq_len=seq_len, like=self.config, tail=tail)
        return self.known[name]

    def close(self) -> None:
        for one in self.known.values():
            if not isinstance(one, Scorer):
                one.close()
