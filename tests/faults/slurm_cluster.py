"""A real SLURM of two nodes on this machine: munged, slurmctld and two slurmd on loopback, in a temporary directory.

Needs root and Debian's slurm-wlm and munge; no systemd, nothing outside the directory is changed: the nodes' names
stand in a hosts file that only the two slurmd and what they start see. By hand:

    python tests/faults/slurm_cluster.py sbatch --wait -N2 job.sbatch
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NODES = ("jaxnode1", "jaxnode2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue", "unshare")
CONF = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1
KillWait=10
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=all Nodes={nodes[0]},{nodes[1]} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no such cluster here; empty where there can."""
    if os.getuid():
        return "not root"
    sbin = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))
    absent = [name for name in PROGRAMS if not shutil.which(name, path=sbin)]
    return f"{', '.join(absent)} not installed" if absent else ""


@contextlib.contextmanager
def slurm_cluster() -> Iterator[dict[str, str]]:
    """Environment for sbatch, squeue and the rest; on leaving, every daemon and job is ended."""
    root = Path(tempfile.mkdtemp(prefix="slurm-"))
    root.chmod(0o755)
    for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
        (root / name).mkdir()
    (root / "hosts").write_text(Path("/etc/hosts").read_text() + f"\n127.0.0.1 {' '.join(NODES)}\n")
    key = root / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    text = CONF.format(root=root, host=socket.gethostname().split(".")[0], nodes=NODES, ports=free_ports(3))
    (root / "slurm.conf").write_text(text)
    environment = os.environ | {"SLURM_CONF": str(root / "slurm.conf")}
    environment["PATH"] = os.pathsep.join((environment.get("PATH", ""), "/usr/sbin"))
    with contextlib.ExitStack() as daemons:
        daemons.callback(shutil.rmtree, root, ignore_errors=True)
        munged = ["munged", "--foreground", f"--key-file={key}"]
        munged += [f"--{name}-file={root}/munge/{name}" for name in ("pid", "log", "seed")]
        start(daemons, [*munged, f"--socket={root}/munge/socket"], environment, root)
        wait_for(lambda: (root / "munge" / "socket").exists(), "munged's socket", root)
        start(daemons, ["slurmctld", "-D", "-i"], environment, root)
        own_hosts = f"mount --bind {root}/hosts /etc/hosts && exec slurmd -D -N "
        for node in NODES:
            start(daemons, ["unshare", "--mount", "sh", "-c", own_hosts + node], environment, root)
        wait_for(lambda: idle_nodes(environment) == len(NODES), "two idle nodes", root)
        try:
            yield environment
        finally:
            subprocess.run(["scancel", "--full", "--signal=KILL", "--user=root"], env=environment, capture_output=True)
            subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True)
            with contextlib.suppress(TimeoutError):
                wait_for(lambda: not queue(environment), "an empty queue", root)


def start(daemons: contextlib.ExitStack, command: list[str], environment: dict[str, str], root: Path) -> None:
    with (root / "daemons.log").open("ab") as log:
        daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    daemons.callback(end, daemon)


def end(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def idle_nodes(environment: dict[str, str]) -> int:
    shown = subprocess.run(["sinfo", "-h", "-N", "-o", "%T"], env=environment, capture_output=True, text=True)
    return shown.stdout.split().count("idle")


def queue(environment: dict[str, str]) -> str:
    return subprocess.run(["squeue", "-h"], env=environment, capture_output=True, text=True).stdout


def wait_for(condition, what: str, root: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(f"== {p.name}\n{p.read_text()[-600:]}" for p in sorted(root.glob("*.log")))
            raise TimeoutError(f"no {what} within {seconds:g} s\n{logs}")
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(contextlib.closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


if __name__ == "__main__":
    if reason := missing():
        sys.exit(f"error: no SLURM here: {reason}")
    with slurm_cluster() as found:
        sys.exit(subprocess.run(sys.argv[1:], env=found).returncode)
