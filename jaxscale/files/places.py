"""Where checkpoints are: a directory, or a prefix in an object store (`s3://`, `gs://`) that is reached by fsspec.

Knows nothing of what a checkpoint is, and of no jax.
"""

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from etils import epath
from fsspec.asyn import sync
from fsspec.exceptions import FSTimeoutError

from jaxscale.files.urls import EXTRAS, is_url, read_url, scrub

HALF_WRITTEN = ".orbax-checkpoint-tmp"  # in the name of what orbax has not finished, where names can change
ANSWER_SECONDS = 30.0  # an endpoint that says nothing for so long is not there


def open_place(directory: os.PathLike | str) -> epath.Path:
    """A directory or URL as a path; of an object store it is known then that it answers and has the bucket.

    Raises:
        ValueError: a URL that is none, a missing extra, no answer within 30 s, refused credentials, no such bucket.
    """
    if not is_url(directory):
        return epath.Path(Path(directory).expanduser().absolute())
    url = os.fspath(directory).rstrip("/")
    _, bucket = read_url(url)
    store = open_store(url)
    try:
        sync(store.loop, store._ls, url, detail=False, timeout=ANSWER_SECONDS)
    except FileNotFoundError:  # nothing under the prefix yet, or no bucket
        if not sync(store.loop, store._exists, bucket, timeout=ANSWER_SECONDS):
            raise ValueError(f"{url}: there is no bucket {bucket}; make it, or name another one") from None
    except PermissionError as error:
        raise ValueError(f"{url}: refused ({told(error)}); check the credentials in the environment") from None
    except FSTimeoutError:
        raise ValueError(f"{url}: no answer{at(store)} within {ANSWER_SECONDS:.0f} s; check the endpoint") from None
    except Exception as error:  # each client has its own kinds
        raise ValueError(f"{url} cannot be reached{at(store)}: {told(error)}; check endpoint and credentials") from None
    return epath.Path(url)


def open_store(url: os.PathLike | str) -> Any:
    """The fsspec file system of a URL.

    Listings are not cached, as tensorstore writes beside it; connections and retries are bounded.
    """
    scheme = urlsplit(os.fspath(url)).scheme
    options = fsspec.config.conf.setdefault("gcs" if scheme == "gs" else scheme, {})
    options["use_listings_cache"] = False
    if scheme == "s3":
        bounds = {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 2}}
        options["config_kwargs"] = bounds | options.get("config_kwargs", {})
    try:
        return fsspec.filesystem("gcs" if scheme == "gs" else scheme)
    except ImportError:
        raise ValueError(f"{scheme}:// needs an extra: pip install 'jaxscale[{EXTRAS[scheme]}]'") from None
    except Exception as error:  # a release that does not fit, no credentials: each client has its own kinds
        raise ValueError(
            f"{scheme}:// cannot be opened ({told(error)}); check the credentials, or install "
            f"'jaxscale[{EXTRAS[scheme]}]' again"
        ) from None


def endpoint(store: Any) -> str | None:
    """An S3-compatible server that the environment or a profile names, and None for Amazon's own."""
    if "s3" not in store.protocol:
        return None
    url = store.s3.meta.endpoint_url
    return None if re.search(r"\.amazonaws\.com(\.cn)?$", urlsplit(url).hostname or "") else url


def at(store: Any) -> str:
    return f" at {scrub(where)}" if (where := endpoint(store)) else ""


def told(error: BaseException) -> str:
    """An error in some words, without secrets."""
    return scrub(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}".rstrip(": "))


@dataclass(frozen=True)
class File:
    """A file's size and when it was last written (seconds since 1970)."""

    bytes: int
    modified: float


def files(place: epath.Path) -> dict[str, File]:
    """Every file below a place, by its path from there; none where there is no such place."""
    if not is_url(place):
        root = Path(place)
        stats = ((p.relative_to(root).as_posix(), p.lstat()) for p in root.rglob("*") if not p.is_dir())
        return {name: File(s.st_size, s.st_mtime) for name, s in stats}
    store = open_store(place)
    start = len(store._strip_protocol(os.fspath(place))) + 1
    return {
        path[start:]: File(about["size"], modified(about))
        for path, about in store.find(os.fspath(place), detail=True).items()
        if about["type"] == "file" and path[start:]
    }


def modified(about: dict) -> float:
    for key in ("LastModified", "mtime", "updated"):
        if when := about.get(key):
            return when.timestamp()
    return 0.0


def aside(place: epath.Path) -> epath.Path:
    """Where what is damaged is kept: beside the place, so that nobody takes it for a checkpoint."""
    return place.parent / f"{place.name}-damaged"


def move(source: epath.Path, target: epath.Path) -> None:
    """Move a directory; in an object store the store itself copies the objects, then they are removed here."""
    if is_url(source):
        names = list(files(source))  # fsspec's own mv takes the directories among them for objects
        open_store(source).copy([f"{source}/{n}" for n in names], [f"{target}/{n}" for n in names], on_error="raise")
        remove(source)
    else:
        Path(target).parent.mkdir(exist_ok=True)
        shutil.move(source, target)


def remove(place: epath.Path, first: str | None = None) -> None:
    """Remove a directory with all that is in it, the file `first` before the others."""
    if is_url(place):
        store = open_store(place)
        if first and store.exists(f"{place}/{first}"):
            store.rm_file(f"{place}/{first}")
        store.rm(os.fspath(place), recursive=True)
    else:
        shutil.rmtree(place)


def failures() -> tuple[type[Exception], ...]:
    """What orbax, tensorstore and the clients of object stores raise where a write fails."""
    clients = {"botocore.exceptions": "BotoCoreError", "aiohttp": "ClientError", "gcsfs.retry": "HttpError"}
    client_errors = [getattr(sys.modules[module], name) for module, name in clients.items() if module in sys.modules]
    return (OSError, ValueError, RuntimeError, *client_errors)


def trouble(place: epath.Path, size: int) -> str:
    """Why a state of so many bytes cannot be written into a local directory; "" where it seems that it can."""
    if is_url(place):
        return ""
    directory = Path(place)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".writable"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
        free = shutil.disk_usage(directory).free
    except OSError as error:
        return f"{directory}: {error.strerror}"
    # compressed they are smaller, seldom by so much
    return f"{directory} has {free:,} bytes free, and the state {size:,}" if free < size / 2 else ""


def clear_half_written(place: epath.Path, step: int) -> None:
    """Remove what a failed save has left in a directory; in a store the next save or start clears it away."""
    if not is_url(place):
        for half in Path(place).glob(f"{step}{HALF_WRITTEN}*"):
            shutil.rmtree(half, ignore_errors=True)
