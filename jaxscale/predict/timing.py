"""From work to seconds: what a chip reaches of its datasheet, how long matmuls, kernels and collectives take.

A few fractions a chip stand in its entry (`hardware.chip.Fractions`), fitted to published runs. These, and the errors
that remain, are in `benchmarks/published.py`. Everything else is physics: FLOPs, bytes and links. No jax.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jaxscale.hardware.chips import Chip
from jaxscale.hardware.topology import Link, combined


@dataclass(frozen=True)
class Software:
    """What made a step's kernels. jaxscale's own steps are `xla`; the others are for published runs.

    Attributes:
        elementwise: HBM traffic outside matmuls, times what is counted; None: as the chip's `Fractions` say.
        eager: every operation reads and writes its arrays (`forecast.elementwise_bytes` counts them).
        kernel: `best`, `flash2` (PyTorch of 2024) or `flash1` (the Triton kernel of 2023).
        launch: seconds of a GPU's host for each kernel. A launch itself is 4 us (NVIDIA, "Getting started with CUDA
            graphs": 3.8 us between kernels of 2.9 us); XLA's command buffers save some of it, the Python of a compiled
            block adds to it, and eager PyTorch's dispatcher and autograd take as long again and more (5 to 25 us a
            kernel were published). No published row is bound by it, so these are not fitted.
    """

    elementwise: float | None = None
    eager: bool = False
    kernel: str = "best"
    launch: float = 3e-6


SOFTWARE = {
    "xla": Software(),
    # torch.compile a block at a time, FSDP's copies between them
    "torch compiled": Software(3.6, kernel="flash2", launch=6e-6),
    "torch eager": Software(1.8, eager=True, kernel="flash2", launch=1e-5),
    "torch 2023": Software(1.8, eager=True, kernel="flash1", launch=1e-5),
}
# Seconds that a device does nothing between two kernels. TPU: libtpu's cost model gives its smallest operation 2,120
# cycles (v5p, 1.75 GHz). GPU: 3.8 us a kernel less the 2.9 us that it runs (NVIDIA, as above).
GAP = {"tpu": 1.2e-6, "gpu": 0.9e-6}
FLASH1 = 0.5  # FlashAttention-2 is twice as fast as the first (arXiv:2307.08691)
POWER = 1 / 3  # a capped GPU's clock: power grows with the clock times the voltage squared, and both go together
LANES = 128  # a TPU pads the last dim of an array, such as heads, to so many elements
# Attention kernels compute whole blocks of keys on the diagonal: of the shipped splash kernel, and of GPU kernels
BLOCK = {"tpu": 2048, "gpu": 128}
# Slices wait for the slowest at each step: its expected delay grows with the logarithm of their number. Fitted to the
# tables of 1 to 32 slices of v5e-256, 1 to 8 of v4-128 and 1 and 2 of v5p.
SLICE_WAIT = 0.028
# Gathered weights are written to HBM and gradients read from it, beside what the matmuls read and write themselves;
# the two buffers of a collective are its input and its output. A fit with this free gives 2.25.
WEIGHT_PASSES = 2


@dataclass(frozen=True)
class Rates:
    """Seconds of a device's work. FLOP/s and bytes/s are achievable ones; attention's with heads of 128."""

    matmul_flops: float
    attention_flops: float
    memory: float
    network: float
    overlap: float
    elementwise: float
    eight_bit: float = 1.0
    eager: bool = False
    launch: float = 0.0
    gap: float = 0.0

    def seconds(self, flops: float, moved: float) -> float:
        """Roofline: of matmul FLOPs and HBM bytes, the slower (Williams et al., CACM 52(4), 2009)."""
        return max(flops / self.matmul_flops, moved / self.memory)


def rates(
    chip: Chip, dtype: str = "bfloat16", *, quantized: bool = False, power: float = 1.0, software: str = "xla"
) -> Rates:
    """int8 or fp8 matmuls run at `Fractions.eight_bit` times bf16's rate where `quantized`.

    Float32 ones are told at jax's default precision, which nothing here changes: a TPU rounds their operands to bf16
    and runs as fast; an NVIDIA GPU takes TF32, half as fast (its datasheets). `jax_default_matmul_precision=highest`
    would take six bf16 passes on a TPU, and is not predicted.

    Args:
        power: share of its power limit that a machine gives a GPU.
        software: a key of `SOFTWARE`.
    """
    fractions, made = chip.fractions, SOFTWARE[software]
    kernel = {"best": 1.0, "flash2": fractions.flash2, "flash1": fractions.flash2 * FLASH1}[made.kernel]
    peak = chip.device_flops * chip.share(dtype) * power**POWER
    return Rates(
        peak * fractions.matmul,
        peak * fractions.attention * kernel,
        chip.device_bandwidth * fractions.memory,
        fractions.network,
        fractions.overlap,
        fractions.elementwise if made.elementwise is None else made.elementwise,
        fractions.eight_bit if quantized else 1.0,
        made.eager,
        made.launch if chip.node else 0.0,  # a TPU is given its program whole
        GAP[chip.platform],
    )


def attention_share(chip: Chip, head: int, keys: float, seq_len: int) -> float:
    """What attention reaches of its rate with heads of 128 and long rows.

    GPU: a score costs its matmuls, which grow with the head, and one exponential, which does not. TPU: heads are padded
    to whole lanes. Both: a query's last block of keys is computed whole.

    Args:
        keys: that a query meets on average.
    """
    if chip.node:
        softmax = chip.fractions.softmax
        of_head = head / (head + softmax) * (128 + softmax) / 128
    else:
        of_head = head / (-(-head // LANES) * LANES)
    return of_head * keys / min(keys + BLOCK[chip.platform] / 2, seq_len)


@dataclass(frozen=True)
class Sent:
    """A collective with its time: `seconds` of one step on each network it uses, and how much work can hide it.

    `weight`: it gathers a weight or scatters its gradient.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: float
    times: int
    seconds: float
    network: str
    hidden: float
    asynchronous: bool
    what: str = ""
    weight: bool = False

    @property
    def exposed(self) -> float:
        return self.seconds - self.hidden


def collective_seconds(
    kind: str, axes: tuple[str, ...], size: float, links: Mapping[str, Link], network: float
) -> tuple[float, str]:
    """Seconds of one run, and the network on which most of them go."""
    link = combined(links, tuple(a for a in axes if a in links))
    parts = link.seconds(kind, size, network)
    return sum(parts.values()), max(parts, key=parts.__getitem__, default="none")


# part of a step -> what it keeps busy
WHOLE = {
    "matmuls": "compute",
    "attention": "compute",
    "elementwise": "HBM",
    "optimizer": "HBM",
    "outer step": "HBM",
    "weights": "HBM",
    "quantizing": "HBM",
    "rows of experts": "HBM",
    "bubble": "compute",
    "kernel starts": "launches",
    "launches, not hidden": "launches",
}


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step.

    Attributes:
        overlapped, nothing_overlapped: bounds; `best`: the estimate between them.
        parts: seconds by what they go to, without overlap.
        sums: the same with compute as a whole, HBM as a whole, and each network's axes.
        binds: the longest of the sums.
    """

    overlapped: float
    nothing_overlapped: float
    best: float
    parts: dict[str, float]
    exposed: float

    @property
    def sums(self) -> dict[str, float]:
        totals: dict[str, float] = {}
        for name, seconds in self.parts.items():
            totals[WHOLE.get(name, name)] = totals.get(WHOLE.get(name, name), 0.0) + seconds
        return totals

    @property
    def binds(self) -> str:
        return max(self.sums, key=self.sums.__getitem__)


def with_launches(compute: Mapping[str, float], sent: Iterable[Sent], kernels: int, speed: Rates) -> dict[str, float]:
    """`compute` with what it costs to start its kernels.

    The device does nothing between two kernels. A GPU's host launches kernels and collectives one after another while
    the device works, so only what takes longer than all of that is waited for.

    Args:
        compute: seconds by part; `sent`: with what is hidden; `kernels`: of a step, collectives not among them.
    """
    sent = list(sent)
    parts = dict(compute) | {"kernel starts": kernels * speed.gap}
    launches = (kernels + sum(s.times for s in sent)) * speed.launch
    waited = launches - sum(parts.values()) - sum(s.exposed for s in sent)
    return parts | ({"launches, not hidden": waited} if waited > 0 else {})


def step_time(compute: Mapping[str, float], sent: Iterable[Sent], slices: int = 1) -> StepTime:
    """Compute runs one after another; collectives of one network too; networks and compute beside each other.

    At the end of a step slices wait for the slowest of them.
    """
    sent = list(sent)
    busy = sum(compute.values())
    by_network: dict[str, float] = {}
    for s in sent:
        name = f"{s.network} ({'+'.join(s.axes) or 'all'})"
        by_network[name] = by_network.get(name, 0.0) + s.seconds
    networks: dict[str, float] = {}
    for s in sent:
        networks[s.network] = networks.get(s.network, 0.0) + s.seconds
    exposed = sum(s.exposed for s in sent)
    total = sum(networks.values())
    lower = max(busy, *networks.values()) if networks else busy
    best = max(lower, busy + exposed)
    wait = SLICE_WAIT * math.log2(slices) * best
    waits = {"waiting for the slowest slice": wait} if slices > 1 else {}
    return StepTime(lower + wait, busy + total + wait, best + wait, dict(compute) | by_network | waits, exposed)
