"""The page of `explain` in a real Chromium: its arithmetic is Python's, and a learner's way through it works."""

import json
import math
import random
import shutil
from pathlib import Path

import pytest

from jaxscale import config as cfg
from jaxscale.analysis import costs
from jaxscale.analysis.forecast import forecast
from jaxscale.analysis.traffic import traffic
from jaxscale.explain.layouts import layouts
from jaxscale.explain.machines import Explained, machine, read_topology
from jaxscale.explain.page import needed, page_text, write_page
from jaxscale.explain.story import as_json, explain, with_mesh
from jaxscale.hardware import CHIPS
from jaxscale.parallel.rules import ACTIVATIONS, PARAMETERS, check_divides

from .explanation import make_explanation

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
DRIVER = shutil.which("chromedriver")
NASTY = "</script><img src=x onerror=\"document.title='owned'\">"
in_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium and chromedriver here: apt-get install chromium chromium-driver"
)


@pytest.fixture(scope="module")
def driver():
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium here: pip install selenium")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def config() -> cfg.Config:
    return cfg.load_config("quickstart")


@pytest.fixture(scope="module")
def file(config, tmp_path_factory) -> Path:
    return write_page(make_explanation(config), tmp_path_factory.mktemp("explain") / "explain.html")


class Page:
    """The file, freshly opened at a size."""

    def __init__(self, driver, file: Path, width: int = 1280, scheme: str = "light", motion: str = "reduce"):
        self.driver = driver
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion",
                                                                        "value": motion}]  # fmt: skip
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features, "media": ""})
        for kind in ("browser", "performance"):
            driver.get_log(kind)  # what is of the page before
        driver.get("about:blank")
        driver.get(file.as_uri())

    def ask(self, script: str, *arguments):
        return self.driver.execute_script(f"return {script}", *arguments)

    def find(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return self.ask("document.querySelector(arguments[0]).textContent", selector)

    def texts(self, selector: str) -> list[str]:
        return self.ask("[...document.querySelectorAll(arguments[0])].map(n => n.textContent)", selector)

    def click(self, selector: str) -> None:
        node = self.find(selector)
        self.ask("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", node)
        node.click()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def slide(self, name: str, value) -> None:
        """As a hand does: the slider's place of that value, with its event."""
        self.ask("(() => { const s = controls.sliders[arguments[0]]; s.input.value = String(s.values.indexOf("
                 "arguments[1])); s.input.dispatchEvent(new Event('input')); })()", name, value)  # fmt: skip

    def messages(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture
def page(driver, file) -> Page:
    return Page(driver, file)


# --- the arithmetic -------------------------------------------------------------------------------------------

MODELS = ("gpt2-124m", "llama3.1-405b", "llama3.1-70b", "llama3.1-8b", "llama3.2-1b", "mistral-7b", "qwen3-8b")
REMATS = ["none", "full", "dots", {"q": "save", "k": "save", "v": "save", "attention_context": "save"},
          dict.fromkeys(("layer_in", "q", "k", "v", "attention_out"), "offload"),
          {"mlp_up": "save", "attention_out": "save", "layer_in": "recompute"}]  # fmt: skip


def random_cases(seed: int, number: int) -> list[tuple[cfg.Config, dict[str, int], str]]:
    """Random (config, mesh, chip) for which there is a machine; some meshes break a rule."""
    rng, found = random.Random(seed), []
    explained = explained_of(cfg.load_config("quickstart"))
    while len(found) < number:
        base = cfg.load_config(rng.choice([*MODELS, "quickstart"])).model_dump(mode="json")
        parts = rng.choice([1, 1, 2, 4, 8])
        if rng.random() < 0.3:  # odd shapes: what divides nothing must be refused in both
            base["model"] |= {"num_heads": 12, "num_kv_heads": rng.choice([1, 2, 3, 4, 12]), "head_dim": 32}
            base["model"] |= {"mlp_dim": rng.choice([96, 200, 1023]), "vocab_multiple": rng.choice([1, 128])}
        base["data"] |= {"batch_size": parts * rng.choice([1, 6, 16, 64, 256, 1024]), "seq_len": rng.choice([128, 1000, 4096])}
        base["model"]["max_seq_len"] = max(base["model"]["max_seq_len"], base["data"]["seq_len"])
        base["loss"] = {}
        base["step"] |= {
            "microbatches": parts, "remat": rng.choice(REMATS), "compute_dtype": rng.choice(["bfloat16", "float32"]),
            "param_dtype": rng.choice(["bfloat16", "float32"]),
        }  # fmt: skip
        base["optimizer"]["name"] = rng.choice(["adamw", "lion", "adafactor", "muon"])
        base["metrics"] = {"mfu": rng.choice(["causal", "palm"])}
        config = cfg.validate(base, source="random")
        sizes = {a: 2 ** rng.choice([0, 1, 2, 3, 4, most]) for a, most in (("data", 6), ("fsdp", 9), ("tensor", 5))}
        chip = rng.choice(CHIPS)
        try:
            machine(chip, sizes, explained)
        except ValueError:
            continue
        found.append((config, {a: n for a, n in sizes.items() if n > 1} or {"data": 1}, chip.name))
    return found


def explained_of(config: cfg.Config) -> Explained:
    return Explained(read_topology("v5p:2x2x2"), config.mesh.sizes(None), config.mesh.over_slices)


def by_python(config: cfg.Config, sizes: dict[str, int], chip_name: str) -> dict:
    chip = next(c for c in CHIPS if c.name == chip_name)
    topology, over = machine(chip, {a: sizes.get(a, 1) for a in cfg.READY_AXES}, explained_of(cfg.load_config("quickstart")))
    found, attention = forecast(config, topology, sizes, over), costs.attention(config, sizes)
    try:
        check_divides(PARAMETERS, ACTIVATIONS, sizes, config)
        rule = None
    except ValueError as error:
        rule = str(error)
    return {
        "rule": rule,
        "matmuls": [[m.name, m.m, m.k, m.n, m.forward, m.backward, m.recomputed] for m in costs.matmuls(config, sizes)],
        "attention": [attention.forward_flops, attention.backward_flops, attention.forward_calls],
        "traffic": [[t.what, t.kind, *t.axes, t.bytes, t.times, t.overlaps] for t in traffic(config, sizes)],
        "sent": [[s.network, s.seconds, s.hidden] for s in found.sent],
        "parts": found.time.parts, "sums": found.time.sums, "binds": found.time.binds,
        "times": [found.time.best, found.time.overlapped, found.time.nothing_overlapped, found.time.exposed],
        "whole": [found.flops, found.model_flops, found.mfu, found.tokens_per_second_per_chip],
        "machine": topology.name,
    }  # fmt: skip


BY_PAGE = """((cases) => cases.map(([config, sizes, chip]) => {
    const machine = machineOf(chip, sizes), f = forecast(config, chip, sizes, machine), a = attentionCost(config, sizes);
    return {
        rule: brokenRule(config, sizes),
        matmuls: matmuls(config, sizes).map(m => [m.name, m.m, m.k, m.n, m.forward, m.backward, m.recomputed]),
        attention: [a.forward, a.backward, a.calls],
        traffic: traffic(config, sizes).map(t => [t.what, t.kind, ...t.axes, t.bytes, t.times, t.overlaps]),
        sent: f.sent.map(s => [s.network, s.seconds, s.hidden]), parts: f.parts, sums: f.sums, binds: f.binds,
        times: [f.best, f.overlapped, f.apart, f.exposed], whole: [f.flops, f.modelFlops, f.mfu, f.perChip],
        machine: machine.name,
    };
}))(arguments[0])"""


def same(a, b, where: str) -> list[str]:
    """Differences of two JSON values, numbers to 1e-9."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for k in a for d in same(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in same(x, y, f"{where}[{i}]")]
    if type(a) in (int, float) and type(b) in (int, float):
        return [] if math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-30) else [f"{where}: {a} and {b}"]
    return [] if a == b else [f"{where}: {a} and {b}"]


@in_browser
def test_the_arithmetic_is_pythons_on_200_random_configs(page):
    cases = random_cases(0, 200)
    wanted = [by_python(*case) for case in cases]
    assert len({w["binds"] for w in wanted}) >= 5, "compute, HBM and several networks bind"
    assert 20 < sum(w["rule"] is None for w in wanted) < 190, "some meshes break a rule, some none"
    got = page.ask(BY_PAGE, [[needed(config), sizes, chip] for config, sizes, chip in cases])
    assert [d for i, (a, b) in enumerate(zip(got, wanted, strict=True)) for d in same(a, b, f"case {i}")] == []


BY_ROWS = """((cases) => cases.map(([config, sizes, chip, layouts]) => {
    PAGE.layouts = layouts;
    const machine = machineOf(chip, sizes), runs = config.step.microbatches * config.model.num_layers;
    const rows = layouts.map(l => predictedRow({...l, times: runs}, config, chip, sizes, machine)), sent = {};
    const add = (t) => { const key = `${t.kind} ${t.axes.join()}`; sent[key] = (sent[key] || 0) + t.bytes * t.times; };
    for (const row of rows) for (const s of row.sends) add({...s, times: row.times});
    otherTraffic(config, sizes).forEach(add);
    const flops = {};
    for (const row of rows) flops[row.name] = (flops[row.name] || 0) + row.flops * row.times;
    return {sent, flops};
}))(arguments[0])"""


@in_browser
def test_rows_and_the_rest_send_what_the_cost_model_says(page):
    """Each collective belongs to one row, or to none of them; FLOPs of the passes add up to the cost model's."""
    cases = [case for case in random_cases(1, 160) if by_python(*case)["rule"] is None]
    assert len(cases) > 20
    assert sum("tensor" in sizes and c.model.kv_heads < sizes["tensor"] for c, sizes, _ in cases) > 2, "repeated heads"
    got = page.ask(BY_ROWS, [[needed(c), sizes, chip, layouts(c)] for c, sizes, chip in cases])
    for (config, sizes, _), found in zip(cases, got, strict=True):
        sent: dict[str, float] = {}
        for t in traffic(config, sizes):
            sent[f"{t.kind} {t.axes[0]}"] = sent.get(f"{t.kind} {t.axes[0]}", 0.0) + t.step_bytes
        assert same(found["sent"], sent, f"{config.name} {config.step.remat} on {sizes}") == []
        flops = {m.name: m.step_flops for m in costs.matmuls(config, sizes)}
        assert same(dict(sorted(found["flops"].items())), dict(sorted(flops.items())), str(sizes)) == []


# --- what a learner does --------------------------------------------------------------------------------------

def test_the_file_is_one_and_small_and_text_stays_text(config):
    found = make_explanation(config)
    found["name"] = found["rows"][0]["x"]["name"] = NASTY
    text = page_text(found)
    assert len(text) < 1_500_000
    assert text.count("</script>") == 2, "of the data and of the script, none of what came from files"
    assert "data/stdlib" not in text, "paths of the config stay out"


def test_a_topology_that_is_none_is_refused(config):
    with pytest.raises(ValueError, match=r"no such slice; the nearest are v5p:2x2x2"):
        page_text(make_explanation(config) | {"topology": "v5p:3x2x2"})


@in_browser
def test_loads_clean_from_nowhere_else_and_nasty_names_are_text(driver, config, tmp_path):
    found = make_explanation(config)
    found["name"] = found["rows"][0]["x"]["name"] = found["rows"][0]["sends"][1]["note"] = NASTY
    file = write_page(found, tmp_path / "out.html")
    page = Page(driver, file)
    assert page.messages() == []
    events = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert asked - {"about:blank"} == {file.as_uri()}
    assert page.ask("document.images.length") == 0
    assert NASTY in page.text("#about")
    assert NASTY in page.text("#detail-notation")
    assert NASTY in page.text("#sends")


@in_browser
def test_choosing_a_matmul_by_click_and_by_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    names = page.texts("#list .title")
    assert names == ["q 4 ×", "k 4 ×", "v 4 ×", "out 4 ×", "up 4 ×", "gate 4 ×", "down 4 ×", "unembedding"]
    assert page.text("#detail-title") == "q"
    page.click("#list tr[data-row='4']")
    assert page.text("#detail-title") == "up"
    notation = "x[Bdata,fsdp, Ttensor, D] · w_up[Dfsdp, Ftensor] → h[Bdata,fsdp, T, Ftensor]"
    assert page.text("#detail-notation") == notation
    assert page.texts("#detail-notation sub") == ["data,fsdp", "tensor", "fsdp", "tensor", "data,fsdp", "tensor"]
    assert page.text("#detail-cases").count("case") == 3
    assert "fsdp: case 2" in page.text("#detail-cases")
    assert "tensor: case 4" in page.text("#detail-cases")
    page.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert page.text("#detail-title") == "down"
    assert page.ask("document.activeElement.dataset.row") == "6"
    assert page.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press(Keys.END)
    assert page.text("#detail-title") == "unembedding"
    page.press(Keys.HOME)
    assert page.text("#detail-title") == "q"
    assert page.ask("[...document.querySelectorAll('#list tr[tabindex=\"0\"]')].length") == 1
    page.click("[data-phase=backward]")
    assert len(page.texts("#list .title")) == 16
    page.click("#roofline .point")  # a point selects its row
    chosen = page.ask("document.querySelector('#roofline .point').dataset.rows.split(' ')")
    assert page.ask("document.querySelector('#list tr[aria-selected=true]').dataset.row") in chosen
    assert page.messages() == []


@in_browser
def test_which_blocks_a_device_holds_and_multiplies(page):
    from selenium.webdriver.common.keys import Keys

    def holders(tensor):
        return page.ask("[...document.querySelectorAll(arguments[0])].map(n => n.dataset.holders)",
                        f".tensor-{tensor} .block")  # fmt: skip

    page.click("#list tr[data-row='4']")
    assert holders("x") == ["0 1", "2 3", "4 5", "6 7"], "x is gathered over tensor: two devices hold each block"
    assert holders("w") == ["0 2 4 6", "1 3 5 7"], "w is whole but for tensor's split"
    assert sorted(holders("out")) == list("01234567")
    page.click("[data-view=stored]")
    assert sorted(holders("x")) == list("01234567")
    assert sorted(holders("w")) == ["0 4", "1 5", "2 6", "3 7"], "replicated over data only"
    page.press("m")
    assert page.find("[data-view=used]").get_attribute("aria-pressed") == "true"
    page.click(".cell[data-device='5']")
    assert "Device 5 (data 1, fsdp 0, tensor 1) multiplies its 4 × 128 × 128 of x" in page.text("#device-words")
    mine = page.ask("[...document.querySelectorAll('.block.mine')].map(n => n.dataset.holders).sort()")
    assert mine == ["1 3 5 7", "4 5", "5"]
    page.press(Keys.ARROW_RIGHT)
    assert page.ask("document.activeElement.dataset.device") == "6"
    assert "Device 6 (data 1, fsdp 1, tensor 0)" in page.text("#device-words")
    page.click("#list tr[data-row='6']")
    assert "partial sum" in page.text("#device-words")
    assert page.ask("document.querySelectorAll('.tensor-out rect[fill=\"url(#partial)\"]').length") == 8
    colors = page.ask("[...new Set([...document.querySelectorAll('.cell')].map(c => getComputedStyle(c).backgroundColor))]")
    assert len(colors) == 8
    assert page.texts(".cell") == list("01234567"), "and a number, as colour is not the only sign"


@in_browser
def test_stepping_through_a_collective_until_every_chunk_has_arrived(page):
    """An all-gather over fsdp=4 by buttons and by keys, forward and back."""
    page.slide("fsdp", 4)
    page.slide("data", 1)
    page.click("#list tr[data-row='4']")
    page.click("#sends label[for='send-1']")
    assert "all-gather w_up over fsdp" in page.text("#sends label[for='send-1']")
    chunks = "[...document.querySelectorAll('#ring .chunk')].map(c => c.dataset.at + ':' + c.dataset.chunk).sort()"
    assert page.ask(chunks) == ["0:0", "1:1", "2:2", "3:3"]
    page.click("#ring-next")
    assert page.ask(chunks) == ["0:0", "0:3", "1:0", "1:1", "2:1", "2:2", "3:2", "3:3"]
    assert page.text(".moves") == "0 → 2: chunk 0; 2 → 4: chunk 1; 4 → 6: chunk 2; 6 → 0: chunk 3"
    whole = 128 * 384 // 2 * 4
    assert f"Sent so far by each device: {whole / 4 / 1024:g} KiB" in page.text("#ring-step")
    page.click("#ring-next")
    page.click("#ring-next")
    assert page.ask("document.querySelectorAll('#ring .chunk').length") == 16
    assert "Done: every device ends with all chunks" in page.text("#ring-step")
    assert f"Sent so far by each device: {whole * 3 / 4 / 1024:g} KiB" in page.text("#ring-step")
    assert page.find("#ring-next").get_property("disabled")
    page.ask("document.activeElement.blur()")
    page.press(",", ",")
    assert "Step 1 of 3" in page.text("#ring-step")
    page.press(".")
    assert "Step 2 of 3" in page.text("#ring-step")
    page.click("#ring-start")
    assert "Step 0 of 3" in page.text("#ring-step")


@in_browser
def test_play_and_pause(page):
    from selenium.webdriver.support.wait import WebDriverWait

    page.find("#list tr[data-row='0']").click()
    page.press(" ")
    assert page.text("#ring-play") == "Pause"
    WebDriverWait(page.driver, 20).until(lambda _: page.text("#ring-play") == "Play")
    assert "Step 1 of 1" in page.text("#ring-step")
    page.click("#list tr[data-row='3']")
    page.press(" ", " ")
    assert page.text("#ring-play") == "Play"
    assert "Step 0" in page.text("#ring-step"), "it was stopped before it began to move"


@in_browser
def test_every_collective_ends_as_it_promises(page):
    """In as many steps and with as many bytes as a ring takes; before that, not."""
    found = page.ask("""["all-gather", "reduce-scatter", "all-reduce", "all-to-all"].flatMap(kind => [2, 3, 4, 7, 16].map(n => {
        const steps = stepsOf(kind, n).length, ends = (k) => finished(kind, n, stateAfter(kind, n, k));
        const each = stepsOf(kind, n).every(s => new Set(s.moves.map(m => m.from)).size === n && new Set(s.moves.map(m => m.to)).size === n);
        return [kind, n, steps, ends(steps), ends(steps - 1), each, sentAfter(1, n, steps)];
    }))""")
    for kind, n, steps, done, early, each, sent in found:
        assert steps == (2 if kind == "all-reduce" else 1) * (n - 1)
        assert (done, early, each) == (True, False, True), (kind, n)
        assert sent == pytest.approx((2 if kind == "all-reduce" else 1) * (n - 1) / n)


@in_browser
def test_the_all_to_all_of_the_lookup_can_be_stepped_through(page):
    page.slide("fsdp", 4)
    page.ask("[...document.querySelectorAll('#others button')].find(b => /all-to-all/.test(b.ariaLabel)).click()")
    assert "looked-up rows, all-to-all over fsdp" in page.text("#sends")
    page.press(".", ".", ".")
    assert "Step 3 of 3" in page.text("#ring-step")
    assert "Done: every device trades its blocks" in page.text("#ring-step")
    page.click("#leave-other")
    assert "all-gather x over tensor" in page.text("#sends")


@in_browser
def test_sliders_and_chip_change_every_figure_to_what_python_computes(page, config):
    """And the traced and compiled facts are told only where they hold."""
    assert "compiler" in page.text("#basis")
    assert "≠ compiled: The compiler gathers all of them in one." in page.text("#sends")
    before = page.texts("#list td[data-figure]")
    page.slide("width", 8)
    page.slide("batch", 64)
    page.slide("length", 1024)
    page.slide("fsdp", 8)
    page.ask("(() => { const c = document.querySelector('#chip'); c.value = 'h100'; c.dispatchEvent(new Event('change')); })()")
    assert page.text("#basis").startswith("Predicted; the compiled program was for data=2, fsdp=2, tensor=2")
    assert "compiled" not in page.text("#list") + page.text("#sends")
    changed = cfg.validate(config.model_dump(mode="json") | {
        "model": config.model.model_dump() | {"embed_dim": 1024, "mlp_dim": 3072, "num_heads": 32, "num_kv_heads": 16},
        "data": config.data.model_dump() | {"batch_size": 64, "seq_len": 1024},
    }, source="changed")  # fmt: skip
    sizes = {"data": 2, "fsdp": 8, "tensor": 2}
    topology = read_topology("h100:4x8")
    wanted = forecast(changed, topology, sizes)
    assert "32 devices: h100:4x8" in page.text("#machine")
    shown = {id: page.text(f"#{id}") for id in ("step-seconds", "mfu", "binds", "tokens")}
    assert float(shown["step-seconds"].split()[0]) == pytest.approx(wanted.time.best * 1e3, rel=5e-3)
    assert shown["step-seconds"].endswith("ms")
    assert float(shown["mfu"].split()[0]) == pytest.approx(wanted.mfu * 100, rel=1e-3)
    assert shown["binds"] == wanted.time.binds
    rows = {m.name: m for m in costs.matmuls(changed, sizes)}
    up = page.texts("#list tr[data-row='4'] td[data-figure]")
    assert up[3] == f"{rows['up'].m:,} × {rows['up'].k:,} × {rows['up'].n:,}"
    gather = next(t for t in traffic(changed, sizes) if t.what == "up weight" and t.kind == "all-gather")
    page.click("#list tr[data-row='4']")
    assert f"{gather.bytes / 2**20:g} MiB" in page.text("#sends label[for='send-1']")
    assert page.texts("#list td[data-figure]") != before
    page.click("#reset")
    assert page.texts("#list td[data-figure]") == before
    assert "compiler" in page.text("#basis")
    assert page.messages() == []


@in_browser
def test_what_cannot_be_says_the_rule(page, config):
    page.slide("tensor", 8)
    with pytest.raises(ValueError, match="num_heads") as refused:
        check_divides(PARAMETERS, ACTIVATIONS, {"data": 2, "fsdp": 2, "tensor": 8}, config)
    assert page.text("#problem") == f"Not possible: {refused.value}"
    assert not page.find("#summary").is_displayed()
    page.slide("tensor", 2)
    assert page.text("#problem") == ""
    page.slide("data", 512)
    page.slide("batch", 4096)
    page.slide("fsdp", 4)
    assert page.text("#problem") == ""
    v5e = page.find("#chip option[value='v5e']")
    assert v5e.get_property("disabled")
    assert v5e.get_attribute("title") == "there is no v5e slice of 4096 chips; the nearest have 256"
    page.slide("fsdp", 512)
    assert "there is no v5p slice of 524288 chips" in page.text("#problem")
    page.click("#reset")
    assert page.text("#problem") == ""


@in_browser
def test_a_large_mesh_is_drawn_as_a_sketch_with_the_whole_meshs_figures(page):
    page.slide("fsdp", 64)
    page.slide("batch", 128)
    assert "A sketch: drawn as data=2, fsdp=8, tensor=2 in place of data=2, fsdp=64, tensor=2" in page.text("#mesh-note")
    assert len(page.texts(".cell")) == 32
    page.click("#sends label[for='send-1']")
    for _ in range(7):
        page.click("#ring-next")
    assert "the real ring has 64, and takes 63 steps" in page.text("#ring-step")
    assert "31.5 KiB" in page.text("#ring-step"), "63 of 64 parts of 32 KiB"


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_nothing_to_scroll_sideways(driver, file, scheme):
    page = Page(driver, file, 360, scheme)
    for phase in ("forward", "backward"):
        page.click(f"[data-phase={phase}]")
        assert page.ask("[innerWidth, document.documentElement.scrollWidth]") == [360, 360]
        outside = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, .hidden-text, thead')
            && e.getBoundingClientRect().right > 360.5).map(e => e.outerHTML.slice(0, 80))"""
        assert page.ask(outside) == []
    assert page.messages() == []


@in_browser
def test_dark_print_and_contrast(driver, file):
    """WCAG 2: 4.5 to 1 for text, and for the numbers on each device's colour."""

    def luminance(color: str) -> float:
        values = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    grounds = []
    for scheme in ("light", "dark"):
        page = Page(driver, file, 1280, scheme)
        names = ["panel", "surface", "chosen", "text", "quiet", "link", "warn", "compute", "on-device"]
        names += [f"d{i}" for i in range(8)]
        style = "getComputedStyle(document.documentElement).getPropertyValue"
        value = {n: luminance(page.ask(f"{style}.call(getComputedStyle(document.documentElement), '--{n}').trim()"))
                 for n in names}  # fmt: skip
        pairs = [(t, g) for t in names[3:8] for g in names[:3]] + [("on-device", f"d{i}") for i in range(8)]
        for a, b in pairs:
            bright, dim = sorted((value[a], value[b]), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, (scheme, a, b)
        grounds.append(page.ask("getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert page.ask("getComputedStyle(document.querySelector('#controls')).display") == "none"
    assert page.find("#list tr[data-row='7']").is_displayed()


@in_browser
def test_chunks_fly_only_where_motion_is_wanted(driver, file):
    for motion, flying in (("reduce", 0), ("no-preference", 2)):
        page = Page(driver, file, motion=motion)
        page.ask("player.step(1)")
        assert page.ask("document.getAnimations().filter(a => a.effect.target.closest('#ring')).length") == flying


@in_browser
def test_rules_of_the_configs_own_fix_the_sliders(driver, config, tmp_path):
    own = config.model_copy(update={"sharding": cfg.Sharding(activations={"residual_sequence": "context"})})
    page = Page(driver, write_page(make_explanation(own), tmp_path / "own.html"))
    assert "rules of its own" in page.text("#fixed")
    assert page.ask("controls.sliders.data.input.disabled")
    assert page.messages() == []


# --- the real thing -------------------------------------------------------------------------------------------

AT_REST = """(() => {
    const {config, chip, sizes, machine} = now, tensor = (t) => [t.name, t.letters, t.sizes, t.stored, t.used];
    const told = (row) => ({
        x: tensor(row.x), w: tensor(row.w), out: tensor(row.out), unreduced: row.out.unreduced.slice().sort(),
        cases: row.cases, shape: row.per_device, flops: row.flops, hbm: row.hbm_bytes, intensity: row.intensity,
        seconds: row.seconds, bound: row.bound, times: row.times,
        sends: row.sends.map(s => [s.operand, s.kind, s.axes, s.bytes, s.shared, s.seconds]),
    });
    const pairs = PAGE.explained.rows.map(tracedRow).map(row => [row, predictedRow(row, config, chip, sizes, machine)]);
    return pairs.map(([a, b]) => [rowTitle(a), told(a), told(b)]);
})()"""


@pytest.fixture(scope="module", params=["step.remat=none", "step.remat=full"])
def traced(request, tmp_path_factory) -> Path:
    config = with_mesh(cfg.load_config("quickstart", [request.param]), "data=2,fsdp=2,tensor=2")
    found = explain(config, read_topology("v5p:2x2x2"), compiler="none")
    return write_page(as_json(found), tmp_path_factory.mktemp("traced") / "explain.html")


@in_browser
@pytest.mark.slow
def test_the_rules_layouts_are_the_traced_programs(driver, traced):
    """On the traced mesh, what the rules and the cost model say of each row is what was traced, to the last send."""
    page = Page(driver, traced)
    pairs = page.ask(AT_REST)
    assert len(pairs) >= 27
    assert [d for title, a, b in pairs for d in same(a, b, title)] == []
    page.click("[data-phase=all]")
    assert len(page.texts("#list tbody tr")) == len(pairs)
    assert "undefined" not in page.text("body main")
    assert page.messages() == []
