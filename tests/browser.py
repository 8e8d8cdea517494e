"""A real Chromium for tests, driven over its DevTools protocol: true keys, true downloads, the page's own content policy."""

import asyncio
import base64
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 300


def find_chromium():
    """Path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Browser:
    """One tab of a headless Chromium.

    Parameters
    ----------
    folder : Path
        For its profile and what it downloads.
    """

    def __init__(self, folder):
        self.profile, self.downloads = folder / "profile", folder / "downloads"
        self.downloads.mkdir(parents=True)
        self.loop, self.numbers, self.events = asyncio.new_event_loop(), itertools.count(1), []

    def __enter__(self):
        options = ["--headless=new", "--remote-debugging-port=0", f"--user-data-dir={self.profile}", "--no-first-run"]
        options += ["--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1000", "about:blank"]
        options += ["--no-sandbox"] if os.geteuid() == 0 else []  # it refuses to run as root with one
        self.process = subprocess.Popen(
            [find_chromium(), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self.loop.run_until_complete(self._connect())
        self.call("Page.enable")
        self.call("Runtime.enable")
        self.call("Log.enable")
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))
        return self

    def __exit__(self, *_):
        try:
            self.call("Browser.close")
            self.process.wait(20)
        except Exception:  # whatever it is, the process must not stay
            self.process.kill()
            self.process.wait()
        finally:
            self.socket.close()
            self.loop.run_until_complete(asyncio.sleep(0.1))
            self.loop.close()

    async def _connect(self):
        from tornado.websocket import websocket_connect

        file = self.profile / "DevToolsActivePort"
        end = time.monotonic() + SECONDS
        while not (file.exists() and len(file.read_text().split()) == 2):
            assert self.process.poll() is None and time.monotonic() < end, "Chromium does not start"
            await asyncio.sleep(0.1)
        port = file.read_text().split()[0]
        pages = []
        while not pages:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=SECONDS) as answer:
                pages = [page for page in json.load(answer) if page["type"] == "page"]
        self.socket = await websocket_connect(pages[0]["webSocketDebuggerUrl"], max_message_size=2**28)

    def call(self, method, **params):
        """One command of the protocol; its result."""
        return self.loop.run_until_complete(asyncio.wait_for(self._call(method, params), SECONDS))

    async def _call(self, method, params):
        number = next(self.numbers)
        await self.socket.write_message(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(await self.socket.read_message())
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def open(self, path):
        """Open a file, as a double click does."""
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def run(self, expression):
        """Value of an expression on the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression):
        """Wait until an expression is true."""
        end = time.monotonic() + SECONDS
        while not self.run(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def press(self, *keys):
        """Press keys, one after the other."""
        for key in keys:
            text = {"text": key} if len(key) == 1 else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def click(self, selector):
        """Click into the middle of an element."""
        box = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{box}.scrollIntoView({{block: 'center'}})")
        place = self.run(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({box}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def picture(self, path):
        """Save a picture of the whole page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def downloaded(self):
        """The file that was downloaded, once it is whole."""
        end = time.monotonic() + SECONDS
        while not (found := [path for path in self.downloads.iterdir() if path.suffix == ".json"]):
            assert time.monotonic() < end, "nothing was downloaded"
            time.sleep(0.05)
        return found[0]

    def complaints(self):
        """What the browser has logged as errors: refused loads, broken scripts."""
        self.run("0")  # events come with answers
        errors = []
        for event in self.events:
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                errors.append(event["params"]["entry"]["text"])
            elif event["method"] == "Runtime.exceptionThrown":
                errors.append(str(event["params"]["exceptionDetails"]))
        return errors
