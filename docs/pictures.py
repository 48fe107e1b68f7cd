"""README's picture, docs/_static/matmul.png: the page of explain with one matmul opened, in Chromium."""

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

OUT = Path(__file__).resolve().parent / "_static" / "matmul.png"
WINDOW = "--window-size=1180,6000"
EXPLAIN = ["explain", "llama3.2-1b", "--mesh", "fsdp=4,tensor=2", "--topology", "v5p:2x2x2", "--compiler", "none"]
MATMUL, UP_TO = "up", "ring-title"  # what is opened, and what the picture leaves out
MARGIN = 16  # pixels


def main() -> None:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", WINDOW):
        options.add_argument(argument)
    with tempfile.TemporaryDirectory() as directory:
        page = Path(directory) / "explain.html"
        subprocess.run([sys.executable, "-m", "jaxscale", *EXPLAIN, "-o", str(page)], check=True)
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            driver.get(page.as_uri())
            choose(driver)
            stacked([part(driver, "model"), part(driver, "detail")]).save(OUT, optimize=True)
        finally:
            driver.quit()
    print(OUT)


def choose(driver: webdriver.Chrome) -> None:
    """Open the matmul."""
    for button in driver.find_elements(By.CSS_SELECTOR, "#model-picture button"):
        if button.text.split()[:1] == [MATMUL] or f" {MATMUL}" in button.text.splitlines()[0]:
            driver.execute_script("arguments[0].click()", button)


def part(driver: webdriver.Chrome, name: str) -> Image.Image:
    """A section of the page as it is when the matmul is open, up to what the picture leaves out."""
    shot = Image.open(io.BytesIO(driver.find_element(By.ID, name).screenshot_as_png)).convert("RGB")
    whole, rest = (driver.find_element(By.ID, one).rect["y"] for one in (name, UP_TO))
    return shot.crop((0, 0, shot.width, min(shot.height, int(rest - whole) - 2 * MARGIN)))


def stacked(parts: list[Image.Image]) -> Image.Image:
    """One below the other, in few colours: the file stays small."""
    width = max(one.width for one in parts) + 2 * MARGIN
    whole = Image.new("RGB", (width, sum(one.height + MARGIN for one in parts) + MARGIN), "white")
    top = MARGIN
    for one in parts:
        whole.paste(one, (MARGIN, top))
        top += one.height + MARGIN
    return whole.quantize(128)


if __name__ == "__main__":
    main()
