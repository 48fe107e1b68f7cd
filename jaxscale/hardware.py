"""The chip table: peaks, memory and links, every figure with its source. Knows nothing of jax.

Peaks are dense (not "with sparsity"). Bandwidths are bytes/s in one direction. GB is 1e9 bytes, GiB 2**30.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

BOOK_TPU = "scaling book, tpus.md"
BOOK_GPU = "scaling book, gpus.md"
VENDOR_TPU = "the vendor's page of this TPU generation"
VENDOR_GPU = "NVIDIA's datasheet, dense"
COMPILER = "what libtpu says that a program may use"
DRIVER = (
    "92 % of the device memory that CUDA reports: the share that jaxscale has XLA take (XLA_PYTHON_CLIENT_MEM_FRACTION)"
)
GPU_MEMORY_FRACTION = 0.92  # XLA takes 75 % by itself; the rest is for CUDA's context, NCCL and cuDNN
GIB, GB = 2.0**30, 1e9


@dataclass(frozen=True)
class Chip:
    """One accelerator chip.

    Attributes:
        bf16_flops: dense bfloat16 FLOP/s of the chip.
        hbm_bytes: memory of the chip by its datasheet; `usable_hbm_bytes` of one device, for a program.
        hbm_bandwidth: bytes/s.
        kinds: beginnings of `jax.Device.device_kind`, longest match wins.
        devices: how many JAX devices one chip is.
        torus_dims: 2 or 3 for TPUs, 0 for GPUs.
        link_bandwidth: TPU: of one torus link, one way; GPU: of NVLink, one way, all links of a GPU together.
        wrap_multiple: torus dims of this many chips (or a multiple) close into rings (see `Topology.wraps`).
        network_bandwidth: of a chip to the slow network (TPU: between slices; GPU: between nodes).
        node: GPUs of one NVLink domain; 0 for TPUs.
        host_bandwidth: of a device to its host's memory, one way.
        sources: figure -> where it is from.
    """

    name: str
    bf16_flops: float
    hbm_bytes: float
    usable_hbm_bytes: float
    hbm_bandwidth: float
    kinds: tuple[str, ...]
    link_bandwidth: float
    network_bandwidth: float
    host_bandwidth: float
    torus_dims: int = 0
    wrap_multiple: int = 4
    largest: tuple[int, ...] = ()
    devices: int = 1
    node: int = 0
    sources: Mapping[str, str] = field(default_factory=dict)

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


def tpu_sources(**others: str) -> dict[str, str]:
    return {
        "bf16_flops": f"{VENDOR_TPU}; {BOOK_TPU}", "hbm_bytes": VENDOR_TPU, "usable_hbm_bytes": COMPILER,
        "hbm_bandwidth": f"{VENDOR_TPU}; {BOOK_TPU}", "link_bandwidth": f"{BOOK_TPU} (older edition: 10 % more)",
        "network_bandwidth": BOOK_TPU, "host_bandwidth": f"{BOOK_TPU}: PCIe, a chip's share",
    } | others  # fmt: skip


def gpu_sources(**others: str) -> dict[str, str]:
    return {
        "bf16_flops": f"{VENDOR_GPU}; {BOOK_GPU}", "hbm_bytes": VENDOR_GPU, "usable_hbm_bytes": DRIVER,
        "hbm_bandwidth": VENDOR_GPU, "link_bandwidth": f"{BOOK_GPU}: NVLink, one way",
        "network_bandwidth": f"{BOOK_GPU}: 400 GB/s a node of 8, InfiniBand",
        "host_bandwidth": "PCIe 5.0 x16 (A100: 4.0), one way, nominal",
    } | others  # fmt: skip


def taken(reported: int) -> float:
    return GPU_MEMORY_FRACTION * reported


V5P_TORUS, V4_TORUS = (16, 20, 28), (12, 16, 16)
CHIPS = (
    Chip("v4", 275e12, 32 * GIB, 30.75 * GIB, 1.2e12, ("TPU v4",), 45e9, 6.25e9, 8e9, 3, 4, V4_TORUS,
         sources=tpu_sources(network_bandwidth="~25 GB/s a host of 4 chips, " + BOOK_TPU)),
    Chip("v5e", 197e12, 16 * GB, 15.75 * GIB, 819e9, ("TPU v5 lite", "TPU v5e"), 45e9, 3.125e9, 8e9, 2, 16, (16, 16),
         sources=tpu_sources(network_bandwidth="2 x 100 Gb/s a host of 8 chips, " + BOOK_TPU)),
    Chip("v5p", 459e12, 95 * GIB, 95.73 * GIB, 2.765e12, ("TPU v5", "TPU v5p"), 90e9, 6.25e9, 16e9, 3, 4, V5P_TORUS,
         sources=tpu_sources(network_bandwidth="50 Gb/s a chip, " + BOOK_TPU)),
    Chip("v6e", 918e12, 32 * GB, 31.24 * GIB, 1.638e12, ("TPU v6 lite", "TPU v6e"), 90e9, 12.5e9, 16e9, 2, 16, (16, 16),
         sources=tpu_sources(network_bandwidth="100 Gb/s a chip, " + BOOK_TPU)),
    Chip("tpu7x", 2307e12, 192 * GIB, 94.74 * GIB, 7.38e12, ("TPU7x", "TPU v7x"), 100e9, 12.5e9, 32e9, 3, 4,
         (16, 24, 24), devices=2,
         sources=tpu_sources(link_bandwidth=f"1200 GB/s both ways a chip over 6 links, {VENDOR_TPU}",
                             network_bandwidth="100 Gb/s a chip, " + BOOK_TPU)),
    Chip("a100", 312e12, 80 * GB, taken(85_100_068_864), 2.0e12, ("NVIDIA A100",), 300e9, 25e9, 32e9, node=8,
         sources=gpu_sources(network_bandwidth="8 x 200 Gb/s a node of 8 (DGX A100), NVIDIA's datasheet")),
    Chip("h100", 989e12, 80 * GB, taken(84_942_979_072), 3.35e12, ("NVIDIA H100 80GB HBM3",), 450e9, 50e9, 64e9,
         node=8,
         sources=gpu_sources()),
    Chip("h200", 989e12, 141 * GB, taken(151_397_597_184), 4.8e12, ("NVIDIA H200",), 450e9, 50e9, 64e9, node=8,
         sources=gpu_sources()),
    Chip("b200", 2250e12, 192 * GB, taken(191_514_411_008), 8.0e12, ("NVIDIA B200",), 900e9, 50e9, 64e9, node=8,
         sources=gpu_sources()),
)  # fmt: skip
# Same silicon family, other clocks and memory: no figure here is theirs, so they get none.
NOT_THESE = ("NVIDIA H200 NVL",)


def find_chip(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; None when there is no published figure for exactly it."""
    if device_kind.startswith(NOT_THESE):
        return None
    matches = [(len(kind), chip) for chip in CHIPS for kind in chip.kinds if device_kind.startswith(kind)]
    return max(matches, key=lambda m: m[0])[1] if matches else None
