"""What XLA must know of an NVIDIA GPU to compile for one that is not here: its `GpuTargetConfigProto` as text.

Figures: NVIDIA's architecture papers and datasheets, CUDA's compute-capability tables, what XLA's own descriptions of
these GPUs say, and the device memory that the driver reports. V100 has none: CUDA 13's compiler does not know it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    description: str
    capability: tuple[int, int]
    multiprocessors: int
    lanes: int  # FP32 lanes of a multiprocessor
    gigahertz: float
    bandwidth: int
    l2_bytes: int
    memory_bytes: int
    shared_bytes: int  # of a multiprocessor
    block_shared_bytes: int  # of one block that opts in
    threads: int = 2048  # of a multiprocessor


def card(
    description: str, capability: tuple[int, int], multiprocessors: int, gigahertz: float, bandwidth: int,
    l2_mib: int, memory_mib: int,
) -> Gpu:  # fmt: skip
    """A GPU of the graphics line (compute capability 8.6, 8.9, 12.0), which share the rest."""
    return Gpu(description, capability, multiprocessors, 128, gigahertz, bandwidth, l2_mib * 2**20, memory_mib * 2**20,
               100 * 2**10, 99 * 2**10, 1536)  # fmt: skip


HOPPER = {"capability": (9, 0), "multiprocessors": 132, "lanes": 128, "gigahertz": 1.98, "l2_bytes": 50 * 2**20,
          "shared_bytes": 228 * 2**10, "block_shared_bytes": 227 * 2**10}  # fmt: skip
GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 2_039_040_000_000, 40 * 2**20, 85_100_068_864,
                164 * 2**10, 163 * 2**10),
    "a100-40gb": Gpu("NVIDIA A100-SXM4-40GB", (8, 0), 108, 64, 1.41, 1_555_200_000_000, 40 * 2**20, 42_298_834_944,
                     164 * 2**10, 163 * 2**10),
    "h100": Gpu("NVIDIA H100 80GB HBM3", bandwidth=3_352_320_000_000, memory_bytes=84_942_979_072, **HOPPER),  # type: ignore[arg-type]
    "h200": Gpu("NVIDIA H200", bandwidth=4_800_000_000_000, memory_bytes=151_397_597_184, **HOPPER),  # type: ignore[arg-type]
    "b200": Gpu("NVIDIA B200", (10, 0), 148, 128, 1.965, 7_672_320_000_000, 132_644_864, 191_514_411_008, 228 * 2**10,
                227 * 2**10),
    "b300": Gpu("NVIDIA B300", (10, 3), 158, 128, 1.965, 7_936_000_000_000, 135_528_448, 297_021_865_984, 228 * 2**10,
                227 * 2**10),
    "gb200": Gpu("NVIDIA GB200", (10, 0), 152, 128, 2.062, 7_928_064_000_000, 135_528_448, 197_897_748_480, 228 * 2**10,
                 227 * 2**10),
    "gb300": Gpu("NVIDIA GB300", (10, 3), 152, 128, 2.07, 7_928_064_000_000, 135_528_448, 297_021_079_552, 228 * 2**10,
                 227 * 2**10),
    "t4": Gpu("Tesla T4", (7, 5), 40, 64, 1.59, 320_064_000_000, 4 * 2**20, 15_095 * 2**20, 64 * 2**10, 64 * 2**10,
              1024),
    "l4": card("NVIDIA L4", (8, 9), 58, 2.04, 300_096_000_000, 48, 22_559),
    "a10g": card("NVIDIA A10G", (8, 6), 80, 1.71, 600_096_000_000, 6, 22_587),
    "l40s": card("NVIDIA L40S", (8, 9), 142, 2.52, 864_096_000_000, 96, 45_589),
    "a6000": card("NVIDIA RTX A6000", (8, 6), 84, 1.8, 768_096_000_000, 6, 48_677),
    "rtx3090": card("NVIDIA GeForce RTX 3090", (8, 6), 82, 1.695, 936_096_000_000, 6, 24_259),
    "rtx4090": card("NVIDIA GeForce RTX 4090", (8, 9), 128, 2.52, 1_008_096_000_000, 72, 24_207),
    "rtx5090": card("NVIDIA GeForce RTX 5090", (12, 0), 170, 2.407, 1_792_128_000_000, 96, 32_112),
    "rtx-pro-6000": card("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", (12, 0), 188, 2.617, 1_792_128_000_000,
                         128, 97_250),
    "rtx-pro-6000-server": card("NVIDIA RTX PRO 6000 Blackwell Server Edition", (12, 0), 188, 2.493, 1_597_000_000_000,
                                128, 97_250),
}  # fmt: skip
CUDNN, CUDA = (9, 10, 0), (13, 0, 0)


def target_config(chip: str) -> str:
    """XLA's description of a GPU. Every field is needed: without some the compiler crashes or picks other kernels.

    Raises ValueError for a chip whose compiler is not here.
    """
    gpu = GPUS.get(chip)
    if gpu is None:
        raise ValueError(f"no compiler here knows {chip} (there are {', '.join(GPUS)}); use `plan`, or train on one")
    major, minor = gpu.capability
    features = " feature_extension: ACCELERATED_FEATURES" if major in (9, 10) else ""
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_bytes}
  shared_memory_per_block_optin: {gpu.block_shared_bytes}
  threads_per_core_limit: {gpu.threads}
  core_count: {gpu.multiprocessors}
  fpus_per_core: {gpu.lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: {gpu.bandwidth}
  l2_cache_size: {gpu.l2_bytes}
  clock_rate_ghz: {gpu.gigahertz}
  device_memory_size: {gpu.memory_bytes}
  cuda_compute_capability {{ major: {major} minor: {minor}{features} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} patch: {CUDNN[2]} }}
runtime_version {{ major: {CUDA[0]} minor: {CUDA[1]} patch: {CUDA[2]} }}
device_description_str: "{gpu.description}"
"""
