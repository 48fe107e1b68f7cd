"""What XLA must know of an NVIDIA GPU to compile for one that is not here: its `GpuTargetConfigProto` as text.

Figures: NVIDIA's architecture papers and datasheets (A100, H100, Blackwell), CUDA's compute-capability tables, and the
device memory that the driver reports.
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


HOPPER = {"capability": (9, 0), "multiprocessors": 132, "lanes": 128, "gigahertz": 1.98, "l2_bytes": 50 * 2**20,
          "shared_bytes": 228 * 2**10, "block_shared_bytes": 227 * 2**10}  # fmt: skip
GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 2_039_040_000_000, 40 * 2**20, 85_100_068_864,
                164 * 2**10, 163 * 2**10),
    "h100": Gpu("NVIDIA H100 80GB HBM3", bandwidth=3_352_320_000_000, memory_bytes=84_942_979_072, **HOPPER),  # type: ignore[arg-type]
    "h200": Gpu("NVIDIA H200", bandwidth=4_800_000_000_000, memory_bytes=151_397_597_184, **HOPPER),  # type: ignore[arg-type]
    "b200": Gpu("NVIDIA B200", (10, 0), 148, 128, 1.965, 7_672_320_000_000, 132_644_864, 191_514_411_008, 228 * 2**10,
                227 * 2**10),
}  # fmt: skip
CUDNN, CUDA = (9, 10, 0), (13, 0, 0)


def target_config(chip: str) -> str:
    """XLA's description of a GPU. Every field is needed: without some the compiler crashes or picks other kernels."""
    gpu = GPUS[chip]
    major, minor = gpu.capability
    features = " feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_bytes}
  shared_memory_per_block_optin: {gpu.block_shared_bytes}
  threads_per_core_limit: 2048
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
