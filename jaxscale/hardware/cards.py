"""GPUs that only PCIe joins: small cards of clouds, workstations and desks. Knows nothing of jax."""

from typing import Any

from jaxscale.hardware.chip import GB, KIB, MIB, VENDOR_GPU, Fractions, GpuTarget, gpu, gpu_sources
from jaxscale.hardware.gpus import EMULATED

DESK_NETWORK = "assumed: 10 Gb/s a GPU; say yours with --network"
DESK_HOST = "assumed: 64 GB a GPU; say yours with --host-memory"
HALF_RATE = "NVIDIA's architecture paper, dense, accumulated in float32: half of float16's rate"
FOUR_TIMES = "{} TFLOP/s in float32 by NVIDIA's datasheet, times 4: the tensor cores' dense bf16"
DESK: dict[str, Any] = {"network_bandwidth": 1.25e9, "host": 8, "host_bytes": 512e9}  # assumed, see above


def card_sources(pcie: str, network: str = DESK_NETWORK, host: str = DESK_HOST, **others: str) -> dict[str, str]:
    """Of a card that only PCIe joins to others."""
    bus = f"PCIe {pcie} x16, one way, nominal"
    return (
        gpu_sources(host)
        | {
            "bf16_flops": VENDOR_GPU,
            "link_bandwidth": f"{bus}; no NVLink counted",
            "host_bandwidth": bus,
            "network_bandwidth": network,
        }
        | others
    )


def graphics(
    description: str, capability: tuple[int, int], multiprocessors: int, gigahertz: float, bandwidth: int, l2_mib: int
) -> GpuTarget:
    """A GPU of the graphics line (compute capability 8.6, 8.9, 12.0), which share the rest."""
    return GpuTarget(
        description, capability, multiprocessors, 128, gigahertz, bandwidth, l2_mib * MIB, 100 * KIB, 99 * KIB, 1536
    )


# No published run: their neighbours'. On PCIe a byte passes the host's memory: half of the datasheet's bandwidth
SMALL = Fractions(0.6, 0.4, network=0.5, elementwise=1.8)  # 70 W: below its clock in long matmuls
AMPERE = Fractions(0.80, 0.5, network=0.5, elementwise=1.8)
ADA = Fractions(0.64, 0.5, network=0.5, elementwise=1.8)
WORKSTATION = Fractions(0.64, 0.45, network=0.5, elementwise=1.8)
CARDS = (
    gpu("t4", kinds=("Tesla T4", "NVIDIA T4"), bf16_flops=65e12, dtype="fp16", hbm_bytes=16 * GB, reported=15_095 * MIB,
        hbm_bandwidth=320e9, link="PCIe", link_bandwidth=16e9, network_bandwidth=1.5625e9, host_bandwidth=16e9,
        host=8, host_bytes=384e9, fractions=SMALL, aliases=("tesla-t4",),
        machine_types={"g4dn.xlarge": 1, "g4dn.12xlarge": 4, "g4dn.metal": 8},
        target=GpuTarget("Tesla T4", (7, 5), 40, 64, 1.59, 320_064_000_000, 4 * MIB, 64 * KIB, 64 * KIB, 1024),
        sources=card_sources("3.0", "100 Gb/s for 8, AWS's g4dn.metal", "AWS's g4dn.metal", bf16_flops=EMULATED)),
    gpu("l4", kinds=("NVIDIA L4",), bf16_flops=121e12, hbm_bytes=24 * GB, reported=22_559 * MIB,
        hbm_bandwidth=300e9, link="PCIe", link_bandwidth=32e9, network_bandwidth=1.5625e9, host_bandwidth=32e9,
        host=8, host_bytes=384e9, fractions=SMALL,
        machine_types={"g6.xlarge": 1, "g6.12xlarge": 4, "g6.48xlarge": 8, "g2-standard-4": 1, "g2-standard-96": 8},
        target=graphics("NVIDIA L4", (8, 9), 58, 2.04, 300_096_000_000, 48),
        sources=card_sources("4.0", "100 Gb/s for 8, g2-standard-96", "g2-standard-96")),
    gpu("a10g", kinds=("NVIDIA A10G",), bf16_flops=70e12, hbm_bytes=24 * GB, reported=22_587 * MIB,
        hbm_bandwidth=600e9, link="PCIe", link_bandwidth=32e9, network_bandwidth=1.5625e9, host_bandwidth=32e9,
        host=8, host_bytes=768e9, fractions=AMPERE,
        machine_types={"g5.xlarge": 1, "g5.12xlarge": 4, "g5.48xlarge": 8},
        target=graphics("NVIDIA A10G", (8, 6), 80, 1.71, 600_096_000_000, 6),
        sources=card_sources("4.0", "100 Gb/s for 8, AWS's g5.48xlarge", "AWS's g5.48xlarge")),
    gpu("l40s", kinds=("NVIDIA L40S",), bf16_flops=362e12, hbm_bytes=48 * GB, reported=45_589 * MIB,
        hbm_bandwidth=864e9, link="PCIe", link_bandwidth=32e9, network_bandwidth=6.25e9, host_bandwidth=32e9,
        host=8, host_bytes=1536e9, fractions=ADA,
        machine_types={"g6e.xlarge": 1, "g6e.12xlarge": 4, "g6e.48xlarge": 8},
        target=graphics("NVIDIA L40S", (8, 9), 142, 2.52, 864_096_000_000, 96),
        sources=card_sources("4.0", "400 Gb/s for 8, AWS's g6e.48xlarge", "AWS's g6e.48xlarge")),
    gpu("a6000", kinds=("NVIDIA RTX A6000",), bf16_flops=154.8e12, hbm_bytes=48 * GB, reported=51_041_271_808,
        hbm_bandwidth=768e9, link="PCIe", link_bandwidth=32e9, host_bandwidth=32e9, **DESK,
        fractions=AMPERE, aliases=("rtx-a6000",),
        target=graphics("NVIDIA RTX A6000", (8, 6), 84, 1.8, 768_096_000_000, 6),
        sources=card_sources("4.0", bf16_flops="NVIDIA's datasheet: 309.7 TFLOP/s with sparsity, halved")),
    gpu("rtx-pro-6000",
        kinds=("NVIDIA RTX PRO 6000 Blackwell", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"),
        bf16_flops=503.8e12, hbm_bytes=96 * GB, reported=97_250 * MIB,
        hbm_bandwidth=1.792e12, link="PCIe", link_bandwidth=64e9, host_bandwidth=64e9, **DESK, fractions=WORKSTATION,
        target=graphics("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", (12, 0), 188, 2.617, 1_792_128_000_000,
                        128),
        sources=card_sources("5.0", bf16_flops=FOUR_TIMES.format("126"))),
    gpu("rtx-pro-6000-server", kinds=("NVIDIA RTX PRO 6000 Blackwell Server Edition",), bf16_flops=480e12,
        hbm_bytes=96 * GB, reported=97_250 * MIB,
        hbm_bandwidth=1.597e12, link="PCIe", link_bandwidth=64e9, network_bandwidth=6.25e9, host_bandwidth=64e9,
        host=8, host_bytes=1440e9, fractions=WORKSTATION,
        machine_types={"g4-standard-48": 1, "g4-standard-384": 8},
        target=graphics("NVIDIA RTX PRO 6000 Blackwell Server Edition", (12, 0), 188, 2.493, 1_597_000_000_000, 128),
        sources=card_sources("5.0", "400 Gb/s for 8, g4-standard-384", "g4-standard-384",
                             bf16_flops=FOUR_TIMES.format("120"))),
    gpu("rtx3090", kinds=("NVIDIA GeForce RTX 3090",), bf16_flops=71e12, hbm_bytes=24 * GB, reported=24_259 * MIB,
        hbm_bandwidth=936e9, link="PCIe", link_bandwidth=32e9, host_bandwidth=32e9, **DESK,
        fractions=AMPERE, aliases=("rtx-3090", "geforce-rtx-3090"),
        target=graphics("NVIDIA GeForce RTX 3090", (8, 6), 82, 1.695, 936_096_000_000, 6),
        sources=card_sources("4.0", bf16_flops=HALF_RATE)),
    gpu("rtx4090", kinds=("NVIDIA GeForce RTX 4090",), bf16_flops=165.2e12, hbm_bytes=24 * GB, reported=24_207 * MIB,
        hbm_bandwidth=1008e9, link="PCIe", link_bandwidth=32e9, host_bandwidth=32e9, **DESK,
        fractions=ADA, aliases=("rtx-4090", "geforce-rtx-4090"),
        target=graphics("NVIDIA GeForce RTX 4090", (8, 9), 128, 2.52, 1_008_096_000_000, 72),
        sources=card_sources("4.0", bf16_flops=HALF_RATE)),
    gpu("rtx5090", kinds=("NVIDIA GeForce RTX 5090",), bf16_flops=209.5e12, hbm_bytes=32 * GB, reported=32_112 * MIB,
        hbm_bandwidth=1.792e12, link="PCIe", link_bandwidth=64e9, host_bandwidth=64e9, **DESK,
        fractions=ADA, aliases=("rtx-5090", "geforce-rtx-5090"),
        target=graphics("NVIDIA GeForce RTX 5090", (12, 0), 170, 2.407, 1_792_128_000_000, 96),
        sources=card_sources("5.0", bf16_flops=HALF_RATE)),
)  # fmt: skip
