"""Starting JAX's runtime on many processes: which place this one has, and who listens where.

A place comes from the environment (`JAXSCALE_COORDINATOR`, `JAXSCALE_PROCESSES`, `JAXSCALE_PROCESS_ID`, as `jaxscale
launch` and the manifests under configs/launch set them) or from the scheduler, as JAX's own cluster detection sees it.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxscale import config as cfg
from jaxscale import private
from jaxscale.cluster.codes import VANISHED
from jaxscale.files.redact import one_line

NAMES = ("JAXSCALE_COORDINATOR", "JAXSCALE_PROCESSES", "JAXSCALE_PROCESS_ID")
HEARTBEAT_MARGIN = 30  # seconds that JAX's own heartbeats wait beyond ours, whose message is the better one


@dataclass(frozen=True)
class Place:
    """Where a process stands among `processes`; `source` says who told it."""

    coordinator: str  # host:port
    processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None
    source: str


ALONE = Place("", 1, 0, None, "nothing said of others")
JOINED: list[Place] = []  # what JAX's runtime, of which a process has one, was started with


def join_processes(runtime: cfg.Runtime, watch: cfg.Watch) -> Place:
    """Start JAX's distributed runtime where there are several processes, before JAX looks for devices; once a process.

    Raises ValueError for a place that is half given, a coordinator that cannot be listened on or reached.
    """
    if JOINED:
        return JOINED[0]
    place = find_place(runtime, os.environ)
    if place is None or place.processes == 1:
        return place or ALONE
    if runtime.platform != "auto":
        jax.config.update("jax_platforms", "cuda" if runtime.platform == "gpu" else runtime.platform)
    name_the_end(place)
    beyond = int(watch.peer + HEARTBEAT_MARGIN) if watch.peer else 10**6
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.processes,
            place.process_id,
            place.local_device_ids,
            cluster_detection_method="deactivate",
            initialization_timeout=int(watch.start) or 10**6,
            heartbeat_timeout_seconds=beyond,
            coordinator_bind_address=bind_address(place),
        )
    except RuntimeError as error:
        raise ValueError(
            f"process {place.process_id} of {place.processes} ({place.source}) cannot join the coordinator "
            f"{place.coordinator}: {str(error).splitlines()[0][:200]}"
        ) from error
    JOINED.append(place)
    return place


def find_place(runtime: cfg.Runtime, environment: Mapping[str, str]) -> Place | None:
    """From the environment's three names, or from a scheduler; None: one process alone."""
    if runtime.distributed == "never":
        return None
    given = [name for name in NAMES if environment.get(name)]
    if len(given) == len(NAMES):
        return from_environment(environment)
    if given:
        missing = ", ".join(name for name in NAMES if name not in given)
        raise ValueError(f"{given[0]}={environment[given[0]]} is set and {missing} not; set all three, or none")
    scheduler = next((name for name, present in SCHEDULERS.items() if present(environment)), None)
    if scheduler is None and runtime.distributed == "auto":
        return None
    return from_scheduler(scheduler or "JAX's cluster detection")


def several(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").isdigit() and int(environment[name]) > 1


# who is asked where nothing is said; a TPU pod outside Kubernetes says nothing in its environment: distributed=always
SCHEDULERS = {
    "SLURM": lambda e: several(e, "SLURM_NTASKS") and "SLURM_PROCID" in e and "SLURM_STEP_NODELIST" in e,
    "Open MPI": lambda e: several(e, "OMPI_COMM_WORLD_SIZE"),
    "TPU workers": lambda e: "," in e.get("TPU_WORKER_HOSTNAMES", "") or several(e, "MEGASCALE_NUM_SLICES"),
    "Kubernetes": lambda e: "KUBERNETES_SERVICE_HOST" in e and "JOB_COMPLETION_INDEX" in e,
}


def from_environment(environment: Mapping[str, str]) -> Place:
    address, processes, process_id = (environment[name] for name in NAMES)
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"JAXSCALE_COORDINATOR={address} is not HOST:PORT; give e.g. 127.0.0.1:9876")
    for name in NAMES[1:]:
        if not environment[name].isdigit():
            raise ValueError(f"{name}={environment[name]} is not a number; processes are counted from 0")
    if int(process_id) >= int(processes):
        raise ValueError(
            f"JAXSCALE_PROCESS_ID={process_id} is not below JAXSCALE_PROCESSES={processes}; ids are 0 to processes - 1"
        )
    local = environment.get("JAXSCALE_LOCAL_DEVICE_IDS")
    ids = tuple(int(x) for x in local.split(",")) if local else None
    return Place(address, int(processes), int(process_id), ids, "environment")


def from_scheduler(name: str) -> Place:
    """What JAX's detection finds. It is asked here, and not left to `initialize`, so that the coordinator need not
    listen on every address of its machine."""
    detect = private.find("detect_cluster")
    try:
        detected = detect(None, None, None, None, None, 300)
    except Exception as error:  # what a scheduler's interface raises: HTTP, DNS, parsing
        raise ValueError(f"{name}: JAX's cluster detection failed: {first_line(error)}; {HOW_ELSE}") from error
    coordinator, processes, process_id, local = detected
    if coordinator is None or processes is None or process_id is None:
        raise ValueError(f"{name}: JAX's cluster detection finds no coordinator, size and rank here; {HOW_ELSE}")
    device_ids = tuple(local) if local and several_here(os.environ) else None
    return Place(coordinator, processes, process_id, device_ids, name)


def several_here(environment: Mapping[str, str]) -> bool:
    """Do several processes share this machine's GPUs? Then each takes the one of its local rank, as JAX would have it;
    JAX gives one GPU to a process that has the machine to itself, too."""
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", ""))
    return any(int(part.split("(")[0]) > 1 for part in tasks.split(",") if part)  # SLURM's: 2(x3),1


HOW_ELSE = f"set {', '.join(NAMES)}, or runtime.distributed=never for one process"


def bind_address(place: Place) -> str | None:
    """Where process 0 listens: the coordinator's own address, and not all addresses of the machine (JAX's default).

    `JAX_COORDINATOR_BIND_ADDRESS` goes before, for machines that are reached by an address which is not theirs.
    """
    if place.process_id or os.environ.get("JAX_COORDINATOR_BIND_ADDRESS"):
        return None
    host, _, port = place.coordinator.rpartition(":")
    host = host.strip("[]")
    try:
        addresses = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        # Debian has 127.0.1.1 for a machine's own name: no other machine reaches that
        family, _, _, _, address = next((f for f in addresses if f[4][0] != "127.0.1.1"), addresses[0])
        if address[0] == "127.0.1.1" and host != address[0]:
            address = (own_address(), int(port))
        with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address[:2] if family == socket.AF_INET else address)
    except OSError as error:
        raise ValueError(
            f"process 0 cannot listen on the coordinator's address {place.coordinator}: {error.strerror or error}; "
            "choose another port, or set JAX_COORDINATOR_BIND_ADDRESS to an address of this machine"
        ) from error
    numeric = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
    return f"{numeric}:{port}"


def own_address() -> str:
    """This machine's address on the network that its default route leads to; nothing is sent."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as trial:
        trial.connect(("192.0.2.1", 9))  # an address of documentation (RFC 5737)
        return trial.getsockname()[0]


def client() -> Any:
    """The key-value client of JAX's coordination service, None in a run of one process."""
    return private.find("coordination").client


RUNS = [0]  # how many runs this process has begun, as all the others have


def new_run() -> None:
    """Keys of the last run in this process are not met again."""
    RUNS[0] += 1


def prefix() -> str:
    return f"jaxscale/{RUNS[0]}"


def from_first(key: str, value: str, *, seconds: float) -> str:
    """Process 0's value on every process; `key` is used once a run."""
    store = client()
    if store is None:
        return value
    if jax.process_index() == 0:
        store.key_value_set(f"{prefix()}/{key}", value)
        return value
    return store.blocking_key_value_get(f"{prefix()}/{key}", int(1000 * seconds))


def from_all(key: str, value: str, *, seconds: float) -> list[str]:
    """Every process's value, by rank, on every process; `key` is used once a run."""
    store = client()
    if store is None:
        return [value]
    if jax.process_index():
        store.key_value_set(f"{prefix()}/{key}/{jax.process_index()}", value)
        return json.loads(from_first(f"{key}/all", "", seconds=seconds))
    wait, others = int(1000 * seconds), range(1, jax.process_count())
    values = [value, *(store.blocking_key_value_get(f"{prefix()}/{key}/{rank}", wait) for rank in others)]
    from_first(f"{key}/all", json.dumps(values), seconds=seconds)  # one value for all to read
    return values


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


KEEP: list[Any] = []  # the C callback must live as long as the process


def name_the_end(place: Place) -> None:
    """Say who is gone, and exit with the documented code, where JAX's runtime ends this process by abort().

    Its client does that from a thread of its own when the connection to the coordinator breaks: no exception reaches
    Python, and the callback that it has for this fails from Python (std::bad_cast). abort() raises SIGABRT first.
    """
    host, _, port = place.coordinator.rpartition(":")

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def ended(number: int) -> None:
        if place.process_id == 0 or reachable(host.strip("[]"), int(port)):
            return  # for another reason, which stands above: abort goes on
        tell(
            f"process {place.process_id}: the coordinator vanished (process 0 of {place.processes}, "
            f"{place.coordinator})",
            VANISHED,
        )

    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(ended, ctypes.c_void_p))
    KEEP.append(ended)


def reachable(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


def tell(message: str, code: int) -> None:
    """The last line of this process, and its end, from any thread: nothing that runs at exit may wait for others."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        print(f"error: {one_line(message)}", file=sys.stderr, flush=True)
    os._exit(code)
