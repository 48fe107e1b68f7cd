"""What XLA must know of an NVIDIA GPU to compile for one that is not here: its `GpuTargetConfigProto` as text.

The figures are in the chip's entry (`hardware.chip.GpuTarget`).
"""

from jaxscale.hardware.chips import CHIPS, Chip

CUDNN, CUDA = (9, 10, 0), (13, 0, 0)


def target_config(chip: Chip) -> str:
    """XLA's description of a GPU. Every field is needed: without some the compiler crashes or picks other kernels.

    Raises ValueError for a chip whose compiler is not here.
    """
    gpu = chip.target
    if gpu is None:
        known = ", ".join(c.name for c in CHIPS if c.target)
        raise ValueError(f"no compiler here knows {chip.name} (there are {known}); use `plan`, or train on one")
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
  device_memory_size: {chip.reported_bytes}
  cuda_compute_capability {{ major: {major} minor: {minor}{features} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} patch: {CUDNN[2]} }}
runtime_version {{ major: {CUDA[0]} minor: {CUDA[1]} patch: {CUDA[2]} }}
device_description_str: "{gpu.description}"
"""
