"""What a run is: `sections` says what a config can hold, `loading` reads one. Knows nothing of jax or of devices."""

from jaxscale.config.errors import describe, divisors
from jaxscale.config.files import find_config, read_yaml, shipped_configs
from jaxscale.config.loading import dump_config, load_config, validate
from jaxscale.config.sections import (
    ACTIVATIONS,
    AXES,
    NO_DECAY,
    READY_AXES,
    AxisNames,
    Checkpoint,
    Config,
    Data,
    Dcn,
    Evaluation,
    Loss,
    Mesh,
    Model,
    Objective,
    Optimizer,
    Positive,
    Runtime,
    Section,
    Sharding,
    Step,
    Watch,
)
from jaxscale.files.spelling import nearest

__all__ = [
    "ACTIVATIONS", "AXES", "NO_DECAY", "READY_AXES", "AxisNames", "Checkpoint", "Config", "Data", "Dcn", "Evaluation",
    "Loss", "Mesh", "Model", "Objective", "Optimizer", "Positive", "Runtime", "Section", "Sharding", "Step", "Watch",
    "describe", "divisors", "dump_config", "find_config", "load_config", "nearest", "read_yaml", "shipped_configs",
    "validate",
]  # fmt: skip
