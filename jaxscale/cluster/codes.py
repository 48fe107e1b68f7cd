"""How a run's process can end, as an exit code; docs/operations.md says what to do for each."""

DONE = 0
BROKEN = 1  # an error of the program, whose traceback stands above
MENDABLE = 2  # wrong input, a full disk at the end, a loss that is no number: a restart does not help
PREEMPTED = 75  # SIGTERM or SIGUSR1: saved; the same command goes on from there (sysexits.h: EX_TEMPFAIL)
VANISHED = 76  # another process, or the coordinator, is gone
HUNG = 77  # a deadline passed: the stacks of all processes are under <out>/stacks
CORRUPT = 78  # two computations of one step differed, or two copies of one array did
INTERRUPTED = 130  # Ctrl-C: saved

MEANING = {
    DONE: "done",
    BROKEN: "an error of the program, with its traceback",
    MENDABLE: "an error that a restart does not mend",
    PREEMPTED: "preempted, state saved",
    VANISHED: "another process vanished",
    HUNG: "hung, ended by the watchdog",
    CORRUPT: "silent data corruption found",
    INTERRUPTED: "stopped by Ctrl-C, state saved",
}
