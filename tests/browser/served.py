"""Dagster's web UI as `relevance-assets ui` serves it, for a test to look at.

Belongs here: starting the servers on a free port of this machine, and ending every one of them. Does not belong here:
what a page must show (`test_web_ui.py`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from relevance_assets.home import Home

START_S = 120  # this machine may be busy
STOP_S = 20
LOADED = (
    "{ workspaceOrError { ... on Workspace { locationEntries { loadStatus locationOrLoadError { __typename } } } } }"
)


@contextmanager
def served(home: Home, log: Path) -> Iterator[str]:
    """The address of the home's web UI, with its code loaded. All servers are gone afterwards, whatever happens."""
    port = _free_port()
    words = [sys.executable, "-m", "relevance_assets", "ui", "--home", str(home.root), "--port", str(port)]
    environment = os.environ | {"RELEVANCE_WORKERS": "1", "NO_COLOR": "1"}
    # Web server, daemon, code server and runs are children: a process group of their own, so that all can be ended.
    with log.open("w") as file:
        process = subprocess.Popen(
            words,
            cwd=Path(__file__).resolve().parents[2],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_loaded(process, address, log)
        yield address
    finally:
        _end(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_loaded(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    wait_until = time.monotonic() + START_S
    while time.monotonic() < wait_until:
        if process.poll() is not None:
            break
        with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            entries = _ask(address, LOADED)["data"]["workspaceOrError"]["locationEntries"]
            if entries and all(entry["loadStatus"] == "LOADED" for entry in entries):
                kinds = {entry["locationOrLoadError"]["__typename"] for entry in entries}
                assert kinds == {"RepositoryLocation"}, f"the code did not load\n{log.read_text()[-3000:]}"
                return
        time.sleep(0.5)
    raise AssertionError(f"the web UI did not start within {START_S} s\n{log.read_text()[-3000:]}")


def _ask(address: str, query: str) -> dict:
    body = json.dumps({"query": query}).encode()
    request = urllib.request.Request(f"{address}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what did not end by itself, runs included
    process.wait()
