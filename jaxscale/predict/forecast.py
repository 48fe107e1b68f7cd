"""The time of a step predicted from its config alone: `costs` says what is done and sent, `timing` how fast. No jax."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from jaxscale import config as cfg
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.rules import key_of, schedule
from jaxscale.hardware.topology import Link, Topology, links
from jaxscale.optimizers import OPTIMIZERS
from jaxscale.predict import costs
from jaxscale.predict.arrays import whole_logits
from jaxscale.predict.attention import attention_cost
from jaxscale.predict.experts import exchange, moved_rows, tiled, times
from jaxscale.predict.interval import Interval, interval
from jaxscale.predict.measured import Measured
from jaxscale.predict.rollouts import Sampling, sampling
from jaxscale.predict.timing import (
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
from jaxscale.predict.traffic import Traffic, outer_traffic, traffic

# Arrays that a layer's elementwise operations read and write, once forward, in units of 2 bytes, where every operation
# is a kernel of its own, as in eager PyTorch (where XLA fuses them: `Blueprint.elementwise`). Residual sums: 6; a
# layernorm is one kernel; an rmsnorm of PyTorch operations is six, in float32, like rotary positions; silu and up: 2.
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
    """Predicted figures of one step; with replicas it has its share of an outer step.

    Attributes:
        flops: of a device, matmuls and attention with recompute; `model_flops`: without, of all devices.
        left_out: what of the optimizer's update is not counted; empty: nothing.
        sampling: what makes the step's batch, of a run that trains on samples of its model.
    """

    time: StepTime
    sent: list[Sent]
    flops: float
    model_flops: float
    tokens: int
    topology: Topology
    left_out: str = ""
    sampling: Sampling | None = None

    @property
    def seconds(self) -> float:
        """Of the whole step: training, and the samples that it trains on."""
        return self.time.best + (self.sampling.seconds if self.sampling else 0.0)

    @property
    def tokens_per_second_per_chip(self) -> float:
        return self.tokens / self.seconds / self.topology.chips

    @property
    def interval(self) -> Interval:
        """Of the seconds of training."""
        return interval(self.time.best, self.topology)

    @property
    def mfu(self) -> float:
        """Of training's FLOPs, over the whole step."""
        return self.model_flops / self.seconds / (self.topology.chip.bf16_flops * self.topology.chips)


def forecast(
    config: cfg.Config,
    topology: Topology,
    sizes: Mapping[str, int],
    over: Mapping[str, int] | None = None,
    *,
    quantized: bool = False,
    power: float = 1.0,
    software: str = "xla",
    measured: Measured | None = None,
) -> Forecast:
    """Predict a step of `config` on a mesh.

    Args:
        sizes: mesh axis -> whole size; `over`: of it, over slices (None: as `config.mesh.dcn` says).
        quantized: the layers' matmuls in int8 or fp8, with the passes that quantize.
        power: share of a GPU's power limit that the machine lets it have.
        software: what makes the kernels (`timing.SOFTWARE`): jaxscale's own are XLA's.
        measured: links as a clock found them, in place of the datasheet's.
    """
    speed = rates(topology.chip, config.step.compute_dtype, quantized=quantized, power=power, software=software)
    needs = traffic(config, sizes, platform=topology.chip.platform)
    compute = compute_seconds(config, topology, sizes, speed, needs)
    mesh_links = axis_links(topology, sizes, config.mesh.over_slices if over is None else over, measured)
    sent = [timed(t, mesh_links, speed, topology) for t in needs]
    sent = hide(sent, sum(compute.values()), speed)
    compute = with_launches(compute, sent, kernels(config, sizes, topology.chip.platform, software), speed)
    if every := config.outer.every:
        compute["outer step"] = outer_bytes(config, sizes) / speed.memory / every
        shared = (timed(t, mesh_links, speed, topology) for t in outer_traffic(config, sizes))
        sent += [replace(s, bytes=s.bytes / every, seconds=s.seconds / every) for s in shared]
    attention = attention_cost(config, sizes)
    tokens = config.data.batch_size * config.data.seq_len
    per_token = costs.train_flops_per_token(config.model, config.data.seq_len, convention=config.metrics.mfu)
    flops = sum(m.step_flops for m in costs.matmuls(config, sizes)) + attention.step_flops
    time, left_out = step_time(compute, sent, topology.slices), OPTIMIZERS[config.optimizer.name].left_out
    samples = sampling(
        config, topology.chip.usable_hbm_bytes, sizes, speed, attention_flops(config, topology, speed), mesh_links
    )
    return Forecast(time, sent, flops, per_token * tokens, tokens, topology, left_out, samples)


def axis_links(
    topology: Topology, sizes: Mapping[str, int], over: Mapping[str, int], measured: Measured | None = None
) -> dict[str, Link]:
    """How fast each mesh axis is: the one place where a forecast asks. GPU nodes are no slices."""
    over = {} if topology.chip.node else dict(over)
    nominal = links(topology, {a: n // over.get(a, 1) for a, n in sizes.items()}, over)
    return measured.apply(nominal) if measured else nominal


def compute_seconds(
    config: cfg.Config, topology: Topology, sizes: Mapping[str, int], speed: Rates, needs: Iterable[Traffic]
) -> dict[str, float]:
    """Seconds of a device by part, one after another; host transfers only where they take longer than all else.

    Args:
        needs: what the step sends, as gathered weights pass through HBM too.
    """
    layers = layer_seconds(config, topology, sizes, speed)  # in every tick of a pipeline, whether somebody reads it
    idle = schedule(config, sizes).bubble
    head = sum(matmul_seconds(m, config, speed) for m in costs.matmuls(config, sizes) if not m.stacked)
    parts = {
        "matmuls": layers["matmuls"] * (1 - idle) + head,
        "attention": layers["attention"] * (1 - idle),
        "elementwise": layers["elementwise"] * (1 - idle) + logits_traffic(config, sizes) / speed.memory,
        "optimizer": optimizer_bytes(config, sizes) / speed.memory,
        "weights": WEIGHT_PASSES * weight_bytes(needs) / speed.memory,
    }
    parts |= {name: layers[name] * (1 - idle) for name in ("rows of experts", "quantizing") if name in layers}
    if idle:
        parts["bubble"] = sum(layers.values()) * idle
    offloaded = offloaded_bytes(config, sizes)
    if offloaded:  # out and in again, both ways at the same time, beside the compute
        seconds = offloaded / (topology.chip.host_bandwidth * HOST)
        parts["host offload, not hidden"] = max(0.0, seconds - sum(parts.values()))
    return parts


def layer_seconds(config: cfg.Config, topology: Topology, sizes: Mapping[str, int], speed: Rates) -> dict[str, float]:
    """Of a device's layers by part, a whole step."""
    at, model = exchange(config, sizes), blueprint(config.model)
    tiles = tiled(at, topology.chip.platform) if at else 1.0
    matmuls = [(m, tiles if model.op(m.name).rows_move else 1.0) for m in costs.matmuls(config, sizes) if m.stacked]
    parts = {
        "matmuls": sum(matmul_seconds(m, config, speed) * factor for m, factor in matmuls),
        "attention": attention_cost(config, sizes).step_flops / attention_flops(config, topology, speed),
        "elementwise": elementwise_bytes(config, sizes, speed.elementwise, eager=speed.eager) / speed.memory,
    }
    if at and model.routed:
        runs, width = costs.layer_runs(config, sizes, model.routed.layers), costs.BYTES[config.step.compute_dtype]
        parts["rows of experts"] = moved_rows(at, *times(config)) * runs * width / speed.memory
    if speed.eight_bit > 1:
        parts["quantizing"] = quantizing_bytes(config, sizes) / speed.memory
    return parts


def matmul_seconds(m: costs.Matmul, config: cfg.Config, speed: Rates) -> float:
    """Of all its runs in a step."""
    moved = float(m.elements * costs.BYTES[config.step.compute_dtype])
    faster = speed.eight_bit if m.stacked else 1.0
    return speed.seconds(m.flops / faster, moved) * (m.forward + m.backward + m.recomputed)


def kernels(config: cfg.Config, sizes: Mapping[str, int], platform: str, software: str = "xla") -> int:
    """Kernels that a device runs in a step, collectives apart. Splitting a layer changes their sizes only.

    Args:
        platform: `tpu` or `gpu`; `software`: a key of `timing.SOFTWARE`.
    """
    recomputed = bool(costs.recomputed_matmuls(config))
    if software == "xla":
        layer = LAYER_KERNELS[platform][recomputed]
    else:
        eager = SOFTWARE[software].eager
        forward, backward = EAGER_KERNELS[config.model.norm] if eager else COMPILED_TORCH_KERNELS
        layer = forward * (1 + recomputed) + backward
    chunks = config.data.seq_len // config.loss.chunk if config.loss.chunk else 1
    of_microbatch = OTHER_KERNELS + (chunks - 1) * CHUNK_KERNELS[platform]
    return costs.layer_runs(config, sizes) * layer + config.step.microbatches * of_microbatch


def attention_flops(config: cfg.Config, topology: Topology, speed: Rates) -> float:
    """FLOP/s of a device in attention, with these heads and rows."""
    seq_len = config.data.seq_len
    keys = costs.visible_keys(config.model, seq_len)
    return speed.attention_flops * attention_share(topology.chip, config.model.head_size, keys, seq_len)


def weight_bytes(needs: Iterable[Traffic]) -> float:
    """V of the weights that are gathered in a step, and of their gradients that are scattered."""
    return sum(t.step_bytes for t in needs if t.weight and t.kind != "all-reduce")


def elementwise_bytes(
    config: cfg.Config, sizes: Mapping[str, int], factor: float = 1.0, *, eager: bool = False
) -> float:
    """HBM bytes of what is no matmul in the layers: forward once, backward twice, and once again where recomputed.

    Args:
        factor: of the layers' traffic over what is counted here.
        eager: each operation is a kernel of its own.
    """
    model = blueprint(config.model)
    passes = 3 + (1 if costs.recomputed_matmuls(config) else 0)
    counts = eager_elementwise(config.model) if eager else model.elementwise
    ones = [(number, model.activation(name)) for name, number in counts.items()]
    elements = sum(
        number
        * costs.activation_elements(config, sizes, one.letters, one.at)
        * costs.layer_runs(config, sizes, one.only)
        for number, one in ones
    )
    return elements * passes * factor * costs.BYTES[config.step.compute_dtype]


def logits_traffic(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """HBM bytes of the logits, float32: made, normalised, derived."""
    return 4 * whole_logits(config, sizes) * config.step.microbatches * 4


def eager_elementwise(model: cfg.Model) -> dict[str, float]:
    """As `Blueprint.elementwise`, where every operation is a kernel of its own."""
    heads = EAGER_HEADS[model.position]
    described = blueprint(model)
    return {
        described.stream: EAGER_SUMS + EAGER_NORMS[model.norm],
        described.widest: EAGER_MLP[model.mlp],
        **{a.name: heads for a in described.activations if a.name in described.elementwise and a.padded},
    }


def quantizing_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """Of the layers' matmuls: each input, and the gradient of each output, before tensor gathers them."""
    whole, elements = costs.letter_sizes(config, sizes), 0.0
    for one, m in zip(costs.forward_passes(config, sizes), costs.matmuls(config, sizes), strict=True):
        if one.stacked:
            x = costs.elements(one.x.letters, one.x.stored, whole, sizes)
            y = costs.elements(one.out.letters, one.out.used, whole, sizes)
            elements += x * (m.forward + m.recomputed) + y * m.forward
    return QUANTIZING * elements


def optimizer_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """Gradients written and read, parameters and what the optimizer keeps read and written."""
    trained, passes = costs.bytes_held(config, sizes, "trained"), 2 * schedule(config, sizes).ticks + 2
    return trained * passes + 2 * costs.slot_bytes(config, sizes)


def outer_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """HBM bytes of an outer step: the mean of what replicas learnt written and read, their parameters, the outer ones
    and the momentum read and written."""
    elements, kept = costs.parameter_elements(key_of(config, sizes)), costs.bytes_held(config, sizes, "trained")
    return elements * (2 * 4 + 2 * 2 * 4) + 2 * kept


def offloaded_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """Bytes of a step that a device sends to its host's memory, all microbatches; as many come back."""
    names = costs.kept(config) or {}
    once = sum(costs.activation_bytes(config, sizes, name) for name, action in names.items() if action == "offload")
    return once * config.step.microbatches


def timed(t: Traffic, mesh_links: Mapping, speed: Rates, topology: Topology) -> Sent:
    """A collective with its seconds. XLA's GPU programs, unlike libtpu's, run those of activations with nothing beside
    them."""
    once, network = collective_seconds(t.kind, t.axes, t.bytes, mesh_links, speed.network)
    whole = len(t.axes) == 1 or all(mesh_links[axis].whole for axis in t.axes if axis in mesh_links)
    overlaps = t.overlaps and whole and not (topology.chip.node and not t.weight)
    return Sent(t.kind, t.axes, t.bytes * t.times, t.times, once * t.times, network, 0.0, overlaps, t.what, t.weight)


def hide(sent: list[Sent], compute: float, speed: Rates) -> list[Sent]:
    """What may overlap does, on each network, up to `speed.overlap` of the compute and of itself."""
    totals: dict[str, float] = {}
    for s in sent:
        if s.asynchronous:
            totals[s.network] = totals.get(s.network, 0.0) + s.seconds

    def hidden(s: Sent) -> float:
        return speed.overlap * min(1.0, compute / totals[s.network]) * s.seconds if s.asynchronous else 0.0

    return [replace(s, hidden=hidden(s)) for s in sent]
