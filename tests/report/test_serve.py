"""`report --serve`: a real server in a real process, whose page follows a run that goes on."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Opened, in_browser

from jaxscale.report.serve import Following

from .conftest import write_run

SERVE = [sys.executable, "-m", "jaxscale.cli", "report", "--serve"]


@pytest.fixture
def running(tmp_path) -> Path:
    return write_run(tmp_path / "run", "going-on", steps=20)


@pytest.fixture
def served(running) -> Iterator[tuple[subprocess.Popen, str]]:
    """The process, and its address as it says it."""
    process = subprocess.Popen([*SERVE, "--port", "0", str(running)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)  # fmt: skip
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.fullmatch(r"(http://127\.0\.0\.1:\d+) follows .*run; Ctrl-C ends it\n", line)
        assert found, line
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def add_step(run: Path, step: int, loss: float) -> None:
    line = {"kind": "validation", "step": step, "time": 1.79e9 + step, "loss": loss}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def get(address: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_figures_change_when_the_run_writes_and_ctrl_c_ends_it(served, running):
    process, address = served
    status, text = get(address + "/figures")
    before = json.loads(text)
    assert (status, before["tiles"][0]["label"]) == (200, "best validation loss")
    assert get(f"{address}/figures?{before['stamp']}") == (204, ""), "nothing new"
    add_step(running, 21, 0.125)
    status, text = get(f"{address}/figures?{before['stamp']}")
    assert status == 200
    assert json.loads(text)["tiles"][0]["figure"]["value"] == 0.125
    assert get(address + "/etc/passwd")[0] == 404
    assert get(address, Host="elsewhere.example:80")[0] == 403, "a page of another site may not read it"
    assert get(address, Host="localhost:9000")[0] == 200, "through a tunnel"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "stopped: the page is served no more\n", "")


@in_browser
def test_the_open_page_shows_the_new_number_and_keeps_what_was_chosen(driver, served, running):
    from selenium.webdriver.support.wait import WebDriverWait

    process, address = served
    page = Opened(driver, running / "metrics.jsonl")
    driver.get(address)
    until = WebDriverWait(driver, 20).until
    tile = "document.querySelector('.tile-figure').textContent"
    until(lambda _: page.ask("document.querySelector('#live').textContent").startswith("Live"))
    page.click("#plot-loss [data-control=logY]")
    points = int(page.ask("document.querySelector('#plot-loss').dataset.points"))
    add_step(running, 21, 0.125)
    until(lambda _: page.ask(tile) == "0.125 nats per token")
    assert int(page.ask("document.querySelector('#plot-loss').dataset.points")) == points + 1
    assert "0.125 nats per token" in page.ask("document.querySelector('#runs table').textContent")
    assert page.ask("document.querySelector('#plot-loss [data-control=logY]').checked"), "and was not loaded anew"
    process.send_signal(signal.SIGINT)
    until(lambda _: "server has stopped" in page.ask("document.querySelector('#live').textContent"))
    told = [m["message"] for m in driver.get_log("browser") if "ERR_CONNECTION_REFUSED" not in m["message"]]
    assert [m for m in told if "favicon" not in m] == []


def test_a_port_in_use_and_files_asked_for_are_one_line(running):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        why = f"error: --port {port} cannot be used (Address already in use)"
        assert refused("--port", str(port), str(running)) == f"{why}; give another one, or 0 for any free one\n"
    assert "--port 70000 is not between 0 and 65535" in refused("--port", "70000", str(running))
    assert "--serve writes no file" in refused("-o", "x.html", str(running))
    assert "is not there" in refused("nowhere")


def refused(*arguments: str) -> str:
    done = subprocess.run([*SERVE, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert not done.stdout
    return done.stderr


def test_a_file_that_is_damaged_for_a_moment_leaves_the_page_as_it_was(running):
    following = Following([running])
    stamp, page = following.look()
    config = running / "config.yaml"
    whole = config.read_text()
    config.write_text("a: [")
    assert following.look() == (stamp, page)
    config.write_text(whole)
    os.utime(config, (1, 1))
    assert following.look()[0] != stamp
