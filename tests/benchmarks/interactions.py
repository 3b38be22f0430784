"""How long the dashboard takes to answer: `python tests/benchmarks/interactions.py FOLDER`.

Writes runs of 50 layers x 4,000 steps and of 300 x 100,000 into FOLDER, once, opens them in
Chromium, and prints for each interaction the time until nothing changes on the page any more, the
seconds that the processors of the server and of the page were busy with it, which other work on the
machine changes less, and what was sent: of the round that was busy least.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, sync_playwright

sys.path[:0] = [
    str(Path(__file__).parents[1] / "support"),
    str(Path(__file__).parents[2]),
    str(Path(__file__).parents[2] / "dashboard"),
]

import synthetic  # noqa: E402
from gradscope_dashboard import Server, start  # noqa: E402

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
QUIET_MS = 300
WATCH = """
window.__last = 0; window.__open = 0;
const ask = window.fetch;
window.fetch = (...request) => {
  window.__open += 1;
  const done = () => { window.__open -= 1; };
  const answer = ask(...request);
  answer.then(done, done);
  return answer;
};
const pending = "dash-graph--pending"; // Dash takes it away 100 ms after a drawing; nobody sees it
const asking = "_dash-loading-callback"; // an empty element while a callback is asked, 0 px high
const unseen = ({ type, addedNodes: more, removedNodes: less, attributeName: name, target,
  oldValue: old }) => type === "childList" && [...more, ...less].every((n) => n.matches
    && n.matches(`.${asking}`))
  || name === "data-dash-is-loading"
  || name === "class" && [target.className, old].map((c) => String(c).replace(pending, "").trim())
    .every((c, _, [first]) => c === first);
new MutationObserver((changes) => {
  if (!changes.every(unseen)) window.__last = performance.now();
})
  .observe(document, {
    childList: true, subtree: true, attributes: true, attributeOldValue: true, characterData: true,
  });
"""


def write(path: Path, layers: int, steps: int, residual: bool) -> None:
    """Write a run whose signals and updates jitter, as measured ones do."""
    if path.exists():
        return
    part = path.with_name(f"{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    writer = synthetic.start(part, n_layers=layers, residual=residual)
    flow = [(i, i + 1) for i in range(layers - 1)] + [(layers - 1, -1)]
    if residual:  # a block of two layers reads what all blocks before gave
        flow += [(s, t) for t in range(2, layers, 2) for s in range(max(t - 63, 0) | 1, t - 1, 2)]
    writer.update(edges=[{"source": s, "target": t} for s, t in sorted(flow)])
    jitter = np.exp(0.4 * np.random.default_rng(0).standard_normal(1000 * layers))
    for begin in range(0, steps, 1000):
        numbers = np.arange(begin, min(begin + 1000, steps), dtype=np.int64)
        decades = synthetic.RESIDUAL_DECADES if residual else synthetic.PLAIN_DECADES
        rows = synthetic.layer_rows(layers, numbers, decades)
        for metric in ("signal_norm", "input_signal_norm", "update_norm"):
            rows[metric] *= jitter[: len(rows[metric])].astype(np.float32)
        writer.add_rows("layers", rows)
        if residual:
            writer.add_rows("shortcuts", synthetic.shortcut_rows((layers - 1) // 2, numbers))
        writer.add_rows("steps", synthetic.step_rows(numbers, 0.02 if residual else 1.5))
        writer.flush()
    writer.close()
    part.rename(path)


class Served:
    """A server whose callbacks' times and bytes are noted."""

    def __init__(self, server: Server) -> None:
        self.url = server.url
        self.spent: list[tuple[float, int]] = []
        app: Any = server._server.app
        answer = app.wsgi_app

        def timed(environ: Any, respond: Any) -> Iterable[bytes]:
            began = time.thread_time()
            body = b"".join(answer(environ, respond))
            self.spent.append((time.thread_time() - began, len(body)))
            return [body]

        app.wsgi_app = timed


def measure(page: Page, act: Callable[[], object]) -> float:
    """Return the seconds from `act` until the page has not changed for a while."""
    page.evaluate("window.__last = window.__from = performance.now()")
    act()
    page.wait_for_function(
        "window.__open === 0 && (window.__last > window.__from || performance.now() -"
        f" window.__from > 3000) && performance.now() - window.__last > {QUIET_MS}",
        timeout=60_000,
    )
    return float(page.evaluate("window.__last - window.__from")) / 1000


def busy(page_of: Any) -> float:
    """Return how long the page's main thread has been busy, in seconds of its processor."""
    metrics = page_of.send("Performance.getMetrics")["metrics"]
    return float(next(m["value"] for m in metrics if m["name"] == "TaskDuration"))


def press(page: Page, label: str) -> Callable[[], object]:
    """Return what presses the button called `label`, without looking for it at that time."""
    button = page.get_by_role("button", name=label, exact=True).first.element_handle()
    assert button is not None, label
    return lambda: button.dispatch_event("click")


def number(page: Page, step: int) -> Callable[[], object]:
    """Return what chooses a step."""
    field = page.get_by_label("Step", exact=True)

    def choose() -> None:
        field.fill(str(step))
        field.press("Enter")

    return choose


def interactions(page: Page, last: int) -> Iterable[tuple[str, Callable[[], object]]]:
    """Yield what a user does, in an order in which each comes back to where it began."""
    views = [button.inner_text() for button in page.locator("#tabs button").all()]
    for view in [*views[1:], views[0]]:
        yield f"tab {view}", press(page, view)
    yield "metric update speed", press(page, "update speed")
    yield "metric gradient signal", press(page, page.locator("#metrics button").first.inner_text())
    yield "step", number(page, last // 2)
    yield "follow latest", press(page, "Follow latest")
    yield "theme", press(page, "Dark")
    yield "theme back", press(page, "Dark")
    for view in ("Net", "Flow map", "Why", "Layers"):
        yield f"(to {view})", press(page, view)
        yield f"step in {view}", number(page, last // 3)
        if view == "Net":
            box = page.locator("#net .module[aria-label$='; open']").first
            if box.count():
                yield "open a block", press(page, box.get_attribute("aria-label") or "")
        if view == "Layers":
            yield "sort layers", press(page, "size")
            yield "open a layer", press(page, page.locator("td button").first.inner_text())
            yield "close it", press(page, "Close layer")
        yield "(latest)", press(page, "Follow latest")
    yield "(to Layers × steps)", press(page, "Layers × steps")
    yield (
        "zoom",
        lambda: page.evaluate(
            "last => Plotly.relayout(document.querySelector('#heatmap .js-plotly-plot'),"
            " {'xaxis.range[0]': last / 4, 'xaxis.range[1]': last / 2})",
            last,
        ),
    )


def look_at(browser: Any, served: Served, name: str, query: str, last: int, rounds: int) -> None:
    """Print the table of one page."""
    loads, rows = [], {}
    for _ in range(rounds):
        context = browser.new_context(viewport={"width": 1440, "height": 900}, bypass_csp=True)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.add_init_script(WATCH)
        page_of = context.new_cdp_session(page)
        page_of.send("Performance.setTimeDomain", {"timeDomain": "threadTicks"})
        page_of.send("Performance.enable")
        served.spent.clear()
        page.goto(served.url + query)
        page.wait_for_function(
            "document.querySelector('.main-svg') && window.__open === 0"
            " && performance.now() - window.__last > 700"
        )
        paint = page.evaluate("window.__last") / 1000
        at_server = sum(spent for spent, _ in served.spent)
        loads.append((paint, at_server, busy(page_of), sum(s for _, s in served.spent) / 1e6))
        press(page, "Pause")()
        page.wait_for_timeout(1500)
        for what, act in interactions(page, last):
            served.spent.clear()
            before = busy(page_of)
            seconds = measure(page, act)
            at_page = busy(page_of) - before
            at_server = sum(spent for spent, _ in served.spent)
            sent = sum(size for _, size in served.spent) / 1e6
            if not what.startswith("("):
                found = (at_server + at_page, seconds, at_server, at_page, sent)
                rows.setdefault(what, []).append(found)
        context.close()
    print(f"\n{name}")
    print(f"  {'':<24}{'page, s':>9}{'busy: server':>14}{'browser':>9}{'sent, MB':>10}")
    rows = {"first load": [(load[1] + load[2], *load) for load in loads], **rows}
    for what, found in rows.items():
        _, seconds, at_server, at_page, sent = min(found)
        print(f"  {what:<24}{seconds:>9.2f}{at_server:>14.2f}{at_page:>9.2f}{sent:>10.2f}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", choices=("middle", "large"))
    asked = options.parse_args()
    cases = {
        "middle": ("50 layers x 4,000 steps, two runs", 50, 4_000, (False, True)),
        "large": ("300 layers x 100,000 steps", 300, 100_000, (True,)),
    }
    for folder, (name, layers, steps, kinds) in cases.items():
        if asked.only not in (None, folder):
            continue
        for residual in kinds:
            write(
                asked.folder / folder / ("residual" if residual else "plain"),
                layers,
                steps,
                residual,
            )
        with start(asked.folder / folder) as server, sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=FLAGS
            )
            look_at(browser, Served(server), name, "", steps - 1, asked.rounds)
            browser.close()


if __name__ == "__main__":
    main()
