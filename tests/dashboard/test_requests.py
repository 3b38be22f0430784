"""The dashboard under many requests at once, and under requests that no page of it would make."""

from __future__ import annotations

import copy
import http.client
import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import synthetic

pytest.importorskip("dash", reason="dash is not installed")

from gradscope_dashboard.app import make_app
from gradscope_dashboard.library import Library

SECRET = "hunter2"
VIEWS = ("depth", "net", "flow", "heatmap", "speed", "why", "training", "sweep", "layers")
CALLBACK = "/_dash-update-component"

SERVER = """
import sys
from gradscope_dashboard import start
with start(sys.argv[1]) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


def value(id_: str, property_: str, search: str) -> Any:
    """Return what a page sends for an input of a callback."""
    if id_.startswith("{"):
        return []
    if (id_, property_) == ("url", "search"):
        return search
    if (id_, property_) == ("screen", "data"):
        return {"theme": "light", "narrow": False}
    if (id_, property_) == ("library", "data"):
        return {"marks": {}}
    if (id_, property_) == ("names", "data"):
        return ["plain-50", "residual-50"]
    if (id_, property_) == ("heatmap-zoom", "data"):
        return {}
    return 1 if property_.startswith("n_") else None


def body(callback: dict[str, Any], search: str) -> dict[str, Any]:
    """Return the request that a page makes for a callback of /_dash-dependencies."""

    def filled(parts: list[dict[str, str]]) -> list[Any]:
        result: list[Any] = []
        for part in parts:
            given = value(part["id"], part["property"], search)
            result.append([] if given == [] else {**part, "value": given})
        return result

    names = callback["output"].strip(".").split("...")
    outputs: list[dict[str, Any]] = []
    for name in names:
        id_, _, property_ = name.rpartition(".")
        outputs.append({"id": id_, "property": property_})
    return {
        "output": callback["output"],
        "outputs": outputs if callback["output"].startswith("..") else outputs[0],
        "inputs": filled(callback["inputs"]),
        "state": filled(callback["state"]),
        "changedPropIds": [f"{p['id']}.{p['property']}" for p in callback["inputs"][:1]],
    }


def served(dependencies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the callbacks that run on the server, but for those of components in patterns."""
    return [d for d in dependencies if not d["clientside_function"] and "{" not in d["output"]]


# --- many at once -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def process(pair: Path) -> Iterator[tuple[int, int]]:
    """Return the process id and the port of a dashboard in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(pair)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        yield server.pid, int(server.stdout.readline().rstrip("/\n").rpartition(":")[2])
        server.stdin.close()


def resident_mib(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def storm(port: int, requests: list[tuple[str, str, bytes | None]], clients: int) -> Counter[int]:
    """Make the requests from so many clients at once; return how often each status came back."""
    statuses: Counter[int] = Counter()
    left = iter(requests)
    lock = threading.Lock()
    ready = threading.Barrier(clients)

    def client() -> None:
        ready.wait()
        while True:
            with lock:
                request = next(left, None)
            if request is None:
                return
            method, path, content = request
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            status = connection.getresponse()
            status.read()
            connection.close()
            with lock:
                statuses[status.status] += 1

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_200_requests_at_once_are_all_answered_in_bounded_memory(
    process: tuple[int, int],
) -> None:
    server, port = process
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/_dash-dependencies")
    callbacks = served(json.loads(connection.getresponse().read()))
    connection.close()
    requests: list[tuple[str, str, bytes | None]] = [
        ("POST", CALLBACK, json.dumps(body(callback, f"?view={view}")).encode())
        for view in VIEWS
        for callback in callbacks
    ]
    requests += [("GET", path, None) for path in ("/", "/_dash-layout", "/_dash-dependencies")]
    requests += [("GET", "/export/run.csv?run=plain-50", None)]
    chance = random.Random(0)
    memory = []
    for _ in range(3):
        chance.shuffle(requests)
        statuses = storm(port, (requests * 3)[:400], clients=200)
        assert sum(statuses.values()) == 400
        assert set(statuses) <= {200, 204}, statuses
        memory.append(resident_mib(server))
    assert memory[-1] < memory[0] + 50, memory


# --- requests that no page makes ----------------------------------------------------------------

STRANGE = (
    None,
    True,
    -1,
    10**30,
    1e308,
    "",
    "../../../etc/passwd",
    "<script>",
    "\x00",
    [],
    {},
    [[[]]],
    {"theme": 3},
    {"id": "url", "property": "search", "value": {}},
    "?step=99999999999999999999&view=../../secret",
    {"points": [{"customdata": [None]}]},
)


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to everything within a JSON value."""
    yield path
    if isinstance(content, dict | list):
        keys = content if isinstance(content, dict) else range(len(content))
        for key in keys:
            yield from places(content[key], (*path, key))


def malformed(content: Any, chance: random.Random) -> Any:
    """Return the JSON value with something in it replaced, taken out or doubled."""
    content = copy.deepcopy(content)
    *way, last = chance.choice([path for path in places(content) if path])
    holder = content
    for key in way:
        holder = holder[key]
    action = chance.randrange(4)
    if action == 0:
        del holder[last]
    elif action == 1 and isinstance(holder, list):
        holder.insert(last, copy.deepcopy(holder[last]))
    else:
        holder[last] = copy.deepcopy(chance.choice(STRANGE))
    return content


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a client of a dashboard whose folder holds a secret beside the runs."""
    folder = tmp_path_factory.mktemp("runs")
    synthetic.write_pair(folder, n_layers=9, n_steps=20)
    (folder / "secret").write_text(SECRET)
    (folder.parent / "secret").write_text(SECRET)
    app = make_app(Library(folder), trusted_hosts=None)
    app.server.logger.disabled = True
    return app.server.test_client()


def test_malformed_callbacks_are_refused_and_show_no_file(client: Any) -> None:
    callbacks = served(client.get("/_dash-dependencies").get_json())
    chance = random.Random(0)
    statuses: Counter[int] = Counter()
    for _ in range(1500):
        content = body(chance.choice(callbacks), f"?view={chance.choice(VIEWS)}")
        for _ in range(chance.randrange(1, 4)):
            content = malformed(content, chance)
        answer = client.post(CALLBACK, json=content)
        said = answer.get_data(as_text=True)
        statuses[answer.status_code] += 1
        assert answer.status_code in (200, 204) or 400 <= answer.status_code < 500, (content, said)
        assert SECRET not in said and "Traceback" not in said and "root:" not in said
    assert statuses[400] > 300


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b'"x"',
        b"\xff\xfe",
        b"{}",
        b"[" * 100_000,
        bytes(2**21),
    ],
)
def test_what_is_no_callback_is_refused(client: Any, content: bytes) -> None:
    answer = client.post(CALLBACK, data=content, content_type="application/json")
    assert 400 <= answer.status_code < 500
    assert "Traceback" not in answer.get_data(as_text=True)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize(
    "path",
    [
        CALLBACK,
        "/../secret",
        "/%2e%2e/secret",
        "/assets/../../secret",
        "/assets/%2e%2e/%2e%2e/%2e%2e/secret",
        "/export/run.csv?run=../secret",
        "/export/run.csv?run=%00",
        "/export/view.csv?view=../../secret",
        "/export/view.csv?view=layers&rows=-1&sort=--",
        "/export/report.html?run=secret",
        "/_dash-component-suites/../../secret",
        "/_dash-component-suites/dash/../../../../secret",
        "/nowhere",
    ],
)
def test_no_address_fails_or_leads_to_a_file(client: Any, method: str, path: str) -> None:
    answer = client.open(path, method=method)
    assert answer.status_code < 500
    assert SECRET not in answer.get_data(as_text=True)


def test_the_bodies_of_these_tests_are_what_the_dashboard_answers(client: Any) -> None:
    callbacks = served(client.get("/_dash-dependencies").get_json())
    assert len(callbacks) > 10
    for callback in callbacks:
        answer = client.post(CALLBACK, json=body(callback, "?view=depth"))
        assert answer.status_code in (200, 204), (callback["output"], answer.get_data(as_text=True))
