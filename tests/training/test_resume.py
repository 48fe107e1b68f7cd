"""A resumed run: what has changed is said by key, no row is lost, parts are started and left."""

import shutil
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Listener, make_config

from jaxscale import config as cfg
from jaxscale.checkpoint.identity import require_same_state
from jaxscale.data import batches as feeding
from jaxscale.data.order import row_indices
from jaxscale.data.prepare import prepare
from jaxscale.data.sources import text_source
from jaxscale.training import changes, feed
from jaxscale.training.average import average, missing
from jaxscale.training.feed import open_source
from jaxscale.training.optional import fitting_sum
from jaxscale.training.position import Position, about_data, read_position, require_position
from jaxscale.training.trainer import train

SMALL = {"vocab_size": 257, "num_layers": 1, "embed_dim": 16, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 32}


# --- the rows --------------------------------------------------------------------------------------------------

part = st.tuples(st.integers(1, 9), st.integers(0, 6), st.booleans())  # batch size, steps, a rollback at the end


@given(parts=st.lists(part, min_size=1, max_size=5), windows=st.integers(1, 70), seed=st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_no_row_is_left_out_or_read_twice_whatever_the_batch_size(parts, windows, seed):
    """Batches as the trainer reads them, over resumes with other batch sizes. What a rollback skips was read too: the
    steps up to the bad one, whose rows do not come again."""
    step, data, seen = 0, {}, []
    for batch_size, steps, bad in parts:
        position = read_position(data, step, batch_size) if data else Position(batch_size)
        read = [row_indices(seed, s, batch_size, windows, offset=position.offset) for s in range(step, step + steps)]
        seen += [int(row) for rows in read for row in rows]
        if bad:
            position = position.past(step + steps, back_to=step)
        else:
            step += steps
        data = {"batch_size": batch_size} | position.as_data(step)
    whole = [int(row_indices(seed, s, 1, windows)[0]) for s in range(len(seen))]
    assert seen == whole


def test_without_changes_the_order_is_that_of_the_step_alone():
    for step in (0, 3, 10**6):
        position = read_position({"batch_size": 4} | Position(4).as_data(step), step, 4)
        assert position.offset == 0


def test_processes_read_the_same_rows_after_another_batch_size():
    position = read_position({"rows_read": 80}, 20, 8)
    whole = row_indices(0, 20, 8, 1000, offset=position.offset)
    shares = [row_indices(0, 20, 8, 1000, offset=position.offset, rows=r) for r in np.split(np.arange(8), 4)]
    np.testing.assert_array_equal(np.concatenate(shares), whole)
    np.testing.assert_array_equal(whole, [*row_indices(0, 20, 4, 1000), *row_indices(0, 21, 4, 1000)])


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        ({"batch_size": 4, "seq_len": 8}, 40),  # from before the position was kept
        ({"batch_size": 4, "skipped": 3}, 52),
        ({}, 80),
        ({"batch_size": 4, "rows_read": 44}, 44),
        ({"batch_size": 4, "rows_read": 52, "skipped": 3}, 52),
    ],
)
def test_older_checkpoints_tell_their_position_too(data, rows):
    require_position(data)
    assert read_position(data, 10, 8).rows_read(10) == rows


@pytest.mark.parametrize("data", [{"rows_read": -1}, {"rows_read": 2**62}, {"skipped": "3"}, {"batch_size": True}])
def test_a_position_that_is_no_number_is_damage(data):
    with pytest.raises(ValueError, match="no number of rows"):
        require_position(data)


# --- what has changed ------------------------------------------------------------------------------------------


def leaves(section: cfg.Section, prefix: str = "") -> list[tuple[str, object]]:
    found = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, cfg.Section):
            found += leaves(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found


CONFIG = make_config({"data": 1}, out="runs/x", model={"rope_scaling": {}})
KEYS = [key for key, _ in leaves(CONFIG)]


def with_value(values: dict, key: str, value: object) -> dict:
    *sections, last = key.split(".")
    section = values
    for name in sections:
        section = section[name]
    section[last] = value
    return values


@pytest.mark.parametrize("key", KEYS)
def test_every_key_that_differs_is_said_unless_it_cannot_matter(key):
    """Whatever the checkpoint had there; nothing else is said."""
    saved = with_value(CONFIG.model_dump(mode="json"), key, "something else")
    said = [str(c) for c in changes.config_changes(saved, CONFIG)]
    silent = any(key == s or key.startswith(f"{s}.") for s in changes.SILENT)
    assert [line.split(" ")[0] for line in said] == ([] if silent else [key])


def test_silent_keys_are_keys():
    for key in changes.SILENT:
        assert any(k == key or k.startswith(f"{key}.") for k in KEYS), key
    assert set(changes.SCHEDULE + changes.ORDER) <= set(KEYS)


def test_a_checkpoint_from_before_a_key_had_its_default():
    saved = CONFIG.model_dump(mode="json")
    del saved["guard"], saved["optimizer"]["ema"], saved["model"]["rope_scaling"]["factor"]
    assert changes.config_changes(saved, CONFIG) == []
    saved["data"] = "nonsense"
    assert {c.key for c in changes.config_changes(saved, CONFIG)} == {"data"}


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ({}, {"steps": 40}, "learning rate at step 21: 0.0003 -> 0.00165, as steps 20 -> 40"),
        ({}, {"steps": 20}, ""),
        ({"schedule": "constant"}, {"schedule": "constant", "steps": 40}, ""),
        ({"schedule": "constant"}, {"schedule": "constant", "learning_rate": 6e-3},
         "learning rate at step 21: 0.003 -> 0.006, as optimizer.learning_rate 0.003 -> 0.006"),
        ({"schedule": "wsd", "warmup_steps": 5}, {"schedule": "wsd", "warmup_steps": 5, "steps": 40},
         "learning rate at step 21: 0.0003 -> 0.003, as steps 20 -> 40"),
        ({"schedule": "constant"}, {"schedule": "linear", "steps": 40},
         "learning rate at step 21: 0.003 -> 0.00165, as steps 20 -> 40, optimizer.schedule constant -> linear"),
        ({"schedule": "of another version"}, {"steps": 40}, ""),  # that line cannot be made; the keys are said
    ],
)  # fmt: skip
def test_what_a_change_does_to_the_learning_rate(old, new, line):
    saved = {"steps": 20, "optimizer": {"learning_rate": 3e-3} | old}
    new = {"steps": 20} | new
    config = make_config(steps=new.pop("steps"), optimizer={"learning_rate": 3e-3} | new)
    assert changes.rate_change(saved, config, 20) == line


def test_other_tokens_are_told_from_the_same_at_another_place(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name} and so on, for a while\n" * 40)
        prepare(text_source([str(tmp_path / f"{name}.txt")]), "byte", tmp_path / name, progress=lambda p: None)
    shutil.copytree(tmp_path / "a", tmp_path / "moved")

    def about(path, **data):
        data = {"kind": "tokens", "path": str(path), "batch_size": 1, "seq_len": 16} | data
        config = make_config(model={"vocab_size": 257}, data=data)
        return config, about_data(config, open_source(config, "train"))

    def told(saved, now):
        meta = {"config": saved[0].model_dump(mode="json"), "data": saved[1]}
        return changes.told_of_changes(meta, *now, 5, Position(1))

    first = about(tmp_path / "a")
    moved, other = told(first, about(tmp_path / "moved")), told(first, about(tmp_path / "b"))
    assert moved == [f"changed since step 5: data.path {tmp_path / 'a'} -> {tmp_path / 'moved'}"]
    assert "the data changed since step 5 (other tokens" in other[1]
    (tmp_path / "old").mkdir()
    shutil.copytree(tmp_path / "b", tmp_path / "a", dirs_exist_ok=True)  # other text at the same path
    assert told(first, about(tmp_path / "a")) == [
        "the data changed since step 5 (other tokens): rows may be read again, or left out"
    ]
    longer = told(about(tmp_path / "moved"), about(tmp_path / "moved", seq_len=32))
    assert longer[1] == "the data changed since step 5 (data.seq_len 16 -> 32): rows may be read again, or left out"
    older = {k: v for k, v in first[1].items() if k not in ("content", "rows")}
    assert told((first[0], older), about(tmp_path / "a")) == []  # from before it was kept: nobody knows


def test_llmc_files_are_known_by_their_tokens(tmp_path):
    def write(name, last):
        header = np.zeros(256, np.int32)
        header[:3] = 20240520, 1, 70_000
        tokens = np.arange(70_000, dtype=np.uint16)
        tokens[-1] = last
        (tmp_path / name).write_bytes(header.tobytes() + tokens.tobytes())
        data = {"kind": "llmc", "path": str(tmp_path / name), "batch_size": 1, "seq_len": 16}
        return open_source(make_config(model={"vocab_size": 50257}, data=data), "train").content

    assert write("a.bin", 1) == write("b.bin", 1) != write("c.bin", 2)


# --- whole runs ------------------------------------------------------------------------------------------------


@pytest.fixture
def rows_of_steps(monkeypatch):
    """Rows in the order in which batches were loaded: without threads, that of the steps."""
    loaded: list[list[int]] = []
    load = feeding.load_rows

    def listening(source, indices):
        loaded.append([int(i) for i in indices])
        return load(source, indices)

    monkeypatch.setattr(feeding, "load_rows", listening)
    monkeypatch.setattr(feed, "batches", lambda *args, **options: feeding.batches(*args, **options | {"prefetch": 0}))
    return loaded


def small(out, *, steps, batch_size=4, **sections):
    data = {"kind": "synthetic", "batch_size": batch_size, "seq_len": 16}
    sections = {"checkpoint": {"every": 2}, "runtime": {"simulated_devices": 1}} | sections
    return make_config(steps=steps, out=str(out), model=SMALL, data=data, **sections)


def test_parts_are_started_and_left_and_rows_go_on(tmp_path, rows_of_steps):
    """A run that goes on with another batch size, the guard and an average, and then without them again."""
    train(small(tmp_path, steps=3))
    listener = Listener()
    asked = {"guard": {"spike": 5.0}, "optimizer": {"learning_rate": 1e-2, "ema": 0.9}}
    second = train(small(tmp_path, steps=5, batch_size=8, **asked), watcher=listener)
    assert "guard.spike is on since step 3: losses are judged after 47 steps more" in listener.lines
    assert "optimizer.ema is on since step 3: the average starts from the parameters of that step" in listener.lines
    changed = next(line for line in listener.lines if line.startswith("changed since step 3: "))
    assert changed.removeprefix("changed since step 3: ") == (
        "steps 3 -> 5, data.batch_size 4 -> 8, optimizer.ema null -> 0.9, guard.spike null -> 5.0"
    )
    assert "step 4 goes on after the 12 rows that were read: none is left out or read again" in listener.lines
    assert second.state.ema
    listener = Listener()
    third = train(small(tmp_path, steps=7, batch_size=2), watcher=listener)
    assert third.state.ema == {}
    assert float(third.state.losses.steps) == 7
    assert (third.step, len(third.losses)) == (7, 2)
    config = small(tmp_path, steps=7)
    wanted = [int(i) for s in range(12 + 16 + 4) for i in row_indices(config.seed, s, 1, 2**40)]
    read = [row for rows in rows_of_steps if len(rows) in (2, 4, 8) for row in rows]
    evaluated = set(range(8 * 8))  # the validation rows, in their own order
    assert [row for row in read if row not in evaluated] == wanted


@pytest.mark.parametrize("kept", [0.9, 0.5, None])
@pytest.mark.parametrize("step", [1, 7, 400])
def test_an_average_stays_one_whatever_decay_it_goes_on_with(kept, step):
    """Of equal parameters it is these parameters: the weights still sum to 1."""
    params = {"w": jnp.full(3, 2.0, jnp.bfloat16)}
    total = {} if kept is None else {"w": (1 - missing(kept, step)) * jnp.full(3, 2.0)}
    state = SimpleNamespace(step=jnp.int32(step), params=params, ema=total)
    for decay in (0.9, 0.999):
        found = fitting_sum(state, decay, kept)
        np.testing.assert_allclose(average(found, params, decay, step)["w"], 2.0, rtol=1e-5)
        assert found["w"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("sections", "names"),
    [
        ({"optimizer": {"name": "lion"}}, 'optimizer.name: "adamw" -> "lion"'),
        ({"model": {"num_layers": 3}}, "model.num_layers: 2 -> 3"),
    ],
)
def test_what_cannot_go_on_is_named_by_its_key_also_beside_what_can(sections, names):
    saved = make_config()
    config = make_config(guard={"spike": 5.0}, **sections)
    meta = {"state": {"params.w": "float32[2]"}, "config": saved.model_dump(mode="json")}
    state = {"params": SimpleNamespace(dtype="bfloat16", shape=(2,))}
    with pytest.raises(ValueError, match="is of another model or optimizer") as found:
        require_same_state(meta, state, config, where="x")
    assert names in str(found.value)
    assert "params" not in str(found.value)
