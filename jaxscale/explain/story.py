"""The story behind `explain`: a config and a mesh in, every matmul of the step out, with what it sends and costs.

The rows are read from the traced program (`explain.trace`, in a child process), the collectives beside them from the
compiled one (`explain.match`), seconds are predicted (`predict.timing`). No jax here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Any

from jaxscale import config as cfg
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.rules import REPLICA_AXES, STEP_AXES, count, make_rules
from jaxscale.compiled.child import ask
from jaxscale.compiled.collectives import collectives
from jaxscale.compiled.examine import split_mesh
from jaxscale.compiled.hlo import parse
from jaxscale.compiled.story import compile_one, with_changes
from jaxscale.config.mesh_text import read_mesh
from jaxscale.explain.match import SMALL, Found, match
from jaxscale.explain.routes import explained
from jaxscale.explain.rows import Other, Row, from_values, joined
from jaxscale.explain.stages import Stages, as_values, beside, once, one_stage, stages
from jaxscale.hardware.chips import CHIPS
from jaxscale.hardware.gpu_targets import target_config
from jaxscale.hardware.topology import Link, Topology, find_topology, valid_shapes
from jaxscale.predict.forecast import Forecast, attention_flops, axis_links, forecast
from jaxscale.predict.timing import Rates, collective_seconds, rates

Tracer = Callable[[cfg.Config, dict[str, Any], bool], dict[str, Any]]
COMPILERS = ("auto", "cpu", "chip", "none")
ATTENTION = ("scores", "context", "attention")
ASSUMED = "v5p"  # whose speeds are told where no --topology is given


@dataclass(frozen=True)
class Explanation:
    """Every matmul of a step.

    Attributes:
        mesh: axis -> size, in the mesh's order.
        assumed: no topology was given, and this one stands for the speeds.
        compiled_by: whose program the collectives are compared with; None: none was compiled, `why` says why.
        inserted: collectives of the compiled program that the traced one did not ask for.
        stages: of a pipeline; `config`, `mesh` and the rows are then of one stage.
    """

    config: cfg.Config
    mesh: dict[str, int]
    topology: Topology
    assumed: bool
    compiled_by: str | None
    why: str
    jax: str
    rows: list[Row]
    others: list[Other]
    inserted: list[Found]
    stages: Stages | None = None

    @property
    def whole(self) -> tuple[cfg.Config, Topology, dict[str, int]]:
        """Config, machine and mesh of the step, of all its stages."""
        if self.stages is None:
            return self.config, self.topology, self.mesh
        return self.stages.config, self.topology, self.stages.mesh

    @property
    def step(self) -> Forecast:
        """Of all stages."""
        return forecast(*self.whole)

    @property
    def differences(self) -> int:
        """Collectives of matmuls that the compiler wrote otherwise."""
        return sum(s.compiled == "different" for r in self.rows for s in r.sends)

    @property
    def kv_shards(self) -> int:
        """Into how many parts the mesh cuts the kv heads."""
        return count(make_rules(self.config.sharding).activations["kv_heads"], self.mesh)

    def phase(self, *names: str) -> list[Row]:
        return [r for r in self.rows if r.phase in names]


def explain(
    config: cfg.Config,
    topology: Topology | None = None,
    *,
    compiler: str = "auto",
    verbose: bool = False,
    tracer: Tracer | None = None,
) -> Explanation:
    """Trace and compile the step of `config`.

    Args:
        topology: the machine; None: simulated devices, and the speeds of a v5p slice of as many chips.
        compiler: `chip` (the topology's own), `cpu` (simulated devices), `none`; `auto`: the chip's where it is
            installed and a topology is given, else the CPU's.
        tracer: answers in place of a child process that traces the decoder; see `explain.here`.

    Raises ValueError for a mesh that does not fit the model or the topology, and for a compiler that is not here.
    """
    if compiler not in COMPILERS:
        raise ValueError(f"--compiler {compiler}: it is one of {', '.join(COMPILERS)}")
    config, topology = of_one_replica(config, topology)
    if staged := stages(config, topology):
        config = one_stage(staged)
    assumed = topology is None
    devices = topology.devices if topology else config.runtime.simulated_devices
    mesh = config.mesh.sizes(None if staged else devices)
    all_of_it, all_axes = (staged.config, staged.mesh) if staged else (config, mesh)
    where = topology or assumed_topology(math.prod(all_axes.values()))
    chip_compiles = uses_chip(compiler, where, assumed=assumed)
    simulated = bool(staged) or not chip_compiles  # the devices of a stage may be no topology
    shown = on_cpu(config) if simulated else config
    request = {
        "config": shown.model_dump(mode="json"),
        "topology": replace(where, slices=1).name,
        "slices": where.slices,
        "cpu": simulated,
        "compile": not chip_compiles and compiler != "none",
        "devices": math.prod(mesh.values()),
        "all_stages": on_cpu(all_of_it).model_dump(mode="json") if staged else None,
        "all_devices": math.prod(all_axes.values()),
    }
    answer = (tracer or trace_in_a_child)(shown, request, verbose)
    rows, others = from_values(answer)
    by: str | None
    hlo, by, why = answer["hlo"], f"XLA's CPU compiler for {request['all_devices']} simulated devices", "not asked for"
    if chip_compiles:
        hlo, by, why = by_chip(all_of_it, where, verbose)
    inserted: list[Found] = []
    if hlo:
        axes = all_axes if staged else answer["mesh"]
        over = split_mesh(all_of_it, where, axes)[1] if chip_compiles and where.slices > 1 else None
        compiled = collectives(parse(hlo), axes, over=over)
        if staged:
            staged, compiled = beside(staged, compiled)
        rows, others, inserted = match(rows, others, compiled)
        inserted = once(staged, inserted, compiled) if staged else inserted
    rows = timed_rows([explained(joined(row)) for row in rows], all_of_it, where, all_axes)
    inserted = [f for f in inserted if f.bytes >= SMALL]
    by, why = (by, "") if hlo else (None, why)
    return Explanation(config, answer["mesh"], where, assumed, by, why, answer["jax"], rows, others, inserted, staged)


def by_chip(config: cfg.Config, where: Topology, verbose: bool) -> tuple[str, str, str]:
    """The program of the topology's own compiler, its name, and why there may be none."""
    kept, _ = compile_one(config, where, verbose=verbose)
    by = f"{'NVIDIA' if where.chip.node else 'libtpu'}'s compiler for {where.name}"
    return kept.hlo, by, f"the program does not fit a {where.chip.name}"


def of_one_replica(config: cfg.Config, topology: Topology | None) -> tuple[cfg.Config, Topology | None]:
    """The run of one replica, on its devices: all of them do the same, and send each other nothing in a step.

    Raises ValueError where its devices are no topology by themselves.
    """
    replicas, devices = config.mesh.replicas, config.runtime.simulated_devices
    if replicas == 1:
        return config, topology
    dcn = config.mesh.dcn.model_dump() | dict.fromkeys(REPLICA_AXES, 1)
    if topology and any(getattr(config.mesh, axis) > 1 for axis in REPLICA_AXES):
        raise ValueError(
            f"{replicas} replicas on {topology.name}: explain shows one replica's step; give --topology of its devices"
        )
    changes = {
        "mesh": dict.fromkeys(REPLICA_AXES, 1) | {"dcn": dcn},
        "outer": {"every": None},
        "data": {"batch_size": config.data.batch_size // replicas},
        "runtime": {"simulated_devices": devices and devices // replicas},
    }
    one = with_changes(config, changes, source="explain")
    return one, topology and replace(topology, slices=topology.slices // replicas)


def uses_chip(compiler: str, where: Topology, *, assumed: bool) -> bool:
    """Whether the topology's own compiler is asked. Raises ValueError where it is wanted and cannot be."""
    if compiler == "chip" and where.chip.node:
        target_config(where.chip)  # refuses one that no compiler knows
    asked = compiler == "chip" or (compiler == "auto" and not assumed and installed(where))
    if asked and not installed(where):
        raise ValueError(
            f"--compiler chip: the compiler of {where.name} is not installed; pip install "
            f"'jaxscale[{'aot-gpu' if where.chip.node else 'aot-tpu'}]', or --compiler cpu"
        )
    if compiler == "chip" and assumed:
        raise ValueError("--compiler chip needs --topology, e.g. --topology v5p:2x2x2")
    return asked


def trace_in_a_child(config: cfg.Config, request: dict[str, Any], verbose: bool) -> dict[str, Any]:
    """What `explain.trace` answers, as values."""
    return ask("jaxscale.explain.trace", request, "tracing the step", verbose=verbose)


def installed(topology: Topology) -> bool:
    """Is the compiler of these chips here?"""
    if topology.chip.node:
        known = topology.chip.target is not None
        return bool(known and find_spec("jax_cuda13_plugin") and find_spec("jax_plugins"))
    return find_spec("libtpu") is not None


def on_cpu(config: cfg.Config) -> cfg.Config:
    """The same step for simulated devices: layers in a loop, as on the other platforms, the reference attention,
    nothing offloaded, and no options of other compilers."""
    remat = config.step.remat
    if isinstance(remat, dict):
        remat = {name: "save" if action == "offload" else action for name, action in remat.items()}
    step = {"unroll_layers": False, "attention": "xla", "remat": remat}
    runtime: dict[str, Any] = {"platform": "cpu", "simulated_devices": None, "compiler_options": {}}
    return with_changes(config, {"step": step, "runtime": runtime}, source="explain")


def with_mesh(config: cfg.Config, text: str, slices: int = 1) -> cfg.Config:
    """`config` on a mesh given as `data=2,fsdp=2,tensor=2`: of all slices, with data over these where the config says
    nothing of them; axes that are not named have size 1. Of replicas one is shown."""
    config, _ = of_one_replica(config, None)
    sizes = read_mesh(text, STEP_AXES)
    values = config.model_dump(mode="json")
    over = config.mesh.over_slices or ({cfg.OVER_SLICES: slices} if slices > 1 else {})
    for axis, n in over.items():
        if sizes.get(axis, 1) % n:
            raise ValueError(
                f"mesh {text}: {axis}={sizes.get(axis, 1)} is not divisible over {n} slices; make it a "
                f"multiple of {n}, or set mesh.dcn"
            )
        sizes[axis] = sizes.get(axis, 1) // n
    values["mesh"] = dict.fromkeys(STEP_AXES, 1) | sizes | ({"dcn": over} if over else {})
    values["runtime"] |= {"simulated_devices": None}
    return cfg.validate(values, source="--mesh")


def assumed_topology(devices: int) -> Topology:
    """So many chips of a v5p, or where it has no such slice GPUs of one node."""
    chip = next(c for c in CHIPS if c.name == ASSUMED)
    for shape in valid_shapes(chip):
        if math.prod(shape) == devices:
            return Topology(chip, shape)
    if devices <= 8:
        return find_topology(f"h100:{devices}")
    raise ValueError(
        f"a mesh of {devices} devices: {ASSUMED} has no slice of so many chips; say which machine with "
        "--topology, e.g. h100:3x8"
    )


def timed_rows(rows: list[Row], config: cfg.Config, where: Topology, mesh: Mapping[str, int]) -> list[Row]:
    """Rows with predicted seconds on a machine, of whose mesh they may name some axes only."""
    speed, links = rates(where.chip, config.step.compute_dtype), axis_links(where, mesh, config.mesh.over_slices)
    speed = replace(speed, attention_flops=attention_flops(config, where, speed))
    return [timed(row, speed, links) for row in rows]


def timed(row: Row, speed: Rates, links: Mapping[str, Link]) -> Row:
    """A row with the predicted seconds of one run, and of each collective."""
    flops = speed.attention_flops if row.name in ATTENTION else speed.matmul_flops
    seconds = {"compute": row.flops / flops, "HBM": row.hbm_bytes / speed.memory}
    sends = []
    for send in row.sends:
        once, network = collective_seconds(send.kind, send.axes, send.bytes, links, speed.network)
        sends.append(replace(send, seconds=once, network=network))
        name = f"{network} ({'+'.join(send.axes)})"
        seconds[name] = seconds.get(name, 0.0) + once * send.times / row.times
    return replace(row, seconds=seconds, sends=tuple(sends))


# --- as values --------------------------------------------------------------------------------------------------


def as_json(explanation: Explanation) -> dict[str, Any]:
    """All of it as plain values: what `--json` prints and the page is made of. Seconds are predicted."""
    model, data = blueprint(explanation.config.model), explanation.config.data
    letters = {c for op in model.ops for c in op.x + op.y}
    sizes = {"B": data.batch_size // explanation.config.step.microbatches, "T": data.seq_len, "L": model.num_layers}
    sizes |= {c: dim.size for c, dim in model.dims.items() if c in letters}
    step = explanation.step
    return {
        "name": explanation.config.name,
        "config": explanation.config.model_dump(mode="json"),
        "mesh": explanation.mesh,
        "topology": explanation.topology.name,
        "network": explanation.topology.network,
        "assumed": explanation.assumed,
        "chip": explanation.topology.chip.name,
        "step": {"basis": "predicted", "seconds": step.time.best, "interval": vars(step.interval)},
        "sampling": asdict(step.sampling) if step.sampling else None,
        "compiled_by": explanation.compiled_by,
        "not_compiled": explanation.why,
        "jax": explanation.jax,
        "sizes": sizes,
        "rows": [row_values(row) for row in explanation.rows],
        "stages": as_values(explanation.stages) if explanation.stages else None,
        "others": [vars(o) | {"axes": list(o.axes)} for o in explanation.others],
        "inserted": [{k: v for k, v in vars(f).items() if k != "used"} for f in explanation.inserted],
    }


def row_values(row: Row) -> dict[str, Any]:
    tensors = {k: vars(getattr(row, k)) for k in ("x", "w", "out")}
    sends = [vars(s) | {"tensor": getattr(row, s.operand).name, "shared": list(s.shared)} for s in row.sends]
    return {
        "id": row.id, "name": row.name, "title": row.title, "text": str(row), "phase": row.phase, "what": row.what,
        "times": row.times, "formula": row.formula, **tensors, "cases": row.cases,
        "per_device": {"m": row.m, "k": row.k, "n": row.n}, "flops": row.flops, "intensity": row.intensity,
        "hbm_bytes": row.hbm_bytes, "seconds": row.seconds, "bound": row.bound, "note": row.note, "sends": sends,
    }  # fmt: skip
