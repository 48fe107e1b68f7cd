"""What the entry of a chip says. Knows nothing of jax.

Peaks are dense (not "with sparsity"). Bandwidths are bytes/s in one direction. GB is 1e9 bytes, GiB 2**30.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

BOOK_TPU = "scaling book, tpus.md"
BOOK_GPU = "scaling book, gpus.md"
VENDOR_TPU = "the vendor's page of this TPU generation"
VENDOR_GPU = "NVIDIA's datasheet, dense"
VENDOR_AMD = "AMD's datasheet, dense"
COMPILER = "what libtpu says that a program may use"
DRIVER = (
    "92 % of the device memory that CUDA reports: the share that jaxscale has XLA take (XLA_PYTHON_CLIENT_MEM_FRACTION)"
)
GPU_MEMORY_FRACTION = 0.92  # XLA takes 75 % by itself; the rest is for CUDA's context, NCCL and cuDNN
GIB, GB = 2.0**30, 1e9
KIB, MIB = 2**10, 2**20
Preset = Literal["", "tpu", "tpu sparse core", "nvidia"]  # families of `parallel.presets.PRESETS`


@dataclass(frozen=True)
class Fractions:
    """What a chip reaches of its datasheet, fitted to published runs (`benchmarks/published.py`).

    Attributes:
        matmul: of the dense bf16 peak, in the matmuls of a decoder.
        attention: of the same peak, in the chip's best attention kernel (splash, cuDNN) with heads of 128.
        memory: of HBM bandwidth.
        network: of links.
        overlap: share of the communication that could be hidden, which is.
        elementwise: HBM traffic outside matmuls, times what a well-fused program needs.
        eight_bit: how much faster a matmul is in 8 bits than in bf16; the passes that quantize are counted apart.
        flash2: share of `attention` that FlashAttention-2 reaches: it does not know Hopper's instructions.
        softmax: GPU: the head size whose matmuls take as long as a score's exponential: bf16 peak / (4 * 16
            exponentials a clock and multiprocessor).
    """

    matmul: float
    attention: float
    memory: float = 0.8
    network: float = 0.85
    overlap: float = 0.8
    elementwise: float = 1.0
    eight_bit: float = 2.0
    flash2: float = 1.0
    softmax: float = 32.0


@dataclass(frozen=True)
class GpuTarget:
    """What XLA must know of an NVIDIA GPU to compile for one that is not here (`hardware.gpu_targets`).

    Figures: NVIDIA's architecture papers and datasheets, CUDA's compute-capability tables, and what XLA's own
    descriptions of these GPUs say. Device memory is the chip's `reported_bytes`.
    """

    description: str
    capability: tuple[int, int]
    multiprocessors: int
    lanes: int  # FP32 lanes of a multiprocessor
    gigahertz: float
    bandwidth: int
    l2_bytes: int
    shared_bytes: int  # of a multiprocessor
    block_shared_bytes: int  # of one block that opts in
    threads: int = 2048  # of a multiprocessor


@dataclass(frozen=True)
class Chip:
    """One accelerator chip: all that jaxscale knows of it.

    Attributes:
        kinds: names in `jax.Device.device_kind`, whole or followed by words of the same silicon; longest match wins.
        bf16_flops: dense bfloat16 FLOP/s of the chip, accumulated in float32; where `dtype` is fp16, float16's.
        hbm_bytes: memory of the chip by its datasheet; `usable_hbm_bytes` of one device, for a program.
        hbm_bandwidth: bytes/s.
        link_bandwidth: TPU: of one torus link, one way; GPU: of `link`, one way, all links of a GPU together.
        network_bandwidth: of a chip to the slow network (TPU: between slices; GPU: between nodes).
        host_bandwidth: of a device to its host's memory, one way.
        host, host_bytes: chips of one host, and its memory. Clouds name GiB "GB"; taken as 1e9 bytes, the 7 % of
            difference are left to the system, the data pipeline and checkpoints.
        fractions: what programs reach of these figures.
        sources: figure -> where it is from.
        devices: how many JAX devices one chip is.
        dtype: of the peak: bf16, or fp16 where the chip has no bf16 (XLA then computes bf16 in float32).
        torus_dims: 2 or 3 for TPUs, 0 for GPUs.
        wrap_multiple: torus dims of this many chips (or a multiple) close into rings (see `Topology.wraps`).
        largest: TPU: the largest slice, chips along each torus dim.
        multislice: can slices be joined by the slow network.
        cores: TPU: what `NAME-N`, the vendor's accelerator type, counts of a chip: its 2 TensorCores, or 1 (chips).
        compiler_config: TPU: libtpu's name of the chip's configuration, where it is not the default.
        node: GPUs that `link` joins; 0 for TPUs.
        link: GPU: what joins those of a node: NVLink, xGMI (AMD) or PCIe.
        reported_bytes: GPU: device memory that the driver reports.
        target: GPU: what XLA compiles for; None where no compiler is known.
        machine_types: GPU: name of a cloud's machine type -> GPUs of it; None: as many as `-Ng` after the name says.
        late_scatter: TPU: libtpu scatters the last matrix's gradient beside the layers' backward pass, not before it.
        preset: family of the XLA options that the training step is compiled with; empty: the compiler's defaults.
        aliases: other names of it, in lower case with dashes.
    """

    name: str
    kinds: tuple[str, ...]
    bf16_flops: float
    hbm_bytes: float
    usable_hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    host_bandwidth: float
    host: int
    host_bytes: float
    fractions: Fractions
    sources: Mapping[str, str]
    devices: int = 1
    dtype: str = "bf16"
    torus_dims: int = 0
    wrap_multiple: int = 4
    largest: tuple[int, ...] = ()
    multislice: bool = True
    cores: int = 1
    compiler_config: str = ""
    node: int = 0
    link: str = "NVLink"
    reported_bytes: int = 0
    target: GpuTarget | None = None
    machine_types: Mapping[str, int | None] = field(default_factory=dict)
    late_scatter: bool = False
    preset: Preset = ""
    aliases: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """Of the peak, the figure that stands beside MFU."""
        return self.sources["bf16_flops"]

    @property
    def platform(self) -> str:
        return "gpu" if self.node else "tpu"

    @property
    def device_flops(self) -> float:
        return self.bf16_flops / self.devices

    @property
    def device_bandwidth(self) -> float:
        return self.hbm_bandwidth / self.devices

    def share(self, dtype: str) -> float:
        """Of the peak, what matmuls in a dtype can reach at jax's default precision.

        A TPU rounds float32 operands to bf16. NVIDIA GPUs since Ampere, and AMD's, take TF32 for them: half. Older
        ones have neither bf16 nor TF32, and compute both in float32: 8.1 of 65 TFLOP/s (T4), 15.7 of 125 (V100).
        """
        if self.dtype == "fp16":
            return 1 / 8
        return 1 / 2 if dtype == "float32" and self.node else 1.0


def gpu(name: str, *, reported: int, node: int = 8, preset: Preset = "nvidia", **figures: Any) -> Chip:
    """An entry of a GPU: what a program may use is a share of the `reported` bytes."""
    usable = GPU_MEMORY_FRACTION * reported
    return Chip(name, usable_hbm_bytes=usable, reported_bytes=reported, node=node, preset=preset, **figures)


def gpu_sources(host: str, **others: str) -> dict[str, str]:
    return {
        "bf16_flops": f"{VENDOR_GPU}; {BOOK_GPU}",
        "hbm_bytes": VENDOR_GPU,
        "usable_hbm_bytes": DRIVER,
        "hbm_bandwidth": VENDOR_GPU,
        "link_bandwidth": f"{BOOK_GPU}: NVLink, one way",
        "network_bandwidth": f"{BOOK_GPU}: 400 GB/s a node of 8, InfiniBand",
        "host_bandwidth": "PCIe 5.0 x16 (A100: 4.0), one way, nominal",
        "host_bytes": host,
    } | others
