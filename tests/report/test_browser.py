"""The page in a real Chromium: it loads clean, its plots are drawn, and its controls and keys do what they say."""

import csv
import io
import json
import time
from pathlib import Path

import pytest
from browser import Opened, in_browser

from jaxscale.bench.record import Row, measured, write_record
from jaxscale.report.report import report

from .conftest import collectives_record, record, step_record, write_records, write_run

NASTY = "</script><img src=x onerror=\"document.title='owned'\">"
pytestmark = in_browser


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """Two runs, one of them with a name that wants out, and records of every kind."""
    folder = tmp_path_factory.mktemp("report")
    runs = [write_run(folder / "a", "steady"), write_run(folder / "b", NASTY, steps=30, rate=0.1)]
    odd = record("step", [Row(labels={NASTY: NASTY}, figures={NASTY: measured([1.0], NASTY)}, error=NASTY)], NASTY)
    report([*runs, write_records(folder / "records"), write_record(odd, folder)], folder / "out.html")
    return folder / "out.html"


class Page(Opened):
    def plot(self, id: str):
        return self.driver.find_element("css selector", f"#plot-{id}")

    def find(self, id: str, selector: str) -> list:
        return self.plot(id).find_elements("css selector", selector)

    def drawing(self, id: str) -> str:
        return self.ask("document.querySelector(arguments[0]).outerHTML", f"#plot-{id} .plot svg")

    def points(self, id: str) -> int:
        return int(self.plot(id).get_attribute("data-points"))

    def until(self, script: str) -> None:
        """What a browser does a moment later: a table is made when its box has been opened."""
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, 20).until(lambda _: self.ask(script), script)

    def open_all(self) -> None:
        self.ask("document.querySelectorAll('details').forEach(d => { d.open = true })")
        closed = "details.behind:not([id])"
        self.until(f"[...document.querySelectorAll('{closed}')].every(d => d.children.length > 1)")

    def messages(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture
def page(driver, file) -> Page:
    return Page(driver, file, 1280)


def test_loads_clean_and_from_nowhere_else(page, file):
    assert page.messages() == []
    events = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert asked - {"about:blank"} == {file.as_uri()}


def test_the_plots_are_there_with_their_points(page):
    """40 and 30 steps, validation every ten; the first step has no time."""
    counts = {
        "loss": 40 + 4 + 30 + 3, "throughput": 39 + 29, "mfu": 39 + 29, "memory": 70, "goodput": 6 + 6,
        "step-parts": 5, "step-time": 3, "utilization": 4, "scaling-1": 6 * 6, "scaling-2": 6,
        "roofline-1": 4 * 3 + 6 + 3 * 2, "memory-bandwidth": 27, "collectives": 40, "attention": 20, "loader-1": 3,
        "unheard-of-1": 1,
    }  # fmt: skip
    assert {id: page.points(id) for id in counts} == counts
    assert len(page.find("collectives", "svg .mark")) == 40 + 4, "a mark a point, and one a series in the legend"
    path = page.ask("document.querySelector('#plot-loss .plot path.line').getAttribute('d')")
    assert path.count("L") == 39
    assert "NaN" not in page.ask("document.body.innerHTML")
    assert "undefined" not in page.ask("document.body.innerText")


def test_switching_a_run_off_and_on(page):
    before = page.drawing("loss"), page.drawing("goodput")
    page.click("#runs input[name='runs-on-1']")
    assert (page.points("loss"), page.points("goodput")) == (44, 6)
    assert page.drawing("loss") != before[0]
    page.click("#runs input[name='runs-on-0']")
    assert page.points("loss") == 0
    assert "nothing to show" in page.drawing("loss")
    page.click("#runs input[name='runs-on-0']")
    page.click("#runs input[name='runs-on-1']")
    assert (page.drawing("loss"), page.drawing("goodput")) == before


def test_switching_a_series_in_the_legend(page):
    page.click(".legend button", page.plot("collectives"))
    assert page.points("collectives") == 30
    assert page.find("collectives", ".legend button")[0].get_attribute("aria-pressed") == "false"


def test_switching_axes(page):
    """Along x for all plots of the section, log and which figure for one."""
    over_steps, title = page.drawing("loss"), "#plot-loss .title-x"
    assert page.ask("document.querySelector(arguments[0]).textContent", title) == "step"
    page.ask("document.querySelectorAll(\"input[name='runs-x']\")[1].click()")
    assert page.ask("document.querySelector(arguments[0]).textContent", title) == "tokens seen"
    over_tokens = page.drawing("loss")
    page.ask("document.querySelectorAll(\"input[name='runs-x']\")[2].click()")
    assert page.ask("document.querySelector(arguments[0]).textContent", title) == "wall time with restarts (s)"
    assert page.ask("document.querySelector('#plot-mfu .title-x').textContent") == "wall time with restarts (s)"
    assert len({over_steps, over_tokens, page.drawing("loss")}) == 3
    page.ask("document.querySelectorAll(\"input[name='runs-x']\")[0].click()")
    assert page.drawing("loss") == over_steps

    page.click("input[data-control='logY']", page.plot("loss"))
    assert page.drawing("loss") != over_steps
    assert page.ask("document.querySelector('#plot-loss .title-y').textContent") == "loss (nats per token), log"

    linear = page.ask("[...document.querySelectorAll('#plot-collectives .ytick')].map(t => t.textContent)")
    assert "300 G" in linear
    page.click("option[value='2']", page.plot("collectives"))
    assert page.ask("document.querySelector('#plot-collectives .title-y').textContent") == "time (s), log"
    assert page.ask("[...document.querySelectorAll('#plot-collectives .ytick')].some(t => /µs/.test(t.textContent))")


def test_smoothing_lays_a_mean_over_the_points(page):
    assert not page.find("loss", "path.mean")
    page.click("#runs .choices option[value='2']")
    assert len(page.find("loss", "path.mean")) == 2, "of the training losses; a validation loss is a mean already"
    assert page.find("loss", "path.faint")


def test_by_keyboard(page):
    """Tab reaches the plot; arrows move along a series and to the next one, and what is there is told."""
    from selenium.webdriver.common.keys import Keys

    active = page.driver.switch_to.active_element
    active.send_keys(Keys.TAB)
    assert page.ask("document.activeElement.className") == "skip"
    for _ in range(60):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        if page.ask("document.activeElement.closest('#plot-loss') && document.activeElement.className") == "plot":
            break
    plot = page.driver.switch_to.active_element
    assert plot.get_attribute("aria-label").startswith("Loss: loss (nats per token) over step; 4 series, 77 points")

    def told(key):
        plot.send_keys(key)
        return page.ask("document.querySelector('#plot-loss [aria-live]').textContent")

    assert told(Keys.ARROW_RIGHT).startswith("steady, training, step: 1, loss: ")
    assert "step: 2," in told(Keys.ARROW_RIGHT)
    assert page.find("loss", ".ring")
    assert page.find("loss", ".tip")[0].is_displayed()
    assert "step: 40," in told(Keys.END)
    assert told(Keys.ARROW_DOWN).startswith("steady, validation, step: 40,")
    assert "step: 10," in told(Keys.HOME)
    assert told(Keys.ARROW_UP).startswith("steady, training, step: 10,")
    assert told(Keys.ESCAPE) == ""
    assert not page.find("loss", ".ring")
    outline = page.ask("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "where the focus is can be seen"


def test_the_pointer_tells_a_point(page):
    from selenium.webdriver import ActionChains

    mark = page.find("collectives", ".plot .mark")[5]
    page.ask("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", mark)
    ActionChains(page.driver).move_to_element(mark).perform()
    tip = page.find("collectives", ".tip")[0].text
    assert "all-reduce" in tip
    assert "bytes of the whole operand: 4 MiB" in tip
    assert "in 5 samples" in tip
    assert "measured, h100 (collectives)" in tip


def test_the_table_behind_a_plot(page):
    assert not page.find("collectives", "table")
    page.click("details.behind summary", page.plot("collectives"))
    page.until("document.querySelector('#plot-collectives table')")
    rows = page.find("collectives", "tbody tr")
    assert len(rows) == 40
    figures = collectives_record().rows[0].figures
    first = page.ask("[...arguments[0].children].map(c => c.title || c.textContent)", rows[0])
    assert first[:2] == ["all-reduce", "4096"]
    assert float(first[2]) == pytest.approx(figures["busbw"].value, rel=1e-6)
    assert first[5] == "5"
    assert first[-2:] == ["measured", "h100 (collectives)"]
    where = page.find("collectives", ".provenance")[0].text
    for words in ("device 8 x NVIDIA H100", "commit 0123456789abcdef", "command jaxscale bench", "date 2026-11-20"):
        assert words in where
    page.click(".provenance a", page.plot("collectives"))
    page.until("document.querySelector(location.hash).open")  # the link opens what it leads to


def test_headlines_stand_at_the_top(page):
    told = page.ask("[...document.querySelectorAll('.tile')].map(t => [...t.children].map(c => c.textContent))")
    assert [label for label, *_ in told] == ["best validation loss", "tokens per second", "MFU", "goodput"]
    assert told[0][1].endswith(" nats per token")
    assert told[0][2].startswith(f"{NASTY} (run): step ")
    assert page.ask("document.querySelector('.tile').getBoundingClientRect().bottom") < 400


def test_a_long_table_says_that_there_is_more(driver, file):
    """At a phone's width figures stand as cards; a box that scrolls has a shadow at its edges."""
    page = Page(driver, file, 390)
    rows = "[...document.querySelectorAll('#runs .open-table tbody tr')]"
    assert page.ask(f"{rows}.every(r => r.scrollWidth <= r.clientWidth)")
    assert (
        page.ask("getComputedStyle(document.querySelector('#runs .open-table td'), '::before').content")
        == '"last step"'
    )
    page.open_all()
    box = "document.querySelector('#collectives .behind .scroll')"
    assert page.ask(f"{box}.scrollWidth > {box}.clientWidth")
    assert page.ask(f"getComputedStyle({box}).backgroundAttachment").count("scroll") >= 4


def test_settings_that_differ_samples_and_strays(driver, tmp_path):
    runs = [write_run(tmp_path / name, "tiny") for name in "ab"]
    with (runs[1] / "config.yaml").open("a") as file:
        file.write("optimizer: {learning_rate: 0.001}\n")
    long = "".join(f"line {n}\n" for n in range(50))
    record = {"step": 40, "prompt": NASTY, "samples": [{"text": long}, {"text": "short"}]}
    (runs[0] / "samples.jsonl").write_text(json.dumps(record) + "\n")
    records = write_record(step_record(), tmp_path / "records").parent
    (records / "stray.json").write_text("{}")
    report([*runs, records], tmp_path / "out.html")
    page = Page(driver, tmp_path / "out.html", 390)
    cells = "[...document.querySelectorAll('#runs .open-table')[1].querySelectorAll('tbody :is(th,td)')]"
    assert page.ask(f"{cells}.map(c => c.textContent)") == ["optimizer.learning_rate", "not set", "0.001"]
    assert page.ask(f"{cells}.map(c => c.dataset.label)") == ["setting", "a", "b"]
    text = "document.querySelector('#samples pre').textContent"
    assert page.ask(text).startswith(f"{NASTY}line 0\n")
    assert page.ask(text).endswith("line 19\n…")
    page.click("#samples .text button")
    assert page.ask(text).endswith("line 49\n")
    assert page.ask("document.querySelector('.more-texts summary').textContent") == "1 more sample"
    assert page.ask("document.querySelector('#skipped').open") is False
    assert "stray.json" in page.ask("document.querySelector('#skipped li').textContent")
    assert page.ask("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    assert page.messages() == []


def test_a_copy_as_csv_and_as_png(page):
    """To the clipboard; into a file where that is refused."""
    grant = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    page.driver.execute_cdp_cmd("Browser.grantPermissions", grant)
    page.click("#plot-loss [data-copy=csv]")
    page.until("document.querySelector('#plot-loss [data-copy=csv]').textContent === 'Copied'")
    text = page.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == [
        "series",
        "step",
        "tokens seen",
        "wall time with restarts (s)",
        "loss (nats per token)",
        "basis",
        "from",
    ]
    assert len(rows) == 1 + 77
    assert rows[1][0] == "steady, training"
    assert rows[-1][0] == f"{NASTY} (run), validation"
    assert float(rows[40][4]) == page.ask("PAGE.sections[0].plots[0].series[0].columns.loss[39]")
    page.click("#plot-goodput [data-copy=png]")
    page.until("document.querySelector('#plot-goodput [data-copy=png]').textContent === 'Copied'")
    size = """navigator.clipboard.read().then(items => items[0].getType('image/png')).then(createImageBitmap)
        .then(image => arguments[0]([image.width, image.height]))"""
    wide, high = page.driver.execute_async_script(size)
    assert wide == 2 * int(page.ask("document.querySelector('#plot-goodput .plot svg').getAttribute('width')"))
    assert high > 2 * 150
    assert page.messages() == []


def test_the_png_looks_like_the_plot(page):
    """Its colours are the page's, so style went along: of the ground, and of both runs' lines."""
    colours = """pngOf(shown[0].figures[0]).then(createImageBitmap).then(image => {
        const board = new OffscreenCanvas(image.width, image.height), context = board.getContext('2d');
        context.drawImage(image, 0, 0);
        const data = context.getImageData(0, 0, image.width, image.height).data, found = {};
        for (let i = 0; i < data.length; i += 4) {
            const key = `${data[i]},${data[i + 1]},${data[i + 2]}`; found[key] = (found[key] || 0) + 1;
        }
        arguments[0](found);
    })"""
    found = page.driver.execute_async_script(colours)
    assert found["246,247,249"] > 0.5 * sum(found.values())
    assert min(found["0,114,178"], found["184,75,0"]) > 1000


def test_a_copy_is_saved_where_the_clipboard_is_refused(page, tmp_path):
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.ask("navigator.clipboard.write = () => Promise.reject(new Error('refused'))")
    page.click("#plot-mfu [data-copy=csv]")
    page.until("document.querySelector('#plot-mfu [data-copy=csv]').textContent === 'Saved mfu.csv'")
    saved = tmp_path / "mfu.csv"
    for _ in range(100):
        if saved.exists():
            break
        time.sleep(0.1)
    assert saved.read_text().startswith("series,step,")


def test_zoom_by_mouse_and_by_keyboard(page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    plot = page.find("loss", ".plot")[0]
    page.ask("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", plot)
    whole, whole_mfu = page.points("loss"), page.points("mfu")
    drag = ActionChains(page.driver).move_to_element_with_offset(plot, -60, 0).click_and_hold()
    drag.move_by_offset(100, 10).release().perform()
    assert 0 < page.points("loss") < whole
    assert 0 < page.points("mfu") < whole_mfu, "all plots along the same x follow"
    steps = page.ask("[...document.querySelectorAll('#plot-loss .xtick')].map(t => Number(t.textContent))")
    assert steps[0] > 0
    assert steps[-1] < 40
    page.click("#plot-loss .controls .small")
    assert (page.points("loss"), page.points("mfu")) == (whole, whole_mfu)
    assert page.ask("document.activeElement === arguments[0]", plot)
    plot.send_keys("+")
    inner = page.points("loss")
    assert inner < whole
    plot.send_keys("-")
    assert page.points("loss") == whole
    plot.send_keys("+", "+", "0")
    assert page.points("loss") == whole
    plot.send_keys("+")
    page.ask("document.querySelectorAll(\"input[name='runs-x']\")[1].click()")
    assert page.points("loss") == whole, "a stretch of steps is none of tokens"
    ActionChains(page.driver).move_to_element(plot).send_keys(Keys.ESCAPE).perform()
    assert page.messages() == []


def test_names_from_files_stay_text(page):
    assert page.ask("document.images.length") == 0
    assert page.driver.title.startswith("jaxscale report: steady, </script><img")
    assert NASTY in page.ask("document.querySelector('#runs fieldset').textContent")
    page.open_all()
    assert page.ask("document.querySelectorAll('#records .scroll').length") == 9, "all tables are open"
    assert f"failed: {NASTY}" in page.ask("document.querySelector('#records').textContent")
    assert page.ask("document.images.length") == 0
    assert page.messages() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_nothing_to_scroll_sideways(driver, file, scheme):
    page = Page(driver, file, 360, scheme)
    page.open_all()
    assert page.ask("[innerWidth, document.documentElement.scrollWidth]") == [360, 360]
    outside = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, .hidden-text, .tip')
        && e.getBoundingClientRect().right > 360.5).map(e => e.outerHTML.slice(0, 80))"""
    assert page.ask(outside) == []
    assert page.points("loss") == 77
    assert page.messages() == []


@pytest.mark.parametrize("width", [360, 1280])
def test_no_text_of_a_plot_is_cut_or_lies_on_another(driver, file, width):
    """Ticks, titles and names, by the boxes that the browser gives them; names that are too long end in a mark."""
    page = Page(driver, file, width)
    found = page.ask("""[...document.querySelectorAll('figure .plot svg')].flatMap(svg => {
        const frame = svg.getBoundingClientRect();
        const boxes = [...svg.querySelectorAll('.tick, .title-x, .title-y, .label, .value, .category')]
            .map(t => ({text: t.textContent, box: t.getBoundingClientRect()}));
        const cut = boxes.filter(({box}) => box.left < frame.left - 1 || box.right > frame.right + 1);
        const over = boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b => a.box.left < b.box.right - 1 &&
            b.box.left < a.box.right - 1 && a.box.top < b.box.bottom - 3 && b.box.top < a.box.bottom - 3)
            .map(b => `${a.text} on ${b.text}`));
        const id = svg.closest('figure').id;
        return [...cut.map(c => `${id}: ${c.text} is cut`), ...over.map(o => `${id}: ${o}`)];
    })""")
    assert found == []


def test_dark_where_it_is_wanted(driver, file):
    colors = []
    for scheme in ("light", "dark"):
        page = Page(driver, file, 1280, scheme)
        style = "getComputedStyle(document.body)"
        line = "getComputedStyle(document.querySelector('#plot-loss path.line')).stroke"
        colors.append(page.ask(f"[{style}.backgroundColor, {style}.color, {line}]"))
    light, dark = ([sum(map(int, c[4:-1].split(","))) for c in scheme] for scheme in colors)
    assert light[0] > 600 > 150 > light[1]
    assert dark[0] < 150 < 600 < dark[1]
    assert colors[0][2] != colors[1][2]


def test_contrast_of_text_and_series(driver, file):
    """WCAG 2: 4.5 to 1, also for the series, as their names are written in their colours."""

    def luminance(color: str) -> float:
        values = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for scheme in ("light", "dark"):
        page = Page(driver, file, 1280, scheme)
        names = ["panel", "surface", "text", "quiet", "link", *(f"c{i}" for i in range(10))]
        style = "getComputedStyle(document.documentElement).getPropertyValue"
        values = {
            n: luminance(page.ask(f"{style}.call(getComputedStyle(document.documentElement), '--{n}').trim()"))
            for n in names
        }
        for name in names[2:]:
            for ground in ("panel", "surface"):
                bright, dim = sorted((values[name], values[ground]), reverse=True)
                assert (bright + 0.05) / (dim + 0.05) >= 4.5, (scheme, name, ground)


def test_print_and_reduced_motion(driver, file):
    page = Page(driver, file, 1280)
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert page.ask("getComputedStyle(document.querySelector('.choices')).display") == "none"
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert page.ask("getComputedStyle(document.querySelector('.choices')).display") == "flex"
    features = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    assert page.ask("getComputedStyle(document.documentElement).scrollBehavior") == "smooth"
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    assert page.ask("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def test_a_run_of_many_steps_opens(driver, tmp_path):
    run = write_run(tmp_path / "run", steps=100_000)
    report([run, write_record(step_record(), tmp_path)], tmp_path / "out.html")
    page = Page(driver, tmp_path / "out.html", 1280)
    assert page.messages() == []
    assert 1000 < page.points("loss") <= 2400
    assert "of up to 100,000 points" in page.plot("loss").text
    page.click("details.behind summary", page.plot("loss"))
    page.until("document.querySelector('#plot-loss table')")
    assert len(page.find("loss", "tbody tr")) == 300
    page.ask("document.querySelector('#plot-loss details button').click()")
    assert len(page.find("loss", "tbody tr")) == page.points("loss")
