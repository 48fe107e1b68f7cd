"""Reading runs: columns by name, a ladder's record, and every way in which a table can be wrong."""

import csv
import io
import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scaling.ladders import ladder

from jaxscale.scaling.columns import could_be, quantities
from jaxscale.scaling.law import read_law
from jaxscale.scaling.laws import FORMS, fit
from jaxscale.scaling.table import csv_rows, hold_out, make_table, read_table

GOOD = [{"parameters": N, "tokens": r * N, "loss": 2 + (N / 1e6) ** -0.3} for N in (1e6, 4e6, 2e7) for r in (10, 30)]


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def rung(**changes):
    curve = [[1e6, 5.0], [2e6, 4.0]]
    ability = {
        "ability": "copy",
        "shots": 0,
        "examples": 256,
        "chance": 0.0,
        "bits_per_byte": 2.5,
        "metrics": {
            "exact": {"value": 0.3, "n": 256, "sharp": True},
            "nll": {"value": 2.1, "n": 256, "sharp": False, "std": 0.8},
        },
    }
    return {"name": "a", "seed": 0, "held_out": False, "run": "runs/a", "parameters": 1000, "flops": 1.2e10,
            "parameters_with_embeddings": 2000, "tokens": 2_000_000, "unique_tokens": None, "loss": 4.0, "seconds": 1.0,
            "curve": curve, "abilities": [ability]} | changes  # fmt: skip


def write_record(path, rungs, **changes):
    path.write_text(json.dumps({"kind": "ladder", "name": "toy", "versions": {}, "rungs": rungs} | changes))
    return path


@pytest.mark.parametrize(
    "names", [("parameters", "tokens", "loss"), ("N", "D", "Loss"), ("Params", " tokens ", "loss")]
)
def test_columns_by_their_names(tmp_path, names):
    rows = [dict(zip(names, (1e6 * i, 2e7, 3.0), strict=True)) for i in (1, 2)]
    table = read_table(write_csv(tmp_path / "a.csv", rows))
    assert table.parameters.tolist() == [1e6, 2e6]
    assert table.flops.tolist() == [6 * 1e6 * 2e7, 6 * 2e6 * 2e7]
    assert table.counts == "unknown"


def test_any_two_of_n_d_and_c_give_the_third(tmp_path):
    rows = [{"N": 1e6, "C": 1.2e14, "loss": 3.0, "wall": 7}]
    table = read_table(write_csv(tmp_path / "a.csv", rows))
    assert table.tokens.tolist() == [2e7]
    assert table.not_read == ("wall",)


def test_parquet_is_read_as_a_csv_is(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(GOOD), tmp_path / "a.parquet")
    ours, theirs = read_table(tmp_path / "a.parquet"), read_table(write_csv(tmp_path / "a.csv", GOOD))
    np.testing.assert_array_equal(ours.loss, theirs.loss)
    np.testing.assert_array_equal(ours.flops, theirs.flops)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"cannot read .*b\.parquet as Parquet"):
        read_table(tmp_path / "b.parquet")


def test_a_ladders_record(tmp_path):
    path = write_record(tmp_path / "a.json", [rung(), rung(name="b", seed=1, held_out=True)])
    table = read_table(path, ability="copy")
    assert (table.names, table.seeds, table.held_out.tolist()) == (("a", "b"), (0, 1), [False, True])
    assert (table.parameters[0], table.flops[0], table.counts) == (1000, 1.2e10, "without")
    assert (table.bits_per_byte[0], table.accuracy[0]) == (2.5, 0.3)
    assert table.curves[0] == ((1e6, 5.0), (2e6, 4.0))
    assert table.rungs.tolist() == [0, 0]
    assert read_table(path, embeddings=True).parameters[0] == 2000


def test_other_columns_are_named_with_what_they_could_be(tmp_path):
    path = write_csv(tmp_path / "a.csv", [{"Model Size": 1, "Training FLOP": 2, "colour": "x", "loss": 3}])
    with pytest.raises(ValueError, match="a law needs loss and two of") as error:
        read_table(path)
    assert "'Model Size' could be parameters; 'Training FLOP' could be flops; 'colour' is nothing known" in str(
        error.value
    )
    assert "'loss' is loss" in str(error.value)
    read_table(path, columns={"parameters": "Model Size", "flops": "Training FLOP"})


ROWS = {
    "row 2 has no loss": {"loss": ""},
    "row 2: loss is nan; it must be a finite number above 0": {"loss": "nan"},
    "row 2: loss is -1.5; it must be": {"loss": -1.5},
    "row 2: loss is inf": {"loss": "inf"},
    "row 2: loss is 'low', not a number": {"loss": "low"},
    "row 2: tokens is 0": {"tokens": 0},
    "row 2: parameters is '7B', not a number; write e.g. 1.5e9": {"parameters": "7B"},
    "row 1 and row 2 have the same parameters, tokens and seed 0; leave one out": GOOD[0],
    "row 2: seed is 'x'; it must be a whole number": {"seed": "x"},
    "row 2: held_out is 'maybe'; write true or false": {"held_out": "maybe"},
    "row 2: accuracy is 30; it is a share, from 0 to 1": {"accuracy": 30},
}


@pytest.mark.parametrize(("message", "change"), ROWS.items())
def test_a_row_that_cannot_be(tmp_path, message, change):
    rows = [dict.fromkeys(change, "") | dict.fromkeys(("seed", "held_out"), "") | row for row in GOOD]
    rows[1] = rows[1] | change
    with pytest.raises(ValueError) as error:  # noqa: PT011  the message is compared below
        read_table(write_csv(tmp_path / "a.csv", rows))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


FILES = {
    "": "is empty; it needs a line with the names of its columns",
    "loss,loss\n1,2\n": "the column 'loss' stands there twice",
    "N,parameters,D,loss\n1,2,3,4\n": "the columns 'N' and 'parameters' are both parameters; rename one of them",
    "N,D,loss\n1,2\n": "row 1 has 2 cells and the header 3",
    'N,D,loss\n"1,2,3\n': "is no CSV",
}


@pytest.mark.parametrize(("text", "message"), FILES.items())
def test_a_file_that_cannot_be(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "a.csv")


RECORDS = {
    "is no ladder's record: .*kind": ([], {"kind": "law"}),
    "is no ladder's record: .*tokens": ([rung(tokens="many")], {}),
    "is no ladder's record: .*loss": ([rung(loss=None)], {}),
    "a has no ability add; it has copy": ([rung()], {}),
    "a: add has no bits_per_byte, as an earlier version made": (
        [
            rung(
                abilities=[{"ability": "add", "chance": 0, "metrics": {"exact": {"value": 0.3, "n": 9, "sharp": True}}}]
            )
        ],
        {},
    ),
    "a: add needs a sharp metric, as exact or choice": (
        [rung(abilities=[{"ability": "add", "chance": 0, "metrics": {"nll": {"value": 2.0, "n": 9, "sharp": False}}}])],
        {},
    ),
}


@pytest.mark.parametrize(("message", "record"), RECORDS.items())
def test_a_record_that_cannot_be(tmp_path, message, record):
    rungs, changes = record
    path = write_record(tmp_path / "a.json", rungs, **changes)
    with pytest.raises(ValueError, match=message):
        read_table(path, ability="add" if "add" in message else None)


def test_held_out_rungs_are_the_largest():
    rows = [row | {"held_out": i == 0} for i, row in enumerate(GOOD)]
    with pytest.raises(ValueError, match=r"row 1 is held out with 6e\+13 FLOPs, below the .* of row 6"):
        make_table(rows, "t")
    table = hold_out(make_table(GOOD, "t"), "2")
    assert table.held_out.tolist() == [False] * 4 + [True] * 2
    assert hold_out(make_table(GOOD, "t"), "largest").held_out.sum() == 1
    for wrong in ("0", "6", "x", "-1"):
        with pytest.raises(ValueError, match=f"--hold-out {wrong}: give `largest`, or how many of the 6 rungs"):
            hold_out(make_table(GOOD, "t"), wrong)


FEW = {
    "compute": "4 distinct rungs to fit, and compute with its 3 parameters needs 5",
    "chinchilla": "4 distinct rungs to fit, and chinchilla with its 5 parameters needs 6",
    "isoflop": "4 distinct rungs to fit, and isoflop with its 5 parameters needs 9",
    "data": "4 distinct rungs to fit, and data with its 7 parameters needs 8",
    "task": "has no bits_per_byte, which --form task needs",
}


@pytest.mark.parametrize(("form", "message"), FEW.items())
def test_too_few_rungs(form, message):
    with pytest.raises(ValueError, match=message):
        fit(form, make_table(GOOD[:4], "t"), draws=5)


def test_seeds_make_no_rungs():
    rows = [row | {"seed": seed} for row in GOOD[:4] for seed in range(3)]
    with pytest.raises(ValueError, match="4 distinct rungs to fit"):
        fit("compute", make_table(rows, "t"), draws=5)


def test_what_forms_refuse():
    once = [{"parameters": 1e6 * i, "tokens": 1e8, "unique_tokens": 1e8, "loss": 3 + 1 / i} for i in range(1, 10)]
    with pytest.raises(ValueError, match="no run has more tokens than unique_tokens"):
        fit("data", make_table(once, "t"), draws=5)
    with pytest.raises(ValueError, match="envelope needs each run's loss while it trained"):
        fit("envelope", make_table(once, "t"), draws=5)
    spread = [{"parameters": 1e6 * i, "flops": 1e15 * i**2, "loss": 3 + 1 / i} for i in range(1, 10)]
    with pytest.raises(ValueError, match=r"1 sizes of model at .* FLOPs; isoflop needs 3 at each"):
        fit("isoflop", make_table(spread, "t"), draws=5)
    down = [
        {"parameters": 1e6 * 2**i, "flops": C, "loss": 3 - 0.1 * (i - 2) ** 2}
        for C in (1e15, 1e16, 1e17)
        for i in range(5)
    ]
    with pytest.raises(ValueError, match=r"the runs of 1e\+15 FLOPs show no minimum"):
        fit("isoflop", make_table(down, "t"), draws=5)
    with pytest.raises(ValueError, match="--form power: no such form; there are compute, chinchilla"):
        fit("power", make_table(once, "t"))


def test_what_is_not_identified_is_said():
    """Six rungs of a toy ladder over one decade say nothing of E; N and D that grow together, nothing of either."""
    rng = np.random.default_rng(0)
    rows = [
        {"parameters": N, "tokens": 20 * N, "loss": (1.0 + 90 * N**-0.3) * np.exp(0.01 * rng.standard_normal())}
        for N in np.geomspace(1e5, 1e6, 8)
    ]
    law = fit("compute", make_table(rows, "t"))
    assert law.not_identified["E"].startswith("E: ")
    assert "E" not in fit("compute", ladder("compute")[0], draws=20).not_identified
    assert "same tokens per parameter" in fit("chinchilla", make_table(rows, "t"), draws=20).not_identified["beta"]


def test_isoflop_warns_of_an_edge_and_of_unequal_exponents():
    from jaxscale.scaling.curves import power_sum

    def runs(law, shares):
        sizes = [(C, s * (C / 120) ** 0.5) for C in np.geomspace(1e18, 1e20, 5) for s in shares]
        return [{"parameters": N, "flops": C, "loss": float(power_sum(law, N, C / 6 / N))} for C, N in sizes]

    equal, unequal = np.array([1.8, 480.0, 0.36, 1600.0, 0.36]), np.array([1.8, 480.0, 0.36, 40000.0, 0.5])
    wide = np.geomspace(0.1, 10, 9)
    assert not fit("isoflop", make_table(runs(equal, wide), "t"), draws=5).warnings
    found = fit("isoflop", make_table(runs(unequal, wide), "t"), draws=5).warnings
    assert any("arXiv:2603.22339" in line for line in found), found
    found = fit("isoflop", make_table(runs(equal, np.geomspace(1.2, 6, 7)), "t"), draws=5).warnings
    assert any("is at the edge of those that were run" in line and "run smaller models" in line for line in found), (
        found
    )


def test_the_law_file_reads_back(tmp_path, law_file):
    law = read_law(law_file)
    assert (law.form, len(law.draws), len(law.rows)) == ("chinchilla", 300, 24)
    values = json.loads(law_file.read_text())
    wrong = {
        "[1]": "is no law: it has no kind: law",
        "{": "is no law",
        json.dumps(values | {"law_version": 9}): "has law_version 9 and this jaxscale reads 1; fit it again",
        json.dumps(values | {"draws": [[1.0]]}): "is damaged: .*each draw must have 5 parameters",
        json.dumps(values | {"more": 1}): "is damaged: more: extra inputs are not permitted",
        json.dumps(values).replace('"objective": ', '"objective": NaN, "x": ', 1): "is damaged: ",
    }
    for text, message in wrong.items():
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(ValueError, match=message) as error:
            read_law(tmp_path / "b.json")
        assert "\n" not in str(error.value)


# --- any bytes at all ----------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["parameters", "N", "tokens", "D", "flops", "C", "loss", "unique_tokens", "seed", "held_out",
                         "bits_per_byte", "accuracy", "name", "colour", "", "Loss "])  # fmt: skip
CELLS = st.one_of(
    st.floats().map(str), st.integers(-3, 10**12).map(str), st.text(max_size=6),
    st.sampled_from(["", "nan", "inf", "-1", "1e400", "1e-320", "true", "0x10", "1_0", "٣", "1,5", '"']),
)  # fmt: skip
PLAIN = st.floats(1e-3, 1e12).map(str)


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    names=st.lists(NAMES, max_size=6),
    rows=st.lists(st.lists(st.one_of(PLAIN, CELLS), max_size=7), max_size=12),
    form=st.sampled_from(sorted(FORMS)),
    tail=st.one_of(st.just(b""), st.binary(max_size=20)),
)
def test_any_csv_is_fitted_or_refused_in_one_line(tmp_path_factory, names, rows, form, tail):
    buffer = io.StringIO()
    csv.writer(buffer).writerows([names, *rows])
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    path.write_bytes(buffer.getvalue().encode("utf-8", "surrogatepass") + tail)
    judge(lambda: fit(form, read_table(path), draws=5))


@settings(  # not made smaller where it fails: fits take too long for that
    max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
@given(data=st.data(), form=st.sampled_from(sorted(FORMS)))
def test_runs_of_any_numbers_are_fitted_or_refused(data, form):
    """Rows that are read, with numbers of any size: a fit ends, with numbers or with a line."""
    number = st.one_of(st.floats(1e-3, 1e3), st.floats(1e-50, 1e50), st.sampled_from([1.0, 1e6, 2e6]))
    keys = ("parameters", "tokens", "loss", "unique_tokens", "bits_per_byte")
    rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(keys, number)), min_size=5, max_size=14))
    rows = [row | {"accuracy": (i % 7) / 7, "seed": i} for i, row in enumerate(rows)]
    judge(lambda: fit(form, make_table(rows, "t"), draws=5))


FAR = [(243.7, 1e-3, 1e-3), (2.062, 1e-3, 8.5e49), (93.4, 1e-3, 1e-3), (2.062, 1e-3, 8.5e49), (1e-3, 1000.0, 123.5),
       (3.4e49, 872.0, 1e-3), (8.7e49, 877.0, 1e-3), (1.2e-38, 1e-3, 1e-3), (2.00001, 742.6, 2.6e49)]  # fmt: skip


def test_numbers_that_are_too_far_apart_are_refused_in_one_line():
    rows = [{"parameters": N, "tokens": D, "loss": loss, "seed": i} for i, (N, D, loss) in enumerate(FAR)]
    with pytest.raises(ValueError, match=r"t: --form chinchilla comes to predicted=inf; the runs' numbers are too far"):
        fit("chinchilla", make_table(rows, "t"), draws=5)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(-5, 10**15), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(key=st.sampled_from(list(rung())), value=JSON, count=st.integers(0, 9), form=st.sampled_from(sorted(FORMS)))
def test_any_record_is_fitted_or_refused_in_one_line(tmp_path_factory, key, value, count, form):
    rungs = [rung(name=str(i), parameters=1000 * 2**i, loss=4.0 - i / 9) for i in range(count)]
    if rungs:
        rungs[count // 2][key] = value
    path = write_record(tmp_path_factory.getbasetemp() / "fuzz.json", rungs)
    judge(lambda: fit(form, read_table(path, ability="copy" if form == "task" else None), draws=5))


def judge(run):
    """A law of finite numbers, or a ValueError of one line; no other error, and no warning (which is an error here)."""
    law, refusal = None, ""
    try:
        law = run()
    except ValueError as error:
        refusal = str(error)
    assert (law is None) == bool(refusal)
    assert "\n" not in refusal
    if law is None:
        return
    assert all(math.isfinite(x) for x in law.parameters.values())
    law.model_dump_json()


def test_names_are_guessed_and_given():
    assert quantities(["N", "x"], {"loss": "x"}, "f") == {"loss": "x", "parameters": "N"}
    for wrong, message in (({"lost": "x"}, "no quantity lost"), ({"loss": "y"}, "f has no column 'y'")):
        with pytest.raises(ValueError, match=message):
            quantities(["N", "x"], wrong, "f")
    assert could_be(["val_loss", "bpb", "Tokens seen"]) == (
        "its columns: 'val_loss' could be loss; 'bpb' is bits_per_byte; 'Tokens seen' could be tokens"
    )


def test_a_csv_that_is_no_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ValueError, match="is no CSV in UTF-8"):
        csv_rows(tmp_path / "a.csv")
