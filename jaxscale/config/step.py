"""The sections `runtime` and `step`: on which devices a step runs, and how it is computed."""

from typing import Literal

from pydantic import model_validator

from jaxscale.config.files import RENAMED
from jaxscale.config.values import Positive, Section
from jaxscale.files.spelling import nearest


class Runtime(Section):
    """Which devices to use. `simulated_devices` counts only where the platform is CPU."""

    platform: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """Kind of devices to run on; auto: the best that JAX finds."""
    simulated_devices: Positive | None = None
    """Devices that the CPU simulates, of all processes together; null: as many as JAX makes."""
    distributed: Literal["auto", "always", "never"] = "auto"
    """Whether JAX joins several processes; always: its own detection, even without a scheduler."""
    compilation_cache: str | None = "~/.cache/jaxscale/xla"
    """Folder that keeps compiled programs; null: none is kept."""
    compiler_options: dict[str, bool | int | str] = {}
    """XLA's options by name, over the preset of the platform."""


RematAction = Literal["save", "offload", "recompute"]
ACTIVATIONS = (
    "layer_in", "q", "k", "v", "attended", "attention_out", "mlp_gate", "mlp_up", "mlp_out", "router_logits",
    "expert_in", "expert_gate", "expert_up", "shared_gate", "shared_up", "q_latent", "kv_latent", "kv",
)  # fmt: skip


class Step(Section):
    """How one training step is computed, leaving what it computes unchanged."""

    microbatches: Positive = 1
    """Parts of the batch that run one after another, their gradients added."""
    remat: Literal["none", "full", "dots"] | dict[str, RematAction] = "full"
    """What the backward pass computes again: nothing, all, all but matmuls, or a choice for each activation."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of the matmuls."""
    param_dtype: Literal["bfloat16", "float32"] = "float32"
    """Dtype that parameters are kept in; bfloat16 loses updates below 1/256 of a weight."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """Attention's kernel; auto: the best for the platform."""
    context_attention: Literal["auto", "gather", "ring"] = "auto"
    """How keys of other devices arrive where `mesh.context` splits the sequence."""
    expert_exchange: Literal["auto", "all_to_all", "gather"] = "auto"
    """How tokens reach their experts where `mesh.expert` splits these."""
    unroll_layers: bool | None = None
    """Compile each layer by itself instead of a loop; null: on CPU, where a loop costs more time than it saves."""

    @model_validator(mode="after")
    def _check(self) -> "Step":
        if isinstance(self.remat, dict):
            for name in self.remat:
                if name in RENAMED:
                    raise ValueError(f"step.remat.{name} is called step.remat.{RENAMED[name]} now; write that")
                if name not in ACTIVATIONS:
                    raise ValueError(f"step.remat.{name}: no such activation{nearest(name, ACTIVATIONS)}")
        return self
