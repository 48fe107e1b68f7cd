"""`jaxscale launch`: a run's processes on this machine, restarted from the newest checkpoint when one fails. No jax.

What is wrong with the request is said before any process starts. How the processes live is cluster/local.py's.
"""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxscale import config as cfg
from jaxscale.checkpoint.inventory import committed_steps
from jaxscale.cluster.codes import CORRUPT, DONE, INTERRUPTED, MEANING, MENDABLE, PREEMPTED
from jaxscale.cluster.local import POLL_SECONDS, Children, watch
from jaxscale.files.jsonl import read_records
from jaxscale.files.places import open_place
from jaxscale.files.redact import one_line

ROOT = Path(__file__).parent.parent.parent
SHARED = {
    "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    "PYTHONUNBUFFERED": "1",  # lines are wanted when they are written
}
VERB = "import sys; sys.argv[0] = 'jaxscale'; from jaxscale.cli import main; main()"
STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
FINAL = (MENDABLE, CORRUPT)  # a person must look before the run goes on
LONGEST_PAUSE = 60.0  # seconds
FRUITLESS = 3  # restarts in a row that gain no step; one may be a second fault before the next checkpoint


@dataclass(frozen=True)
class Team:
    """How many processes, at which port of this machine they meet (None: a free one), how they stop and start again.

    `devices_per_process` are simulated devices on a CPU (None: the config's, shared out), and GPUs where there are some
    (None: 1). `grace` is seconds from one process's failure to SIGKILL for the others.
    """

    processes: int
    devices_per_process: int | None = None
    max_restarts: int = 0
    grace: float = 10.0
    port: int | None = None


@dataclass(frozen=True)
class Progress:
    """Of a run's directory: the newest committed checkpoint's step, and the furthest step that was done; 0 for none."""

    saved: int
    done: int

    def beyond(self, other: "Progress") -> bool:
        return self.saved > other.saved or self.done > other.done

    def furthest(self, other: "Progress") -> "Progress":
        return Progress(max(self.saved, other.saved), max(self.done, other.done))


def launch(arguments: Sequence[str], config: str, overrides: Sequence[str], team: Team) -> int:
    """Run `jaxscale ARGUMENTS` on `team`; returns an exit code of cluster/codes.py, or that of the first that failed.

    Args:
        arguments: `train`'s, the verb first, with `config` and `overrides` among them.

    Raises ValueError for what cannot work, before any process starts.
    """
    added, places, loaded = prepare(config, overrides, team)
    best, fruitless = Progress(-1, -1), 0  # how far it ever came, and restarts in a row that came no further
    with signals() as heard:
        for restart in range(team.max_restarts + 1):
            code = run_once([*arguments, *added], places, heard, team)
            if heard or code in (DONE, PREEMPTED, INTERRUPTED) or not team.max_restarts:
                return code
            now = progress(loaded.out_dir, loaded.checkpoint_place)
            fruitless = 0 if now.beyond(best) else fruitless + 1
            best, seconds = best.furthest(now), min(LONGEST_PAUSE, 2.0**restart)
            if reason := against_restart(code, restart, team, best, fruitless):
                say(f"not restarted: {reason}")
                return code
            start = f"step {now.saved}" if now.saved else "the beginning"
            say(f"restart {restart + 1} of {team.max_restarts} in {seconds:g} s, from {start} ({now.done} were done)")
            pause(seconds, heard)
            if heard:  # while nothing ran
                return INTERRUPTED if signal.SIGINT in heard else PREEMPTED
    raise AssertionError("there is a reason against a restart after the last")


def run_once(arguments: Sequence[str], places: Sequence[dict[str, str]], heard: list[int], team: Team) -> int:
    """Start all processes, wait for all; the exit code of this attempt."""
    with coordinator(team.port) as address:
        added = [SHARED | place | {"JAXSCALE_COORDINATOR": address} for place in places]
        with Children([sys.executable, "-P", "-c", VERB, *arguments], added) as children:
            failed = watch(children, heard, grace=team.grace)
    if heard.count(signal.SIGINT) > 1:
        return INTERRUPTED
    if failed:
        say(f"{failed}" + (f"; the others of {team.processes} are stopped" if team.processes > 1 else ""))
        return failed.code
    codes = {end.code for end in children.ends} - {DONE}
    if not codes:
        return DONE
    if heard:
        return INTERRUPTED if signal.SIGINT in heard else PREEMPTED
    return PREEMPTED if PREEMPTED in codes else INTERRUPTED


def against_restart(code: int, restart: int, team: Team, best: Progress, fruitless: int) -> str:
    """Why no further restart is made; empty where one is."""
    if code in FINAL:
        return f"exit code {code} is {MEANING[code]}"
    if fruitless >= FRUITLESS:
        reached = f"newest checkpoint {best.saved}, furthest step {best.done}"
        return f"{fruitless} restarts in a row gained no step ({reached})"
    return f"{restart} restarts were allowed" if restart == team.max_restarts else ""


def progress(out: Path, checkpoints: str) -> Progress:
    """Read from the run's directory and from where its checkpoints are; where those cannot be listed just now, as in a
    store that does not answer, that is said, and the steps that were done are what counts."""
    saved: list[int] = []
    try:
        saved = committed_steps(open_place(checkpoints))
    except Exception as error:  # each store's client has its own kinds
        say(f"checkpoints cannot be listed ({one_line(str(error))}); the steps that were done are counted")
    steps = [r.get("step") for r in read_records(out / "events.jsonl") if r.get("event") == "step"]
    return Progress(max(saved, default=0), max((s for s in steps if isinstance(s, int)), default=0))


# --- what is asked for, checked --------------------------------------------------------------------------------


def prepare(config: str, overrides: Sequence[str], team: Team) -> tuple[list[str], list[dict[str, str]], cfg.Config]:
    """Overrides to add, each process's place in the environment, and the config."""
    if sys.platform != "linux":
        raise ValueError(f"launch needs Linux, whose kernel ends what a killed parent leaves; this is {sys.platform}")
    loaded = cfg.load_config(config, list(overrides))
    runtime, processes = loaded.runtime, team.processes
    if runtime.distributed == "never" and processes > 1:
        raise ValueError(f"runtime.distributed=never, but --processes {processes}; leave one of them out")
    if runtime.platform == "tpu":
        raise ValueError(
            "runtime.platform=tpu: one process has all chips of a TPU host; start `jaxscale train` once on each, as "
            "configs/launch/tpu-pod.sh does"
        )
    places = [{"JAXSCALE_PROCESSES": str(processes), "JAXSCALE_PROCESS_ID": str(i)} for i in range(processes)]
    gpus = count_gpus() if uses_gpus(runtime.platform) else 0
    if runtime.platform == "gpu" or gpus:
        each = team.devices_per_process or 1
        if processes * each > gpus:
            fewer = f"take --processes {gpus // each}, or " if gpus >= each else ""
            raise ValueError(
                f"--processes {processes}, {each} of the GPUs each, need {processes * each}; there are {gpus}: "
                f"{fewer}runtime.platform=cpu"
            )
        for i, place in enumerate(places):
            place["JAXSCALE_LOCAL_DEVICE_IDS"] = ",".join(str(i * each + k) for k in range(each))
        loaded.mesh.sizes(processes * each)
        return [], places, loaded
    devices, added = runtime.simulated_devices or processes, []
    if team.devices_per_process:
        devices = processes * team.devices_per_process
        added = [f"runtime.simulated_devices={devices}"]
    if devices % processes:
        raise ValueError(
            f"runtime.simulated_devices={devices} are not the same number on each of {processes} processes; take "
            f"--processes one of {cfg.divisors(devices)}, or give --devices-per-process"
        )
    loaded.mesh.sizes(devices)
    return added, places, loaded


def uses_gpus(platform: str) -> bool:
    """Whether JAX would look for NVIDIA GPUs, without asking it."""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    plugins = any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13))
    return platform == "gpu" or (platform == "auto" and plugins and (not wanted or "cuda" in wanted or "gpu" in wanted))


def count_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


@contextlib.contextmanager
def coordinator(port: int | None) -> Iterator[str]:
    """`127.0.0.1:PORT`, kept from other programs until process 0 listens on it (both sockets set SO_REUSEADDR)."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            kept.bind(("127.0.0.1", port or 0))
        except OSError as error:
            raise ValueError(f"--port {port}: {error.strerror}; choose another, or leave it out") from error
        yield f"127.0.0.1:{kept.getsockname()[1]}"


# --- this process ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """The signals that ask to stop, as they come; one that was ignored at the start (nohup) stays so."""
    heard: list[int] = []

    def handle(number: int, frame: object) -> None:
        heard.append(number)
        if number == signal.SIGINT and heard.count(number) == 1:
            os.write(2, b"\nstopping: the processes save and end; Ctrl-C again kills them\n")

    previous = {s: signal.getsignal(s) for s in STOPS}
    for number in STOPS:
        if previous[number] is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield heard
    finally:
        for number, action in previous.items():
            signal.signal(number, action)


def pause(seconds: float, heard: Sequence[int]) -> None:
    """Sleep, and no longer than until a signal comes."""
    end = time.monotonic() + seconds
    while not heard and time.monotonic() < end:
        time.sleep(POLL_SECONDS)


def say(line: str) -> None:
    with contextlib.suppress(OSError):
        print(f"launch: {line}", file=sys.stderr, flush=True)
