"""What the verb `report` does: read, write the page, write the pictures, and say what was written. No jax."""

from pathlib import Path

from jaxscale.files.whole import require_directory, require_file
from jaxscale.report.inputs import read_inputs
from jaxscale.report.page import make_page, write_page


def report(paths: list[Path], out: Path, pictures: Path | None = None) -> list[str]:
    """Returns a line for each thing written. Raises ValueError, in one line, for what cannot be read or written."""
    require_file(out, give="give -o")
    if pictures is not None:
        require_directory(pictures, said=f"--png {pictures}", fix="give a directory that can be written")
    inputs = read_inputs(paths)
    page = make_page(inputs)
    write_page(page, out)
    there = [count(len(inputs.runs), "run"), count(len(inputs.records), "record")]
    there += [count(len(inputs.ladders), "ladder")] if inputs.ladders else []
    there += [count(len(inputs.laws), "law")] if inputs.laws else []
    holds = ", ".join([*there, count(len(page.plots), "plot")])
    lines = passed_over(inputs.skipped)
    lines.append(f"{out}: {size(out)}; {holds}")
    if pictures is not None:
        from jaxscale.report.pictures import draw_pictures

        pictures.mkdir(parents=True, exist_ok=True)
        written = draw_pictures(page, pictures)
        lines += [f"{path}: {size(path)}" for path in written] or [f"{pictures}: no plot to draw"]
    return lines


def passed_over(skipped: list[Path]) -> list[str]:
    """One line, however many there are: the page names all."""
    if not skipped:
        return []
    more = f" and {count(len(skipped) - 1, 'more file')}" if skipped[1:] else ""
    return [f"{skipped[0]}{more}: not a record of a benchmark or a ladder, passed over"]


def count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def size(path: Path) -> str:
    return f"{path.stat().st_size / 1e3:,.0f} kB"
