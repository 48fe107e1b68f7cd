"""What `jaxscale report` reads, refuses and puts on the page, without a browser."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jaxscale import cli
from jaxscale.bench.record import Figure, Row, measured, write_record
from jaxscale.report.inputs import read_inputs
from jaxscale.report.page import make_page, page_text
from jaxscale.report.plots import MOST_POINTS, thin
from jaxscale.report.report import report

from .conftest import (
    ALL,
    collectives_record,
    matmul_record,
    memory_record,
    record,
    step_record,
    sweep_record,
    write_run,
)


def data_of(text: str) -> dict:
    """What the page's script reads."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1))


def plots(*paths) -> dict:
    return {plot.id: plot for plot in make_page(read_inputs(list(paths))).plots}


def one(tmp_path, made):
    """The plots of a page of these records."""
    return plots(*[write_record(r, tmp_path) for r in made])


# --- what is read, and refused --------------------------------------------------------------------------------


def test_runs_records_and_directories_of_records(tmp_path, run, records, capsys):
    single = write_record(step_record("alone"), tmp_path)
    (records / "stray.json").write_text('{"of": "something else"}')
    try:
        lines = report([run, single, records, run], tmp_path / "out.html", tmp_path / "pictures")
    finally:
        (records / "stray.json").unlink()
    assert lines[0].endswith("stray.json: not a record of a benchmark or a ladder, passed over")
    assert re.fullmatch(rf".*out\.html: \d+ kB; 1 run, {len(ALL) + 1} records, \d+ plots", lines[1])
    page = data_of((tmp_path / "out.html").read_text())
    assert [s["kind"] for s in page["sources"]][:2] == ["run", "step"]
    assert [Path(file).name for file in page["skipped"]] == ["stray.json"]
    drawn = [plot["id"] for section in page["sections"] for plot in section["plots"]]
    assert {p.stem for p in (tmp_path / "pictures").iterdir()} == set(drawn)
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (tmp_path / "pictures").iterdir())
    assert len(lines) == 2 + len(drawn)


def test_the_verb_reports_without_jax(tmp_path, run, records):
    """In a fresh interpreter, pictures included."""
    code = (
        "import sys\nfrom jaxscale.cli import main\ntry: main()\nfinally: "
        "print('LOADED', *{m.split('.')[0] for m in sys.modules})"
    )
    arguments = ["report", str(run), str(records), "-o", "out.html", "--png", "pictures"]
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    told, loaded = done.stdout.rsplit("LOADED", 1)
    assert told.startswith("out.html: ")
    assert f"1 run, {len(ALL)} records" in told
    assert "pictures/loss.png: " in told
    assert not {"jax", "jaxlib", "flax", "optax", "orbax", "grain"} & set(loaded.split())
    assert (tmp_path / "out.html").stat().st_size > 50_000


REFUSED = {
    "nothing there": ("{tmp}/nope", "nope is not there; give directories of runs, or records"),
    "neither": ("{tmp}/empty", "empty is neither a run (it has no metrics.jsonl or events.jsonl) nor a directory of"),
    "only strays": ("{tmp}/strays", "strays is neither a run"),
    "no JSON": ("{tmp}/text.json", "text.json is not a record: "),
    "another schema": ("{tmp}/old.json", "old.json has schema 0 and this jaxscale reads 1"),
    "another schema in a directory": ("{tmp}/olds", "old.json has schema 0"),
    "damaged": ("{tmp}/damaged.json", "damaged.json is damaged: "),
    "damaged run": ("{tmp}/run", "config.yaml is damaged: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, case):
    for folder in ("empty", "strays", "olds", "run"):
        (tmp_path / folder).mkdir()
    (tmp_path / "strays" / "a.json").write_text("[1]")
    (tmp_path / "text.json").write_text("hello")
    (tmp_path / "old.json").write_text('{"schema_version": 0}')
    (tmp_path / "olds" / "old.json").write_text('{"schema_version": 0}')
    (tmp_path / "damaged.json").write_text('{"schema_version": 1, "kind": "step"}')
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    (tmp_path / "run" / "config.yaml").write_text("a: [")
    path, message = REFUSED[case]
    assert message in refused(monkeypatch, capsys, path.format(tmp=tmp_path), "-o", tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize("out", ["{tmp}/no/such/out.html", "{tmp}"])
def test_output_that_cannot_be_written(tmp_path, monkeypatch, capsys, run, out):
    message = refused(monkeypatch, capsys, run, "-o", out.format(tmp=tmp_path))
    assert "give -o a file in a directory that exists and can be written" in message


def test_pictures_where_a_file_is(tmp_path, monkeypatch, capsys, run):
    (tmp_path / "file").write_text("")
    message = refused(monkeypatch, capsys, run, "-o", tmp_path / "out.html", "--png", tmp_path / "file")
    assert "cannot write to --png" in message
    assert not (tmp_path / "out.html").exists()


def refused(monkeypatch, capsys, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["jaxscale", "report", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    out, err = capsys.readouterr()
    assert exit.value.code == 2
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_many_strays_are_one_line(tmp_path, run):
    folder = write_record(step_record(), tmp_path / "records").parent
    for n in range(5):
        (folder / f"{n}.json").write_text("{}")
    (line, _) = report([run, folder], tmp_path / "out.html")
    assert line.endswith("0.json and 4 more files: not a record of a benchmark or a ladder, passed over")
    assert len(data_of((tmp_path / "out.html").read_text())["skipped"]) == 5


# --- headlines, names, settings, samples ----------------------------------------------------------------------


def tiles(*paths) -> dict:
    return {tile.label: tile for tile in make_page(read_inputs(list(paths))).tiles}


def test_headlines_of_one_run(run):
    found = tiles(run)
    assert list(found) == ["best validation loss", "tokens per second", "MFU", "goodput"]
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = min((r["loss"], r["step"]) for r in losses if r["kind"] == "validation")
    loss = found["best validation loss"]
    assert (loss.figure.value, loss.figure.unit, loss.about) == (best[0], "nats per token", f"step {best[1]}")
    assert found["MFU"].about == "of 3,956 TFLOP/s, 4 x H100, dense bf16, NVIDIA's datasheet; convention causal"
    assert found["goodput"].figure.value == pytest.approx(0.98 * 40 / 70)
    assert found["goodput"].about == "of 70 s on steps that counted, 2 attempts"
    page = make_page(read_inputs([run]))
    row = dict(zip(page.sections[0].tables[0].columns, page.sections[0].tables[0].rows[0], strict=True))
    assert found["tokens per second"].figure == row["tokens/s"], "the headline is the table's figure"


def test_headlines_of_several_runs_are_the_best_with_its_name(tmp_path):
    slow, fast = write_run(tmp_path / "slow", "x"), write_run(tmp_path / "fast", "x", rate=0.5, steps=60)
    found = tiles(slow, fast)
    assert found["best validation loss"].about.startswith("fast: step ")
    assert found["goodput"].about.startswith("fast: of 90 s")
    alone = write_run(tmp_path / "alone", events=False)
    (alone / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 3.0}\n{"kind": "train", "step": 2}\n')
    assert [(t.label, t.figure.value) for t in tiles(alone).values()] == [("best training loss", 3.0)]
    assert not tiles(write_record(step_record(), tmp_path)), "a benchmark has no headline"


def test_runs_of_one_name_are_called_by_their_directories(tmp_path):
    paths = [tmp_path / where for where in ("a/lr.3e-4", "b/lr.3e-4", "b/lr.1e-3")]
    page = make_page(read_inputs([write_run(p, "quickstart") for p in paths]))
    assert [s.name for s in page.sources] == ["a/lr.3e-4", "b/lr.3e-4", "b/lr.1e-3"]
    page = make_page(read_inputs(paths[1:]))
    assert [s.name for s in page.sources] == ["lr.3e-4", "lr.1e-3"]
    assert page.title == "lr.3e-4, lr.1e-3"


def test_only_settings_that_differ(tmp_path):
    paths = [write_run(tmp_path / name) for name in "ab"]
    assert "The configs of these runs are the same." in make_page(read_inputs(paths)).sections[0].about
    config = yaml.safe_load((paths[1] / "config.yaml").read_text())
    config["data"]["batch_size"] = 16
    config |= {"out": "elsewhere", "data": config["data"] | {"path": "https://user:SECRET@host/x"}}
    (paths[1] / "config.yaml").write_text(yaml.safe_dump(config))
    table = make_page(read_inputs(paths)).sections[0].tables[1]
    assert (table.title, table.columns, table.sources) == ("Settings that differ", ["setting", "a", "b"], [])
    assert table.rows[0] == ["data.batch_size", "8", "16"]
    assert table.rows[1][:2] == ["data.path", "not set"]
    assert "SECRET" not in table.rows[1][2]
    assert len(table.rows) == 2
    assert [t.title for t in make_page(read_inputs(paths[:1])).sections[0].tables] == ["The runs in figures"]


def test_samples_of_a_run_newest_first_and_what_is_left_out_is_said(tmp_path, run):
    lines = [{"step": n, "prompt": "def ", "samples": [{"text": f"f{n}", "reward": 0.5}]} for n in range(20)]
    lines += [{"prompt": "p", "samples": [{"text": "x" * 5000}, {"text": 3}]}, {"prompt": "no samples"}, {"samples": 1}]
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"prompt": "cut')
    section = next(s for s in make_page(read_inputs([run])).sections if s.id == "samples")
    assert [t.text for t in section.texts[1:4]] == ["f19", "f18", "f17"]
    assert section.texts[1].about == "step 19, reward 0.5"
    assert (len(section.texts[0].text), section.texts[0].left_out) == (4000, 1000)
    assert len(section.texts) == 12
    assert "the newest 12 samples; 9 more are in" in section.about[0]


# --- the page as a file ---------------------------------------------------------------------------------------


def test_nothing_outside_and_nothing_escapes(tmp_path):
    """No address to load from; and strings of files stay inside of the JSON, whatever they hold."""
    nasty = "</script><img src=x onerror=alert(1)>\u2028&amp;@@DATA@@"
    text = page_text(make_page(read_inputs([write_run(tmp_path / "run", nasty)])))
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\((?!#)""", text)
    assert "onerror=alert(1)>" not in text.replace("&gt;", "")
    assert text.count("</script>") == 2
    page = data_of(text)
    assert page["sources"][0]["name"] == nasty == page["title"]


def test_the_summary_and_provenance_of_a_run(run):
    page = make_page(read_inputs([run]))
    facts = page.sources[0].facts
    assert facts["device"] == "4 x NVIDIA H100 80GB HBM3"
    assert facts["commit"] == "feedface" * 5
    assert facts["command"] == "jaxscale train tiny"
    assert facts["MFU peak"] == "3,956 TFLOP/s: 4 x H100, dense bf16, NVIDIA's datasheet"
    assert facts["MFU convention"].startswith("causal: matmuls 6 FLOPs")
    assert facts["date"] == "2026-09-21T14:13:21+00:00"
    table = page.sections[0].tables[0]
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (row["last step"], row["attempts"], row["steps lost"]) == (40, 2, 3)
    assert row["tokens/s"].value == pytest.approx(1024 / row["step time"].value)
    assert row["peak memory"].value == 61 * 2**30


def test_axes_of_a_run(run):
    loss = plots(run)["loss"]
    training, validation = loss.series
    assert [a.key for a in loss.x] == ["step", "tokens", "seconds"]
    assert training.columns["step"] == list(range(1, 41))
    assert training.columns["tokens"][:2] == [1024, 2048]
    assert training.columns["seconds"][0] == 11.0, "since the first event, 10 seconds before time 0"
    assert validation.columns["step"] == [10, 20, 30, 40]
    assert (validation.line, validation.marks) == ("dashed", True)


def test_goodput_on_the_page(run):
    plot = plots(run)["goodput"]
    (series,) = plot.series
    spent = dict(zip(series.labels, series.columns["seconds"], strict=True))
    assert spent["steps that counted"] == pytest.approx(0.98 * 40)
    assert spent["lost steps"] == pytest.approx(3.0)
    assert sum(series.columns["share"]) == pytest.approx(1.0)
    assert "40 of them, 3 lost and done again, 2 attempts" in plot.about[0]


def test_a_run_without_events_memory_or_finite_loss(tmp_path):
    path = write_run(tmp_path / "run", events=False, memory=False)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "nonfinite", "step": 41, "time": 1.0, "loss": "nan"}\n')
        file.write('{"kind": "train", "step": 41, "loss": "nan"}\n')
        file.write('{"kind": "train", "step": 42, "lo')
    page = make_page(read_inputs([path]))
    assert not {"memory", "goodput"} & {p.id for p in page.plots}
    text = " ".join(page.sections[0].about)
    assert "do not tell it" in text
    assert "no events.jsonl" in text
    assert "not finite in 1 steps" in text
    training = page.plots[0].series[0].columns
    assert (training["step"][-1], training["loss"][-1]) == (41, None)


def test_a_run_of_many_steps_is_thinned_and_says_so(tmp_path):
    path = write_run(tmp_path / "run", steps=20_000, events=False)
    lines = (path / "metrics.jsonl").read_text().splitlines()
    spike = next(i for i, line in enumerate(lines) if '"step": 7777,' in line and '"train"' in line)
    lines[spike] = json.dumps(json.loads(lines[spike]) | {"loss": 99.0})
    (path / "metrics.jsonl").write_text("\n".join(lines))
    page = make_page(read_inputs([path]))
    training = page.plots[0].series[0]
    assert training.total == 20_000
    assert len(training) <= MOST_POINTS
    assert training.columns["loss"][training.columns["step"].index(7777)] == 99.0, "a spike is kept"
    after, smooth = training.columns["loss"], training.columns["loss:mean"]
    late = slice(len(after) // 2, None)  # where 0 to 0.1 of noise stands upon 2
    assert max(after[late]) - min(after[late]) > 0.09
    assert all(abs(m - 2.05) < 0.035 for m in smooth[late]), "the mean of all points, not of the extremes that are kept"
    assert len(page_text(page)) < 1e6


def test_thin():
    assert thin([1, 2, 3], 5) == [0, 1, 2]
    values = [0.0] * 1000
    values[501], values[502] = 9.0, None
    kept = thin(values, 20)
    assert len(kept) <= 20
    assert {0, 501, 999} <= set(kept)
    assert thin([None] * 100, 10) == [0, 99]


# --- records --------------------------------------------------------------------------------------------------


def test_every_figure_of_every_record_is_in_a_table(records):
    page = make_page(read_inputs([records]))
    tables = {t.title: t for t in page.sections[-1].tables}
    assert len(tables) == len(ALL)
    odd = next(t for title, t in tables.items() if "unheard-of" in title)
    assert odd.columns[:3] == ["moon", "hour", "cloudy"]
    assert odd.rows[0][:5] == ["full", 3, "False", "glitter", odd.rows[0][4]]
    assert (odd.rows[0][4].value, odd.rows[0][4].unit, odd.rows[0][6]) == (4.0, "sparks", 3)
    assert "failed: it rained" in odd.rows[-1]


def test_predicted_and_ideal_beside_measured(tmp_path):
    found = one(tmp_path, [sweep_record()])
    weak = found["scaling-1"]
    names = ["data", "data, predicted", "data, ideal", "fsdp", "fsdp, predicted", "fsdp, ideal"]
    assert [s.name for s in weak.series] == names
    assert [s.line for s in weak.series[:3]] == ["solid", "dashed", "dotted"]
    assert weak.x[0].key == "devices"
    given, own = weak.series[2].columns, weak.series[5].columns
    assert given["tokens_per_second"] == [45_000.0 * n for n in (1, 2, 4, 8, 16, 32)]
    first = weak.series[3].columns["tokens_per_second"][0]
    assert own["tokens_per_second"] == pytest.approx([first * n for n in (1, 2, 4, 8, 16, 32)])
    assert own["tokens_per_second_each"] == pytest.approx([first] * 6)
    assert "a node was lost" in weak.failed[0]
    assert "devices 64" in weak.failed[0]
    remat = found["scaling-2"]
    assert (remat.kind, remat.series[0].labels, remat.series[1].basis) == (
        "bars",
        ["none", "dots", "full"],
        "predicted",
    )


def test_what_grows_with_the_devices_makes_no_curve_of_its_own(tmp_path):
    """A batch that x decides, and meshes that differ in their sizes; what there is only predicted, too."""
    rows = []
    for n in (2, 4, 8):
        for mesh in (f"data={n}", f"data=2,fsdp={n // 2}"):
            figures = {"tokens_per_second": measured([100.0 * n], "tokens/s")}
            rows.append(Row(labels={"devices": n, "batch_size": 8 * n, "mesh": mesh, "remat": "none"}, figures=figures))
    figures = {"predicted_tokens_per_second": Figure(value=1600.0, unit="tokens/s", basis="predicted")}
    rows.append(Row(labels={"devices": 16, "batch_size": 128, "mesh": "tensor=16", "remat": "none"}, figures=figures))
    plot = one(tmp_path, [record("sweep", rows)])["scaling-1"]
    names = {s.name: s.columns["devices"] for s in plot.series if "ideal" not in s.name}
    assert names == {"data": [2, 4, 8], "data,fsdp": [2, 4, 8], "tensor, predicted": [16]}
    assert plot.series[0].labels[1] == "batch_size 32, data=4, none"
    assert plot.about == ["All of them: none."]


def test_the_roof_is_the_peak_and_the_copy(tmp_path):
    found = one(tmp_path, [matmul_record(), memory_record()])["roofline-1"]
    series = {s.name: s for s in found.series}
    assert series["forward, bfloat16"].tags == ["q", "k", "gate", "unembed"]
    slope = series["memory bound"].columns
    copies = [r for r in memory_record().rows if r.labels["what"] == "device copy"]
    largest = max(copies, key=lambda r: r.labels["bytes"]).figures["bytes_per_second"].value  # no cache holds it
    assert slope["flops_per_second"][0] / slope["intensity"][0] == pytest.approx(largest)
    assert slope["flops_per_second"][1] == pytest.approx(989e12)
    assert series["peak"].columns["flops_per_second"] == [989e12, 989e12]
    assert series["model-shaped peak"].line == "dotted"
    assert "out of memory" in found.failed[0]


def test_a_roof_that_is_absent_is_said(tmp_path):
    made = matmul_record().model_copy(update={"peak": None})
    found = one(tmp_path, [made])["roofline-1"]
    assert not {"peak", "memory bound"} & {s.name for s in found.series}
    assert "flat part is absent" in found.about[0]
    assert "slope is absent" in found.about[1]


def test_collectives_by_size_and_their_fits(tmp_path):
    page = make_page(read_inputs([write_record(collectives_record(), tmp_path)]))
    plot, table = page.sections[0].plots[0], page.sections[0].tables[0]
    assert [s.name for s in plot.series] == ["all-reduce", "all-gather", "reduce-scatter", "all-to-all"]
    assert [a.key for a in plot.y] == ["busbw", "algbw", "seconds"]
    assert plot.about == ["All of them: data, size 8, bfloat16."]
    assert len(table.rows) == 4
    assert table.rows[0][3].value == 9e-6


def test_parts_of_a_step(tmp_path):
    found = one(tmp_path, [step_record("a"), step_record("b", 1.2)])
    assert [len(s) for s in found["step-parts"].series] == [5, 5]
    assert found["step-time"].series[0].bases == ["measured", "measured", "predicted"]
    assert found["step-time"].series[0].columns["seconds:n"] == [20, 1, None]
    assert "peak: NVIDIA's datasheet" in found["utilization"].about[0]


@pytest.mark.parametrize("kind", ["step", "matmul", "memory", "collectives", "attention", "sweep", "loader", "new"])
def test_records_with_little_in_them(tmp_path, kind):
    """Nothing, only an error, only unknown figures: a page all the same, with all that there is in its tables."""
    rows = [[], [Row(error="no")], [Row(labels={"x": 1}, figures={"odd": measured([1.0, 2.0], "furlongs")})], [Row()]]
    paths = [write_record(record(kind, r, f"r{i}"), tmp_path) for i, r in enumerate(rows)]
    report(paths, tmp_path / "out.html", tmp_path / "png")
    text = (tmp_path / "out.html").read_text()
    assert "failed: no" in text
    assert "furlongs" in text
    for path in paths:
        report([path], tmp_path / "one.html", tmp_path / "png")


HUGE = 10**400  # JSON may hold it, a float does not


def test_figures_beyond_what_a_float_holds_are_left_out(run):
    lines = [
        {"kind": "train", "step": step, "time": HUGE, "loss": value, "step_seconds": 1e-300}
        for step, value in enumerate((HUGE, 1.7e308, 1.7e308, 2.0), 1)
    ]
    lines.append({"kind": "train", "step": HUGE, "time": 1.0, "loss": 1.0})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "[" * 5000 + "\n")
    events = [
        {"event": "step", "phase": "end", "time": time, "step": 1, "seconds": HUGE} for time in (0, 1.7e308, HUGE)
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in events))
    environment = {"peak": {"flops_per_second": HUGE, "source": "dreams"}, "devices": {"count": HUGE, "kind": "x"}}
    (run / "environment.json").write_text(json.dumps(environment))
    config = {"data": {"batch_size": 10**300, "seq_len": 10**300}, "metrics": {"mfu": ["causal"]}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    page = make_page(read_inputs([run]))
    assert data_of(page_text(page))
    loss = next(plot for plot in page.plots if plot.id == "loss")
    assert loss.series[0].columns["loss"] == [None, 1.7e308, 1.7e308, 2.0, 1.0]
    assert loss.series[0].columns["step"] == [1, 2, 3, 4, None]


def test_half_a_character_in_a_name_and_a_whole_one_in_a_command(tmp_path, run):
    environment = json.loads((run / "environment.json").read_text()) | {"command": ["jaxscale", "train", "🐎"]}
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "config.yaml").write_text('name: "a\\ud800b"\n')
    report([run], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<title>jaxscale report: a?b" in text
    assert "jaxscale train 🐎" in data_of(text)["sources"][0]["facts"]["command"]


def test_credentials_in_an_older_run_or_record_are_not_on_the_page(tmp_path, run):
    environment = json.loads((run / "environment.json").read_text()) | {"command": ["train", "out=s3://KEY:SECRET@b/x"]}
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "config.yaml").write_text("name: tiny\nout: s3://KEY:SECRET@bucket/run\n")
    made = step_record().model_copy(update={"command": ["bench", "step", "data.path=https://user:SECRET@host/x"]})
    report([run, write_record(made, tmp_path)], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "SECRET" not in text
    assert "s3://***@bucket/run" in text


def test_a_page_that_cannot_be_written_leaves_no_half(tmp_path, run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="No space left"):
        report([run], tmp_path / "out" / "page.html")
    assert not list((tmp_path / "out").iterdir())
