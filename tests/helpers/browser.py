"""A headless Chromium, driven over its DevTools pipe with the standard library: real keys, console, print."""

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

# What Chromium needs to be told of a key besides its name: the code that tells, say, an arrow from a letter.
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
    """One Chromium process. `open` gives a page of its own; `close` ends the process."""

    def __init__(self, program: str, profile: Path) -> None:
        flags = ["--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe"]
        flags += [f"--user-data-dir={profile}", *(f"--disable-{name}" for name in QUIET)]
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()

        def pipes_at_3_and_4() -> None:
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (theirs_in, theirs_out)]
            for fd, place in zip(high, (3, 4), strict=True):
                os.dup2(fd, place)

        self._process = subprocess.Popen(
            [program, *flags],
            preexec_fn=pipes_at_3_and_4,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._unread = b""
        self._said: dict[int, dict[str, Any]] = {}
        self._count = 0
        self.listeners: dict[str, Callable[[str, dict[str, Any]], None]] = {}

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send one DevTools command and wait for its answer; events that come before it go to their page."""
        self._count += 1
        mine = self._count
        message = {"id": mine, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while mine not in self._said:
            self._read()
        answer = self._said.pop(mine)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _read(self) -> None:
        chunk = os.read(self._in, 1 << 20)
        assert chunk, "the browser has ended"
        *messages, self._unread = (self._unread + chunk).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._said[message["id"]] = message
            elif listener := self.listeners.get(message.get("sessionId", "")):
                listener(message["method"], message["params"])

    def open(self, address: str, *, width: int = 1400, height: int = 1000, scheme: str = "light") -> "Page":
        """A new page at an address, loaded and drawn."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, target, session)
        self.listeners[session] = page.hear
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
    """One tab. problems: console errors and warnings, exceptions, refused loads. requests: every address asked for."""

    browser: Browser
    target: str
    session: str
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **parameters)

    def hear(self, method: str, said: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = said["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self.problems.append(" ".join(str(a.get("value", a.get("description"))) for a in said["args"]))
        elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.problems.append(said["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])

    def go(self, address: str) -> None:
        """Load an address afresh."""
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
        """The value of an expression in the page, awaited where it is a promise."""
        said = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))")

    def press(self, *keys: str, shift: bool = False) -> None:
        """Press keys one after the other, as a keyboard does."""
        for key in keys:
            about = {
                "key": key,
                "code": "Space" if key == " " else f"Key{key.upper()}" if len(key) == 1 else key,
                "windowsVirtualKeyCode": KEYS.get(key) or ord(key.upper()),
                "modifiers": 8 if shift else 0,
            }
            typed = TYPED.get(key, key if len(key) == 1 else "")
            self.call("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": typed} if typed else {}))
            self.call("Input.dispatchKeyEvent", type="keyUp", **about)
        self.settle()

    def click(self, selector: str) -> None:
        """Click in the middle of the first element that matches, with the mouse."""
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
        """The page as its script left it."""
        return "<!doctype html>" + str(self.run("document.documentElement.outerHTML"))

    def media(self, name: str) -> None:
        """Draw as for "print" or "screen"."""
        self.call("Emulation.setEmulatedMedia", media=name)
        self.settle()

    def pdf(self) -> bytes:
        """The page as the browser prints it on A4."""
        return base64.b64decode(self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])

    def screenshot(self, whole: bool = False) -> bytes:
        """A PNG of what is seen, or of the whole page."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def close(self) -> None:
        self.browser.listeners.pop(self.session, None)
        self.browser.call("Target.closeTarget", targetId=self.target)
