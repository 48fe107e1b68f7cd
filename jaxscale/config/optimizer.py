"""The sections `loss`, `optimizer` and `outer`: what is added to the loss, and how parameters move."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxscale import optimizers
from jaxscale.config.values import Above0, AtLeast0, Decay, NonNegative, Positive, Section, Share


class Loss(Section):
    chunk: Positive | None = None
    """Tokens of each sequence whose logits exist at one time; null: all."""
    z_loss: AtLeast0 = 0.0
    """Weight of log(Z)^2 (PaLM, arXiv:2204.02311, section 5); 0: off."""
    balance: AtLeast0 = 0.0
    """Weight of the experts' balance, which is 1 where loads are even (arXiv:2101.03961); 0: off."""
    router_z: AtLeast0 = 0.0
    """Weight of log(Z)^2 of the routers (ST-MoE, arXiv:2202.08906); 0: off."""
    bias_rate: AtLeast0 = 0.001
    """Size of a step of each bias of `model.moe.bias` (arXiv:2412.19437); 0: they stay."""

    def in_chunks(self, tokens: int) -> bool:
        """Are the logits of rows of so many tokens made in several chunks?"""
        return self.chunk is not None and self.chunk < tokens


NO_DECAY = ("norm", "bias", "sinks")


class Optimizer(Section):
    """optax's optimizer and its learning-rate schedule."""

    name: optimizers.Name = "adamw"
    """Which optimizer of optax."""
    learning_rate: AtLeast0 = 3e-4
    """Peak learning rate, the factor of an update."""
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "cosine"
    """How the learning rate falls after the warmup."""
    warmup_steps: NonNegative = 0
    """Steps in which the learning rate rises from 0 to its peak; 0: no warmup."""
    decay_steps: NonNegative | None = None
    """wsd: last steps of the run, in which the rate falls; null: a fifth of the run."""
    final_fraction: Share = 0.1
    """Learning rate at the end as a share of its peak."""
    b1: Decay = 0.9
    """Decay of the mean of the gradient per step."""
    b2: Decay = 0.95
    """Decay of the mean of its square per step."""
    eps: Above0 = 1e-8
    """Added to the root of the mean square, a small number."""
    weight_decay: AtLeast0 = 0.1
    """Weight of decoupled weight decay, multiplied by the learning rate; 0: off."""
    no_decay: list[str] = list(NO_DECAY)
    """Parameters without weight decay: those with one of these words in their path, whole or after a `_`."""
    clip_norm: Above0 | None = 1.0
    """Largest norm of the whole gradient, which is scaled down to it; null: no limit."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of a moving average of the parameters, which evaluation and generate then use; null: none."""

    @model_validator(mode="after")
    def _check(self) -> "Optimizer":
        if self.decay_steps is not None and self.schedule != "wsd":
            raise ValueError(
                f"decay_steps is only for schedule=wsd; {self.schedule} decays over the whole run, so remove it"
            )
        return self


class Outer(Section):
    """The step that the replicas of `mesh.replica` take together now and then (DiLoCo, arXiv:2311.08105)."""

    every: Positive | None = None
    """Steps that each replica takes by itself before an outer step; null: there are no replicas."""
    learning_rate: Above0 = 0.7
    """Learning rate of the outer step, the factor of its update."""
    momentum: Decay = 0.9
    """Decay of its Nesterov momentum per outer step."""
