"""The JSON beside a state, written while training goes on, as the sums of the arrays' bits that it holds take a while;
and orbax's own JSON of a checkpoint, which it reads for its time."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from jaxscale.checkpoint.fingerprint import Sums, fingerprints
from jaxscale.checkpoint.identity import digest
from jaxscale.checkpoint.noise import Damaged, reason
from jaxscale.cluster.saving import SaveBarrier

LONGEST_WAIT = 60.0  # seconds; a caller that failed says nothing


class MetaHandler(ocp.JsonCheckpointHandler):
    """Writes what `MetaSave.make` returns once it is asked, in a thread of orbax's: only then is a checkpoint whole."""

    async def async_save(self, directory: epath.Path, item: Any = None, args: Any = None) -> list[ocp.future.Future]:
        async def write() -> None:
            if text := args.make():
                (directory / "metadata").write_text(text)

        return [ocp.future.CommitFutureAwaitingContractedSignals(write(), name="metadata")]


@ocp.args.register_with_handler(MetaHandler, for_save=True)
@dataclass
class MetaSave(ocp.args.CheckpointArgs):
    """`go` is set once the caller is held up no longer: until then its cores are its own."""

    make: Callable[[], str]
    go: threading.Event


@ocp.args.register_with_handler(MetaHandler, for_restore=True)
class MetaRestore(ocp.args.JsonRestore):
    """Orbax wants one for each handler; `Checkpointer.meta` reads the file itself."""


def late_meta(meta: dict[str, Any], sums: Sums, barrier: SaveBarrier) -> MetaSave:
    """`meta` with the sums of the state and a digest of itself, for the save that `barrier` has begun."""
    number, go = barrier.number, threading.Event()

    def make() -> str:
        go.wait(LONGEST_WAIT)
        parts = barrier.gather(number, sums.own())
        if parts is None or barrier.given_up == number:  # process 0 writes it, where there is still something to write
            return ""
        whole = meta | {"fingerprints": sums.told(parts)}
        return json.dumps(whole | {"sha256": digest(whole)})

    return MetaSave(make, go)


def require_unchanged(state: Any, meta: dict) -> None:
    """Every array of a state that was read is compared with the sum of its bits when it was saved."""
    saved = meta.get("fingerprints")
    if not saved:  # a checkpoint from before there were any
        return
    changed = [name for name, fingerprint in fingerprints(state).items() if saved.get(name) != fingerprint]
    if changed:
        raise Damaged(f"{len(changed)} arrays are not what was saved, {changed[0]} first")


class Step(ocp.path.step.Metadata):
    """A checkpoint as orbax lists it; where its `_CHECKPOINT_METADATA` is none, its time is the directory's."""

    @property
    def commit_timestamp(self) -> datetime:
        if listing_problem(self.path):
            return datetime.fromtimestamp(self.path.stat().mtime, tz=UTC)
        return super().commit_timestamp


class Names(ocp.path.step.NameFormat):
    """Orbax's names of checkpoints, `<step>`. One that is damaged is listed too, and does not hide the others.

    Args:
        atomicity: orbax's options that say how a whole one is told from a half-written one; None: by its name.
    """

    def __init__(self, atomicity: Any = None) -> None:
        self.usual = ocp.path.step.standard_name_format(atomicity_options=atomicity)

    def build_name(self, step: int) -> str:
        return self.usual.build_name(step)

    def find_all(self, base_path: Any) -> Iterator[Step]:
        return (Step(entry.step, entry.path) for entry in self.usual.find_all(base_path))

    def find_step(self, base_path: Any, step: int) -> Step:
        entry = self.usual.find_step(base_path, step)
        return Step(entry.step, entry.path)


def listing_problem(directory: epath.Path) -> str:
    """Why orbax cannot read its own metadata of a checkpoint; "" where it can, or goes on without."""
    try:
        ocp.path.step.Metadata(0, directory).commit_timestamp  # noqa: B018
    except OSError:  # of the directory: whoever reads it will say so
        return ""
    except Exception as error:  # JSON of another type leads to many kinds
        return f"its _CHECKPOINT_METADATA is none ({reason(error)})"
    return ""
