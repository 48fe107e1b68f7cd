"""What a run is: `sections` says what a config can hold, `loading` reads one. Knows nothing of jax or of devices."""

from jaxscale.config.data import Data
from jaxscale.config.errors import describe, divisors
from jaxscale.config.files import find_config, read_yaml, shipped_configs
from jaxscale.config.latent import Latent
from jaxscale.config.loading import PUBLISHED, dump_config, load_config, validate
from jaxscale.config.lora import Lora
from jaxscale.config.mesh import AXES, OVER_SLICES, AxisNames, Dcn, Mesh, Sharding
from jaxscale.config.model import LayerKind, Model, Moe, RopeScaling
from jaxscale.config.objective import OF_ROLLOUTS, Objective
from jaxscale.config.optimizer import NO_DECAY, Loss, Optimizer, Outer
from jaxscale.config.published import read as read_published
from jaxscale.config.sections import Config
from jaxscale.config.step import ACTIVATIONS, Runtime, Step
from jaxscale.config.upkeep import Checkpoint, Evaluation, Watch
from jaxscale.config.values import Positive, Section, default_of
from jaxscale.files.spelling import nearest

__all__ = [
    "ACTIVATIONS", "AXES", "NO_DECAY", "OF_ROLLOUTS", "OVER_SLICES", "PUBLISHED", "AxisNames", "Checkpoint", "Config",
    "Data", "Dcn", "Evaluation", "Latent", "LayerKind", "Lora", "Loss", "Mesh", "Model", "Moe", "Objective",
    "Optimizer", "Outer", "Positive", "RopeScaling", "Runtime", "Section", "Sharding", "Step", "Watch", "default_of",
    "describe", "divisors", "dump_config", "find_config", "load_config", "nearest", "read_published", "read_yaml",
    "shipped_configs", "validate",
]  # fmt: skip
