"""The page plays while a clip is made in Firefox, too."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.page_server import RATE, FakeServer, free_port, running

pytestmark = pytest.mark.alone

FIREFOX = next(filter(None, map(shutil.which, ("firefox-esr", "firefox"))), None)
if FIREFOX is None and not os.environ.get("REQUIRE_BROWSERS"):
    pytest.skip("no Firefox: apt install firefox-esr", allow_module_level=True)

RECORD_SCHEDULE = """
window.pieces = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (when = 0) {
  const { currentTime: asked, state } = this.context;
  pieces.push({ when, length: this.buffer.length, rate: this.buffer.sampleRate, asked, state });
  return start.call(this, when);
};
"""


class Firefox:
    """Firefox by its own protocol, Marionette: `length:[0, id, command, parameters]` both ways.

    Playwright drives only a Firefox of its own.
    """

    def __init__(self, profile: Path) -> None:
        port = free_port()
        # Without a sound card its audio would never start.
        prefs = {"marionette.port": port, "media.cubeb.force_mock_context": True}
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in prefs.items()]
        (profile / "user.js").write_text("".join(lines))
        command = [str(FIREFOX), "--headless", "--marionette", "--no-remote", "--profile", str(profile)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._socket = self._connect(port)
        self._ids = itertools.count()
        self._file = self._socket.makefile("rb")
        self._read()  # its greeting
        self("WebDriver:NewSession", capabilities={})

    def _connect(self, port: int) -> socket.socket:
        for _ in range(600):
            try:
                return socket.create_connection(("127.0.0.1", port), timeout=60)
            except OSError:
                time.sleep(0.1)
        raise TimeoutError("Firefox doesn't listen")

    def _read(self) -> Any:
        length = b""
        while (byte := self._file.read(1)) != b":":
            length += byte
        return json.loads(self._file.read(int(length)))

    def __call__(self, command: str, **parameters: Any) -> Any:
        message = json.dumps([0, next(self._ids), command, parameters])
        self._socket.sendall(f"{len(message)}:{message}".encode())
        _, _, error, result = self._read()
        assert error is None, error
        return result

    def run(self, script: str) -> Any:
        return self("WebDriver:ExecuteScript", script=script, args=[])["value"]

    def element(self, selector: str) -> str:
        found = self("WebDriver:FindElement", using="css selector", value=selector)["value"]
        return next(iter(found.values()))

    def wait_until(self, expression: str) -> None:
        end = time.monotonic() + 30
        while not self.run(f"return {expression}"):
            assert time.monotonic() < end, expression
            time.sleep(0.05)

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    with running(tmp_path) as server:
        yield server


@pytest.fixture
def firefox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firefox]:
    firefox = Firefox(tmp_path_factory.mktemp("firefox"))
    yield firefox
    firefox.close()


def test_it_is_heard_before_it_is_done_without_a_gap(firefox: Firefox, server: FakeServer) -> None:
    server.speed = 4
    firefox("WebDriver:Navigate", url=server.url)
    firefox.wait_until("!document.getElementById('device').hidden")
    firefox.run(RECORD_SCHEDULE)
    firefox("WebDriver:ElementSendKeys", id=firefox.element("#prompt"), text="slow piano")
    firefox("WebDriver:ElementClick", id=firefox.element("#make-button"))
    firefox.wait_until("pieces.length > 0")
    assert firefox.run("return document.querySelectorAll('.card[data-status=running]').length") == 1
    firefox.wait_until(f"pieces.reduce((sum, piece) => sum + piece.length, 0) >= 8 * {RATE}")
    pieces = firefox.run("return pieces")
    assert len(pieces) >= 4
    gaps = [(b["when"] - a["when"]) * RATE - a["length"] for a, b in itertools.pairwise(pieces)]
    assert max(map(abs, gaps)) < 1e-3
    assert all(piece["when"] >= piece["asked"] for piece in pieces)
    assert pieces[-1]["state"] == "running"
    # Its clock goes on: it sounds.
    firefox.wait_until("parseFloat(document.getElementById('seek').value) > 1")
