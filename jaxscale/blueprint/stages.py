"""A model in stages: its layers lie on several devices, one after another, and microbatches pass through them. No jax.

The schedule is 1F1B in lock-step (1F1B: arXiv:1806.03377, arXiv:2104.04473). All stages tick together. In tick t, stage
s of S runs microbatch t - s forward, and microbatch t - 2(S-1) + s backward:

    S = 3, M = 4      first ticks   both                  last ticks
    tick              0    1        2    3    4    5      6    7
    stage 0 forward   0    1        2    3    -    -
            backward                -    -    0    1      2    3
    stage 1 forward   -    0        1    2    3    -
            backward                -    0    1    2      3    -
    stage 2 forward   -    -        0    1    2    3
            backward                0    1    2    3      -    -

Where the table has a dash, a stage computes what nobody reads: that is the bubble.
"""

from dataclasses import dataclass

from jaxscale import config as cfg


@dataclass(frozen=True)
class Schedule:
    """The ticks of a step. One stage is a step without a pipeline: it has M ticks, and no bubble."""

    stages: int
    microbatches: int

    @property
    def ticks(self) -> int:
        """Forward passes of each stage, and backward passes of each."""
        return self.microbatches + self.stages - 1

    @property
    def ramp(self) -> int:
        """Ticks that only run forward at the start; as many only run backward at the end."""
        return self.stages - 1

    @property
    def in_flight(self) -> int:
        """Ticks whose forward passes a device remembers: the first stage's wait so long for their backward pass."""
        return 2 * self.stages - 1

    def forward(self, stage: int, tick: int) -> int | None:
        """The microbatch that a stage runs forward in a tick; None: what it computes is not read."""
        return self._real(tick - stage)

    def backward(self, stage: int, tick: int) -> int | None:
        """The same backward."""
        return self._real(tick - 2 * self.ramp + stage)

    def _real(self, microbatch: int) -> int | None:
        return microbatch if 0 <= microbatch < self.microbatches else None

    @property
    def bubble(self) -> float:
        """Share of the ticks' time in which a stage computes what nobody reads."""
        return self.ramp / self.ticks


def check_schedule(config: cfg.Config, stages: str) -> None:
    """Raise ValueError for a step that a pipeline does not compute.

    Args:
        stages: the mesh axes that split the layers, as text.
    """
    if config.step.remat != "full":
        asked = config.step.remat if isinstance(config.step.remat, str) else "by activation"
        raise ValueError(
            f"step.remat={asked}: a pipeline ({stages}) keeps the inputs of layers and recomputes the rest; "
            "set step.remat=full"
        )
    if config.loss.balance:
        raise ValueError(
            f"loss.balance={config.loss.balance} counts over the whole batch, which the stages of a pipeline "
            f"({stages}) never see at one time; set loss.balance=0 and model.moe.bias=true"
        )


def bubble_note(schedule: Schedule) -> str | None:
    """What to say of too few microbatches; None: there are enough."""
    if schedule.microbatches >= schedule.stages:
        return None
    return (
        f"step.microbatches={schedule.microbatches} are fewer than the {schedule.stages} stages of the pipeline: "
        f"devices wait {schedule.bubble:.0%} of the step; raise step.microbatches"
    )
