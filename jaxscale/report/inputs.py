"""What is to be reported: run directories, records, directories of records, each read once. No jax."""

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jaxscale.bench.record import BenchRecord, read_record
from jaxscale.config.mesh_text import mesh_text
from jaxscale.files.jsonl import read_records
from jaxscale.files.reading import parse_json, parse_yaml
from jaxscale.files.redact import redact
from jaxscale.predict.costs import CONVENTIONS
from jaxscale.report.plots import Source, finite
from jaxscale.scaling.law import Law, read_law
from jaxscale.scaling.record import LADDER, LadderRecord, read_ladder_record

LAW, RECORD = "law", "record"  # kinds of files; the first says so itself
RUN_FILES = ("metrics.jsonl", "events.jsonl")
SAMPLES = "samples.jsonl"  # in a run's directory, in the form of `rollout -o`


@dataclass
class Run:
    """A run's directory as it stands; what is not there is empty."""

    path: Path
    name: str
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]
    samples: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Inputs:
    """What was read; `skipped` are files of a directory that no verb of ours wrote."""

    runs: list[Run] = field(default_factory=list)
    records: list[tuple[Path, BenchRecord]] = field(default_factory=list)
    ladders: list[tuple[Path, LadderRecord]] = field(default_factory=list)
    laws: list[tuple[Path, Law]] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)

    @property
    def found(self) -> int:
        """How many records, ladders and laws there are."""
        return len(self.records) + len(self.ladders) + len(self.laws)


def read_inputs(paths: list[Path]) -> Inputs:
    """Raises ValueError, in one line, for the first that is neither a run nor a record nor a directory of records."""
    inputs, seen = Inputs(), set()
    for path in paths:
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        if not path.exists():
            raise ValueError(f"{path} is not there; give directories of runs, or records that `jaxscale bench` wrote")
        if not path.is_dir():
            add_file(path, kind_of(path), inputs)
        elif any((path / name).is_file() for name in RUN_FILES):
            inputs.runs.append(read_run(path))
        else:
            add_directory(path, inputs, seen)
    return inputs


def add_file(path: Path, kind: str | None, inputs: Inputs) -> None:
    """A ladder's record, a law, or a benchmark's record: what is none of them is told as no benchmark's."""
    if kind == LADDER:
        inputs.ladders.append((path, read_ladder_record(path)))
    elif kind == LAW:
        inputs.laws.append((path, read_law(path)))
    else:
        inputs.records.append((path, read_record(path)))


def add_directory(path: Path, inputs: Inputs, seen: set[Path]) -> None:
    """The records in it; JSON that is of something else is passed over, and named on the page."""
    before = inputs.found
    for file in sorted(path.glob("*.json")):
        if file.resolve() in seen:
            continue
        seen.add(file.resolve())
        if kind := kind_of(file):
            add_file(file, kind, inputs)
        else:
            inputs.skipped.append(file)
    if inputs.found == before:
        raise ValueError(
            f"{path} is neither a run (it has no {' or '.join(RUN_FILES)}) nor a directory of records (no .json of "
            "`jaxscale bench`, `ladder` or `law` in it); give e.g. runs/quickstart"
        )


def kind_of(file: Path) -> str | None:
    """Whose file it says that it is; None of one that is of something else.

    A damaged one counts as a benchmark's, whose reader complains about it.
    """
    try:
        values = parse_json(file.read_text(encoding="utf-8"))
    except ValueError:
        return RECORD
    if not isinstance(values, dict):
        return None
    kind = values.get("kind")
    return kind if kind in (LADDER, LAW) else RECORD if "schema_version" in values else None


def read_run(path: Path) -> Run:
    config = read_mapping(path / "config.yaml")
    return Run(
        path=path,
        name=str(config.get("name") or path.resolve().name),
        config=config,
        environment=read_mapping(path / "environment.json"),
        metrics=[r for r in read_records(path / "metrics.jsonl") if isinstance(r.get("step"), int) and "kind" in r],
        events=read_records(path / "events.jsonl"),
        samples=read_records(path / SAMPLES),
    )


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file; empty where there is none. Raises ValueError for what is damaged."""
    if not path.exists():
        return {}
    try:
        values = (parse_json if path.suffix == ".json" else parse_yaml)(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged: it holds no mapping")
    return values


def part(values: dict[str, Any], *keys: str) -> Any:
    """`values[a][b]...`, None where a step is missing."""
    node: Any = values
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def mapping(values: dict[str, Any], key: str) -> dict[str, Any]:
    """`values[key]`, empty where it is none."""
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def date(seconds: Any) -> str:
    """Unix seconds as UTC, to the second; empty where it is no number."""
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).replace(microsecond=0).isoformat()
    except (TypeError, ValueError, OverflowError, OSError):
        return ""


def words(command: Any) -> str:
    return " ".join(map(str, command)) if isinstance(command, list) else ""


def pairs(values: Any) -> str:
    return ", ".join(f"{k}={v}" for k, v in values.items()) if isinstance(values, dict) else ""


def run_source(run: Run) -> Source:
    about, devices, mesh = run.environment, mapping(run.environment, "devices"), mapping(run.config, "mesh")
    convention = str(part(run.config, "metrics", "mfu"))
    facts = {
        "device": f"{devices.get('count', '?')} x {devices.get('kind', '?')}" if devices else "",
        "processes": str(about.get("processes") or ""),
        "mesh": mesh_text({k: v for k, v in mesh.items() if v != 1 and not isinstance(v, dict)}),
        "commit": str(about.get("git_commit") or ""),
        "date": date(run.metrics[0].get("time") if run.metrics else None),
        "command": words(about.get("command")),
        "basis": "measured",
        "MFU convention": f"{convention}: {CONVENTIONS[convention]}" if convention in CONVENTIONS else "",
        "MFU peak": peak_text(peak_of(run)),
        "versions": pairs(about.get("versions")),
        "config": yaml.safe_dump(run.config, sort_keys=False) if run.config else "",
    }
    return Source(run.name, "run", str(run.path), {k: redact(v) for k, v in facts.items() if v})


def peak_of(run: Run) -> dict[str, Any]:
    """The denominator of its MFU: a CPU's may have been measured again while it ran."""
    later = [r for r in run.metrics if r["kind"] == "peak"]
    return later[-1] if later else mapping(run.environment, "peak")


def peak_text(peak: Any) -> str:
    """FLOP/s and where the figure is from."""
    flops = finite(part(peak, "flops_per_second")) if isinstance(peak, dict) else None
    return f"{flops / 1e12:,.4g} TFLOP/s: {peak.get('source')}" if flops is not None else ""


def record_source(path: Path, record: BenchRecord) -> Source:
    device, clock = record.device, record.clock
    bases = sorted({f.basis for row in record.rows for f in row.figures.values()})
    memory = f", {device.memory_bytes / 2**30:.4g} GiB each" if device.memory_bytes else ""
    load = f"; load average {clock.load[0]:.2g} before, {clock.load[1]:.2g} after" if clock.load else ""
    facts = {
        "device": f"{device.count} x {device.kind} ({device.platform}){memory}",
        "processes": str(device.processes),
        "topology": record.topology or "",
        "mesh": mesh_text(record.mesh),
        "commit": record.commit or "",
        "date": record.time,
        "command": words(record.command),
        "basis": ", ".join(bases),
        "clock": "; ".join([f"{clock.source}, {clock.burn_in} runs before the first sample{load}", *clock.notes]),
        "load": record.under_load or "",
        "FLOP convention": record.convention or "",
        "peak": peak_text(record.peak.model_dump()) if record.peak else "none: not published for it, and none measured",
        "versions": pairs(record.versions),
        "compiler options": pairs(record.compiler_options),
        "notes": " ".join(record.notes),
        "config": yaml.safe_dump(record.config, sort_keys=False) if record.config else "",
    }
    return Source(record.name, record.kind, str(path), {k: redact(v) for k, v in facts.items() if v})


def ladder_source(path: Path, record: LadderRecord) -> Source:
    facts = {"law": record.law, "basis": "measured", "versions": pairs(record.versions)}
    runs = ", ".join(r.run for r in record.rungs)
    return Source(record.name, "ladder", str(path), {k: redact(v) for k, v in (facts | {"runs": runs}).items() if v})


def law_source(path: Path, law: Law) -> Source:
    facts = {
        "runs": law.source,
        "form": f"{law.form}: {law.formula}",
        "basis": "predicted",
        "versions": pairs(law.versions),
    }
    return Source(path.stem, "law", str(path), {k: redact(v) for k, v in facts.items() if v})


def tell_apart(sources: list[Source]) -> None:
    """Give names that several have what distinguishes them.

    Runs of one name are called by their directories. Others get their kind, else their file's name, else its path.
    """
    names = [s.name for s in sources if s.kind == "run"]
    runs = [s for s in sources if s.kind == "run" and names.count(s.name) > 1]
    for source, name in zip(runs, directory_names([Path(s.file) for s in runs]), strict=True):
        source.name = name
    for more in (lambda s: s.kind, lambda s: Path(s.file).stem, lambda s: s.file):
        names = [s.name for s in sources]
        for source in sources:
            if names.count(source.name) > 1:
                source.name = f"{source.name} ({more(source)})"


def directory_names(paths: list[Path]) -> list[str]:
    """The end of each path, as short as it may be: `a` and `b` of `runs/a` and `runs/b`."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(path_parts[-depth:]) for path_parts in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
