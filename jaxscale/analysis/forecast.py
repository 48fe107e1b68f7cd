"""The time of a step predicted from its config alone: `costs` says what is done and sent, `timing` how fast. No jax."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from jaxscale import config as cfg
from jaxscale.analysis import costs
from jaxscale.analysis.interval import Interval, interval
from jaxscale.analysis.measured import Measured
from jaxscale.analysis.timing import (
    SOFTWARE,
    WEIGHT_PASSES,
    Rates,
    Sent,
    StepTime,
    attention_share,
    collective_seconds,
    rates,
    step_time,
    with_launches,
)
from jaxscale.analysis.traffic import Traffic, traffic, weight_traffic
from jaxscale.topology import Link, Topology, links

# Arrays of [tokens, D] and [tokens, F] that a layer's elementwise operations read and write, once forward: two
# norms, two residual sums, rotary positions; the activation. Counted on the compiled programs of Llama-3.1-8B.
WIDE_READS_AND_WRITES, MLP_READS_AND_WRITES, HEADS_READS_AND_WRITES = 8, 2, 2
# The same where every operation is a kernel of its own, as in eager PyTorch, in units of 2 bytes. Residual sums: 6;
# a layernorm is one kernel; an rmsnorm of PyTorch operations is six, in float32, like rotary positions; silu and up: 2.
EAGER_SUMS, EAGER_NORMS = 6, {"layernorm": 6, "rmsnorm": 36}
EAGER_MLP, EAGER_HEADS = {"swiglu": 5, "gelu": 2}, {"rope": 14, "learned": 2}
# Kernels of a layer in compiled programs where all matmuls' outputs are kept, and where some are recomputed: GPT-2 and
# Llama-3.2-1B on v5e:1x1 (156 and 129 kept) and h100:1 (121 and 106 kept, 92 and 81 recomputed), Llama-3.1-8B on v5p
# (93 recomputed). Beside the layers, in each microbatch: the embedding, the loss, the optimizer or the sum of gradients
# (74 to 142); and each further chunk of the loss.
LAYER_KERNELS, OTHER_KERNELS, CHUNK_KERNELS = {"tpu": (142, 93), "gpu": (114, 87)}, 90, {"tpu": 6, "gpu": 16}
# PyTorch, forward and backward. Eager: operations of transformers' GPT-2 and Llama, views not counted. Compiled: as
# XLA's on GPUs, less what a loop over layers adds to write what it keeps.
EAGER_KERNELS, COMPILED_TORCH_KERNELS = {"layernorm": (17, 29), "rmsnorm": (34, 67)}, (24, 33)
QUANTIZING = 5  # bytes an element: read for the largest value, read again, written in 8 bits
HOST = 0.7  # of PCIe's nominal bandwidth: what transfers of some MB reach


@dataclass(frozen=True)
class Forecast:
    """Predicted figures of one step.

    Attributes:
        flops: of a device, matmuls and attention with recompute; `model_flops`: without, of all devices.
    """

    time: StepTime
    sent: list[Sent]
    flops: float
    model_flops: float
    tokens: int
    topology: Topology

    @property
    def tokens_per_second_per_chip(self) -> float:
        return self.tokens / self.time.best / self.topology.chips

    @property
    def interval(self) -> Interval:
        """Of the step's seconds."""
        return interval(self.time.best, self.topology)

    @property
    def mfu(self) -> float:
        return self.model_flops / self.time.best / (self.topology.chip.bf16_flops * self.topology.chips)


def forecast(
    config: cfg.Config, topology: Topology, sizes: Mapping[str, int], over: Mapping[str, int] | None = None, *,
    quantized: bool = False, power: float = 1.0, software: str = "xla", measured: Measured | None = None,
) -> Forecast:  # fmt: skip
    """Predict a step of `config` on a mesh.

    Args:
        sizes: mesh axis -> whole size; `over`: of it, over slices (None: as `config.mesh.dcn` says).
        quantized: the layers' matmuls in int8 or fp8, with the passes that quantize.
        power: share of a GPU's power limit that the machine lets it have.
        software: what makes the kernels (`timing.SOFTWARE`): jaxscale's own are XLA's.
        measured: links as a clock found them, in place of the datasheet's.
    """
    speed = rates(topology.chip, config.step.compute_dtype, quantized=quantized, power=power, software=software)
    compute = compute_seconds(config, topology, sizes, speed)
    own = axis_links(topology, sizes, config.mesh.over_slices if over is None else over, measured)
    sent = [timed(t, own, speed, topology) for t in traffic(config, sizes)]
    sent = hide(sent, sum(compute.values()), speed)
    compute = with_launches(compute, sent, kernels(config, topology.chip.platform, software), speed)
    attention = costs.attention(config, sizes)
    tokens = config.data.batch_size * config.data.seq_len
    per_token = costs.train_flops_per_token(config.model, config.data.seq_len, convention=config.metrics.mfu)
    flops = sum(m.step_flops for m in costs.matmuls(config, sizes)) + attention.step_flops
    return Forecast(step_time(compute, sent, topology.slices), sent, flops, per_token * tokens, tokens, topology)


def axis_links(
    topology: Topology, sizes: Mapping[str, int], over: Mapping[str, int], measured: Measured | None = None
) -> dict[str, Link]:
    """How fast each mesh axis is: the one place where a forecast asks. GPU nodes are no slices."""
    over = {} if topology.chip.node else dict(over)
    found = links(topology, {a: n // over.get(a, 1) for a, n in sizes.items()}, over)
    return measured.apply(found) if measured else found


def compute_seconds(config: cfg.Config, topology: Topology, sizes: Mapping[str, int], speed: Rates) -> dict[str, float]:
    """Seconds of a device by part, one after another; host transfers only where they take longer than all else."""
    width = costs.BYTES[config.step.compute_dtype]
    matmul = 0.0
    for m in costs.matmuls(config, sizes):
        moved = float((m.m * m.k + m.k * m.n + m.m * m.n) * width)
        faster = speed.eight_bit if m.name in costs.MATRICES else 1.0
        matmul += speed.seconds(m.flops / faster, moved) * (m.forward + m.backward + m.recomputed)
    parts = {
        "matmuls": matmul,
        "attention": costs.attention(config, sizes).step_flops / attention_flops(config, topology, speed),
        "elementwise": elementwise_bytes(config, sizes, speed.elementwise, eager=speed.eager) / speed.memory,
        "optimizer": optimizer_bytes(config, sizes) / speed.memory,
        "weights": WEIGHT_PASSES * weight_bytes(config, sizes) / speed.memory,
    }
    if speed.eight_bit > 1:
        parts["quantizing"] = quantizing_bytes(config, sizes) / speed.memory
    offloaded = offloaded_bytes(config, sizes)
    if offloaded:  # out and in again, both ways at the same time, beside the compute
        seconds = offloaded / (topology.chip.host_bandwidth * HOST)
        parts["host offload, not hidden"] = max(0.0, seconds - sum(parts.values()))
    return parts


def kernels(config: cfg.Config, platform: str, software: str = "xla") -> int:
    """Kernels that a device runs in a step, collectives apart. Splitting the model changes their sizes only.

    Args:
        platform: `tpu` or `gpu`; `software`: a key of `timing.SOFTWARE`.
    """
    recomputed = bool(costs.recomputed_matmuls(config.step))
    if software == "xla":
        layer = LAYER_KERNELS[platform][recomputed]
    else:
        eager = SOFTWARE[software].eager
        forward, backward = EAGER_KERNELS[config.model.norm] if eager else COMPILED_TORCH_KERNELS
        layer = forward * (1 + recomputed) + backward
    chunks = config.data.seq_len // config.loss.chunk if config.loss.chunk else 1
    of_microbatch = config.model.num_layers * layer + OTHER_KERNELS + (chunks - 1) * CHUNK_KERNELS[platform]
    return config.step.microbatches * of_microbatch


def attention_flops(config: cfg.Config, topology: Topology, speed: Rates) -> float:
    """FLOP/s of a device in attention, with these heads and rows."""
    seq_len = config.data.seq_len
    keys = costs.visible_keys(config.model, seq_len)
    return speed.attention_flops * attention_share(topology.chip, config.model.head_size, keys, seq_len)


def weight_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """V of what fsdp gathers and scatters in a step."""
    return sum(t.step_bytes for t in weight_traffic(config, sizes) if t.axes == ("fsdp",))


def elementwise_bytes(
    config: cfg.Config, sizes: Mapping[str, int], factor: float = 1.0, *, eager: bool = False
) -> float:
    """HBM bytes of what is no matmul: forward once, backward twice, and once again where the layer is recomputed.

    Args:
        factor: of the layers' traffic over what is counted here.
        eager: each operation is a kernel of its own.
    """
    model, tensor = config.model, sizes.get("tensor", 1)
    passes = 3 + (1 if costs.recomputed_matmuls(config.step) else 0)
    wide, mlp, heads = WIDE_READS_AND_WRITES, MLP_READS_AND_WRITES, HEADS_READS_AND_WRITES
    if eager:
        wide, mlp, heads = EAGER_SUMS + EAGER_NORMS[model.norm], EAGER_MLP[model.mlp], EAGER_HEADS[model.position]
    elements = wide * model.embed_dim + mlp * model.mlp_dim
    elements += heads * (model.num_heads + model.kv_heads) * model.head_size
    tokens = costs.microbatch_tokens(config, sizes) * config.step.microbatches
    layers = tokens * elements / tensor * model.num_layers * passes
    logits = 4 * tokens * model.padded_vocab_size / tensor  # float32: made, normalised, derived
    return layers * factor * costs.BYTES[config.step.compute_dtype] + logits * 4


def quantizing_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """Of the layers' matmuls: each input, and the gradient of each output, before tensor gathers them."""
    tensor = sizes.get("tensor", 1)
    found = 0.0
    for m in costs.matmuls(config, sizes):
        if m.name in costs.MATRICES:
            whole = ("out", "down")  # their outputs are whole over tensor, the others' inputs
            k, n = (m.k, m.n / tensor) if m.name in whole else (m.k / tensor, m.n)
            found += m.m * (k * (m.forward + m.recomputed) + n * m.forward)
    return QUANTIZING * found


def optimizer_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """Gradients written and read, parameters and float32 moments read and written."""
    table = costs.parameter_table(config, sizes)
    own = sum(w.shard(sizes, table) for w in costs.weights(config.model))
    moments = {"adamw": 2, "lion": 1, "muon": 1, "adafactor": 0}[config.optimizer.name]
    return own * (costs.BYTES[config.step.param_dtype] * (2 * config.step.microbatches + 2) + 4 * 2 * moments)


def offloaded_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """Bytes of a step that a device sends to its host's memory, all microbatches; as many come back."""
    names = costs.kept(config.step) or {}
    once = sum(costs.activation_bytes(config, sizes, name) for name, action in names.items() if action == "offload")
    return once * config.step.microbatches


def timed(t: Traffic, own: Mapping, speed: Rates, topology: Topology) -> Sent:
    """A collective with its seconds. XLA's GPU programs, unlike libtpu's, run tensor's with nothing beside them."""
    once, network = collective_seconds(t.kind, t.axes, t.bytes, own, speed.network)
    overlaps = t.overlaps and not (topology.chip.node and t.axes == ("tensor",))
    return Sent(t.kind, t.axes, t.bytes * t.times, t.times, once * t.times, network, 0.0, overlaps, t.what)


def hide(sent: list[Sent], compute: float, speed: Rates) -> list[Sent]:
    """What may overlap does, on each network, up to `speed.overlap` of the compute and of itself."""
    totals: dict[str, float] = {}
    for s in sent:
        if s.asynchronous:
            totals[s.network] = totals.get(s.network, 0.0) + s.seconds

    def hidden(s: Sent) -> float:
        return speed.overlap * min(1.0, compute / totals[s.network]) * s.seconds if s.asynchronous else 0.0

    return [replace(s, hidden=hidden(s)) for s in sent]
