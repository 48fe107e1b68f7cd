"""The page of `explain` in a real Chromium, and the config that it is made of."""

from pathlib import Path

import pytest
from browser import Opened

from jaxscale import config as cfg
from jaxscale.explain.page import write_page

from .explanation import make_explanation


@pytest.fixture(scope="module")
def config() -> cfg.Config:
    return cfg.load_config("quickstart")


@pytest.fixture(scope="module")
def file(config, tmp_path_factory) -> Path:
    return write_page(make_explanation(config), tmp_path_factory.mktemp("explain") / "explain.html")


EXPERTS = "model.moe.num_experts=8 model.moe.top_k=2 model.moe.mlp_dim=192"


@pytest.fixture(scope="module")
def mixture() -> cfg.Config:
    """With experts."""
    return cfg.load_config("quickstart", f"mesh.data=1 mesh.fsdp=2 mesh.expert=2 mesh.tensor=2 {EXPERTS}".split())


@pytest.fixture(scope="module")
def file_of_experts(mixture, tmp_path_factory) -> Path:
    return write_page(make_explanation(mixture), tmp_path_factory.mktemp("experts") / "explain.html")


class Page(Opened):
    """The page at rest: motion is asked for where it is what is tested."""

    def __init__(self, driver, file: Path, width: int = 1280, scheme: str = "light", motion: str = "reduce"):
        super().__init__(driver, file, width, scheme, motion)

    def find(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        """With `x` for the sign of multiplication."""
        return self.ask("document.querySelector(arguments[0]).textContent.replaceAll('\\u00d7', 'x')", selector)

    def texts(self, selector: str) -> list[str]:
        found = "[...document.querySelectorAll(arguments[0])].map(n => n.textContent.replaceAll('\\u00d7', 'x'))"
        return self.ask(found, selector)

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
