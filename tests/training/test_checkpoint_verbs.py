"""`jaxscale checkpoint list|verify|rm`: what they say of whole, damaged, half-written and set-aside checkpoints."""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from support import Setup, make_config

from jaxscale import cli
from jaxscale.checkpoint import inventory, verify
from jaxscale.checkpoint.checkpointer import Checkpointer
from jaxscale.checkpoint.identity import digest
from jaxscale.checkpoint.metadata import require_unchanged
from jaxscale.checkpoint.noise import Damaged, reading
from jaxscale.files.places import aside
from jaxscale.training.trainer import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with checkpoints of steps 2, 4 and 6."""
    out = tmp_path_factory.mktemp("trained")
    train(tiny(out))
    return out


def tiny(out: Path):
    return make_config(
        {"data": 2, "fsdp": 2},
        steps=6,
        out=str(out),
        model={"vocab_size": 256, "num_layers": 1, "embed_dim": 16, "num_heads": 2, "mlp_dim": 32},
        runtime={"simulated_devices": 4},
        data={"kind": "synthetic", "batch_size": 4, "seq_len": 16},
        checkpoint={"every": 2, "keep_last": 3},
        evaluation={"batches": 1},
    )


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def say(capfd, monkeypatch):
    """Runs `jaxscale checkpoint ...`; (exit code, stdout), or of an error its one line."""

    def shell(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["jaxscale", "checkpoint", *map(str, arguments)])
        capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as exit:
            code = int(exit.code or 0)
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        if code == 2:
            assert err.startswith("error: ")
            assert err.count("\n") == 1
        return code, err if code == 2 else out

    return shell


def listed(say, place) -> list[tuple[int, str, bool]]:
    found = json.loads(say("list", place, "--json")[1])
    return [(one["step"], one["status"], one["whole"]) for one in found["checkpoints"]]


def test_list_tells_what_there_is(say, run):
    folder = run / "checkpoints"
    shutil.copytree(folder / "6", folder / "8.orbax-checkpoint-tmp")
    (run / "checkpoints-damaged").mkdir()
    shutil.move(folder / "4", run / "checkpoints-damaged" / "4-123")
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("of somebody else")
    code, text = say("list", run)
    assert code == 0
    for words in ("half-written", "set aside", "committed", "data=2, fsdp=2", "24 rows of 16 tokens, seed 0"):
        assert words in text
    assert "notes" not in text
    assert listed(say, run) == [
        (2, "committed", True), (6, "committed", True), (8, "half-written", False), (4, "set aside", False),
    ]  # fmt: skip
    assert listed(say, folder) == listed(say, run)
    about = json.loads(say("list", run, "--json")[1])["checkpoints"][0]
    assert about["bytes"] == sum(p.stat().st_size for p in (folder / "2").rglob("*") if p.is_file())
    assert about["about"]["parameters"] == sum(x.size for x in leaves(tiny(run)))


def leaves(config):
    return jax.tree.leaves(Setup(config).program.abstract.params)


def test_list_of_a_run_that_keeps_its_checkpoints_elsewhere(say, run, tmp_path):
    shutil.move(run / "checkpoints", tmp_path / "elsewhere")
    config = (run / "config.yaml").read_text().replace("directory: null", f"directory: {tmp_path / 'elsewhere'}")
    (run / "config.yaml").write_text(config)
    assert [step for step, _, _ in listed(say, run)] == [2, 4, 6]


def test_all_is_as_it_was_saved(say, run):
    code, text = say("verify", run)
    assert code == 0
    assert text.count("all as they were saved") == 3
    code, text = say("verify", run / "checkpoints", "--step", 4)
    assert (code, text.count("\n"), text.startswith("step 4: ")) == (0, 1, True)


def largest(step: Path) -> Path:
    return max((p for p in (step / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    for place in range(len(body) // 9, len(body), len(body) // 9):  # some bytes of a file are read by nobody
        body[place] ^= 1
    path.write_bytes(bytes(body))


DAMAGES = {
    "bits": (lambda step: flip(largest(step)), "step 6: "),
    "cut short": (lambda step: largest(step).write_bytes(largest(step).read_bytes()[:100]), "cannot be read"),
    "metadata": (lambda step: flip(step / "meta" / "metadata"), "meta/metadata: "),
    "no manifest": (lambda step: (step / "state" / "manifest.ocdbt").unlink(), "state/manifest.ocdbt is missing"),
    "no tree": (lambda step: (step / "state" / "_METADATA").unlink(), "state/_METADATA is missing"),
    "no metadata": (lambda step: (step / "meta" / "metadata").unlink(), "meta/metadata is missing"),
    "another array": (
        lambda step: swap_sums(step / "meta" / "metadata"),
        "opt_state.1.0.mu.embedding: not what was saved",
    ),
}


def swap_sums(path: Path) -> None:
    """Whole metadata of which one sum is another's."""
    meta = json.loads(path.read_text())
    meta["fingerprints"]["opt_state.1.0.mu.embedding"] = meta["fingerprints"]["params.embedding"]
    path.write_text(json.dumps(meta | {"sha256": digest(meta)}))


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_names_what_is_damaged(say, run, damage):
    spoil, words = DAMAGES[damage]
    spoil(run / "checkpoints" / "6")
    code, text = say("verify", run)
    assert code == 1
    assert text.count("all as they were saved") == 2
    bad = [line for line in text.splitlines() if line.startswith("step 6: ")]
    assert any(words in line for line in bad), text
    assert "all as they were saved" not in bad[0]


def test_verify_finds_what_a_restore_would(trained, tmp_path):
    """Each file of a checkpoint in turn is taken away: verify complains where a restore fails, and only there."""
    config = tiny(trained)
    setup = Setup(config)
    whole = trained / "checkpoints" / "6"
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    failed = {}
    for number, file in enumerate(files):
        folder = tmp_path / str(number) / "checkpoints"
        shutil.copytree(whole, folder / "6")
        (folder / "6" / file).unlink()
        checkpointer = Checkpointer(folder)
        try:
            with setup.context():
                state = reading(checkpointer.restore, 6, setup.program.abstract)
                require_unchanged(state, reading(checkpointer.meta, 6))
            restored = True
        except Damaged:
            restored = False
        finally:
            checkpointer.close()
        place = inventory.find_place(str(folder))
        verdict = verify.verify(place, inventory.inventory(place)[0])
        failed[str(file)] = not restored
        assert bool(verdict.problems) != restored, (file, verdict.problems)
    assert {True, False} == set(failed.values())


def test_verify_holds_one_array_at_a_time(run, monkeypatch):
    """All are read into one piece of memory, as large as the largest of them."""
    rooms, sizes, read = set(), [], verify.read_array

    def counted(state, name, context, room):
        array = read(state, name, context, room)
        rooms.add((id(room), room.bytes.ctypes.data, room.bytes.size))
        sizes.append(array.nbytes)
        assert np.shares_memory(array, room.bytes)
        return array

    monkeypatch.setattr(verify, "read_array", counted)
    place = inventory.find_place(str(run))
    assert not verify.verify(place, inventory.inventory(place)[-1]).problems
    assert len(rooms) == 1
    assert next(iter(rooms))[2] == max(sizes) < sum(sizes) / 5


def test_a_checkpoint_without_sums_is_said_to_be_not_verifiable(say, run):
    path = run / "checkpoints" / "6" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in meta.items() if k not in ("fingerprints", "sha256")}))
    code, text = say("verify", run, "--step", 6)
    assert code == 0
    assert "not verifiable (made before" in text
    flip(largest(run / "checkpoints" / "6"))
    largest(run / "checkpoints" / "6").write_bytes(b"")
    assert say("verify", run, "--step", 6)[0] == 1  # what cannot be read is bad in any case


def test_rm_says_what_it_freed(say, run):
    size = sum(p.stat().st_size for p in (run / "checkpoints" / "2").rglob("*") if p.is_file())
    code, text = say("rm", run, "--step", 2)
    assert (code, text.splitlines()[0]) == (0, f"removed step 2: {size:,} bytes freed")
    assert "left: 4, 6" in text
    assert not (run / "checkpoints" / "2").exists()
    say("rm", run, "--keep-last", 1)
    assert [step for step, _, _ in listed(say, run)] == [6]


def test_the_last_whole_checkpoint_goes_only_by_force(say, run):
    (run / "checkpoints" / "6" / "state" / "manifest.ocdbt").unlink()
    code, text = say("rm", run, "--keep-last", 1)  # the last one is damaged: nothing whole would be left
    assert code == 2
    assert "step 4 is the last whole checkpoint" in text
    assert [step for step, _, _ in listed(say, run)] == [2, 4, 6]
    assert say("rm", run, "--step", 2, "--step", 4, "--step", 6, "--force")[0] == 0
    assert listed(say, run) == []


def test_an_rm_that_is_cut_short_leaves_nothing_that_looks_whole(run, monkeypatch):
    place = inventory.find_place(str(run))
    monkeypatch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        inventory.take_away(place, inventory.inventory(place)[0])
    assert next((k.step, k.status) for k in inventory.inventory(place)) == (2, "half-written")
    checkpointer = Checkpointer(run / "checkpoints")
    assert checkpointer.steps() == [4, 6]
    checkpointer.close()


REFUSED = {
    "no such step": (("rm", "--step", 3), "has no checkpoint of step 3; it has [2, 4, 6]"),
    "one of two": (("rm", "--step", 2, "--step", 3), "has no checkpoint of step 3"),
    "nothing said": (("rm",), "say which"),
    "both said": (("rm", "--step", 2, "--keep-last", 1), "one of the two"),
    "verify no such step": (("verify", "--step", 3), "has no checkpoint of step 3; it has [2, 4, 6]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_and_nothing_is_removed(say, run, case):
    (verb, *options), words = REFUSED[case]
    code, line = say(verb, run, *options)
    assert (code, words in line) == (2, True), line
    assert [step for step, _, _ in listed(say, run)] == [2, 4, 6]


def test_places_that_are_none(say, tmp_path):
    assert "is no directory" in say("list", tmp_path / "nowhere")[1]
    assert say("list", tmp_path) == (0, f"no checkpoints in {tmp_path}\n")
    assert "has no checkpoint; it has none" in say("verify", tmp_path)[1]
    (tmp_path / "config.yaml").write_text("- a list\n")
    assert "cannot read" in say("list", tmp_path)[1]


def test_metadata_of_any_kind_is_no_traceback(say, run):
    for text in (
        "",
        "[]",
        "{}",
        '{"config": 1, "state": [], "data": null}',
        "\x00\xff",
        '{"state": {"params.x": "?["}}',
    ):
        (run / "checkpoints" / "6" / "meta" / "metadata").write_text(text)
        assert listed(say, run)[-1] == (6, "committed", False)
        assert say("verify", run, "--step", 6)[0] == 1


def test_what_is_set_aside_stands_beside_the_place(run):
    assert aside(inventory.find_place(str(run))).name == "checkpoints-damaged"
