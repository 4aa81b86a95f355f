"""A real browser, driven over the WebDriver protocol: chromedriver and Chromium, and nothing between them and us."""

import base64
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil

from tests.process import free_port

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--hide-scrollbars",
    "--force-prefers-reduced-motion",
)
DEADLINE_S = 15.0
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def missing() -> str | None:
    """What has to be installed before a browser can be opened, or `None`."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium and shutil.which("chromedriver"):
        return None
    return "no Chromium with chromedriver here; `make browser` installs Debian's (as root)"


class Browser:
    """One window. Elements are named by CSS selectors; what is not there yet is waited for."""

    def __init__(self, client: httpx2.Client) -> None:
        self._client = client

    def open(self, url: str) -> None:
        """Go to `url`."""
        self._command("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function with this body gives, run in the page."""
        return self._command("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector: str) -> str:
        """The first visible element of `selector`, as soon as there is one."""
        return self.wait(lambda: self._find(selector), f"{selector} to be shown")

    def text(self, selector: str) -> str:
        """What an element shows."""
        return self._command("GET", f"/element/{self.find(selector)}/text")

    def shows(self, selector: str, *parts: str) -> str:
        """The text of an element as soon as all `parts` are in it."""

        def found() -> str | None:
            text = self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector)
            return text if all(part in text for part in parts) else None

        return self.wait(found, f"{selector} to show {parts}")

    def click(self, selector: str) -> None:
        """Click as a person does: only what is visible and not covered."""
        self._command("POST", f"/element/{self.find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Type into a field."""
        self._command("POST", f"/element/{self.find(selector)}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Press keys one after the other, wherever the focus is. Tab is `\\ue004`, Enter `\\ue007`."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._command("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def resize(self, width: int, height: int) -> None:
        """Show the page as on a screen of this size, narrower than a window may be."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)

    def devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        """Run a command of Chromium's own protocol."""
        return self._command("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def logs(self) -> list[str]:
        """What the page wrote to the console, errors and breaches of the policy included, since this was asked last."""
        return [entry["message"] for entry in self._command("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write what is shown, or the `whole` page, as PNG."""
        shot = self.devtools("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole})
        path.write_bytes(base64.b64decode(shot["data"]))

    def wait(self, check: Callable[[], Any], what: str) -> Any:
        """What `check()` gives as soon as that is something."""
        deadline = time.monotonic() + DEADLINE_S
        while not (found := check()):
            assert time.monotonic() < deadline, f"waited in vain for {what}; the console: {self.logs()}"
            time.sleep(0.03)
        return found

    def _find(self, selector: str) -> str | None:
        element = self.run(
            "const found = document.querySelector(arguments[0]); return found?.checkVisibility() ? found : null",
            selector,
        )
        return element[_ELEMENT] if element else None

    def _command(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        reply = self._client.request(method, path, json=body)
        value = reply.json()["value"]
        assert reply.status_code == 200, f"{value['error']}: {value['message']}"
        return value


@contextmanager
def open_browser(*, dark: bool = False) -> Generator[Browser]:
    """A fresh browser with a profile of its own; gone with its processes after the block."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="mnemosine-browser-", ignore_cleanup_errors=True) as profile:
        command = ["chromedriver", f"--port={port}"]
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            base = f"http://127.0.0.1:{port}"
            _wait_until_ready(base, driver)
            options = {"args": [*FLAGS, f"--user-data-dir={profile}"]}
            wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            asked = {"capabilities": {"alwaysMatch": wanted}}
            created = httpx2.post(f"{base}/session", json=asked, timeout=60).json()["value"]
            assert "sessionId" in created, created
            session = f"{base}/session/{created['sessionId']}"
            with httpx2.Client(base_url=session, timeout=60) as client:
                browser = Browser(client)
                scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
                browser.devtools("Emulation.setEmulatedMedia", {"features": [scheme]})
                try:
                    yield browser
                finally:
                    processes = psutil.Process(driver.pid).children(recursive=True)
                    client.delete(session)  # the whole address: with a slash at its end it is no session
                    _, left = psutil.wait_procs(processes, timeout=20)
                    assert not left, left
        finally:
            driver.terminate()
            driver.wait(timeout=20)


def _wait_until_ready(base: str, driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while driver.poll() is None and time.monotonic() < deadline:
        try:
            if httpx2.get(f"{base}/status", timeout=2).json()["value"]["ready"]:
                return
        except httpx2.TransportError:
            time.sleep(0.05)
    raise AssertionError("chromedriver did not start")
