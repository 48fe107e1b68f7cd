"""A learner's way through the page of `explain`, in a real Chromium: choose, look, step, slide."""

import json

import pytest
from browser import in_browser

from jaxscale import config as cfg
from jaxscale.blueprint.rules import check_divides, make_rules
from jaxscale.explain.machines import read_topology
from jaxscale.explain.page import page_text, write_page
from jaxscale.explain.story import as_json, explain
from jaxscale.predict import costs
from jaxscale.predict.forecast import forecast
from jaxscale.predict.traffic import traffic

from .conftest import Page
from .explanation import make_explanation

NASTY = "</script><img src=x onerror=\"document.title='owned'\">"


def test_the_file_is_one_and_small_and_text_stays_text(config):
    found = make_explanation(config)
    found["name"] = found["rows"][0]["x"]["name"] = NASTY
    text = page_text(found)
    assert len(text) < 1_500_000
    assert text.count("</script>") == 2, "of the data and of the script, none of what came from files"
    assert "data/stdlib" not in text, "paths of the config stay out"


def test_a_topology_that_is_none_is_refused(config):
    with pytest.raises(ValueError, match=r"topology 'v5p:3x2x2': v5p has no such slice; the nearest are v5p:2x2x4"):
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
    assert names == ["q 4 x", "k 4 x", "v 4 x", "out 4 x", "up 4 x", "gate 4 x", "down 4 x", "unembedding"]
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
    page.click("#roofline .point:last-of-type .mark")  # a point selects its row
    chosen = page.ask("document.querySelector('#roofline .point:last-of-type').dataset.rows.split(' ')")
    assert page.ask("document.querySelector('#list tr[aria-selected=true]').dataset.row") in chosen
    assert page.messages() == []


@in_browser
def test_which_blocks_a_device_holds_and_multiplies(page):
    from selenium.webdriver.common.keys import Keys

    def holders(tensor):
        return page.ask("[...document.querySelectorAll(arguments[0])].map(n => n.dataset.holders).sort()",
                        f".tensor-{tensor} .block")  # fmt: skip

    page.click("#list tr[data-row='4']")
    assert holders("x") == ["0 1", "2 3", "4 5", "6 7"], "x is gathered over tensor: two devices hold each block"
    assert holders("w") == ["0 2 4 6", "1 3 5 7"], "w is whole but for tensor's split"
    assert holders("out") == list("01234567")
    page.click("[data-view=stored]")
    assert holders("x") == list("01234567")
    assert holders("w") == ["0 4", "1 5", "2 6", "3 7"], "replicated over data only"
    page.press("m")
    assert page.find("[data-view=used]").get_attribute("aria-pressed") == "true"
    page.click(".cell[data-device='5']")
    assert "Device 5 (data 1, fsdp 0, tensor 1) multiplies its 4 x 128 x 128 of x" in page.text("#device-words")
    mine = page.ask("[...document.querySelectorAll('.block.mine')].map(n => n.dataset.holders).sort()")
    assert mine == ["1 3 5 7", "4 5", "5"]
    page.press(Keys.ARROW_RIGHT)
    assert page.ask("document.activeElement.dataset.device") == "6"
    assert "Device 6 (data 1, fsdp 1, tensor 0)" in page.text("#device-words")
    page.click("#list tr[data-row='6']")
    assert "partial sum" in page.text("#device-words")
    assert page.ask("document.querySelectorAll('.tensor-out rect[fill=\"url(#partial)\"]').length") == 4, (
        "a block of sums is on two devices"
    )
    colors = page.ask(
        "[...new Set([...document.querySelectorAll('.cell')].map(c => getComputedStyle(c).backgroundColor))]"
    )
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
    page.ask("""[1, 2].forEach(() => document.activeElement.dispatchEvent(
        new KeyboardEvent('keydown', {key: ' ', bubbles: true})))""")
    assert page.text("#ring-play") == "Play"
    assert "Step 0" in page.text("#ring-step"), "it was stopped before it began to move"


@in_browser
def test_every_collective_ends_as_it_promises(page):
    """In as many steps and with as many bytes as a ring takes; before that, not."""
    found = page.ask("""["all-gather", "reduce-scatter", "all-reduce", "all-to-all"].flatMap(kind =>
        [2, 3, 4, 7, 16].map(n => {
            const steps = stepsOf(kind, n), ends = (k) => finished(kind, n, stateAfter(kind, n, k));
            const all = (step, end) => new Set(step.moves.map(m => m[end])).size === n;
            const each = steps.every(s => all(s, "from") && all(s, "to"));
            return [kind, n, steps.length, ends(steps.length), ends(steps.length - 1), each,
                    sentAfter(1, n, steps.length)];
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
    page.click("#chip option[value='h100']")
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
    assert wanted.interval.why in page.text("#conventions")
    rows = {m.name: m for m in costs.matmuls(changed, sizes)}
    up = page.texts("#list tr[data-row='4'] td[data-figure]")
    assert up[3] == f"{rows['up'].m:,} x {rows['up'].k:,} x {rows['up'].n:,}"
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
        check_divides(make_rules(config.sharding), {"data": 2, "fsdp": 2, "tensor": 8}, config)
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
    page.click("#reset")
    for name, value in (("width", 16), ("batch", 128), ("data", 1), ("fsdp", 128), ("tensor", 64)):
        page.slide(name, value)
    assert page.text("#problem") == "Not possible: there is no v5p slice of 8192 chips; the nearest have 7680 and 8960"
    page.click("#reset")
    assert page.text("#problem") == ""


@in_browser
def test_a_large_mesh_is_drawn_as_a_sketch_with_the_whole_meshs_figures(page):
    page.slide("fsdp", 64)
    page.slide("batch", 128)
    assert "A sketch: drawn as data=2, fsdp=8, tensor=2 in place of data=2, fsdp=64, tensor=2" in page.text(
        "#mesh-note"
    )
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
    from selenium.webdriver.support.wait import WebDriverWait

    flights = "document.getAnimations().filter(a => a.effect.target.closest('#ring')).length"
    for motion, flying in (("reduce", 0), ("no-preference", 2)):
        page = Page(driver, file, motion=motion)
        page.ask("player.step(1)")
        assert page.ask(flights) == flying
    page.click("#list tr[data-row='3']")
    page.click("#sends label[for='send-1']")
    page.ask("player.step(1)")
    sums = "[...document.querySelectorAll('#ring .chunk')].map(c => c.dataset.parts).sort().join()"
    WebDriverWait(page.driver, 20).until(lambda _: page.ask(sums) == "0 1,0 1", sums)
    assert page.ask("document.querySelectorAll('.not-yet').length") == 0, "the sums are there, their terms are gone"


@in_browser
def test_rules_of_the_configs_own_move_with_the_sliders(driver, config, tmp_path):
    """Without sequence parallelism a layer's outputs are all-reduced over tensor, on any mesh."""
    own = config.model_copy(update={"sharding": cfg.Sharding(activations={"residual_sequence": None})})
    page = Page(driver, write_page(make_explanation(own), tmp_path / "own.html"))
    page.slide("tensor", 4)
    kinds = (
        "[...new Set(now.rows.filter(r => r.name === 'down').flatMap(r => r.sends.map(s => s.kind + ' ' + s.axes)))]"
    )
    assert "all-reduce tensor" in page.ask(kinds)
    assert not any(kind.startswith("reduce-scatter tensor") for kind in page.ask(kinds))
    assert page.messages() == []


@pytest.fixture(scope="module")
def traced_experts(mixture, tmp_path_factory):
    found = explain(mixture, read_topology("v5p:2x2x2"), compiler="none")
    return write_page(as_json(found), tmp_path_factory.mktemp("experts") / "explain.html")


@in_browser
@pytest.mark.slow
def test_rows_go_to_experts_and_come_back(driver, traced_experts, mixture):
    """Dispatch and combine are steps of the experts' matmuls, on other meshes and chips too."""
    page = Page(driver, traced_experts)
    row = "now.rows.find(r => r.name === arguments[0] && r.phase === arguments[1] && r.what === arguments[2])"

    def sent(*of: str) -> list[str]:
        words = "map(s => `${s.of}: ${s.kind} ${s.axes}`)"
        return page.ask(f"{row}.sends.filter(s => s.of && !s.sent && !s.by).{words}", *of)

    assert sent("expert_up", "forward", "") == ["dispatch: all-gather tensor", "dispatch: all-gather expert"]
    assert sent("expert_down", "forward", "") == ["combine: reduce-scatter expert", "combine: reduce-scatter tensor"]
    assert "For no matmul" not in page.text("#sends")
    page.slide("tensor", 1)
    page.slide("expert", 4)
    ragged = "ragged-all-to-all expert"
    assert sent("expert_up", "forward", "") == [f"dispatch: {ragged}"]
    assert sent("expert_down", "forward", "") == [f"combine: {ragged}"]
    assert sent("expert_down", "backward", "gradient of x") == [f"combine: {ragged}"]
    assert sent("expert_up", "backward", "gradient of x") == [f"dispatch: {ragged}"]
    page.click(f"#list tr[data-row='{page.ask(f'{row}.id', 'expert_up', 'forward', '')}']")
    assert "dispatch: rows go to the devices of their experts" in page.text("#ring-note")
    page.press(".", ".", ".")
    assert "Step 3 of 3" in page.text("#ring-step")
    chunks = "[...document.querySelectorAll('#ring .chunk')].map(c => c.dataset.chunk + c.dataset.at)"
    assert {"00", "11", "22", "33"} == set(page.ask(chunks)), "each device has what is for it"
    sizes = {"fsdp": 2, "expert": 4}
    rows = next(t for t in traffic(mixture, sizes) if t.what == "rows to experts")
    assert f"{rows.bytes / 2**10:g} KiB" in page.text("#sends label[for='send-0']")
    wanted = forecast(mixture, read_topology("v5p:2x2x2"), sizes)
    assert float(page.text("#step-seconds").split()[0]) == pytest.approx(wanted.time.best * 1e3, rel=5e-3)
    page.slide("expert", 8)
    page.slide("data", 2)
    page.slide("fsdp", 1)
    page.slide("tensor", 2)
    page.slide("batch", 64)
    assert len(page.texts(".cell")) == 32
    page.slide("batch", 16)
    page.slide("data", 4)
    with pytest.raises(ValueError, match="rows of a microbatch") as refused:
        check_divides(make_rules(mixture.sharding), {"data": 4, "expert": 8, "tensor": 2}, mixture)
    assert page.text("#problem") == f"Not possible: {refused.value}"
    assert page.messages() == []


@in_browser
def test_a_model_without_experts_has_no_slider_for_them(page):
    assert page.ask("Object.keys(controls.sliders)") == [
        "data",
        "fsdp",
        "context",
        "tensor",
        "batch",
        "length",
        "width",
    ]
