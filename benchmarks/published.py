"""Step times predicted from configs alone, beside published ones: how far the predictions are to be believed.

    python benchmarks/published.py                  # the table, errors by chip, and the intervals
    python benchmarks/published.py --parts          # where each prediction's seconds go
    python benchmarks/published.py --rows more.json # rows of your own too: a list of objects with `Run`'s fields
    python benchmarks/published.py --record         # and benchmarks/results/<date>-published.json

No jax, no compile: `predict.forecast` answers in milliseconds. The fractions in `jaxscale/hardware` are the only
fitted numbers, a few a chip; every third row was held out while they were fitted, and 41 were added after.
"""

import argparse
import functools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from published_runs import EXPERT_RUNS, LATER_RUNS, RUNS, Run

from jaxscale.blueprint.described import blueprint
from jaxscale.config import Config, shipped_configs, validate
from jaxscale.config.files import read_model
from jaxscale.hardware.topology import Topology, find_topology
from jaxscale.predict import costs, interval
from jaxscale.predict.experts import exchange, tiled
from jaxscale.predict.forecast import Forecast, forecast
from jaxscale.predict.timing import StepTime, rates

ENOUGH = 9  # rows of a class of its own: with fewer the 90th percentile is beyond the largest
FEWEST = 3  # rows without which a chip counts as unknown


def topology_of(run: Run) -> Topology:
    """Its machine, with the figures that the source states in place of the table's."""
    topology = find_topology(run.topology, run.slices)
    return replace(topology, chip=replace(topology.chip, **run.chip)) if run.chip else topology


def config_of(run: Run) -> Config:
    model = run.model if isinstance(run.model, dict) and "file" not in run.model else read_model(
        run.model, beside=shipped_configs())  # fmt: skip
    batch = run.tokens_per_chip * topology_of(run).chips // run.seq_len
    values = {
        "name": run.what, "steps": 1, "model": model, "step": {"remat": run.remat, "microbatches": run.microbatches},
        "data": {"kind": "synthetic", "batch_size": batch, "seq_len": run.seq_len},
    }  # fmt: skip
    return validate(values, source=run.what)


@functools.cache
def inputs(place: int) -> tuple[Config, Topology]:
    """Config and topology of a row of `RUNS`; read once, as the classes of intervals predict each row many times."""
    return config_of(RUNS[place]), topology_of(RUNS[place])


def predict(run: Run, config: Config | None = None, topology: Topology | None = None) -> Forecast:
    config, topology = config or config_of(run), topology or topology_of(run)
    found = forecast(config, topology, run.mesh, run.over, quantized=run.quantized, power=run.power,
                     software=run.made_by)  # fmt: skip
    if not run.capacity:
        return found
    more, time = masked(run, config, topology, found), found.time
    bounds = (time.overlapped + more, time.nothing_overlapped + more, time.best + more)
    return replace(found, time=StepTime(*bounds, time.parts | {"capacity and masks": more}, time.exposed))


def masked(run: Run, config: Config, topology: Topology, found: Forecast) -> float:
    """Seconds that experts with a capacity take beside what dropless ones do. MaxText's `dense_matmul`:

    each expert multiplies capacity times its even share of rows; a mask [T, E C] sorts them, forward, recomputed and
    for the gradient of x; a weighted mask adds them up, forward and for two gradients, one of which reads the experts'
    outputs: so their last matmul is recomputed. Tiles and sorted rows of dropless ones are taken off.
    """
    speed, model = rates(topology.chip, quantized=run.quantized), blueprint(config.model)
    own = {m.name: m for m in costs.matmuls(config, run.mesh) if model.op(m.name).rows_move}
    last = next(m for m in own.values() if not m.recomputed)
    share = sum(m.step_flops for m in own.values()) * (run.capacity - 1) + last.flops * last.forward * run.capacity
    at = exchange(config, run.mesh)
    assert at is not None
    masks = 6 * 2.0 * at.rows * run.capacity * run.seq_len * at.width * last.forward
    tiles = sum(m.step_flops for m in own.values()) * (tiled(at, topology.chip.platform) - 1)
    return (share + masks - tiles) / speed.matmul_flops - found.time.parts["rows of experts"]


def held_out(place: int) -> bool:
    """Every third row was not used to choose the constants, nor any that was added after them."""
    return place % 3 == 2 or place >= len(RUNS) - len(LATER_RUNS)


# --- intervals ------------------------------------------------------------------------------------------------------


def residuals() -> list[float]:
    """log(published / predicted) of every row."""
    return [math.log(run.seconds / predict(run, *inputs(i)).time.best) for i, run in enumerate(RUNS)]


def left_out(errors: Sequence[float]) -> list[float]:
    """Each residual as large as if its chip's fraction had been fitted without it: the others' mean taken off.

    The larger of the two is kept, so that a row never looks better for being left out.
    """
    total, n = sum(errors), len(errors)
    return [max(abs(e), abs(e - (total - e) / (n - 1))) for e in errors]


def quantile(sizes: Sequence[float], share: float = interval.COVERED) -> float:
    """The k-th smallest, k = ceil((n + 1) share): what a next one of the same kind stays below with that chance."""
    return sorted(sizes)[min(len(sizes), math.ceil((len(sizes) + 1) * share)) - 1]


def ratio(errors: Sequence[float]) -> float:
    return round(math.exp(quantile(left_out(errors))), 3)


def classes() -> tuple[dict[str, tuple[float, int]], dict[str, float], frozenset[str]]:
    """The constants of `predict.interval`: classes, the widest ones, and the chips with few rows."""
    errors = residuals()
    by_name: dict[str, list[float]] = {}
    for i, error in enumerate(errors):
        for name in names_of(inputs(i)[1]):
            by_name.setdefault(name, []).append(error)
    platform_of = {n: inputs(i)[1].chip.platform for i in range(len(RUNS)) for n in names_of(inputs(i)[1])}
    # never narrower than the platform's: one list of recipes on one chip says little of the next one
    found = {
        n: (max(ratio(e), ratio(by_name[platform_of[n]])), len(e))
        for n, e in sorted(by_name.items()) if len(e) >= ENOUGH
    }  # fmt: skip
    few = {n.removesuffix(", all") for n, e in by_name.items() if n.endswith(", all") and FEWEST <= len(e) < ENOUGH}
    return found, {platform: unknown(platform) for platform in ("tpu", "gpu")}, frozenset(few)


def names_of(topology: Topology) -> set[str]:
    return {interval.name_of(topology), f"{topology.chip.name}, all", topology.chip.platform}


def unknown(platform: str) -> float:
    """The interval of a chip without rows: rows predicted with the fractions of every other chip of the platform."""
    sizes = []
    for i, run in enumerate(RUNS):
        config, topology = inputs(i)
        if topology.chip.platform != platform:
            continue
        chips = {c.chip.name: c.chip.fractions for c in map(topology_of, RUNS) if c.chip.platform == platform}
        for other in set(chips) - {topology.chip.name}:
            borrowed = replace(topology, chip=replace(topology.chip, fractions=chips[other]))
            sizes.append(abs(math.log(run.seconds / predict(run, config, borrowed).time.best)))
    return round(math.exp(quantile(sizes)), 3)


def covered() -> float:
    """Share of the rows whose residual, left out, is within the stored interval of its class."""
    by_chip: dict[str, list[int]] = {}
    for i, _ in enumerate(RUNS):
        by_chip.setdefault(inputs(i)[1].chip.name, []).append(i)
    errors, within = residuals(), 0
    for places in by_chip.values():
        own = [errors[i] for i in places]
        sizes = left_out(own) if len(own) > 1 else [abs(e) for e in own]
        within += sum(s <= math.log(interval.ratio_of(inputs(i)[1])[0]) for i, s in zip(places, sizes, strict=True))
    return within / len(RUNS)


# --- the table ------------------------------------------------------------------------------------------------------


def row_of(run: Run, held: bool, *, own: bool = False) -> dict[str, Any]:
    found = predict(run)
    return {"run": run.what, "topology": run.topology, "slices": run.slices, "software": run.made_by,
            "published_seconds": run.seconds, "predicted_seconds": found.time.best,
            "error": found.time.best / run.seconds - 1, "held_out": held, "own": own, "source": run.source,
            "bounds": [found.time.overlapped, found.time.nothing_overlapped], "binds": found.time.binds,
            "parts": found.time.parts, "note": run.note}  # fmt: skip


def show(row: dict[str, Any], *, parts: bool) -> None:
    where = f"{'held out ' if row['held_out'] else '         '}{row['run']:44s} {row['software']:14s}"
    print(f"{where}  published {row['published_seconds']:8.3f}  predicted {row['predicted_seconds']:8.3f}  "
          f"{row['error']:+7.1%}")  # fmt: skip
    if parts:
        print("           ", "  ".join(f"{k} {v:.3f}" for k, v in row["parts"].items() if v))


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    def line(name: str, own: Sequence[dict[str, Any]]) -> str:
        errors = [abs(r["error"]) for r in own]
        return f"{name:24s} mean error {mean(errors):5.1%}, largest {max(errors):5.1%}, {len(own)} runs"

    chips = list(dict.fromkeys(r["topology"].partition(":")[0] for r in rows))
    lines = [line(c, [r for r in rows if r["topology"].startswith(f"{c}:")]) for c in chips]
    for name, held in (("chosen by", False), ("held out", True)):
        if own := [r for r in rows if r["held_out"] is held and not r["own"]]:
            lines.append(line(name, own))
    if own := [r for r in rows if r["own"]]:
        lines.append(line("of --rows", own))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/<date>-published.json")
    parser.add_argument("--parts", action="store_true", help="where each prediction's seconds go")
    parser.add_argument("--rows", type=Path, help="a JSON list of objects with the fields of published_runs.Run")
    options = parser.parse_args()
    rows = [row_of(run, held_out(i)) for i, run in enumerate(RUNS)]
    of_experts = [row_of(run, True) for run in EXPERT_RUNS]
    if options.rows:
        rows += [row_of(Run(**values), False, own=True) for values in json.loads(options.rows.read_text())]
    for row in [*rows, *of_experts]:
        show(row, parts=options.parts)
    print("\n".join(summary(rows)))
    print("of mixtures of experts, in no interval:", ", ".join(f"{r['error']:+.1%}" for r in of_experts))
    found, widest, few = classes()
    print(f"CLASSES = {found}\nUNKNOWN = {widest}\nFEW = {sorted(few)}")
    print(f"{covered():.1%} of the rows are within, left out")
    if options.record:
        from common import HERE, write_record

        intervals = {"classes": found, "unknown": widest, "few": sorted(few), "covered": covered()}
        print(write_record("published", {"rows": [*rows, *of_experts], "intervals": intervals}, HERE / "results"))


if __name__ == "__main__":
    main()
