"""A headless Chromium for tests, driven over a pair of pipes: no package is needed."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

SECONDS = 60  # that the browser may take for anything


class Browser:
    """One page of a browser.

    Args:
        profile: an empty folder.
    """

    def __init__(self, profile: Path) -> None:
        program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if program is None:
            pytest.skip("the page is tried in a browser, and none is installed: apt-get install chromium")
        (self._commands_end, self._commands), (self._answers, self._answers_end) = os.pipe(), os.pipe()
        flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-debugging-pipe"
        flags += " --use-fake-ui-for-media-stream --use-fake-device-for-media-stream=fps=25"
        ends = f"exec {program} {flags} --user-data-dir={profile} 3<&{self._commands_end} 4>&{self._answers_end}"
        self._process = subprocess.Popen(
            ["bash", "-c", ends], pass_fds=(self._commands_end, self._answers_end), stderr=subprocess.DEVNULL
        )
        os.close(self._commands_end)
        os.close(self._answers_end)
        self._numbers, self._left = itertools.count(1), b""
        self.messages: list[dict] = []  # what the page said on its console, and its errors
        target = self._call("Target.createTarget", url="about:blank", session="")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True, session="")["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Log"):
            self._call(f"{domain}.enable")

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(20)
        os.close(self._commands)
        os.close(self._answers)

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if session is None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while True:
            answer = self._receive(deadline, method)
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.messages.append(answer["params"])

    def _receive(self, deadline: float, method: str) -> dict:
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._answers], [], [], max(0, deadline - time.monotonic()))
            data = os.read(self._answers, 1 << 20) if ready else b""
            assert data, f"the browser does not answer {method}"
            self._left += data
        answer, _, self._left = self._left.partition(b"\0")
        return json.loads(answer)

    def size(self, width: int, height: int = 900) -> None:
        """Set the window's size in CSS pixels."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def open(self, address: str) -> None:
        """Go to a page."""
        self._call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + SECONDS
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < deadline, f"never: {condition}"
            time.sleep(0.05)

    def choose(self, selector: str, path: Path) -> None:
        """Choose a file in a file input, as a person does."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", files=[str(path.resolve())], nodeId=node)
