"""What emerges along a ladder of small runs, and how well their law forecasts the next one.

    make emergence                                  # or: python demos/emergence.py --out build/emergence

Two ladders of six sizes are trained, on the source of Python's standard library alone and mixed with documents that
teach abilities. The law is fitted to the first, without its largest rung, which it then forecasts. The second is judged
ability by ability. Every step is a command of jaxscale, which is printed. Nothing is fetched. It may be stopped at any
moment, and then goes on.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

from commands import jaxscale

from jaxscale.scaling.record import read_ladder_record
from jaxscale.scaling.verdicts import curves_of

TAUGHT = "copy,count_chain,count,parity_chain,parity,coin,habit,add,add_reversed"
RECORDS = Path("runs/ladder")


def prepare() -> None:
    """The two texts, unless they are there."""
    if not Path("data/stdlib/index.json").exists():
        jaxscale(
            "data", "prepare", "--stdlib", "--tokenizer", "byte", "--validation-fraction", 0.05, "--out", "data/stdlib"
        )
    if not Path("data/abilities/index.json").exists():
        documents = Path("data/abilities.jsonl")
        documents.unlink(missing_ok=True)
        jaxscale("data", "abilities", TAUGHT, "--count", 120_000, "--out", documents)
        jaxscale("data", "prepare", "--jsonl", documents, "--tokenizer", "byte", "--out", "data/abilities")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/emergence"), help="where the page and pictures go")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    prepare()
    for name in ("library", "emergence"):
        jaxscale("ladder", "run", name)
    law = out / "law.json"
    jaxscale("law", "fit", RECORDS / "library.json", "--form", "compute", "--hold-out", "largest", "-o", law)
    shutil.rmtree(out / "pictures", ignore_errors=True)
    pages = [RECORDS / "library.json", RECORDS / "emergence.json", law]
    jaxscale("report", *pages, "-o", out / "emergence.html", "--png", out / "pictures")
    summary(law)
    print(f"\n{time.perf_counter() - started:.0f} s in all; look at {out / 'emergence.html'}")


def summary(law: Path) -> None:
    """The two answers, in a few lines."""
    print("\nThe law, and the rung that it was not fitted to:")
    for one in json.loads(law.read_text())["held_out"]:
        error = one["predicted"] / one["measured"] - 1
        print(f"  {one['what']}: loss {one['predicted']:.3f} forecast, {one['measured']:.3f} measured, {error:+.1%}")
    print("What emerged:")
    for curve in curves_of(read_ladder_record(RECORDS / "emergence.json")):
        partner = f"; {curve.partner_metric}: {curve.partner.kind}" if curve.partner else ""
        values = " ".join(f"{r.value:.2f}" for r in curve.verdict.rungs) if curve.verdict else ""
        print(f"  {curve.name:13} {curve.verdict.kind if curve.verdict else '-':15} {curve.metric} {values}{partner}")


if __name__ == "__main__":
    main()
