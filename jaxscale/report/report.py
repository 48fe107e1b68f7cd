"""What the verb `report` does: read, write the page, write the pictures, and say what was written. No jax."""

import os
from pathlib import Path

from jaxscale.report.inputs import read_inputs
from jaxscale.report.page import make_page, write_page


def report(paths: list[Path], out: Path, pictures: Path | None = None) -> list[str]:
    """Returns a line for each thing written. Raises ValueError, in one line, for what cannot be read or written."""
    require_writable(out, pictures)
    inputs = read_inputs(paths)
    page = make_page(inputs)
    write_page(page, out)
    holds = (
        f"{count(len(inputs.runs), 'run')}, {count(len(inputs.records), 'record')}, {count(len(page.plots), 'plot')}"
    )
    lines = [f"{path}: not a record of a benchmark, passed over" for path in inputs.skipped]
    lines.append(f"{out}: {size(out)}; {holds}")
    if pictures is not None:
        from jaxscale.report.pictures import draw_pictures

        pictures.mkdir(parents=True, exist_ok=True)
        written = draw_pictures(page, pictures)
        lines += [f"{path}: {size(path)}" for path in written] or [f"{pictures}: no plot to draw"]
    return lines


def require_writable(out: Path, pictures: Path | None) -> None:
    """Refuse before anything is read or written."""
    if out.is_dir() or not os.access(out if out.exists() else out.parent, os.W_OK):
        raise ValueError(f"cannot write {out}; give -o a file in a directory that exists and can be written")
    if pictures is None:
        return
    missing = [place for place in (pictures, *pictures.parents) if not place.exists()]
    try:
        pictures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to --png {pictures}: {error.strerror}; give a directory") from error
    writable = os.access(pictures, os.W_OK)
    for place in missing:  # made again when there is something to draw
        place.rmdir()
    if not writable:
        raise ValueError(f"cannot write to --png {pictures}; give a directory that can be written")


def count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def size(path: Path) -> str:
    return f"{path.stat().st_size / 1e3:,.0f} kB"
