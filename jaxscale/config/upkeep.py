"""The sections `checkpoint`, `guard`, `watch`, `evaluation` and `metrics`: what a run saves, watches and measures."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxscale.config.values import Above0, NonNegative, Positive, Section, Text
from jaxscale.files.urls import Place


class Checkpoint(Section):
    every: NonNegative = 1000
    """Steps between checkpoints; 0: only at the end."""
    keep_last: Positive = 2
    """Newest checkpoints that are kept."""
    keep_every: Positive | None = None
    """Checkpoints at multiples of so many steps are never deleted; null: none is spared."""
    resume: bool = True
    """Go on from the newest checkpoint in the run's directory; false: refuse a directory that has one."""
    directory: Place | None = None
    """Where checkpoints go: a directory, s3://bucket/prefix or gs://bucket/prefix; null: <out>/checkpoints."""


BadStep = Literal["stop", "skip", "rollback"]  # rollback: to the last checkpoint, and past the batches since


class Guard(Section):
    """Steps that cannot be right; `on_nonfinite` says what is done about losses that are no number."""

    spike: Above0 | None = None
    """Standard deviations above its recent mean at which a loss is a spike; null: spikes are not looked for."""
    on_spike: BadStep = "skip"
    """What to do at a spike; rollback: to the last checkpoint, and past the batches since."""
    max_rollbacks: NonNegative = 3
    """Rollbacks after which the run stops."""
    recompute_every: NonNegative = 0
    """Steps between two computations of one step whose bits are compared; 0: never."""


Deadline = Annotated[float, Field(ge=0, le=1e6)]


class Watch(Section):
    """Seconds after which a run that stands still names where, and ends; 0: never. See docs/operations.md."""

    enabled: bool = True
    """Watch the run; false: it may stand still for ever."""
    start: Deadline = 1800.0
    """Seconds for joining the others, reading data, and restoring or making the state; 0: no limit."""
    compile: Deadline = 3600.0
    """Seconds for compiling; 0: no limit."""
    step: Deadline = 600.0
    """Seconds for a step; 0: no limit."""
    save: Deadline = 3600.0
    """Seconds for saving a checkpoint; 0: no limit."""
    peer: Deadline = 60.0
    """Seconds without a beat after which another process counts as lost; beats come each second; 0: no limit."""

    @model_validator(mode="after")
    def _check(self) -> "Watch":
        for name, least in (("start", 1), ("compile", 1), ("step", 1), ("save", 1), ("peer", 3)):
            if 0 < getattr(self, name) < least:
                raise ValueError(
                    f"watch.{name}={getattr(self, name):g} s is too short; give {least} or more, 0 for never"
                )
        return self


class Evaluation(Section):
    every: NonNegative = 0
    """Steps between evaluations; 0: only at the end."""
    batches: Positive = 8
    """Batches of validation data in each evaluation."""
    abilities: list[Text] = []
    """Abilities measured too, by name; see docs/abilities.md."""
    examples: Positive = 256
    """Examples of each ability."""


class Metrics(Section):
    every: Positive = 1
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = True
    """Also write files for TensorBoard."""
    wandb: bool = False
    """Also log to Weights & Biases."""
    wandb_project: Text | None = None
    """Project of Weights & Biases; null: WANDB_PROJECT, or jaxscale."""
    wandb_entity: Text | None = None
    """Team or user of Weights & Biases; null: WANDB_ENTITY, or the account's own."""
    wandb_tags: list[str] = []
    """Tags of the run in Weights & Biases; empty: those of WANDB_TAGS."""
    mfu: Literal["causal", "palm"] = "causal"
    """How FLOPs are counted for MFU: causal attention, or all pairs as in PaLM."""
