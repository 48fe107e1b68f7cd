"""The thread beside a run: it tells the others that this process lives, and ends a run that stands still, by name.

Every process writes a beat (who, which step, doing what) to JAX's key-value store once a second. Process 0 reads all
beats and, where one is missing or says that its deadline has passed, writes the end that all others read. So each
process does a few small calls a second, whatever their number. Where there is one process, only its deadlines count.

    beat/<rank>   "<count> <step> <doing> <seconds> <late> <where>"       each process; doing: also done, left:<code>
    word/beat     process 0's, for the others                            process 0
    word/end      "<exit code> <message>"                                process 0
    word/stop     "<signal>": somebody was asked to stop                 any process
    at/<rank>     the last step that this process has started            each, once word/stop is seen
    word/last     the largest of these: every process stops after it     process 0
"""

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from jaxscale import config as cfg
from jaxscale.cluster.beats import Beat, Missing, Store, here
from jaxscale.cluster.codes import BROKEN, CORRUPT, HUNG, MENDABLE, VANISHED
from jaxscale.cluster.start import client, new_run, tell
from jaxscale.files.redact import one_line

INTERVAL = 1.0  # seconds between beats
SUSPECT_AFTER = 10.0  # silence that is enough once a collective has failed
LEAVING = 5.0  # seconds in which all processes may fail alike, each saying so itself
DEADLINES = {"devices": "start", "data": "start", "init": "start", "compile": "compile", "checkpoint": "save"}
DEADLINES |= {"evaluation": "compile", "recompute": "compile", "rollback": "start"}  # the first of these compile


class Monitor:
    """Watches one run of this process; `follow` hears what it does, `may_start` is asked before each step.

    Args:
        out: the run's directory; stacks go to `<out>/stacks`.
    """

    def __init__(self, watch: cfg.Watch, out: Path, place: Any):
        new_run()
        self.watch, self.out, self.place = watch, out, place
        self.rank, self.many = place.process_id, place.processes > 1
        if self.many and not watch.enabled:
            raise ValueError("watch.enabled=false is for one process; several stop together by it; leave it true")
        self.store = Store(client())  # used where there are others
        self.writing = threading.Lock()
        self.doing, self.since, self.step = "start", time.monotonic(), 0
        self.started = self.count = 0
        self.suspicious = False
        self.last_words = ""  # "done", or "left:<exit code>": of a process that has ended its run
        self.reason = "-"
        self.signal: str | None = None  # why this process was asked to stop
        self.last: int | None = None  # the step after which all stop
        self.agreeing = False
        self.gate = threading.Condition()
        self.closing = threading.Event()
        ranks = range(place.processes) if self.rank == 0 else range(1)
        self.beats = {rank: Beat("0 0 start 0 - -") for rank in ranks} if self.many else {}
        self.gone: dict[int, float] = {}
        self.answered = time.monotonic()  # when the coordinator last did
        self.thread = threading.Thread(target=self.run, name="monitor", daemon=True)
        if watch.enabled:
            self.thread.start()
            if self.many and watch.peer:
                threading.Thread(target=self.watch_answers, name="monitor of answers", daemon=True).start()

    # --- what the run tells and asks

    def follow(self, event: str, phase: str, step: int | None) -> None:
        """Heard of each line of events.jsonl, before it is written."""
        self.doing = event if phase == "start" else "step"
        self.since = time.monotonic()
        if step is not None:
            self.step = step

    def ask_to_stop(self, name: str) -> None:
        """From a signal's handler: all processes are to stop after one step."""
        self.signal = name
        if not self.many:
            self.last = self.started

    def may_start(self, step: int) -> bool:
        """False where all have agreed to stop before this step. Waits while they agree."""
        with self.gate:
            while self.agreeing and self.last is None:
                self.gate.wait(INTERVAL)
            if self.last is not None and step > self.last:
                return False
            self.started = step
            return True

    def blame(self) -> None:
        """A collective failed: wait for the process that is missing to be named, which ends this one; else return."""
        if not self.many:
            return
        self.suspicious = True
        time.sleep(2 * SUSPECT_AFTER if self.watch.peer else 0)

    def leave(self, code: int, reason: str) -> None:
        """Say goodbye before this process fails, so that the others need not wait for it; never returns where
        there are others: nothing that runs at exit may wait for them."""
        if not self.many:
            return
        self.last_words, self.reason = f"left:{code}", one_line(reason)[:300]
        with contextlib.suppress(Missing):
            self.beat()
            if self.rank == 0:
                self.store.put("word/end", f"{ending(code)} process 0 ended by itself: {self.reason}")
                time.sleep(3 * INTERVAL)  # the coordinator goes with process 0: the others are to read it first
        tell(reason, code)

    def close(self) -> None:
        """The run is over for this process: the others hear that it is done, and do not wait for its beats."""
        self.closing.set()
        if self.thread.is_alive():
            self.thread.join(timeout=10)
        if self.many and not self.last_words:
            self.last_words = "done"
            with contextlib.suppress(Missing):
                self.beat()

    # --- the thread

    def run(self) -> None:
        try:
            self.watch_on()
        except Exception as error:  # else nobody would watch this run any more, and the others would hear no cause
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """This thread itself cannot go on: the run ends, with the traceback among the stacks."""
        trace = traceback.format_exc()
        print(trace, file=sys.stderr, flush=True)
        what = f"what watches this run failed ({type(error).__name__}: {error}); stacks in {self.dump_stacks(trace)}"
        with contextlib.suppress(Exception):  # whatever has failed may fail again
            self.leave(BROKEN, what)
        tell(what, BROKEN)

    def watch_on(self) -> None:
        self.tick()
        before = time.monotonic()
        while not self.closing.wait(INTERVAL):
            now = time.monotonic()
            if now - before > 10 * INTERVAL:  # this process slept, or its machine did: not the run's fault
                self.since += now - before
                for beat in self.beats.values():
                    beat.heard += now - before
            before = now
            self.tick()

    def watch_answers(self) -> None:
        """A thread of its own: calls of the key-value store return from a dead link after minutes only."""
        before = time.monotonic()
        while not self.closing.wait(INTERVAL):
            now = time.monotonic()
            if now - before > 10 * INTERVAL:
                self.answered += now - before
            before = now
            if now - self.answered > self.watch.peer + LEAVING:
                where = f"the coordinator {self.place.coordinator}"
                self.end(VANISHED, f"no answer from {where} for {now - self.answered:.0f} s")

    def tick(self) -> None:
        """One beat, and one look. A call that fails is tried again with the next one; see `watch_answers`."""
        if not self.many:
            if self.late():
                self.end(HUNG, f"the run stood still: {Beat(self.own_beat())}")
            return
        with contextlib.suppress(Missing):
            self.beat()
            messages = self.store.all("word")
            self.answered = time.monotonic()
            self.read_messages(messages)
            self.watch_others() if self.rank == 0 else self.watch_first(messages)

    def beat(self) -> None:
        with self.writing:  # the last words are not written over
            self.count += 1
            text = self.own_beat()
            self.store.put(f"beat/{self.rank}", text)
            if self.rank == 0:
                self.store.put("word/beat", text)

    def own_beat(self) -> str:
        seconds = time.monotonic() - self.since
        if self.last_words:
            return f"{self.count} {self.started} {self.last_words} {seconds:.0f} - {self.reason}"
        late = "late" if self.late() else "suspicious" if self.suspicious else "-"
        return f"{self.count} {self.started} {self.doing.replace(' ', '-')} {seconds:.0f} {late} {here()}"

    def late(self) -> bool:
        deadline = getattr(self.watch, DEADLINES.get(self.doing, "step"))
        return bool(deadline) and time.monotonic() - self.since > deadline

    def read_messages(self, messages: dict[str, str]) -> None:
        if self.last_words:  # this process ends by itself, with its own line
            return
        if end := messages.get("end"):
            code, message = end.split(" ", 1)
            self.end(int(code), message)
        if self.signal and "stop" not in messages:
            self.store.put("word/stop", self.signal)
        if "stop" in messages and self.last is None:
            self.agree(messages)

    def agree(self, messages: dict[str, str]) -> None:
        """All stop after the last step that any of them has started: nobody starts another until that is known."""
        with self.gate:
            self.signal = self.signal or messages["stop"]
            if not self.agreeing:
                self.store.put(f"at/{self.rank}", str(self.started))
                self.agreeing = True
            if "last" in messages:
                self.last = int(messages["last"])
                self.gate.notify_all()
        if self.rank == 0 and "last" not in messages:
            at = self.store.all("at")
            if len(at) == self.place.processes:
                self.store.put("word/last", str(max(map(int, at.values()))))

    def watch_first(self, messages: dict[str, str]) -> None:
        """Process 0 watches all; the others watch it."""
        self.hear({0: messages["beat"]} if "beat" in messages else {})
        if silent := self.silent():
            self.end(*silent)

    def watch_others(self) -> None:
        self.hear({int(rank): text for rank, text in self.store.all("beat").items()})
        if silent := self.silent():
            self.declare(*silent)
        if any(beat.late for beat in self.beats.values()):
            time.sleep(2 * INTERVAL)  # others reach their deadlines about now: what they do is to be known
            self.hear({int(rank): text for rank, text in self.store.all("beat").items()})
            self.declare(HUNG, self.behind())

    def hear(self, texts: dict[int, str]) -> None:
        for rank, text in texts.items():
            self.beats[rank].hear(text)

    def silent(self) -> tuple[int, str] | None:
        """Who has not been heard of for too long, or has said goodbye, and how all end; None where all are there."""
        now = time.monotonic()
        suspicious = self.suspicious or any(b.text.split(" ")[4] == "suspicious" for b in self.beats.values())
        longest = min(self.watch.peer, SUSPECT_AFTER) if suspicious else self.watch.peer
        for rank, beat in sorted(self.beats.items()):
            if rank == self.rank or beat.doing == "done":
                continue
            if beat.doing.startswith("left:"):
                if now - self.gone.setdefault(rank, now) > LEAVING:
                    return ending(int(beat.doing[5:])), f"process {rank} ended by itself: {beat.where}"
            elif self.watch.peer and now - beat.heard > longest:
                return VANISHED, f"process {rank} vanished: not heard of for {now - beat.heard:.0f} s; last seen {beat}"
        return None

    def behind(self) -> str:
        """Who is at the lowest step, or alone elsewhere than in waiting for the devices."""
        running = {rank: beat for rank, beat in sorted(self.beats.items()) if beat.doing != "done"}
        lines = {rank: str(beat) for rank, beat in running.items()}
        lowest = min(beat.step for beat in running.values())
        slow = [rank for rank, beat in running.items() if beat.step == lowest]
        if len(slow) == len(lines):
            places = [beat.where for beat in running.values()]
            usual = max(set(places), key=places.count)
            slow = [rank for rank in slow if self.beats[rank].where != usual]
        if not slow or len(slow) == len(lines):
            return f"the run stood still; no process is behind: all are {next(iter(lines.values()))}"
        others = next(rank for rank in lines if rank not in slow)
        names = ", ".join(f"process {rank} ({lines[rank]})" for rank in slow[:4])
        return f"the run stood still; behind: {names}; process {others} is {lines[others]}"

    def declare(self, code: int, message: str) -> None:
        """By process 0: the end of all. It stays until the others have read it, as the coordinator goes with it."""
        self.store.put("word/end", f"{code} {message}")
        time.sleep(3 * INTERVAL)
        self.end(code, message)

    def end(self, code: int, message: str) -> None:
        if code == HUNG:
            message += f"; stacks in {self.dump_stacks()}"
        tell(f"process {self.rank}: {message}" if self.many else message, code)

    def dump_stacks(self, more: str = "") -> str:
        """`more` and all threads' stacks in `<out>/stacks/process-<rank>.txt`, else on stderr."""
        path = self.out / "stacks" / f"process-{self.rank}.txt"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                now = time.strftime("%Y-%m-%d %H:%M:%S")
                file.write(f"\n{now} {socket.gethostname()} pid {os.getpid()}\n{more}")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:
            faulthandler.dump_traceback(all_threads=True)
            return "stderr"
        return str(path)


def ending(code: int) -> int:
    """How the others end where one process has ended with this code: alike, where a restart does not help."""
    return code if code in (MENDABLE, CORRUPT) else VANISHED
