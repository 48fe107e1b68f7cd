"""What attention costs a device and step, and which kernel runs it where. No jax. Dims as in `predict.costs`."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxscale import config as cfg
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.rules import count, rules_of
from jaxscale.blueprint.sequence import in_zigzag, way
from jaxscale.predict import costs


@dataclass(frozen=True)
class AttentionCost:
    """Attention of a device and step, scores and context: FLOPs of one forward call of one layer, and calls a step.

    Attributes:
        forward_flops: 4 * tokens * heads * H * keys (two matmuls).
        backward_flops: 5 matmuls in a kernel that makes the scores again (FlashAttention-2, arXiv:2307.08691), 4 where
            they were kept.
        forward_calls, backward_calls: with recompute.
        blocks: kernels of one call: a ring runs one on a device's own keys and two on those of each other device.
    """

    forward_flops: float
    backward_flops: float
    forward_calls: int
    backward_calls: int
    blocks: int = 1

    @property
    def step_flops(self) -> float:
        return self.forward_flops * self.forward_calls + self.backward_flops * self.backward_calls


def attention_cost(config: cfg.Config, sizes: Mapping[str, int], *, platform: str = "tpu") -> AttentionCost:
    """By a fused kernel (splash, cuDNN): causal tokens only."""
    model = blueprint(config.model)
    if model.attention is None:
        return AttentionCost(0.0, 0.0, 0, 0)
    keys = costs.visible_keys(config.model, config.data.seq_len)
    forward = 4.0 * costs.activation_elements(config, sizes, model.attention.q) * keys
    names = costs.kept(config)
    again = names is not None and model.attention.result not in names
    runs = costs.layer_runs(config, sizes)
    shards = count(rules_of(config, sizes).activations["sequence"], sizes)
    blocks = 2 * shards - 1 if shards > 1 and split_way(config, platform) == "ring" else 1
    return AttentionCost(forward, 2.5 * forward, runs * (2 if again else 1), runs, blocks)


def split_way(config: cfg.Config, platform: str) -> str:
    """How a split sequence attends on a platform: see `blueprint.sequence.way`."""
    attention, kernel = blueprint(config.model).attention, kernel_of(config, platform)
    window = attention.window if attention else None
    asked = config.step.context_attention
    return way(asked, window, config.data.seq_len, zigzag=in_zigzag(config), kernel=kernel)


def kernel_of(config: cfg.Config, platform: str) -> str:
    """The attention that a step runs on a platform, where nothing speaks against the fastest."""
    fastest = {"tpu": "splash", "gpu": "cudnn", "cpu": "xla"}[platform]
    return fastest if config.step.attention == "auto" else config.step.attention
