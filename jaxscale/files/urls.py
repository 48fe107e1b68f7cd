"""URLs of object stores, `scheme://bucket/prefix`, and texts without what is secret in them."""

import os
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from jaxscale.files.redact import redact

EXTRAS = {"s3": "s3", "gs": "gcs"}  # scheme -> the extra of jaxscale that installs what reaches it
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")  # of the environment


def is_url(place: os.PathLike | str) -> bool:
    return "://" in os.fspath(place)


def moved_along(place: str, old: str | None, new: Path) -> str:
    """Where a place is once the directory `old` is at `new`; one that is not below it stays where it is."""
    inside = old is not None and not is_url(place) and Path(place).expanduser().is_relative_to(Path(old).expanduser())
    return str(new / Path(place).expanduser().relative_to(Path(old).expanduser())) if inside and old else place


def read_url(url: str) -> tuple[str, str]:
    """Scheme and bucket of `scheme://bucket/prefix`; ValueError for any other form, without what is secret in it."""
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError(f"{scrub(url)}: a secret stands in the URL; give credentials by the environment")
    if parts.scheme not in EXTRAS:
        raise ValueError(f"{scrub(url)}: {parts.scheme}:// is not known; give s3://, gs:// or a directory")
    if not parts.netloc or not parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"{url} is not {parts.scheme}://bucket/prefix; name a bucket and a prefix of its own")
    return parts.scheme, parts.netloc


def checked(place: str) -> str:
    """A directory or a URL as it is; ValueError for what is neither."""
    if not place:
        raise ValueError("an empty name is no directory; leave it out, or give one")
    if is_url(place):
        read_url(place)
    return place


Place = Annotated[str, AfterValidator(checked)]


def scrub(text: str) -> str:
    """The text without credentials, those of the environment among them."""
    for name in SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return redact(text)
