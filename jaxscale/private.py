"""Names that other libraries do not promise to keep: all that jaxscale uses of them stand here, each with its reason.

Each is looked up where it is used. One that is gone is a ValueError that says what is lost, and what to do. Each
library has an upper bound in pyproject.toml, so that a release without the name is not installed by itself.
"""

import importlib
from dataclasses import dataclass
from importlib import metadata
from typing import Any


@dataclass(frozen=True)
class Name:
    """A private name.

    Attributes:
        package: as it is installed.
        module, path: where the name is: `path` is looked up in `module`, dot by dot.
        lost: what jaxscale cannot do without it, and what to do then; one sentence.
    """

    package: str
    module: str
    path: str
    lost: str


BLOCKS = (
    "cannot compute attention over a part of the keys; set step.attention=xla, or install a jax that jaxscale was "
    "tested with (>=0.10.2,<0.13)"
)
NAMES = {
    # asked before `initialize`, so that the coordinator need not listen on every address of its machine
    "detect_cluster": Name(
        "jax", "jax._src.clusters", "ClusterEnv.auto_detect_unset_distributed_params",
        "a scheduler's processes cannot be found; set JAXSCALE_COORDINATOR, JAXSCALE_PROCESSES and "
        "JAXSCALE_PROCESS_ID for each process",
    ),
    # the coordination service's key-value store, which orbax uses too
    "coordination": Name(
        "jax", "jax._src.distributed", "global_state",
        "several processes cannot find each other; install a jax that jaxscale was tested with (>=0.10.2,<0.13)",
    ),
    # JAX checks the version of a cuDNN that is here; a compile for another machine needs none
    "cudnn_version": Name(
        "jax", "jax._src.cudnn", "fused_attention_stablehlo.check_cudnn_version",
        "attention cannot be compiled for a GPU without cuDNN; pip install nvidia-cudnn-cu13",
    ),
    # attention over a part of the keys needs its float32 log of sums, and a backward that takes the whole row's
    "cudnn_attention": Name(
        "jax", "jax._src.cudnn", "fused_attention_stablehlo.dot_product_attention", f"cuDNN {BLOCKS}",
    ),
    "cudnn_backward": Name(
        "jax", "jax._src.cudnn", "fused_attention_stablehlo._dot_product_attention_bwd_p_wrapper", f"cuDNN {BLOCKS}",
    ),
    "cudnn_mask_type": Name(
        "jax", "jax._src.cudnn", "fused_attention_stablehlo.MaskType", f"cuDNN {BLOCKS}",
    ),
    "cudnn_layout": Name(
        "jax", "jax._src.cudnn", "fused_attention_stablehlo.AttentionLayout", f"cuDNN {BLOCKS}",
    ),
    "splash_backward": Name(
        "jax", "jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel", "_splash_attention_bwd",
        f"splash {BLOCKS}",
    ),
    # megablox gives its results no types, which a shard_map that checks types refuses
    "megablox_jax": Name(
        "jax", "jax.experimental.pallas.ops.tpu.megablox.gmm", "jax",
        "there are no grouped matmuls on TPUs; install a jax that jaxscale was tested with (>=0.10.2,<0.13)",
    ),
    # where orbax tells tensorstore of a place: s3:// is added to what it knows; and reading one array at a time
    "kvstore_spec": Name(
        "orbax-checkpoint", "orbax.checkpoint._src.serialization.tensorstore_utils", "build_kvstore_tspec",
        "checkpoints in s3:// and `checkpoint verify` do not work; install orbax-checkpoint>=0.12.1,<0.13",
    ),
    "tensorstore_context": Name(
        "orbax-checkpoint", "orbax.checkpoint._src.serialization.tensorstore_utils", "get_ts_context",
        "`checkpoint verify` does not work; install orbax-checkpoint>=0.12.1,<0.13",
    ),
}  # fmt: skip


def find(key: str) -> Any:
    """What a private name stands for; ValueError where the installed library has it no more."""
    owner, last = owner_of(key)
    return getattr(owner, last)


def replace(key: str, value: Any) -> None:
    """Put something else in the place of a private name."""
    owner, last = owner_of(key)
    setattr(owner, last, value)


def owner_of(key: str) -> tuple[Any, str]:
    """The object that has the name, and the name's last part."""
    name = NAMES[key]
    *path, last = name.path.split(".")
    try:
        owner = importlib.import_module(name.module)
        for part in path:
            owner = part_of(owner, part)
        getattr(owner, last)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{name.package} {metadata.version(name.package)} has no {name.module}.{name.path}: {name.lost}"
        ) from error
    return owner, last


def part_of(owner: Any, part: str) -> Any:
    """An attribute, or a module of a package that has not been imported yet."""
    try:
        return getattr(owner, part)
    except AttributeError:
        return importlib.import_module(f"{owner.__name__}.{part}")


def writer_of_events(board: Any) -> Any:
    """tensorboardX's object that writes the events' file: its thread must survive a full disk."""
    try:
        return board.file_writer.event_writer._ev_writer
    except AttributeError as error:
        raise ValueError(
            f"tensorboardX {metadata.version('tensorboardX')} has no writer of events where 2.6 has it; install "
            "'tensorboardX>=2.6.2,<2.7', or set metrics.tensorboard=false"
        ) from error
