"""The shipped files under configs/launch, on real schedulers where they are installed: SLURM, Open MPI."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from faults.slurm_cluster import NODES, missing, slurm_cluster

from jaxscale.cluster.codes import CORRUPT, INTERRUPTED, MENDABLE, PREEMPTED
from jaxscale.config import find_config, shipped_configs
from jaxscale.files.jsonl import read_records

LAUNCH = shipped_configs() / "launch"
STEPS = 150  # some seconds of them, so that the signal comes before the last
PROGRAM = """#!{python}
import sys
from jaxscale.cli import main
main()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """With a run's file, and `jaxscale` on the PATH."""
    values = {
        "name": "tiny", "out": str(tmp_path / "run"), "steps": STEPS, "mesh": {"data": 2},
        "model": {"vocab_size": 64, "num_layers": 1, "embed_dim": 16, "num_heads": 2, "mlp_dim": 32},
        "data": {"kind": "synthetic", "batch_size": 4, "seq_len": 16},
        "step": {"compute_dtype": "float32", "remat": "none"}, "optimizer": {"schedule": "constant"},
        "metrics": {"tensorboard": False}, "checkpoint": {"every": 1000}, "evaluation": {"batches": 1},
        "runtime": {"platform": "cpu", "simulated_devices": 2, "compilation_cache": None},
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    put(tmp_path / "bin" / "jaxscale", PROGRAM.format(python=sys.executable))
    package = str(Path(sys.modules["jaxscale"].__file__).parent.parent)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))))
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("TERM", "dumb")
    return tmp_path


def put(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def steps(folder: Path) -> list[int]:
    return [r["step"] for r in read_records(folder / "run" / "metrics.jsonl") if r["kind"] == "train"]


def until(condition, seconds: float = 120, tell=lambda: "") -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, tell()
        time.sleep(0.1)


@pytest.mark.faults
@pytest.mark.skipif(bool(missing()), reason=f"no SLURM: {missing()}")
def test_slurm_trains_on_two_nodes_is_preempted_queued_again_and_goes_on(folder):
    log = folder / "log"
    with slurm_cluster() as slurm:

        def ask(*words: str) -> str:
            done = subprocess.run(words, env=slurm, cwd=folder, capture_output=True, text=True, check=True, timeout=60)
            return done.stdout

        def state(job: str) -> str:
            return re.search(r"JobState=(\w+)", ask("scontrol", "show", "job", job))[1]

        words = ["--parsable", f"--output={log}", LAUNCH / "slurm.sbatch", "tiny.yaml"]
        job = ask("sbatch", *map(str, words)).strip()
        until(lambda: len(steps(folder)) > 2, tell=lambda: ask("squeue") + log.read_text())
        ask("scancel", "--signal=TERM", job)
        until(lambda: "Restarts=1" in ask("scontrol", "show", "job", job), tell=lambda: log.read_text())
        saved = [int(p.name) for p in (folder / "run" / "checkpoints").iterdir()]
        until(lambda: state(job) == "COMPLETED", tell=lambda: f"{state(job)}\n{log.read_text()}")
        shown = ask("scontrol", "show", "job", job)
    text = log.read_text()
    assert "ExitCode=0:0" in shown
    assert all(node in NODES for node in re.findall(r"srun: error: (\w+): task", text))
    for rank in (0, 1):
        assert f"{rank}: error: stopped after step {saved[0]}; the same command resumes from there" in text
    assert f"exit code {PREEMPTED}: queued again" in text
    assert f"0: resuming from step {saved[0]} of" in text
    assert "1: resuming" not in text
    assert steps(folder) == list(range(1, STEPS + 1))
    assert 0 < saved[0] < STEPS


@pytest.mark.faults
@pytest.mark.skipif(not shutil.which("mpirun"), reason="no mpirun: Debian's openmpi-bin")
def test_open_mpi_trains_and_hands_sigusr1_on(folder):
    words = ["mpirun", "--oversubscribe", "-n", "2", "jaxscale", "train", "tiny.yaml", "steps=100000"]
    if os.getuid() == 0:
        words.insert(1, "--allow-run-as-root")
    with (folder / "log").open("w") as log:
        mpirun = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        until(lambda: len(steps(folder)) > 4 or mpirun.poll() is not None)
        mpirun.send_signal(signal.SIGUSR1)
        assert mpirun.wait(60) == PREEMPTED, (folder / "log").read_text()
    finally:
        mpirun.kill()
        mpirun.wait()
    text = (folder / "log").read_text()
    last = int(re.search(r"error: stopped after step (\d+);", text)[1])
    assert steps(folder) == list(range(1, last + 1))
    assert [p.name for p in (folder / "run" / "checkpoints").iterdir()] == [str(last)]


# --- the files themselves --------------------------------------------------------------------------------------

GCLOUD = """#!/bin/bash
printf '%s\\n' "$@" > asked
for word; do case $word in --command=*) exec bash -c "${word#--command=}" ;; esac; done
"""
JAXSCALE = """#!/bin/bash
printf '[%s]' "$@" >> runs; echo >> runs
exit $(sed -n "$(wc -l < runs)p" codes)
"""


@pytest.mark.parametrize(
    ("codes", "runs", "code"),
    [([76, 137, 0], 3, 0), ([MENDABLE], 1, MENDABLE), ([1, CORRUPT], 2, CORRUPT), ([PREEMPTED], 1, PREEMPTED),
     ([INTERRUPTED], 1, INTERRUPTED), ([77] * 3, 3, 77)],
)  # fmt: skip
def test_tpu_hosts_start_again_after_a_crash_and_only_then(folder, codes, runs, code):
    put(folder / "bin" / "gcloud", GCLOUD)
    put(folder / "bin" / "jaxscale", JAXSCALE)
    put(folder / "bin" / "sleep", "#!/bin/sh\n")
    (folder / "codes").write_text("".join(f"{c}\n" for c in codes))
    done = subprocess.run(
        ["bash", LAUNCH / "tpu-pod.sh", "tiny.yaml", "out=a b; exit 9", "data.path=$HOME/*"], cwd=folder,
        env=os.environ | {"TPU": "slice", "ZONE": "zone", "RESTARTS": "2"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    words = "[train][tiny.yaml][out=a b; exit 9][data.path=$HOME/*][runtime.distributed=always]"
    assert (folder / "runs").read_text().splitlines() == [words] * runs
    assert {"slice", "--zone=zone", "--worker=all"} < set((folder / "asked").read_text().splitlines())


@pytest.mark.parametrize(
    ("code", "before", "runs_again"),
    [(76, "", True), (137, "19", True), (76, "20", False), (0, "", False), (MENDABLE, "", False), (CORRUPT, "", False)],
)
def test_the_batch_script_queues_itself_again_after_a_crash_and_only_then(folder, code, before, runs_again):
    put(folder / "bin" / "srun", f'#!/bin/bash\nprintf "[%s]" "$@" > asked\nexit {code}\n')
    put(folder / "bin" / "scontrol", '#!/bin/bash\necho "$@" > again\n')
    environment = os.environ | {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": before}
    done = subprocess.run(["bash", LAUNCH / "slurm.sbatch", "tiny.yaml", "out=a b"], cwd=folder, env=environment)
    assert done.returncode == (0 if runs_again else code)
    assert (folder / "again").exists() == runs_again
    assert (folder / "asked").read_text().endswith("[jaxscale][train][tiny.yaml][out=a b]")


def test_the_jobset_says_each_thing_alike_wherever_it_stands():
    jobset, policy = yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text())
    name = jobset["metadata"]["name"]
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    environment = {e["name"]: e.get("value") for e in container["env"]}
    host, port = environment["JAXSCALE_COORDINATOR"].split(":")
    assert host == f"{name}-{workers['name']}-0-0.{name}"
    assert environment["JAX_COORDINATOR_BIND_ADDRESS"] == f"$(POD_IP):{port}"
    assert job["completions"] == job["parallelism"] == int(environment["JAXSCALE_PROCESSES"])
    actions = {rule["action"]: rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"]}
    assert {rule["containerName"] for rule in actions.values()} == {container["name"]}
    assert actions["FailJob"]["values"] == [MENDABLE, CORRUPT]
    assert actions["Ignore"]["values"] == [PREEMPTED]
    assert pod["restartPolicy"] == "Never", "what a podFailurePolicy asks for"
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert container["command"][:2] == ["jaxscale", "train"]
    find_config(container["command"][2])
    own = {"jobset.sigs.k8s.io/jobset-name": name}
    assert policy["spec"]["podSelector"]["matchLabels"] == own
    assert policy["spec"]["ingress"] == [{"from": [{"podSelector": {"matchLabels": own}}]}]
