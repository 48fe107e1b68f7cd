"""What attention costs a device and step, and which kernel runs it where. No jax. Dims as in `predict.costs`."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxscale import config as cfg
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.rules import count, rules_of
from jaxscale.blueprint.sequence import in_zigzag, way
from jaxscale.predict import costs
from jaxscale.predict.timing import LANES


@dataclass(frozen=True)
class AttentionCost:
    """Attention of a device and step, scores and context: FLOPs of one forward call of one layer, and calls a step.

    Attributes:
        forward_flops: 4 * tokens * heads * H * keys (two matmuls), H the mean of keys' and values' head dim.
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
    forward = 2.0 * sum(costs.activation_elements(config, sizes, row) for row in model.attention.both) * keys
    names = costs.kept(config)
    again = names is not None and model.attention.result not in names
    runs = costs.layer_runs(config, sizes)
    shards = count(rules_of(config, sizes).activations["sequence"], sizes)
    rings = shards > 1 and "ring" in split_ways(config, platform).values()
    blocks = 2 * shards - 1 if rings else 1
    return AttentionCost(forward, 2.5 * forward, runs * (2 if again else 1), runs, blocks)


# Arrays of the queries' and of the result's size in the backward pass of latent attention, read from two of libtpu's
# programs (2 layers of DeepSeek-V3's, 4,096 and 8,192 tokens, 64 and 32 heads a device: 4.74 and 4.77)
HEADS = 4.75
MOST_PARTS, KEYS = 8, 1024  # of dq in the fused kernel, one for so many keys: see `kernels.splash.block_sizes`


def heads_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """Of a layer's backward pass on a TPU: with latents the heads are together wider than the stream; 0 without."""
    attention = blueprint(config.model).attention
    if attention is None or not attention.shared:
        return 0.0
    q, out = (costs.activation_elements(config, sizes, row) for row in attention.both)
    wide = config.model.head_size > LANES
    parts = config.data.seq_len / (KEYS if wide else 2 * KEYS)
    return ((parts if parts <= MOST_PARTS else 0) * q + HEADS * (q + out)) * costs.BYTES[config.step.compute_dtype]


def split_ways(config: cfg.Config, platform: str) -> dict[int | None, str]:
    """How a split sequence attends on a platform, by sliding window: see `blueprint.sequence.way`."""
    attention, kernel = blueprint(config.model).attention, kernel_of(config, platform)
    asked, tokens, zigzag = config.step.context_attention, config.data.seq_len, in_zigzag(config)
    windows = [window for window, _ in attention.windows] if attention else []
    return {window: way(asked, window, tokens, zigzag=zigzag, kernel=kernel) for window in windows}


def kernel_of(config: cfg.Config, platform: str) -> str:
    """The attention that a step runs on a platform, where nothing speaks against the fastest."""
    fastest = {"tpu": "splash", "gpu": "cudnn", "cpu": "xla"}[platform]
    return fastest if config.step.attention == "auto" else config.step.attention
