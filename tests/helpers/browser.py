"""Headless Chromium, driven through its DevTools pipe with the standard library: keys, mouse, console, print."""

import base64
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Key codes, which Chromium needs in addition to the name of a key.
KEYS = {
    "Tab": 9,
    "Enter": 13,
    "Escape": 27,
    " ": 32,
    "PageUp": 33,
    "PageDown": 34,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}
TYPED = {"Enter": "\r", " ": " "}
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync", "extensions", "default-apps")
READY = "document.readyState === 'complete' && new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"


class Browser:
    """One Chromium process with any number of pages."""

    def __init__(self, program: str, profile: Path) -> None:
        flags = ["--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe"]
        flags += [f"--user-data-dir={profile}", *(f"--disable-{name}" for name in QUIET)]
        (child_in, self._out), (self._in, child_out) = os.pipe(), os.pipe()

        def pipes_at_3_and_4() -> None:
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (child_in, child_out)]
            for fd, place in zip(high, (3, 4), strict=True):
                os.dup2(fd, place)

        self._process = subprocess.Popen(
            [program, *flags],
            preexec_fn=pipes_at_3_and_4,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(child_in)
        os.close(child_out)
        self._unread = b""
        self._answers: dict[int, dict[str, Any]] = {}
        self._count = 0
        self.listeners: dict[str, Callable[[str, dict[str, Any]], None]] = {}

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a DevTools command and return its answer; events that arrive before it go to their pages."""
        self._count += 1
        number = self._count
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while number not in self._answers:
            self._read()
        answer = self._answers.pop(number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _read(self) -> None:
        chunk = os.read(self._in, 1 << 20)
        assert chunk, "the browser has ended"
        *messages, self._unread = (self._unread + chunk).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            elif listener := self.listeners.get(message.get("sessionId", "")):
                listener(message["method"], message["params"])

    def open(self, address: str, *, width: int = 1400, height: int = 1000, scheme: str = "light") -> "Page":
        """Open an address in a new page and wait until it is drawn."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, target, session)
        self.listeners[session] = page.on_event
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.size(width, height)
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        page.go(address)
        return page

    def close(self) -> None:
        """End the process."""
        os.close(self._out)
        os.close(self._in)
        self._process.terminate()
        self._process.wait(timeout=20)


@dataclass
class Page:
    """One tab.

    Attributes:
        problems: console errors and warnings, exceptions, blocked loads.
        requests: every requested address.
    """

    browser: Browser
    target: str
    session: str
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **parameters)

    def on_event(self, method: str, event: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.problems.append(" ".join(str(a.get("value", a.get("description"))) for a in event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.problems.append(event["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])

    def go(self, address: str) -> None:
        """Load an address and wait until it is drawn."""
        self.call("Page.navigate", url="about:blank")
        self.problems.clear()
        self.requests.clear()
        self.call("Page.navigate", url=address)
        until = time.monotonic() + 30
        while self.run("location.href") == "about:blank" or not self.run(f"(async () => {READY} && true)()"):
            assert time.monotonic() < until, f"{address} did not load"
        self.settle()

    def size(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def settle(self) -> None:
        """Wait until pending drawing is done."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))")

    def press(self, *keys: str, shift: bool = False) -> None:
        """Press keys one after another."""
        for key in keys:
            description = {
                "key": key,
                "code": "Space" if key == " " else f"Key{key.upper()}" if len(key) == 1 else key,
                "windowsVirtualKeyCode": KEYS.get(key) or ord(key.upper()),
                "modifiers": 8 if shift else 0,
            }
            typed = TYPED.get(key, key if len(key) == 1 else "")
            self.call("Input.dispatchKeyEvent", type="keyDown", **description, **({"text": typed} if typed else {}))
            self.call("Input.dispatchKeyEvent", type="keyUp", **description)
        self.settle()

    def click(self, selector: str) -> None:
        """Click the middle of the first matching element with the mouse."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'});"
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)
        self.settle()

    def dom(self) -> str:
        """The HTML of the page after its script ran."""
        return "<!doctype html>" + str(self.run("document.documentElement.outerHTML"))

    def media(self, name: str) -> None:
        """Emulate the media type "print" or "screen"."""
        self.call("Emulation.setEmulatedMedia", media=name)
        self.settle()

    def pdf(self) -> bytes:
        """The page printed on A4."""
        return base64.b64decode(self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])

    def screenshot(self, whole: bool = False) -> bytes:
        """A PNG of the visible part, or of the whole page."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def close(self) -> None:
        self.browser.listeners.pop(self.session, None)
        self.browser.call("Target.closeTarget", targetId=self.target)
