"""Files of a corpus in a store: `s3://`, `gs://`, `https://`, reached by fsspec. Knows nothing of what is in them."""

import glob
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Literal, NamedTuple, TypeVar, cast
from urllib.parse import unquote, urlsplit

from jaxscale.files.places import at, open_store, told
from jaxscale.files.urls import EXTRAS, scrub

WEB = ("http", "https")
Answer = TypeVar("Answer")


class Listed(NamedTuple):
    """A file as it was found: ``given`` says what the user named, the file itself or what it is in."""

    name: str
    path: Any  # Path or URL
    size_bytes: int
    given: Literal["file", "folder", "pattern"]


class Unread(NamedTuple):
    """A file or directory that stands in a folder or matches a pattern and is not read, and why."""

    name: str
    reason: str


def find(url: str) -> tuple[list[Listed], list[Unread]]:
    """The files that a URL, prefix or pattern names. A web server lists nothing: there a URL is one file."""
    store, parts = _store(url), urlsplit(url)
    if parts.scheme in WEB:
        about = _asked(url, lambda: store.info(url), store)
        name = unquote(parts.path).rsplit("/", 1)[-1] or parts.netloc
        return [Listed(name, url, int(about.get("size") or 0), "file")], []
    given: Literal["file", "folder", "pattern"] = "pattern" if glob.has_magic(url) else "folder"
    list_all = store.glob if given == "pattern" else store.find
    entries = _asked(url, lambda: list_all(url, detail=True), store)
    root = url[: next(i for i, c in enumerate(url + "*") if c in "*?[")].rpartition("/")[0] + "/"
    if given == "folder":
        root = url.rstrip("/") + "/"
        if list(entries) == [store._strip_protocol(url)]:
            root, given = url.rpartition("/")[0] + "/", "file"
    start = len(store._strip_protocol(root)) + 1
    files, unread = [], []
    for path, about in sorted(entries.items()):
        name = path[start:]
        if about["type"] == "directory":
            unread.append(Unread(name, "a directory; name it itself"))
        elif given == "folder" and any(part.startswith(".") for part in name.split("/")):
            unread.append(Unread(name, "hidden"))
        elif name and not name.endswith("/"):  # an object of that name only marks a directory
            files.append(Listed(name, store.unstrip_protocol(path), int(about["size"] or 0), given))
    return files, unread


@contextmanager
def opened(url: str) -> Iterator[IO[bytes]]:
    """A file open for reading bytes; ValueError where it cannot be opened or its reading ends early."""
    store = _store(url)
    with _asked(url, lambda: store.open(url, "rb"), store) as file:
        yield cast(IO[bytes], _Stored(url, file, store))


class _Stored:
    """A store's file whose every failure is a ValueError in one line."""

    def __init__(self, url: str, file: Any, store: Any):
        self._url, self._file, self._store = url, file, store

    def read(self, size: int = -1) -> bytes:
        return _asked(self._url, lambda: self._file.read(size), self._store)

    def __getattr__(self, name: str) -> Any:  # seek, tell, closed: what pyarrow asks for
        return getattr(self._file, name)


def _store(url: str) -> Any:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError(f"{scrub(url)}: a secret stands in the URL; give credentials by the environment")
    if parts.scheme in WEB:
        try:
            import aiohttp  # noqa: F401 (what fsspec reads the web with)
        except ImportError:
            raise ValueError(f"{parts.scheme}:// needs an extra: pip install 'jaxscale[web]'") from None
    elif parts.scheme not in EXTRAS:
        raise ValueError(f"{scrub(url)}: {parts.scheme}:// is not known; give s3://, gs://, https:// or a path")
    return open_store(url)


def _asked(url: str, question: Callable[[], Answer], store: Any) -> Answer:
    try:
        return question()
    except FileNotFoundError:
        raise ValueError(f"{scrub(url)}: there is no such file; check the name") from None
    except PermissionError as error:
        raise ValueError(f"{scrub(url)}: refused ({told(error)}); check the credentials in the environment") from None
    except Exception as error:  # each client has its own kinds
        where = "" if urlsplit(url).scheme in WEB else at(store)
        raise ValueError(f"{scrub(url)} cannot be read{where}: {told(error)}; check the name and the network") from None
