"""What every record says of where it was measured: device, mesh, versions, commit, options, the machine's load."""

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

import jax

from jaxscale import config as cfg
from jaxscale.bench import record as rec
from jaxscale.bench.clock import SOURCE
from jaxscale.bench.load import Load, read_load
from jaxscale.bench.peaks import against_better_peak
from jaxscale.compiled.store import versions
from jaxscale.files.redact import command_line
from jaxscale.hardware.topology import topology_of
from jaxscale.parallel.presets import compiler_options
from jaxscale.training.peak import Peak
from jaxscale.training.run import LIBRARIES, git_commit


@dataclass
class Header:
    """Made before anything is measured, as it notes the time and the load; `record` closes it."""

    kind: str
    name: str
    devices: list[jax.Device]
    config: cfg.Config | None = None
    mesh: dict[str, int] = field(default_factory=dict)
    peak: Peak | None = None
    time: str = field(default_factory=rec.now)
    load: Load = field(default_factory=read_load)

    def record(
        self,
        rows: list[rec.Row],
        *,
        clock: str = SOURCE,
        burn_in: int = 0,
        notes: list[str] | None = None,
        convention: str | None = None,
    ) -> rec.BenchRecord:
        runtime = self.config.runtime if self.config else cfg.Runtime()
        now, notes, where = read_load(), list(notes or []), topology_of(self.devices)
        if self.peak is None and self.kind in ("matmul", "attention", "step"):
            notes.append(f"no peak is known of {self.devices[0].device_kind} in this dtype: no share of one is given")
        rows = [rec.told_if_not_finite(r) for r in rows]
        rows, peak = against_better_peak(rows, self.peak, self.devices[0], self.config)
        rows, impossible = rec.without_impossible(rows)
        return rec.BenchRecord(
            kind=self.kind, name=self.name, time=self.time, command=command_line(),
            device=about_devices(self.devices), mesh=self.mesh, topology=where.name if where else None,
            peak=rec.Peak(flops_per_second=peak.flops_per_second, source=peak.source) if peak else None,
            config=self.config.model_dump(mode="json") if self.config else None,
            commit=git_commit(), versions=versions(LIBRARIES) | {"python": platform.python_version()},
            compiler_options=compiler_options(self.devices[0].device_kind, runtime),
            convention=convention,
            clock=rec.Clock(source=clock, load=both(self.load.average, now.average), burn_in=burn_in,
                            others=both(self.load.others, now.others),
                            busy_with=list(dict.fromkeys([*self.load.names, *now.names]))),
            rows=rows, notes=[*notes, *impossible],
        )  # fmt: skip


def both(before: float | None, after: float | None) -> tuple[float, float] | None:
    return None if before is None or after is None else (before, after)


def about_devices(devices: list[jax.Device]) -> rec.Device:
    first = devices[0]
    kind = f"{cpu_name()}, {os.cpu_count()} cores" if first.platform == "cpu" else first.device_kind
    limit = (first.memory_stats() or {}).get("bytes_limit")
    return rec.Device(
        platform=first.platform, kind=kind, count=len(devices), processes=jax.process_count(), memory_bytes=limit
    )


def cpu_name() -> str:
    """The processor by its own name, where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
