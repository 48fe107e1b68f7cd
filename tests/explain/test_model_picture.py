"""The picture of the whole model, what it opens, advice that names sliders, and labels, in a real Chromium."""

import pytest
from browser import in_browser

from jaxscale import config as cfg
from jaxscale.blueprint.rules import check_divides, make_rules
from jaxscale.explain.page import write_page
from jaxscale.predict.traffic import traffic

from .conftest import Page
from .explanation import make_explanation

pytestmark = in_browser

PARTS = "[...document.querySelectorAll('.part')].map(p => p.ariaLabel)"
NAMES = "[...document.querySelectorAll('.part [data-name]')].map(n => n.dataset.name)"


LOOKUPS = ("token ids", "looked-up rows", "rows' gradients", "embedding gradient", "embedding weight")


def test_what_the_lookup_sends_is_what_python_predicts(page, config):
    sent = [t.bytes * t.times for t in traffic(config, config.mesh.sizes(None)) if t.what in LOOKUPS]
    assert page.text(".part a") == f"lookup{sum(sent) / 2**10:.4g} KiB sent"


def test_the_model_stands_first_with_every_matmul_and_its_seconds(page):
    assert page.ask(PARTS) == ["embeddings", "4 layers", "head"]
    assert page.ask(NAMES) == ["q", "k", "v", "out", "up", "gate", "down", "unembedding"]
    top = "document.querySelector(arguments[0]).getBoundingClientRect().top"
    assert page.ask(top, "#model") < page.ask(top, "#matmuls")
    shown = page.ask("model.node.querySelector('[data-name=down]').ariaLabel")
    wanted = page.ask("""seconds(now.rows.filter(r => r.name === 'down')
        .map(r => r.times * r.seconds[r.bound]).reduce((a, b) => a + b))""")
    assert shown == f"open down: {wanted} of a step, bound by ICI (data)"


def test_attention_and_experts_are_parts_of_their_own(driver, file_of_experts):
    page = Page(driver, file_of_experts)
    parts = page.ask(PARTS)
    assert parts[0] == "embeddings"
    assert parts[-1] == "head"
    names = page.ask(NAMES)
    assert names == page.ask("[...new Set(now.rows.filter(r => r.phase === 'forward').map(r => r.name))]")
    assert page.messages() == []


def test_a_traced_attention_is_told_from_the_mlp(page):
    """Its kernel's rows say where it ends."""
    page.ask("""(() => { const like = (name, id) => ({...now.rows[2], name, id});
        now.rows.splice(3, 0, like('scores', 90), like('context', 91)); drawRows(); })()""")
    assert page.ask(PARTS) == ["embeddings", "attention, 4 layers", "MLP, 4 layers", "head"]
    assert page.ask(NAMES)[3:6] == ["scores", "context", "out"]


def test_a_matmul_is_opened_from_it_by_click_and_by_keyboard(page):
    page.click("[data-name=down]")
    assert page.text("#detail-title") == "down"
    assert page.ask("document.querySelector('[aria-pressed=true][data-name]').dataset.name") == "down"
    assert page.ask("document.querySelector('#list tr[aria-selected=true]').dataset.row") == "6"
    page.find("[data-name=q]").send_keys("\ue007")
    assert page.text("#detail-title") == "q"
    page.click("[data-phase=backward]")
    page.click("[data-name=up]")
    assert (page.text("#detail-title"), page.find("[data-phase=forward]").get_attribute("aria-pressed")) == (
        "up",
        "true",
    )
    page.click("#list tr[data-row='3']")
    assert page.find("[data-name=out]").get_attribute("aria-pressed") == "true"
    assert page.messages() == []


def test_colour_and_sign_follow_what_binds(page):
    """On a wide model the same matmul waits for compute; the sign is another one, as colour is not alone."""
    kinds = "[...document.querySelectorAll('.part button')].map(b => b.className.split(' ')[1])"
    marks = "new Set([...document.querySelectorAll('.part button path')].map(p => p.getAttribute('d'))).size"
    assert set(page.ask(kinds)) == {"network"}
    page.slide("width", 64)
    page.slide("batch", 4096)
    assert "compute" in page.ask(kinds)
    assert page.ask(marks) == len(set(page.ask(kinds)))
    assert page.ask("now.rows.filter(r => r.name === 'up').every(r => r.bound === 'compute')")
    assert page.find("[data-name=up]").get_attribute("class") == "matmul compute"


def test_on_a_phone_a_matmul_comes_into_view_and_nothing_scrolls_within_the_page(driver, file):
    page = Page(driver, file, 390)
    page.click("[data-name=gate]")
    top = page.ask("document.querySelector('#detail-title').getBoundingClientRect().top")
    assert 0 <= top < 120
    inner = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.hidden-text, thead')
        && /auto|scroll/.test(getComputedStyle(e).overflowX + getComputedStyle(e).overflowY)
        && (e.scrollHeight > e.clientHeight + 1 || e.scrollWidth > e.clientWidth + 1)).map(e => e.id || e.className)"""
    for phase in ("forward", "backward", "all"):
        page.click(f"[data-phase={phase}]")
        assert page.ask(inner) == []
    assert page.ask("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]


OVERLAPS = """[...document.querySelectorAll('main svg')].flatMap(svg => {
    const texts = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim() && !t.closest('.not-yet'))
        .map(t => ({text: t.textContent, box: t.getBoundingClientRect()}));
    const cut = texts.filter(({box}) => box.left < -0.5 || box.right > innerWidth + 0.5).map(t => `${t.text} is cut`);
    return [...cut, ...texts.flatMap((a, i) => texts.slice(i + 1).filter(b => a.box.left < b.box.right - 1
        && b.box.left < a.box.right - 1 && a.box.top < b.box.bottom - 3 && b.box.top < a.box.bottom - 3)
        .map(b => `${svg.parentNode.id}: ${a.text} on ${b.text}`))];
})"""


@pytest.mark.parametrize("width", [360, 1280])
def test_no_label_lies_on_another(driver, file, width):
    """Of every matmul's blocks, its collective and the roofline; on small and large meshes and models."""
    page = Page(driver, file, width)
    found = []
    for moved in ({}, {"fsdp": 8, "batch": 64}, {"width": 16, "batch": 512}, {"fsdp": 16, "data": 8, "batch": 4096}):
        for name, value in moved.items():
            page.slide(name, value)
        assert page.text("#problem") == ""
        for row in page.ask("now.rows.map(r => r.id)"):
            page.ask("choose(arguments[0])", row)
            for seen in ("stored", "used"):
                page.ask("view(arguments[0])", seen)
                found += [f"{moved} {row} {seen} {said}" for said in page.ask(OVERLAPS)]
        page.click("#reset")
    assert not found, "\n".join(found)
    boxes = """[...document.querySelectorAll('.matmul, .part h3')].filter(e => e.scrollWidth > e.clientWidth + 1)
        .map(e => e.textContent)"""
    assert page.ask(boxes) == []


def test_advice_names_the_slider_and_moves_it(page, config):
    page.slide("data", 32)
    with pytest.raises(ValueError, match="rows of a microbatch") as refused:
        check_divides(make_rules(config.sharding), {"data": 32, "fsdp": 2, "tensor": 2}, config)
    assert page.text("#problem") == f"Not possible: {refused.value}"
    assert page.texts("#advice button")[0] == "Set slider “batch” to 64"
    assert "Set slider “data” to 8" in page.texts("#advice button")
    page.click("#advice [data-slider=batch]")
    assert page.text("#problem") == ""
    assert page.texts("#advice button") == []
    assert page.ask("controls.sliders.batch.value") == 64
    assert page.ask("document.activeElement.id") == "slider-batch"
    assert page.find("#summary").is_displayed()
    page.slide("batch", 16)
    for slider in page.ask("[...document.querySelectorAll('#advice button')].map(b => b.dataset.slider)"):
        page.click(f"#advice [data-slider={slider}]")
        assert page.text("#problem") == "", slider
        page.click("#reset")
        page.slide("data", 32)


def test_a_name_from_a_file_is_text_in_the_picture(driver, config, tmp_path):
    found = make_explanation(config)
    nasty = "</script><img src=x onerror=alert(1)>"
    found["rows"][0]["name"] = nasty
    page = Page(driver, write_page(found, tmp_path / "out.html"))
    assert nasty in page.text("#model-picture")
    assert page.ask("document.images.length") == 0


def test_a_model_in_one_layer_and_on_one_device(driver, tmp_path):
    one = cfg.load_config("quickstart", ["model.num_layers=1", "mesh.data=1", "mesh.fsdp=1", "mesh.tensor=1"])
    page = Page(driver, write_page(make_explanation(one, "v5e:1x1"), tmp_path / "one.html"))
    assert page.ask(PARTS) == ["embeddings", "1 layer", "head"]
    assert page.text(".part a") == "lookupnothing sent"
    assert page.messages() == []
