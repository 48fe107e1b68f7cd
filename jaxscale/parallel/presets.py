"""XLA's options for the training step: the same on the chip that trains and where it is compiled ahead of time.

Each has its reason, and what it changed in a compiled program: for TPUs the FSDP step of Llama-3.1-8B for 64 x v5p
(4x4x4), where the compiler's defaults leave every collective synchronous. None was timed on a device by us.
"""

from jaxscale import config as cfg
from jaxscale.hardware.chip import Preset as Family
from jaxscale.hardware.chips import find_chip

Options = dict[str, str | bool | int]
Preset = dict[str, tuple[str | bool | int, str]]

SPARSE_CORE: Preset = {
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": (
        True,
        "the SparseCore gathers weights while the TensorCore multiplies: all-gathers become start/done pairs",
    ),
    "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather": (True, "also over two torus dims"),
    "xla_tpu_enable_sparse_core_collective_offload_3d_all_gather": (True, "also over three: fsdp over a whole slice"),
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": (False, "the other way to overlap: one or the other"),
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": (
        True,
        "gradients are scattered beside the backward pass; without it all-reduced whole and sliced: twice "
        "the bytes, and nothing runs meanwhile",
    ),
    "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter": (True, "also over two and three torus dims"),
}
LAYOUT: Preset = {
    "xla_tpu_use_minor_sharding_for_major_trivial_input": (True, "layouts in which a reduce-scatter needs no copy"),
    "xla_tpu_relayout_group_size_threshold_for_reduce_scatter": (1, "as above, for groups of every size"),
    "xla_tpu_assign_all_reduce_scatter_layout": (True, "as above"),
}
NVIDIA: Preset = {
    "xla_gpu_enable_latency_hiding_scheduler": (
        True,
        "collectives start early and end late; on an A100 it is off by itself: 34 % of the all-gathers' time was "
        "hidden with it, 2 % without (Llama-3.1-8B, fsdp=128); newer GPUs have it on",
    ),
    "xla_gpu_reduce_scatter_combine_threshold_bytes": (
        1,
        "each gradient is scattered as soon as it is there; combined into one at a layer's end nothing hid them: "
        "0 % of their time against 61 % on H100, 43 % on A100",
    ),
}
PRESETS: dict[Family, Preset] = {  # which of them a chip has, its entry says
    "": {},
    "tpu": LAYOUT,
    "tpu sparse core": SPARSE_CORE | LAYOUT,
    "nvidia": NVIDIA,
}


def compiler_options(device_kind: str, runtime: cfg.Runtime) -> Options:
    """The preset of a device, with the config's own `runtime.compiler_options` over it."""
    chip = find_chip(device_kind)
    preset = PRESETS[chip.preset if chip else ""]
    return {key: value for key, (value, _) in preset.items()} | dict(runtime.compiler_options)
