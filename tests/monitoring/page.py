#!/usr/bin/env python3
"""The exporter's page in a headless Chromium, while a replay runs.

    page.py --bin DIR [--out DIR]        DIR has kvmd and kvctl; 77: there is no Chromium here

At 400 and 1,600 pixels, light and dark, with scripts and without: it is as wide as the window, has its tables, of which
none is cut off, asks for nothing but itself, and no script of it fails. Screenshots go to --out.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import pathlib
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from typing import Any

from scrape import eventually, free_port, running

WIDTHS = (400, 1600)
SECTIONS = (
    "Blocks found, of those that were looked up",
    "Memory of this node, and traffic",
    "Workers",
    "Last misses",
    "Hottest prefixes",
    "Host cache",
    "Recent events",
)
MOST_BYTES = 200_000


class Browser:
    """A Chromium that is spoken to over two pipes (--remote-debugging-pipe), messages ending in a zero byte."""

    def __init__(self, program: str, folder: pathlib.Path) -> None:
        to_browser, self.write = os.pipe()
        self.read, from_browser = os.pipe()

        def descriptors() -> None:
            # What the browser expects: commands on 3, answers on 4.
            first, second = os.dup(to_browser), os.dup(from_browser)
            os.dup2(first, 3)
            os.dup2(second, 4)

        self.process = subprocess.Popen(
            [
                program,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-proxy-server",
                "--hide-scrollbars",
                "--remote-debugging-pipe",
                f"--user-data-dir={folder}",
                "about:blank",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=descriptors,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.buffer, self.next = b"", 0
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        target = next(each for each in self.ask("Target.getTargets")["targetInfos"] if each["type"] == "page")
        self.session = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read], [], [], max(0, deadline - time.monotonic()))
            assert ready, "the browser did not answer"
            more = os.read(self.read, 1 << 16)
            assert more, "the browser has ended"
            self.buffer += more
        message, self.buffer = self.buffer.split(b"\0", 1)
        decoded: dict[str, Any] = json.loads(message)
        return decoded

    def ask(self, method: str, **parameters: Any) -> Any:
        self.next += 1
        message = {"id": self.next, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 120
        while True:
            answer = self._message(deadline)
            if answer.get("id") == self.next:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, url: str, width: int, dark: bool, scripts: bool) -> None:
        self.events = []
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.ask(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self.ask("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.ask("Page.navigate", url=url)
        deadline = time.monotonic() + 120
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message(deadline))

    def value(self, expression: str) -> Any:
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def screenshot(self, path: pathlib.Path, width: int) -> None:
        height = self.ask("Page.getLayoutMetrics")["cssContentSize"]["height"]
        picture = self.ask(
            "Page.captureScreenshot",
            format="png",
            captureBeyondViewport=True,
            clip={"x": 0, "y": 0, "width": width, "height": height, "scale": 1},
        )
        path.write_bytes(base64.b64decode(picture["data"]))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def check(browser: Browser, url: str, out: pathlib.Path | None) -> None:
    for width in WIDTHS:
        for dark in (False, True):
            for scripts in (True, False):
                name = f"{width}, {'dark' if dark else 'light'}, {'with' if scripts else 'without'} scripts"
                print(name, flush=True)
                browser.open(url, width, dark, scripts)
                assert browser.value("document.documentElement.scrollWidth") <= width, f"{name}: wider than the window"
                cut = browser.value(
                    "[...document.querySelectorAll('.scroll')]"
                    ".filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText)"
                )
                assert not cut, f"{name}: tables that are cut off: {cut}"
                text = browser.value("document.body.innerText")
                missing = [section for section in SECTIONS if section not in text]
                assert not missing, f"{name}: no {missing}"
                assert browser.value("document.querySelectorAll('table').length") >= len(SECTIONS), name
                assert browser.value("document.querySelectorAll('svg path.found').length") == 1, name
                background = browser.value("getComputedStyle(document.body).backgroundColor")
                light = min(int(each) for each in re.findall(r"\d+", background)[:3]) > 128
                assert light != dark, f"{name}: the background is {background}"
                if scripts and out:
                    browser.screenshot(out / f"page-{width}-{'dark' if dark else 'light'}.png", width)
    browser.open(url, 1600, False, True)
    before = browser.value("document.getElementById('asof').textContent")
    eventually(
        "a page that was drawn anew", lambda: browser.value("document.getElementById('asof').textContent") != before
    )
    asked = {
        event["params"]["request"]["url"]
        for event in browser.events
        if event.get("method") == "Network.requestWillBeSent"
    }
    foreign = [each for each in asked if not each.startswith(url) or each not in (url, url + "favicon.ico")]
    assert asked, "no request was seen"
    assert not foreign, f"the page asked for {foreign}"
    failed = [
        event
        for event in browser.events
        if event.get("method") == "Runtime.exceptionThrown"
        or (
            event.get("method") == "Log.entryAdded"
            and "favicon" not in json.dumps(event)
            and event["params"]["entry"]["level"] == "error"
        )
    ]
    assert not failed, failed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        print("SKIPPED: there is no Chromium here (scripts/install_deps.sh --metrics)")
        sys.exit(77)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
    kvctl = arguments.bin / "kvctl"
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sock, port = folder / "kvmd.sock", free_port()
        stack.enter_context(running(folder, arguments.bin / "kvmd", "--socket", sock, "--host-cache", "128M"))
        eventually("kvmd", lambda: sock.exists())
        stack.enter_context(running(folder, kvctl, "--socket", sock, "exporter", "--listen-tcp", f"127.0.0.1:{port}"))
        url = f"http://127.0.0.1:{port}/"

        def page() -> str:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return str(answer.read().decode())

        eventually("the page", page)
        stack.enter_context(
            running(
                folder,
                kvctl,
                "--socket",
                sock,
                "replay",
                "--workload",
                "chat",
                "--requests",
                "400000",
                "--workers",
                "3",
                "--pool-blocks",
                "4000",
                "--block-bytes",
                "16384",
            )
        )
        eventually("imports and a curve", lambda: "class=grid" in page() and "<td>host</td><td>host</td>" in page())
        assert len(page().encode()) <= MOST_BYTES
        browser = Browser(program, folder / "profile")
        stack.callback(browser.close)
        check(browser, url, arguments.out)


if __name__ == "__main__":
    main()
