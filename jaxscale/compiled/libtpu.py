"""Which libtpu predictions follow, and what to say where another one is installed. No jax."""

import re
from importlib import metadata

FOLLOWED = "0.0.51"  # programs of 0.0.52 are the same in what is predicted
WHY = "it lays out memory otherwise (up to a fifth more of it on v6e)"


def older_libtpu() -> str | None:
    """One line where a libtpu is here that is older than the one that predictions follow; else None."""
    try:
        here = metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        return None
    if numbers(here) >= numbers(FOLLOWED):
        return None
    return (
        f"libtpu {here} is older than {FOLLOWED}, which predictions follow: {WHY}; pip install 'jaxscale[tpu]' on "
        "Python 3.12 or newer has it (jax for Python 3.11 cannot read its programs)"
    )


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])
