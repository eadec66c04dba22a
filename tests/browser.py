"""A headless Chromium that tests drive through chromedriver's own HTTP protocol (W3C WebDriver)."""

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
# As the protocol spells keys that write nothing.
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Tab": "\ue004", "Space": " "}
KEYS |= {"ArrowLeft": "\ue012", "ArrowUp": "\ue013", "ArrowRight": "\ue014", "ArrowDown": "\ue015"}
PROGRAMS = ("chromium", "chromedriver")


# Contrast by WCAG 2.1 of every text against the nearest ground that is painted behind it.
CONTRAST = """
const value = c => { c /= 255; return c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4 };
const light = c => .2126 * value(c[0]) + .7152 * value(c[1]) + .0722 * value(c[2]);
const parse = s => s.match(/[\\d.]+/g).map(Number);
const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
  if (c.length < 4 || c[3] > 0) return c } return [255, 255, 255] };
const found = [];
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || !e.checkVisibility() || e.closest('script, style')) continue;
  const style = getComputedStyle(e), svg = e instanceof SVGElement;
  if (e.disabled) continue;
  const a = light(parse(svg ? style.fill : style.color)), b = light(ground(e));
  const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  if (ratio < 4.5) found.push([e.tagName, e.className, e.textContent.slice(0, 30), ratio]);
}
return found;
"""


class Browser:
    """One page of one browser."""

    def __init__(self, address: str, profile: Path):
        self.address = address
        options = {
            "binary": shutil.which("chromium"),
            "args": [*FLAGS, f"--user-data-dir={profile}"],
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{made['sessionId']}"

    def call(self, method: str, path: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.address + path, data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return json.load(reply)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from error

    def tell(self, path: str, **content: Any) -> Any:
        return self.call("POST", self.session + path, content)

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.tell("/goog/cdp/execute", cmd=command, params=parameters)

    def look(self, width: int, height: int, scheme: str = "light", media: str = "") -> None:
        """Take on the size of a window, a colour scheme and a medium, such as `print`."""
        mobile = width < 600
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=mobile,
        )  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.devtools("Emulation.setEmulatedMedia", media=media, features=[feature])

    def open(self, path: Path, fragment: str = "") -> None:
        """Open a file and wait until its script says that it is ready."""
        self.tell("/url", url="about:blank")
        self.tell("/url", url=path.resolve().as_uri() + fragment)
        self.wait("return document.body.dataset.ready === 'yes'")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.tell("/execute/sync", script=script, args=list(arguments))

    def wait(self, script: str, *arguments: Any, seconds: float = 120) -> Any:
        """Run a script until what it returns is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script, *arguments)):
            if time.monotonic() > end:
                raise AssertionError(f"never came true: {script}; console: {self.console()}")
            time.sleep(0.05)
        return value

    def choose(self, id: str, value: str) -> None:
        """Set a control as a user does."""
        self.run(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event(e.tagName === 'SELECT' ? 'change' : 'input'))",
            id,
            value,
        )

    def press(self, *keys: str) -> None:
        """Press keys one after the other, wherever the focus is."""
        strokes = [
            {"type": kind, "value": KEYS.get(key, key)}
            for key in keys
            for kind in ("keyDown", "keyUp")
        ]
        self.tell("/actions", actions=[{"type": "key", "id": "keyboard", "actions": strokes}])

    def console(self) -> list[str]:
        """Warnings and errors since the last call."""
        entries = self.tell("/se/log", type="browser")
        return [e["message"] for e in entries if e["level"] in ("WARNING", "SEVERE")]

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Save what the window shows, or the whole page."""
        shot = self.devtools("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def driver() -> Iterator[str]:
    """The address of a chromedriver that lives as long as the block."""
    command = ["chromedriver", "--port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        said = ""
        for line in process.stdout:
            said += line
            if port := re.search(r"started successfully on port (\d+)", line):
                yield f"http://127.0.0.1:{port[1]}"
                return
        raise AssertionError(f"chromedriver did not start: {said}")
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with a fresh profile; without Chromium the test skips, in CI it fails."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        message = f"{' and '.join(missing)} not found; apt-get install chromium chromium-driver"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    with driver() as address:
        made = Browser(address, profile)
        try:
            yield made
        finally:
            made.call("DELETE", made.session)
