"""The page of `explain` in a real Chromium, and the config that it is made of."""

import shutil
from pathlib import Path

import pytest

from jaxscale import config as cfg
from jaxscale.explain.page import write_page

from .explanation import make_explanation

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
DRIVER = shutil.which("chromedriver")
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
        """With `x` for the sign of multiplication."""
        return self.ask("document.querySelector(arguments[0]).textContent.replaceAll('\\u00d7', 'x')", selector)

    def texts(self, selector: str) -> list[str]:
        found = "[...document.querySelectorAll(arguments[0])].map(n => n.textContent.replaceAll('\\u00d7', 'x'))"
        return self.ask(found, selector)

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
