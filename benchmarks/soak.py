"""A run under random faults beside the same run left in peace: real processes, real signals, real files.

    python benchmarks/soak.py --faults 100 --seed 1             # one mesh: bitwise
    python benchmarks/soak.py --faults 30 --seed 2 --meshes     # another mesh at each start: to 1e-5
    python benchmarks/soak.py --faults 10 --seed 3 --launch     # `jaxscale launch` starts it again: bitwise

A tiny decoder trains on this machine's CPU, its directory on a tmpfs. Each fault is drawn and timed by the seed; then
the run is started again, as an operator would. At the end it has the losses and parameters of the run in peace, and
every checkpoint that was committed before a fault could be read after it, but those that a fault damaged on purpose.
"""

import argparse
import json
import logging
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu"}  # for what this process reads itself

import numpy as np
import yaml
from common import HERE, machine, write_record
from soak_places import PROBLEM, Disk, Hosts

from jaxscale import config as cfg
from jaxscale.cluster.codes import DONE, PREEMPTED

sys.path.append(str(HERE.parent / "tests"))  # the processes are started as the tests start them
from faults.processes import Group, being_saved, committed, last_step, losses, records, train
from faults.reader import Reader, difference

ONE_MESH = {"devices": 2, "meshes": [{"data": 1, "fsdp": 2}], "processes": [1, 2]}
MESHES = {
    "devices": 4,
    "meshes": [{"data": 4}, {"data": 2, "fsdp": 2}, {"data": 1, "fsdp": 4}, {"data": 2, "tensor": 2}],
    "processes": [1, 2, 2, 2, 4],
}
WEIGHTS = {"kill": 26, "kill during a save": 22, "terminate": 15, "damaged checkpoint": 14, "full disk": 8,
           "kill all while starting": 8, "other processes": 5, "lost host": 2}  # fmt: skip
EVERY, KEEP = 20, 2
RUN = {
    "name": "soak", "steps": 10**6,
    "model": {"vocab_size": 250, "num_layers": 1, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 64},
    "data": {"kind": "synthetic", "batch_size": 8, "seq_len": 32},
    "step": {"compute_dtype": "float32", "remat": "none"},
    "optimizer": {"learning_rate": 1e-4, "schedule": "constant"},
    "checkpoint": {"every": EVERY, "keep_last": KEEP}, "metrics": {"tensorboard": False},
    "watch": {"peer": 5, "start": 120, "step": 120},  # 3 took a process that got no core for one that vanished
}  # fmt: skip


class Soak:
    """The run, what has been seen of it, and the faults; `entries` has a line for each."""

    def __init__(self, folder: Path, *, seed: int, processes: int, places: dict[str, Any]):
        self.random, self.places, self.processes = random.Random(seed), places, processes
        self.folder, self.out = folder, folder / "disk" / "run"
        self.left_out: dict[str, str] = {}
        self.disk, self.hosts = self.make(Disk, folder / "disk", "full disk"), self.make(Hosts, folder, "lost host")
        run = RUN | {"runtime": {"platform": "cpu", "simulated_devices": places["devices"],
                                 "compilation_cache": str(folder / "cache")}}  # fmt: skip
        self.file = folder / "soak.yaml"
        self.file.write_text(yaml.safe_dump(run))
        self.reader = Reader(cfg.validate(run | {"mesh": {"data": 1}}, source="soak"))
        self.entries: list[dict[str, Any]] = []
        self.seen: dict[int, set[tuple[float, float]]] = {}
        self.damaged: set[int] = set()
        self.group: Group | None = None
        self.other_processes = False

    def make(self, what: Callable[[Path], Any], path: Path, kind: str) -> Any:
        try:
            return what(path)
        except PROBLEM as error:
            path.mkdir(parents=True, exist_ok=True)
            self.left_out[kind] = f"not allowed here: {error}"
        return None

    def kinds(self, count: int) -> list[str]:
        """As many of each kind as its weight says, in random order."""
        weights = {kind: weight for kind, weight in WEIGHTS.items() if kind not in self.left_out}
        shares = {kind: count * weight / sum(weights.values()) for kind, weight in weights.items()}
        numbers = {kind: int(share) for kind, share in shares.items()}
        for kind in sorted(shares, key=lambda k: numbers[k] - shares[k])[: count - sum(numbers.values())]:
            numbers[kind] += 1
        found = [kind for kind, number in numbers.items() for _ in range(number)]
        self.random.shuffle(found)
        return found

    # --- one fault

    def fault(self, kind: str) -> None:
        entry: dict[str, Any] = {"kind": kind, "committed": [], "step": 0}
        try:
            self.do(kind, entry)
        except AssertionError as error:  # what the run should not have done; the other faults go on
            entry |= {"survived": False, "failure": str(error)[-4000:]}
            if self.group:
                self.group.kill()
                self.group = None
        self.entries.append(entry)
        if self.group is None:
            self.look(entry)
        print(f"{len(self.entries):4}  {kind:24} {entry}", flush=True)

    def do(self, kind: str, entry: dict[str, Any]) -> None:
        group = self.start(kind, entry)
        if kind != "kill all while starting":
            self.first_step(group)
        faults = {"kill": self.kill, "kill during a save": self.kill_saving, "terminate": self.terminate,
                  "damaged checkpoint": self.damage, "full disk": self.fill, "lost host": self.cut,
                  "kill all while starting": self.kill_starting, "other processes": self.kill_all}  # fmt: skip
        faults[kind](group, entry)

    def start(self, kind: str, entry: dict[str, Any]) -> Group:
        """The processes, started where there are none; a lost host needs them in namespaces."""
        if self.group and kind in ("lost host", "kill all while starting"):
            self.group.signal(0, signal.SIGTERM)
            self.group.wait()
            self.group = None
        if self.group is None:
            count = 2 if kind == "lost host" else self.count()
            self.mesh, self.started = self.random.choice(self.places["meshes"]), time.time()
            where = {"host": Hosts.ADDRESSES[0], "wrap": self.hosts.wrap} if kind == "lost host" else {}
            mesh = [f"mesh.{axis}={size}" for axis, size in self.mesh.items()]
            self.group = train(self.file, self.out, mesh, processes=count, **where)
        entry |= {"processes": len(self.group.processes), "mesh": self.mesh}
        return self.group

    def count(self) -> int:
        if len(self.places["meshes"]) > 1:
            return self.random.choice(self.places["processes"])
        other = [n for n in self.places["processes"] if n != self.processes]
        return self.random.choice(other) if self.other_processes else self.processes

    def first_step(self, group: Group) -> None:
        """Wait for it; the fault before has been survived, and its seconds are known."""
        began = self.started
        record = group.until(
            lambda: next((r for r in records(self.out, last=4096) if r["time"] > began), None), pause=0.05
        )
        self.other_processes = False
        before = next((e for e in reversed(self.entries) if "at" in e), None)
        if before is not None and "survived" not in before:
            resumed = [line for line in group.text(0).splitlines() if line.startswith("resuming from step")]
            step = int(resumed[-1].split()[3]) if resumed else 0
            before["survived"] = step == before["resumes"]
            before["recovered_seconds"] = record["time"] - before["at"]
            assert before["survived"], f"resumed from {step}, not {before['resumes']}: {before}\n{group.texts()}"

    def wander(self, group: Group, most: int = 45) -> None:
        """Some steps, and a moment more."""
        target = last_step(self.out) + self.random.randint(0, most)
        group.until(lambda: last_step(self.out) >= target)
        time.sleep(self.random.random() * 0.05)

    def now(self, entry: dict[str, Any]) -> None:
        entry |= {"at": time.time(), "step": last_step(self.out), "committed": committed(self.out)}

    def ended(self, group: Group, entry: dict[str, Any], seconds: float = 90.0) -> None:
        entry["codes"] = group.wait(seconds)
        entry["ended_seconds"] = time.time() - entry["at"]
        entry["said"] = [group.error(rank).removeprefix("error: ")[:160] for rank in range(len(entry["codes"]))]
        group.kill()
        self.group = None

    def look(self, entry: dict[str, Any]) -> None:
        """Which checkpoints are whole now; those that were committed before the fault are all there."""
        for step, value in losses(self.out).items():
            self.seen.setdefault(step, set()).add(value)
        there = committed(self.out)
        whole = self.reader.whole(self.out, there)
        gone = [s for s in entry["committed"] if s not in whole and s not in self.damaged]
        kept = set(there[-KEEP:])
        entry["lost"] = [s for s in gone if s in there or len([k for k in kept if k > s]) < KEEP]
        entry["resumes"] = max(whole, default=0)
        made = any(record["time"] > self.started for record in records(self.out, last=4096))
        entry["steps_lost"] = max(0, entry["step"] - entry["resumes"]) if made else 0
        shutil.rmtree(self.out / "checkpoints-damaged", ignore_errors=True)

    # --- the kinds

    def kill(self, group: Group, entry: dict[str, Any]) -> None:
        self.wander(group)
        self.kill_one(group, entry)

    def kill_one(self, group: Group, entry: dict[str, Any]) -> None:
        entry["rank"] = self.random.randrange(len(group.processes))
        group.signal(entry["rank"], signal.SIGKILL)
        entry["half_written"] = bool(being_saved(self.out))
        self.now(entry)
        self.ended(group, entry)

    def kill_saving(self, group: Group, entry: dict[str, Any]) -> None:
        group.until(lambda: being_saved(self.out), pause=0.001)
        time.sleep(self.random.random() * 0.03)
        self.kill_one(group, entry)

    def kill_starting(self, group: Group, entry: dict[str, Any]) -> None:
        time.sleep(self.random.random() * 5)
        self.kill_all_now(group, entry)

    def kill_all(self, group: Group, entry: dict[str, Any]) -> None:
        self.wander(group)
        self.kill_all_now(group, entry)
        self.other_processes = True

    def kill_all_now(self, group: Group, entry: dict[str, Any]) -> None:
        self.now(entry)
        for rank in group.alive():
            group.signal(rank, signal.SIGKILL)
        self.ended(group, entry)

    def terminate(self, group: Group, entry: dict[str, Any]) -> None:
        self.wander(group)
        number = self.random.choice([signal.SIGTERM, signal.SIGUSR1])
        entry |= {"rank": self.random.randrange(len(group.processes)), "signal": number.name}
        self.now(entry)
        group.signal(entry["rank"], number)
        self.ended(group, entry)
        assert set(entry["codes"]) == {PREEMPTED}, f"{entry}\n{group.texts()}"

    def damage(self, group: Group, entry: dict[str, Any]) -> None:
        """All processes are stopped, and one file of the newest checkpoint is cut short or has one bit turned."""
        group.until(lambda: len(committed(self.out)) > 1)
        self.wander(group)
        group.signal(0, signal.SIGTERM)
        group.wait()
        step = committed(self.out)[-1]
        files = sorted(p for p in (self.out / "checkpoints" / str(step)).rglob("*") if p.is_file() and p.stat().st_size)
        file = self.random.choice(files)
        data = bytearray(file.read_bytes())
        if self.random.random() < 0.5:
            entry["damage"] = "cut short"
            data = data[: self.random.randrange(len(data))]
        else:
            entry["damage"] = "a bit turned"
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        file.write_bytes(data)
        entry["file"] = str(file.relative_to(self.out / "checkpoints"))
        self.now(entry)
        self.damaged = {step}
        self.ended(group, entry)

    def fill(self, group: Group, entry: dict[str, Any]) -> None:
        """No room for what is saved next, or for part of it; training goes on, and saves once there is room."""
        self.wander(group, 20)
        self.now(entry)
        text, before = len(group.text(0)), entry["committed"]
        self.disk.fill(leave=self.random.randrange(int(1.2 * self.reader.state_bytes)))
        try:

            def told() -> bool:
                return "training goes on" in group.text(0)[text:] or committed(self.out)[-1:] > before[-1:]

            group.until(told)
            entry["told"] = "training goes on" in group.text(0)[text:]
        finally:
            self.disk.make_room()
        newest = committed(self.out)[-1:]
        group.until(lambda: committed(self.out)[-1:] > newest)
        kept = self.reader.whole(self.out, committed(self.out))
        entry |= {"survived": True, "steps_lost": 0, "lost": [s for s in before[-1:] if not kept], "went_on": True}

    def cut(self, group: Group, entry: dict[str, Any]) -> None:
        self.wander(group)
        self.now(entry)
        self.hosts.set_link("down")
        try:
            self.ended(group, entry)
        finally:
            self.hosts.set_link("up")

    # --- the end

    def finish(self) -> dict[str, Any]:
        """The last steps, the same run in peace, and how far they differ."""
        steps = max(last_step(self.out), max(self.seen, default=0)) + EVERY
        if self.group:
            self.group.signal(0, signal.SIGTERM)
            self.group.wait()
        self.group, self.started = None, time.time()
        mesh = [f"mesh.{axis}={size}" for axis, size in self.places["meshes"][-1].items()]
        with train(self.file, self.out, [*mesh, f"steps={steps}"], processes=self.processes) as group:
            self.first_step(group)
            assert group.wait(300) == [DONE] * self.processes, group.texts()
        peace = self.folder / "peace"
        whole = [f"steps={steps}", f"checkpoint.every={steps}"]
        mesh = [f"mesh.{axis}={size}" for axis, size in self.places["meshes"][0].items()]
        with train(self.file, peace, [*mesh, *whole], processes=self.processes) as group:
            assert group.wait(1200) == [DONE] * self.processes, group.texts()
        wanted, found = losses(peace), losses(self.out)
        for step, value in found.items():
            self.seen.setdefault(step, set()).add(value)
        pairs = [(wanted[step][0], value[0]) for step, values in self.seen.items() for value in values]
        state, other = self.reader.arrays(peace, steps), self.reader.arrays(self.out, steps)
        return {
            "steps": steps,
            "losses_compared": len(pairs),
            "losses_missing": steps - len(self.seen),
            "largest_loss_difference": max(abs(a - b) / abs(a) for a, b in pairs),
            "losses_and_gradient_norms_bitwise": all(v == {wanted[s]} for s, v in self.seen.items()),
            "largest_state_difference": max(difference(state[name], other[name]) for name in state),
            "state_bitwise": all(np.array_equal(state[name], other[name]) for name in state),
        }

    def close(self) -> None:
        if self.group:
            self.group.kill()
        for thing in (self.hosts, self.disk):
            if thing:
                thing.close()


def settle(entries: list[dict[str, Any]]) -> None:
    """A fault after which the processes were killed while they started was survived if that second one was."""
    for entry, after in reversed(list(pairwise(entries))):
        if "survived" not in entry and after["kind"].endswith("while starting") and after.get("survived"):
            entry["survived"] = True


def summary(entries: list[dict[str, Any]]) -> dict[str, Any]:
    settle(entries)
    seconds = [e["recovered_seconds"] for e in entries if "recovered_seconds" in e]
    lost = [e["steps_lost"] for e in entries]
    by_kind = {
        kind: {"faults": sum(e["kind"] == kind for e in entries),
               "survived": sum(bool(e.get("survived")) for e in entries if e["kind"] == kind)}
        for kind in sorted({e["kind"] for e in entries})
    }  # fmt: skip
    return {
        "faults": len(entries),
        "survived": sum(bool(e.get("survived")) for e in entries),
        "by_kind": by_kind,
        "committed_checkpoints_lost": sum(len(e["lost"]) for e in entries),
        "steps_lost": {"total": sum(lost), "median": statistics.median(lost), "max": max(lost)},
        "seconds_to_recover": {"median": statistics.median(seconds), "p95": float(np.quantile(seconds, 0.95)),
                               "max": max(seconds), "samples": len(seconds)},
        "kills_that_left_a_half_written_checkpoint": sum(bool(e.get("half_written")) for e in entries),
        "exit_codes": dict(Counter(str(c) for e in entries for c in e.get("codes", [])).most_common()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=0.0, help="no more faults after so many; 0: all of them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--meshes", action="store_true", help="another mesh and number of processes at each start")
    parser.add_argument("--launch", action="store_true", help="have `jaxscale launch` start it again")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the record")
    parser.add_argument("--summarise", type=Path, help="only sum the entries of this record up again")
    options = parser.parse_args()
    if options.launch and options.meshes:
        parser.error("--launch starts the same mesh again; leave out --meshes")
    if options.summarise:
        record = json.loads(options.summarise.read_text())
        options.summarise.write_text(json.dumps(record | summary(record["entries"]), indent=1) + "\n")
        return
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells of each reading
    about, began = machine(), time.time()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    places = MESHES if options.meshes else ONE_MESH
    from soak_launch import LaunchSoak  # here, as it is made of this file's Soak

    how = LaunchSoak if options.launch else Soak
    soak = how(folder, seed=options.seed, processes=options.processes, places=places)
    try:
        for kind in soak.kinds(options.faults):
            if options.minutes and time.time() - began > 60 * options.minutes:
                break
            soak.fault(kind)
        end = soak.finish()
    finally:
        soak.close()
        shutil.rmtree(folder, ignore_errors=True)
    told = summary(soak.entries)
    command = ["python", "benchmarks/soak.py", *sys.argv[1:]]
    record = {"command": command, "machine": about, "seconds": time.time() - began, "config": RUN | places,
              "left_out": soak.left_out, **told, "beside_the_run_in_peace": end, "entries": soak.entries}  # fmt: skip
    for name, value in (*told.items(), *end.items()):
        print(f"{name:44}{value}")
    kind = "soak-meshes" if options.meshes else "soak-launch" if options.launch else "soak"
    print(f"recorded in {write_record(kind, record, options.out)}")
    same = end["largest_loss_difference"] <= 1e-5 and end["largest_state_difference"] <= 1e-5 if options.meshes else (
        end["losses_and_gradient_norms_bitwise"] and end["state_bitwise"])  # fmt: skip
    assert told["survived"] == told["faults"], "not all faults were survived"
    assert not told["committed_checkpoints_lost"], "a committed checkpoint was lost"
    assert same, "the run does not end as the one in peace"


if __name__ == "__main__":
    main()
