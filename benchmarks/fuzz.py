"""Inputs that are wrong in every way, by thousands: each is read, or refused in one line, and no other file is touched.

    python benchmarks/fuzz.py --cases 10000 --seed 1              # all kinds of input; about 5 minutes
    python benchmarks/fuzz.py --cases 10000 --seed 1 --record     # and benchmarks/results/<date>-fuzz.json
    python benchmarks/fuzz.py --only tokenizer,record --cases 2000

The kinds of input, and what changes them, are those of `tests/fuzz`. The exit code is 1 where there is a defect; its
files are kept under --keep.
"""

import argparse
import logging
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
logging.basicConfig(handlers=[logging.NullHandler()])  # what orbax says of each damaged file
sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]  # before this file's folder, whose fuzz.py is no package

from common import cores, machine, write_record  # noqa: E402
from fuzz.campaign import ALL, Found, run_target  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="of all kinds together, by their shares")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="kinds, with commas between")
    parser.add_argument("--keep", type=Path, help="a folder for the files of each defect")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    chosen = [t for t in ALL if not options.only or t.name in options.only.split(",")]
    whole, rows = sum(t.share for t in chosen), []
    about = machine()
    print(f"{'input':<12}{'cases':>8}{'accepted':>10}{'refused':>9}{'defects':>9}{'seconds':>9}{'slowest':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for target in chosen:
            count = max(1, round(options.cases * target.share / whole))
            found = run_target(target, Path(folder), cases=count, seed=options.seed)
            rows.append(told(found))
            print(f"{found.name:<12}{found.cases:>8}{found.accepted:>10}{found.refused:>9}{len(found.defects):>9}"
                  f"{found.seconds:>9.1f}{found.slowest:>9.2f}", flush=True)  # fmt: skip
            tell_defects(found, options.keep)
    total = {key: sum(row[key] for row in rows) for key in ("cases", "accepted", "refused", "defects", "seconds")}
    print(", ".join(f"{key} {value:,.0f}" for key, value in total.items()))
    if options.record:
        values = {"seed": options.seed, "machine": about | {"cores": cores()}, "total": total, "rows": rows}
        print(write_record("fuzz", values, Path(__file__).parent / "results"))
    sys.exit(1 if total["defects"] else 0)


def told(found: Found) -> dict:
    """A row of the record. Seconds are of all cases of that kind, generating them included."""
    return {
        "input": found.name, "cases": found.cases, "accepted": found.accepted, "refused": found.refused,
        "defects": len(found.defects), "different_messages": len(found.messages), "seconds": round(found.seconds, 2),
        "slowest_seconds": round(found.slowest, 3),
    }  # fmt: skip


def tell_defects(found: Found, keep: Path | None) -> None:
    for (what, where), count in Counter((what, where) for what, where, _ in found.defects).most_common():
        print(f"  {count} x {what} {where}")
    for number, (_, _, case) in enumerate(found.defects if keep else []):
        for name, content in case.files.items():
            path = keep / found.name / str(number) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"link to {content}") if isinstance(content, Path) else path.write_bytes(content)


if __name__ == "__main__":
    main()
