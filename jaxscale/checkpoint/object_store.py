"""Orbax on S3-compatible object stores, for which orbax-checkpoint 0.12 has all parts but one.

Its small files go through fsspec, and its commit file (written last) stands for the rename that object stores lack.
The arrays go through tensorstore, which speaks S3; but the function that tells tensorstore where they are knows local
paths and `gs://` only ("Checkpoint path should be absolute. Got s3:/..."). `reach` has it take `s3://` as it takes
`gs://`: every process writes its own shards to the bucket, and nothing passes through a local disk.
"""

import os
import sys
from collections.abc import Callable
from functools import wraps
from importlib import metadata
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from jaxscale import private
from jaxscale.files.places import endpoint, open_store
from jaxscale.files.urls import is_url

# a request that fails is tried again after 1, 2, 4, ... 16 s: for a minute and a half, and not tensorstore's 15 minutes
RETRIES = {"max_retries": 10, "initial_delay": "1s", "max_delay": "16s"}


def save_options(place: epath.Path, barrier: Callable[..., None]) -> dict[str, Any]:
    """Orbax's options for saving to a place; `barrier` is where processes wait for each other.

    In an object store a whole checkpoint is told from a half-written one by its commit file, as nothing can be renamed.
    What stands for directories is made before the save returns: a store that is gone is then an error there, and not
    threads that wait ten minutes for directories and keep the process from ending.
    """
    waiting = ocp.AsyncOptions(barrier_sync_fn=barrier, create_directories_asynchronously=not is_url(place))
    if not is_url(place):
        return {"async_options": waiting}
    mode = ocp.options.AtomicityMode.COMMIT_FILE
    return {"async_options": waiting, "atomicity_options": ocp.options.AtomicityOptions(mode=mode)}


def reach(place: epath.Path) -> epath.Path:
    """Have orbax write arrays under this place; returns it. A directory and `gs://` need nothing."""
    if os.fspath(place).startswith("s3://") and not hasattr(build := private.find("kvstore_spec"), "__wrapped__"):
        private.replace("kvstore_spec", with_s3(build))
        sys.unraisablehook = without_late_answers(sys.unraisablehook)
    return place


def without_late_answers(hook: Any) -> Any:
    """The hook, silent where tensorstore answers a write of which nobody waits for the end any more.

    When one write of a save fails, orbax closes the event loop of all; Python would print a traceback for each other.
    """

    def heard(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    return heard


def with_s3(build: Any) -> Any:
    """Orbax's `build_kvstore_tspec(directory, ...)` with `s3://`: the spec of `gs://` with S3's driver in it."""

    @wraps(build)
    def build_with_s3(directory: str, *arguments: Any, **options: Any) -> Any:
        text = os.fspath(directory)
        if not text.startswith(("s3:/", "/s3:/")):
            return build(directory, *arguments, **options)
        spec = build("gs://" + text.partition("s3:")[2].lstrip("/"), *arguments, **options)
        changed, count = replace_driver(spec, s3_driver())
        if not count:
            version = metadata.version("orbax-checkpoint")
            raise ValueError(f"orbax-checkpoint {version} cannot be taught s3://; install orbax-checkpoint 0.12.8")
        return changed

    return build_with_s3


def s3_driver() -> dict[str, Any]:
    """What tensorstore must know of the server, from where fsspec's client has it; credentials stay where they are."""
    store = open_store("s3://")
    driver: dict[str, Any] = {"driver": "s3", "s3_request_retries": RETRIES}
    if "AWS_ACCESS_KEY_ID" in os.environ:  # else all of AWS's chain, which complains of files that are not there
        driver["aws_credentials"] = {"type": "environment"}
    if url := endpoint(store):
        driver |= {"endpoint": url, "aws_region": region(store.s3.meta.region_name)}
    return driver


def region(name: str | None) -> str:
    return name if name and name != "aws-global" else "us-east-1"


def replace_driver(spec: Any, driver: dict[str, Any]) -> tuple[Any, int]:
    """The spec with `driver` in place of each Google Cloud Storage one, and how many those were."""
    if isinstance(spec, list):
        items, counts = zip(*(replace_driver(s, driver) for s in spec), strict=True) if spec else ((), ())
        return list(items), sum(counts)
    if not isinstance(spec, dict):
        return spec, 0
    if spec.get("driver") in ("gcs", "gcs_grpc"):
        return {key: spec[key] for key in ("bucket", "path")} | driver, 1
    pairs = {key: replace_driver(value, driver) for key, value in spec.items()}
    return {key: value for key, (value, _) in pairs.items()}, sum(count for _, count in pairs.values())
