"""The server: its ports, and who may talk to it."""

from __future__ import annotations

import re
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote, urljoin

import pytest

pytest.importorskip("dash", reason="dash is not installed")
from gradscope.errors import GradscopeError
from gradscope_dashboard import Server, start
from gradscope_dashboard.app import PLOTLY_JS
from pages import Browse, ask, drawn


def test_stopping_frees_the_port(pair: Path) -> None:
    first = start(pair)
    port = int(first.url.rsplit(":", 1)[1].strip("/"))
    first.stop()
    with start(pair, port=port) as second:
        assert second.url == first.url
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("gradscope-dashboard") <= 1  # the module's own server


def test_other_hosts_names_are_refused(server: Server) -> None:
    assert ask(server.url).status == 200
    for name in ("evil.example", "127.0.0.1.evil.example", "[::1", "", "evil.example:80"):
        assert ask(server.url, Host=name).status == 400


def test_a_page_may_load_nothing_from_elsewhere(server: Server) -> None:
    policy = ask(server.url).headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "", "none"])
def test_no_path_is_taken_from_the_browser(server: Server, name: str) -> None:
    assert ask(f"{server.url}export/run.csv?run={quote(name, safe='')}").status == 404


def test_too_large_requests_are_refused(server: Server) -> None:
    request = urllib.request.Request(f"{server.url}_dash-update-component", data=b"x" * 2**21)
    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)):
        urllib.request.urlopen(request)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_every_name_of_this_machine_works(pair: Path, host: str) -> None:
    try:
        running = start(pair, host=host)
    except GradscopeError:
        pytest.skip(f"this machine has no {host}")
    with running:
        assert ask(running.url).status == 200


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match="no folder"):
        start(tmp_path / "nowhere")


def test_a_port_in_use_is_refused(server: Server, pair: Path) -> None:
    port = int(server.url.rsplit(":", 1)[1].strip("/"))
    with pytest.raises(GradscopeError, match=f"cannot listen on 127.0.0.1, port {port}"):
        start(pair, port=port)


def test_other_addresses_are_warned_about(
    pair: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "wait", Server.stop)
    start(pair, host="0.0.0.0").attend(open_browser=False)
    said = capsys.readouterr()
    assert "there is no password" in said.err
    assert "http://127.0.0.1:" in said.out


def test_no_figure_offers_to_send_itself_anywhere(browse: Browse, server: Server) -> None:
    page = browse(server.url)  # which fails on a request to another host
    drawn(page, "profile")
    buttons = page.locator(".modebar-btn").evaluate_all(
        "all => all.map(b => b.dataset.title || b.title)"
    )
    assert buttons and not [name for name in buttons if "hare" in name or "loud" in name]
    cloud = "() => document.querySelector('.js-plotly-plot')._context"
    context = page.evaluate(cloud)
    assert not context["showSendToCloud"] and not context["plotlyServerURL"]


def test_the_page_and_its_scripts_take_less_than_3_megabytes(server: Server) -> None:
    page = ask(server.url).read()
    files = re.findall(rb'(?:src|href)="([^"]+)"', page)
    sizes = {}
    for name in files:
        address = urljoin(server.url, name.decode())
        sizes[address] = len(ask(address, **{"Accept-Encoding": "gzip"}).read())
    assert any("plotly" in address for address in sizes)
    assert len(page) + sum(sizes.values()) < 3_000_000 - 200_000  # parts that scripts ask for


def test_a_browser_that_unpacks_nothing_gets_plotly_as_text(server: Server) -> None:
    answer = ask(urljoin(server.url, PLOTLY_JS))
    assert answer.headers["Content-Encoding"] is None
    assert answer.read().startswith(b"/**\n* plotly.js (cartesian")
