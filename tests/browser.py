"""A headless Chromium, controlled through its debugging port."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, final

from websockets.sync.client import ClientConnection, connect

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PATIENCE = 60.0


@final
class Browser:
    """One page of the browser, in a window whose size and theme can be set."""

    def __init__(self, socket: ClientConnection) -> None:
        """Open an empty page."""
        self._socket = socket
        self._numbers = count(1)
        self._session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.send("Page.enable")

    def send(self, method: str, **parameters: object) -> Any:  # noqa: ANN401
        """Call a method of the protocol, and return its result."""
        number = next(self._numbers)
        message: dict[str, object] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while (answer := self._receive()).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def set_window(self, width: int, theme: str = "light") -> None:
        """Set the width of the window in pixels, and the theme of the system."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 800,
        )
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def open(self, page: Path) -> None:
        """Load a page, and wait until it is loaded."""
        self.send("Page.navigate", url=page.as_uri())
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, script: str) -> Any:  # noqa: ANN401
        """Return the value of an expression on the page."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv(PATIENCE))
        return message


@contextmanager
def start_browser(folder: Path) -> Iterator[Browser]:
    """Run a browser that keeps its files in a folder."""
    assert PROGRAM
    command = [PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    with subprocess.Popen(  # noqa: S603
        [*command, "--disable-dev-shm-usage", f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stderr
        try:
            lines = (line for line in child.stderr if line.startswith("DevTools listening on "))
            address = next(lines).split()[-1]
            with connect(address, max_size=None, proxy=None) as socket:
                yield Browser(socket)
        finally:
            child.kill()
