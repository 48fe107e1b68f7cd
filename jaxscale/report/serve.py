"""`report --serve`: the page of runs that are still running, made anew when their files change. No jax."""

import contextlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from jaxscale.report.inputs import RUN_FILES, SAMPLES, read_inputs
from jaxscale.report.page import SCRIPTS, Page, assembled, make_page, package_texts, page_values

HERE = "127.0.0.1"
LOCAL = (HERE, "localhost", "[::1]")  # whoever asks by another name comes from another site's page
WATCHED = (*RUN_FILES, SAMPLES, "config.yaml", "environment.json")


class Following:
    """The page of these paths as their files stand; made again only after they changed. Safe in threads."""

    def __init__(self, paths: list[Path]):
        self.paths, self.lock = paths, threading.Lock()
        self.stamp = stamp_of(paths)
        self.page = make_page(read_inputs(paths))

    def look(self) -> tuple[str, Page]:
        """A name of the files' state, and its page. A file that is damaged at the moment leaves the page as it was."""
        with self.lock:
            stamp = stamp_of(self.paths)
            if stamp != self.stamp:
                with contextlib.suppress(ValueError, OSError):
                    self.page, self.stamp = make_page(read_inputs(self.paths)), stamp
            return self.stamp, self.page


def stamp_of(paths: list[Path]) -> str:
    """Changes when a file does that the page is made of: by its time and its size."""
    files = [file for path in paths for file in (watched(path) if path.is_dir() else [path])]
    said = []
    for file in files:
        with contextlib.suppress(OSError):  # not there yet, or just being replaced
            about = file.stat()
            said.append(f"{file}:{about.st_mtime_ns}:{about.st_size}")
    return f"{hash(tuple(said)):x}"


def watched(directory: Path) -> list[Path]:
    if any((directory / name).is_file() for name in RUN_FILES):
        return [directory / name for name in WATCHED]
    return sorted(directory.glob("*.json"))


def live_text(page: Page, stamp: str) -> str:
    """The page with a script that asks for newer figures."""
    scripts = [*package_texts("jaxscale.report", SCRIPTS), *package_texts("jaxscale.report", ("live.js",))]
    values = page_values(page) | {"stamp": stamp}
    return assembled("jaxscale.report", page.title, values, scripts, more="; connect-src 'self'")


class Handler(BaseHTTPRequestHandler):
    following: Following

    def do_GET(self) -> None:
        host = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host")
        if host not in LOCAL:
            return self.answer(403, "text/plain", f"give the address http://{HERE}")
        path, _, known = self.path.partition("?")
        if path not in ("/", "/figures"):
            return self.answer(404, "text/plain", "the page is at /")
        stamp, page = self.following.look()
        if path == "/":
            return self.answer(200, "text/html", live_text(page, stamp))
        if known == stamp:
            return self.answer(204, "application/json", "")
        return self.answer(200, "application/json", json.dumps(page_values(page) | {"stamp": stamp}, allow_nan=False))

    def answer(self, code: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Cache-Control", "no-store")
        if code != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the reader has left
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass  # a line every two seconds says nothing


def server(paths: list[Path], port: int) -> ThreadingHTTPServer:
    """Bound and not started. Raises ValueError for what cannot be read, and for a port that cannot be had."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port} is not between 0 and 65535; 0 takes any free one")
    handler = type("Handler", (Handler,), {"following": Following(paths)})
    try:
        http_server = ThreadingHTTPServer((HERE, port), handler)
    except OSError as error:
        why = f"--port {port} cannot be used ({error.strerror})"
        raise ValueError(f"{why}; give another one, or 0 for any free one") from error
    http_server.daemon_threads = True
    return http_server


def serve(paths: list[Path], port: int, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C."""
    with server(paths, port) as http_server:
        say(f"http://{HERE}:{http_server.server_address[1]} follows {', '.join(map(str, paths))}; Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            http_server.serve_forever(poll_interval=0.1)
    say("stopped: the page is served no more")
