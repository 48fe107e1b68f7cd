"""A model to use: a run's or a published one, its parameters on a mesh, its tokenizer. No optimizer state is made."""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from jaxscale import config as cfg
from jaxscale.blueprint.rules import Rules
from jaxscale.config import PUBLISHED
from jaxscale.data.tokenizer import Tokenizer, load_tokenizer
from jaxscale.parallel.mesh import describe_mesh
from jaxscale.parallel.sharding import on_mesh
from jaxscale.rollouts.sampler import Sampler
from jaxscale.serving.serve import (
    Restored,
    Say,
    complete,
    fitting,
    manner_of,
    require_logits,
    restore,
    run_config,
    run_tokenizer,
)
from jaxscale.training.build import build_on, rules_for, with_whole_rows
from jaxscale.training.initial import first_parameters
from jaxscale.training.replicas import replica_axis
from jaxscale.training.step import Program

OF_ITS_OWN = ("dpo", *cfg.OF_ROLLOUTS)  # kinds of objectives whose data has no loss of each next token


@dataclass(frozen=True, repr=False)
class Loaded:
    """A model on its mesh. What computes with it runs inside `context()`.

    Attributes:
        source: as it was given: a run's directory, or `hf:DIR`.
        tokenizer: None where there is none.
        step: of the checkpoint; None: of a published model.
        averaged: the parameters are an average over steps (`optimizer.ema`).
    """

    source: str
    config: cfg.Config
    mesh: Mesh
    rules: Rules
    program: Program
    params: Any
    tokenizer: Tokenizer | None
    step: int | None
    averaged: bool

    @property
    def model(self) -> nnx.Module:
        """The module that maps tokens [B, T] to logits [B, T, V]."""
        return self.program.merge(self.params)

    @cached_property
    def sampler(self) -> Sampler:
        """Its programs of sampling: a second call of the same shapes compiles nothing."""
        return Sampler(
            self.config, self.mesh, self.rules, vocab_size=self.tokenizer.vocab_size if self.tokenizer else None
        )

    def context(self) -> AbstractContextManager[None]:
        return on_mesh(self.mesh, self.rules)

    @property
    def words(self) -> str:
        """Which parameters these are, e.g. `step 200 of runs/x, averaged parameters`."""
        which = self.source if self.step is None else f"step {self.step} of {self.source}"
        return f"{which}, averaged parameters" if self.averaged else which

    def __repr__(self) -> str:
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(self.params))
        text = "its tokenizer" if self.tokenizer else "no tokenizer"
        return f"<{self.words}: {count:,} parameters on mesh {describe_mesh(self.mesh)}, {text}>"


def config_of(source: str, overrides: tuple[str, ...] | list[str] = ()) -> cfg.Config:
    """The config of a run's directory or of a published model. Raises ValueError for what is neither, or no such model.

    What the run learnt by decides nothing here: the loss of its model is that of each next token.
    """
    if source.startswith(PUBLISHED):
        return cfg.load_config(source, overrides)
    config = run_config(Path(source), overrides)
    require_logits(config, source)
    if config.objective.kind in OF_ITS_OWN:
        return config.model_copy(update={"objective": cfg.Objective()})
    return config


def tokenizer_of(source: str, spec: str | None, config: cfg.Config, *, needed: bool) -> Tokenizer | None:
    """The tokenizer beside a model, or `spec` if that is the same.

    Args:
        needed: raise ValueError where there is none; else None is returned.
    """
    if not source.startswith(PUBLISHED):
        if spec is None and not needed and not (Path(source) / "tokenizer-identity.json").is_file():
            return None
        return fitting(run_tokenizer(Path(source), spec), config)
    path = Path(source.removeprefix(PUBLISHED)).expanduser() / "tokenizer.json"
    if spec is None and not path.is_file():
        if needed:
            raise ValueError(f"{path.parent} has no tokenizer.json; give --tokenizer with one")
        return None
    return fitting(load_tokenizer(spec or path), config)


def load(
    source: str, config: cfg.Config, mesh: Mesh, codec: Tokenizer | None, *, step: int | None = None, say: Say
) -> Loaded:
    """The parameters of a run's newest checkpoint (or `step`), or of a published model, on a mesh.

    Args:
        config: of `config_of`; rows are added to its batch until they fill the mesh.

    Raises:
        ValueError: the model does not fit the mesh, or there is no such checkpoint.
    """
    config = with_whole_rows(config, dict(mesh.shape))
    rules = rules_for(config, mesh)
    with on_mesh(mesh, rules):
        program = build_on(config, mesh, rules).program
        if source.startswith(PUBLISHED):
            restored = published(program, config, step)
        else:
            restored = restore(Path(source), program, config, step, say)
    given = None if source.startswith(PUBLISHED) else restored.step
    return Loaded(source, config, mesh, rules, program, restored.params, codec, given, restored.averaged)


def continued(
    loaded: Loaded, prompts: list[str], *, chat: bool = False, system: str | None = None, **sampling: Any
) -> list[str]:
    """Continuations by a loaded model, whose parameters stay where they are.

    Raises ValueError where it has no tokenizer.
    """
    if (codec := loaded.tokenizer) is None:
        raise ValueError(f"{loaded.source} has no tokenizer; load it with tokenizer='byte' or a tokenizer.json")
    manner = manner_of(loaded.source, codec, chat=chat, system=system)
    return continued_tokens(loaded, codec, [manner.encode(prompt) for prompt in prompts], manner.stops, **sampling)


def continued_tokens(
    loaded: Loaded, codec: Tokenizer, tokens: list[list[int]], stops: tuple[int, ...], **sampling: Any
) -> list[str]:
    """Continuations of prompts that are tokens already; each ends before one of `stops`."""
    return complete(loaded.sampler, loaded.params, codec, tokens, stops, **sampling)


def published(program: Program, config: cfg.Config, step: int | None) -> Restored:
    """The parameters that `init.from` names."""
    if step is not None:
        raise ValueError(f"step {step} is of a run's checkpoints, and {config.init.source} has none; leave it out")
    if replica_axis() is not None:
        raise ValueError(f"{config.init.source} is one model: set mesh.replica=1")
    return Restored(first_parameters(config, program), 0, False)
