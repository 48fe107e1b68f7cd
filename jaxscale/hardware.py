"""The chip table: peaks, memory and links, every figure with its source. Knows nothing of jax.

Peaks are dense (not "with sparsity"). Bandwidths are bytes/s in one direction. GB is 1e9 bytes, GiB 2**30.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

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
GIB, MIB, GB = 2.0**30, 2.0**20, 1e9
DESK_NETWORK = "assumed: 10 Gb/s a GPU; say yours with --network"
DESK_HOST = "assumed: 64 GB a GPU; say yours with --host-memory"
HALF_RATE = "NVIDIA's architecture paper, dense, accumulated in float32: half of float16's rate"
FOUR_TIMES = "{} TFLOP/s in float32 by NVIDIA's datasheet, times 4: the tensor cores' dense bf16"
EMULATED = "NVIDIA's datasheet, float16; it has no bf16, which XLA computes in float32 at an eighth of this"


@dataclass(frozen=True)
class Chip:
    """One accelerator chip.

    Attributes:
        bf16_flops: dense bfloat16 FLOP/s of the chip, accumulated in float32; where `dtype` is fp16, float16's.
        hbm_bytes: memory of the chip by its datasheet; `usable_hbm_bytes` of one device, for a program.
        hbm_bandwidth: bytes/s.
        kinds: names in `jax.Device.device_kind`, whole or followed by words of the same silicon; longest match wins.
        devices: how many JAX devices one chip is.
        torus_dims: 2 or 3 for TPUs, 0 for GPUs.
        link: GPU: what joins those of a node: NVLink, xGMI (AMD) or PCIe.
        link_bandwidth: TPU: of one torus link, one way; GPU: of `link`, one way, all links of a GPU together.
        wrap_multiple: torus dims of this many chips (or a multiple) close into rings (see `Topology.wraps`).
        multislice: can slices be joined by the slow network.
        network_bandwidth: of a chip to the slow network (TPU: between slices; GPU: between nodes).
        node: GPUs that `link` joins; 0 for TPUs.
        host_bandwidth: of a device to its host's memory, one way.
        host, host_bytes: chips of one host, and its memory. Clouds name GiB "GB"; taken as 1e9 bytes, the 7 % of
            difference are left to the system, the data pipeline and checkpoints.
        dtype: of the peak: bf16, or fp16 where the chip has no bf16 (XLA then computes bf16 in float32).
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
    host: int
    host_bytes: float
    torus_dims: int = 0
    wrap_multiple: int = 4
    largest: tuple[int, ...] = ()
    multislice: bool = True
    devices: int = 1
    node: int = 0
    link: str = "NVLink"
    dtype: str = "bf16"
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

    def share(self, dtype: str) -> float:
        """Of the peak, what matmuls in a dtype can reach at jax's default precision.

        A TPU rounds float32 operands to bf16. NVIDIA GPUs since Ampere, and AMD's, take TF32 for them: half. Older
        ones have neither bf16 nor TF32, and compute both in float32: 8.1 of 65 TFLOP/s (T4), 15.7 of 125 (V100).
        """
        if self.dtype == "fp16":
            return 1 / 8
        return 1 / 2 if dtype == "float32" and self.node else 1.0


def tpu_sources(host: str, **others: str) -> dict[str, str]:
    return {
        "bf16_flops": f"{VENDOR_TPU}; {BOOK_TPU}", "hbm_bytes": VENDOR_TPU, "usable_hbm_bytes": COMPILER,
        "hbm_bandwidth": f"{VENDOR_TPU}; {BOOK_TPU}", "link_bandwidth": f"{BOOK_TPU} (older edition: 10 % more)",
        "network_bandwidth": BOOK_TPU, "host_bandwidth": f"{BOOK_TPU}: PCIe, a chip's share",
        "host_bytes": f"the cloud's machine type {host}",
    } | others  # fmt: skip


def old_tpu_sources(host: str, gigabits: int) -> dict[str, str]:
    """Of v2 and v3, which the book leaves out."""
    assumed = "assumed: half of v4's; none is published"
    return tpu_sources(
        host, bf16_flops=VENDOR_TPU, hbm_bandwidth=VENDOR_TPU, network_bandwidth=assumed, host_bandwidth=assumed,
        link_bandwidth=f"{gigabits} Gb/s a link and way, Jouppi et al., CACM 63(7), 2020",
        usable_hbm_bytes=f"{COMPILER}, of one core",
    )  # fmt: skip


def gpu_sources(host: str, **others: str) -> dict[str, str]:
    return {
        "bf16_flops": f"{VENDOR_GPU}; {BOOK_GPU}", "hbm_bytes": VENDOR_GPU, "usable_hbm_bytes": DRIVER,
        "hbm_bandwidth": VENDOR_GPU, "link_bandwidth": f"{BOOK_GPU}: NVLink, one way",
        "network_bandwidth": f"{BOOK_GPU}: 400 GB/s a node of 8, InfiniBand",
        "host_bandwidth": "PCIe 5.0 x16 (A100: 4.0), one way, nominal", "host_bytes": host,
    } | others  # fmt: skip


def card_sources(pcie: str, network: str = DESK_NETWORK, host: str = DESK_HOST, **others: str) -> dict[str, str]:
    """Of a card that only PCIe joins to others."""
    bus = f"PCIe {pcie} x16, one way, nominal"
    return gpu_sources(host) | {
        "bf16_flops": VENDOR_GPU, "link_bandwidth": f"{bus}; no NVLink counted", "host_bandwidth": bus,
        "network_bandwidth": network,
    } | others  # fmt: skip


def rack_sources(network: str) -> dict[str, str]:
    """Of an NVL72: 72 GPUs on one NVLink, 4 a host."""
    return gpu_sources(
        "2 Grace CPUs of 480 GB a tray of 4 GPUs, NVIDIA's datasheet", network_bandwidth=network,
        bf16_flops="NVIDIA's datasheet of the NVL72: 180 PFLOP/s dense for 72",
        link_bandwidth="NVLink 5: 1.8 TB/s both ways, NVIDIA's datasheet",
        host_bandwidth="NVLink-C2C: 900 GB/s both ways for a Grace and its 2 GPUs, NVIDIA's datasheet",
    )  # fmt: skip


def taken(reported: float) -> float:
    return GPU_MEMORY_FRACTION * reported


def dgx(name: str) -> str:
    return f"NVIDIA's datasheet of the {name}"


V100 = gpu_sources(
    dgx("DGX-1"), bf16_flops=EMULATED, link_bandwidth="NVLink 2: 300 GB/s both ways, NVIDIA's datasheet",
    network_bandwidth="4 x 100 Gb/s a node of 8 (DGX-1), NVIDIA's datasheet",
    host_bandwidth="PCIe 3.0 x16, one way, nominal",
)  # fmt: skip
V5P_TORUS, V4_TORUS = (16, 20, 28), (12, 16, 16)
CHIPS = (
    Chip("v2", 45e12, 16 * GIB, 7.48 * GIB, 700e9, ("TPU v2",), 62e9, 3.125e9, 4e9, 4, 334e9, 2, 16, (16, 16),
         multislice=False, devices=2, sources=old_tpu_sources("of v2-8, Colab's", 496)),
    Chip("v3", 123e12, 32 * GIB, 15.48 * GIB, 900e9, ("TPU v3",), 82e9, 3.125e9, 4e9, 4, 340e9, 2, 32, (32, 32),
         multislice=False, devices=2, sources=old_tpu_sources("ct3-hightpu-4t", 656)),
    Chip("v4", 275e12, 32 * GIB, 30.75 * GIB, 1.2e12, ("TPU v4",), 45e9, 6.25e9, 8e9, 4, 407e9, 3, 4, V4_TORUS,
         sources=tpu_sources("ct4p-hightpu-4t", network_bandwidth="~25 GB/s a host of 4 chips, " + BOOK_TPU)),
    Chip("v5e", 197e12, 16 * GB, 15.75 * GIB, 819e9, ("TPU v5 lite", "TPU v5e"), 45e9, 3.125e9, 8e9, 4, 192e9, 2, 16,
         (16, 16), sources=tpu_sources("ct5lp-hightpu-4t",
                                       network_bandwidth="2 x 100 Gb/s a host of 8 chips, " + BOOK_TPU)),
    Chip("v5p", 459e12, 95 * GIB, 95.73 * GIB, 2.765e12, ("TPU v5", "TPU v5p"), 90e9, 6.25e9, 16e9, 4, 448e9, 3, 4,
         V5P_TORUS, sources=tpu_sources("ct5p-hightpu-4t", network_bandwidth="50 Gb/s a chip, " + BOOK_TPU)),
    Chip("v6e", 918e12, 32 * GB, 31.24 * GIB, 1.638e12, ("TPU v6 lite", "TPU v6e"), 90e9, 12.5e9, 16e9, 4, 720e9, 2, 16,
         (16, 16), sources=tpu_sources("ct6e-standard-4t", network_bandwidth="100 Gb/s a chip, " + BOOK_TPU)),
    Chip("tpu7x", 2307e12, 192 * GIB, 94.74 * GIB, 7.38e12, ("TPU7x", "TPU v7x"), 100e9, 12.5e9, 32e9, 4, 960e9, 3, 4,
         (16, 24, 24), devices=2,
         sources=tpu_sources("tpu7x-standard-4t", network_bandwidth="100 Gb/s a chip, " + BOOK_TPU,
                             link_bandwidth=f"1200 GB/s both ways a chip over 6 links, {VENDOR_TPU}")),
    Chip("a100", 312e12, 80 * GB, taken(85_100_068_864), 2.0e12, ("NVIDIA A100", "A100-SXM4-80GB"), 300e9, 25e9, 32e9,
         8, 2000e9, node=8,
         sources=gpu_sources(dgx("DGX A100 640GB"),
                             network_bandwidth="8 x 200 Gb/s a node of 8 (DGX A100), NVIDIA's datasheet")),
    Chip("a100-40gb", 312e12, 40 * GB, taken(42_298_834_944), 1.555e12,
         ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB", "A100-SXM4-40GB", "A100-PCIE-40GB"), 300e9, 25e9, 32e9,
         8, 1000e9, node=8,
         sources=gpu_sources(dgx("DGX A100 320GB"),
                             network_bandwidth="8 x 200 Gb/s a node of 8 (DGX A100), NVIDIA's datasheet")),
    Chip("h100", 989e12, 80 * GB, taken(84_942_979_072), 3.35e12, ("NVIDIA H100 80GB HBM3",), 450e9, 50e9, 64e9,
         8, 2000e9, node=8, sources=gpu_sources(dgx("DGX H100"))),
    Chip("h200", 989e12, 141 * GB, taken(151_397_597_184), 4.8e12, ("NVIDIA H200",), 450e9, 50e9, 64e9, 8, 2000e9,
         node=8, sources=gpu_sources(dgx("DGX H200"))),
    Chip("b200", 2250e12, 192 * GB, taken(191_514_411_008), 8.0e12, ("NVIDIA B200",), 900e9, 50e9, 64e9, 8, 2000e9,
         node=8, sources=gpu_sources(dgx("DGX B200"))),
    Chip("b300", 2250e12, 288 * GB, taken(297_021_865_984), 8.0e12, ("NVIDIA B300",), 900e9, 100e9, 64e9, 8, 2000e9,
         node=8, sources=gpu_sources(
             dgx("DGX B300"), bf16_flops="NVIDIA's datasheet of the HGX B300: 36 PFLOP/s for 8 with sparsity, halved",
             link_bandwidth="NVLink 5: 1.8 TB/s both ways, NVIDIA's datasheet",
             network_bandwidth="8 x 800 Gb/s a node of 8 (DGX B300), NVIDIA's datasheet")),
    Chip("gb200", 2500e12, 186 * GB, taken(197_897_748_480), 8.0e12, ("NVIDIA GB200",), 900e9, 50e9, 225e9, 4, 960e9,
         node=72, sources=rack_sources("400 Gb/s a GPU, NVIDIA's datasheet")),
    Chip("gb300", 2500e12, 288 * GB, taken(297_021_079_552), 8.0e12, ("NVIDIA GB300",), 900e9, 100e9, 225e9, 4, 960e9,
         node=72, sources=rack_sources("800 Gb/s a GPU, NVIDIA's datasheet")),
    Chip("mi300x", 1307.4e12, 192 * GB, taken(196_592 * MIB), 5.3e12, ("AMD Instinct MI300X",), 448e9, 50e9, 64e9,
         8, 1850e9, node=8, link="xGMI",
         sources=gpu_sources(
             "Azure's ND MI300X v5", bf16_flops=VENDOR_AMD, hbm_bytes=VENDOR_AMD, hbm_bandwidth=VENDOR_AMD,
             link_bandwidth="7 links of 64 GB/s one way, AMD's datasheet",
             usable_hbm_bytes=DRIVER.replace("CUDA", "HIP"),
             network_bandwidth="400 Gb/s a GPU, Azure's ND MI300X v5")),
    Chip("v100", 125e12, 16 * GB, taken(16_935_682_048), 900e9, ("Tesla V100-SXM2-16GB",), 150e9, 6.25e9, 16e9,
         8, 512e9, node=8, dtype="fp16", sources=V100),
    Chip("v100-32gb", 125e12, 32 * GB, taken(32_510 * MIB), 900e9, ("Tesla V100-SXM2-32GB", "Tesla V100-SXM3-32GB"),
         150e9, 6.25e9, 16e9, 8, 512e9, node=8, dtype="fp16", sources=V100),
    Chip("t4", 65e12, 16 * GB, taken(15_095 * MIB), 320e9, ("Tesla T4", "NVIDIA T4"), 16e9, 1.5625e9, 16e9, 8, 384e9,
         node=8, link="PCIe", dtype="fp16",
         sources=card_sources("3.0", "100 Gb/s for 8, AWS's g4dn.metal", "AWS's g4dn.metal", bf16_flops=EMULATED)),
    Chip("l4", 121e12, 24 * GB, taken(22.03 * GIB), 300e9, ("NVIDIA L4",), 32e9, 1.5625e9, 32e9, 8, 384e9, node=8,
         link="PCIe", sources=card_sources("4.0", "100 Gb/s for 8, g2-standard-96", "g2-standard-96")),
    Chip("a10g", 70e12, 24 * GB, taken(22_587 * MIB), 600e9, ("NVIDIA A10G",), 32e9, 1.5625e9, 32e9, 8, 768e9, node=8,
         link="PCIe", sources=card_sources("4.0", "100 Gb/s for 8, AWS's g5.48xlarge", "AWS's g5.48xlarge")),
    Chip("l40s", 362e12, 48 * GB, taken(45_589 * MIB), 864e9, ("NVIDIA L40S",), 32e9, 6.25e9, 32e9, 8, 1536e9, node=8,
         link="PCIe", sources=card_sources("4.0", "400 Gb/s for 8, AWS's g6e.48xlarge", "AWS's g6e.48xlarge")),
    Chip("a6000", 154.8e12, 48 * GB, taken(51_041_271_808), 768e9, ("NVIDIA RTX A6000",), 32e9, 1.25e9, 32e9, 8, 512e9,
         node=8, link="PCIe",
         sources=card_sources("4.0", bf16_flops="NVIDIA's datasheet: 309.7 TFLOP/s with sparsity, halved")),
    Chip("rtx-pro-6000", 503.8e12, 96 * GB, taken(97_250 * MIB), 1.792e12,
         ("NVIDIA RTX PRO 6000 Blackwell", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"), 64e9, 1.25e9, 64e9,
         8, 512e9, node=8, link="PCIe", sources=card_sources("5.0", bf16_flops=FOUR_TIMES.format("126"))),
    Chip("rtx-pro-6000-server", 480e12, 96 * GB, taken(97_250 * MIB), 1.597e12,
         ("NVIDIA RTX PRO 6000 Blackwell Server Edition",), 64e9, 6.25e9, 64e9, 8, 1440e9, node=8, link="PCIe",
         sources=card_sources("5.0", "400 Gb/s for 8, g4-standard-384", "g4-standard-384",
                              bf16_flops=FOUR_TIMES.format("120"))),
    Chip("rtx3090", 71e12, 24 * GB, taken(24_259 * MIB), 936e9, ("NVIDIA GeForce RTX 3090",), 32e9, 1.25e9, 32e9,
         8, 512e9, node=8, link="PCIe", sources=card_sources("4.0", bf16_flops=HALF_RATE)),
    Chip("rtx4090", 165.2e12, 24 * GB, taken(23.64 * GIB), 1008e9, ("NVIDIA GeForce RTX 4090",), 32e9, 1.25e9, 32e9,
         8, 512e9, node=8, link="PCIe", sources=card_sources("4.0", bf16_flops=HALF_RATE)),
    Chip("rtx5090", 209.5e12, 32 * GB, taken(31.36 * GIB), 1.792e12, ("NVIDIA GeForce RTX 5090",), 64e9, 1.25e9, 64e9,
         8, 512e9, node=8, link="PCIe", sources=card_sources("5.0", bf16_flops=HALF_RATE)),
)  # fmt: skip
# After a chip's name these words mean other clocks, memory or a part of one: no figure here is theirs, so they get none
OTHER_SILICON = {"NVL", "MIG", "Ti", "D", "SUPER", "Laptop", "Max", "lite"}


def find_chip(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; None when there is no published figure for exactly it."""

    def matches(kind: str) -> bool:
        words = re.split("[ -]", device_kind.removeprefix(kind))
        return device_kind.startswith(kind) and words[0] == "" and not OTHER_SILICON & set(words)

    found = [(len(kind), chip) for chip in CHIPS for kind in chip.kinds if matches(kind)]
    return max(found, key=lambda m: m[0])[1] if found else None
