"""What each command does. What it needs is imported when it runs: `gradscope --help` is quick."""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradscope.cli.printing import finite, plain, text_table
from gradscope.errors import GradscopeError, GradscopeWarning, extra_for
from gradscope.progress import tracked

if TYPE_CHECKING:
    from gradscope.diagnosis.summary import Summary

_FOUND = 1


def runs(options: argparse.Namespace) -> None:
    """Print the runs of a folder."""
    rows = list(_rows(options.folder))
    if options.json:
        print(json.dumps(rows, indent=1))
    elif rows:
        print(text_table(rows))
    else:
        print(f"no runs in {plain(options.folder)}")


def _rows(folder: str) -> Iterator[dict[str, Any]]:
    """Yield what is listed of each run in a folder; one that cannot be read is told of."""
    from gradscope.diagnosis.kept import summary_of
    from gradscope.diagnosis.summary import summarise
    from gradscope.runs.loading import discover, load_all
    from gradscope.runs.remote import is_remote
    from gradscope.storage.run_json import read_meta, status_of

    if is_remote(folder):
        for run in load_all(folder):
            yield _row(run.path, run.meta, run.status, summarise(run))
        return
    paths = discover(folder)
    for path in tracked(paths, "reading", len(paths)):
        try:
            meta = read_meta(path)
            yield _row(path, meta, status_of(path, meta), summary_of(path))
        except GradscopeError as error:
            warnings.warn(f"{error}; this run is left out", GradscopeWarning, stacklevel=2)


def _row(path: Path, meta: dict[str, Any], status: str, summary: Summary) -> dict[str, Any]:
    return {
        "name": path.name,
        "path": str(path),
        "model": str(meta.get("model", "")),
        "steps": summary.steps,
        "loss": summary.logged_loss if math.isfinite(summary.logged_loss) else None,
        "status": status,
        "verdict": summary.diagnosis.verdict,
    }


def diagnose(options: argparse.Namespace) -> int:
    """Print what is to be said of a run; return 1 if it has what it was to fail on."""
    from gradscope.diagnosis.verdict import diagnose
    from gradscope.runs.loading import load

    diagnosis = diagnose(load(options.run))
    if options.json:
        print(json.dumps(finite(asdict(diagnosis)), indent=1))
    else:
        print("\n".join(plain(line) for line in str(diagnosis).splitlines()))
    return _FOUND if options.fail_on & diagnosis.verdicts else 0


def export(options: argparse.Namespace) -> None:
    """Write a run's readings to a CSV file."""
    from gradscope.runs.export import write_whole
    from gradscope.runs.loading import load

    run = load(options.run)
    rows = len(run.steps) * len(run.layers)
    chunks = tracked(run.csv_chunks(), "exporting", rows, lambda chunk: chunk.count(b"\n"))
    write_whole(Path(options.output), chunks, overwrite=options.force)
    print(f"wrote {rows} rows to {plain(options.output)}")


def report(options: argparse.Namespace) -> None:
    """Write runs to one HTML file."""
    from gradscope.runs.export import write_whole
    from gradscope.runs.loading import load

    with extra_for("a report"):
        from gradscope.plots.report import report_html
    runs = [load(path) for path in options.runs]
    page = report_html(runs, lambda figures: tracked(figures, "drawing", len(figures)))
    write_whole(Path(options.output), [page.encode()], overwrite=options.force)
    print(f"wrote {len(runs)} run{'s' if len(runs) > 1 else ''} to {plain(options.output)}")


def card(options: argparse.Namespace) -> None:
    """Draw a run as one picture."""
    from gradscope.runs.export import write_whole
    from gradscope.runs.loading import load

    target = Path(options.output)
    if target.suffix.lower() not in (".png", ".svg"):
        raise GradscopeError(f"{target}: a card is a .png or an .svg; name the file so")
    with extra_for("a card"):
        from gradscope.plots import DARK, LIGHT
        from gradscope.plots.card import card_png, card_svg
    svg = card_svg(load(options.run), theme=DARK if options.dark else LIGHT)
    content = card_png(svg) if target.suffix.lower() == ".png" else svg.encode()
    write_whole(target, [content], overwrite=options.force)
    print(f"wrote {plain(options.output)}")


def merge(options: argparse.Namespace) -> None:
    """Put the runs of ranks together."""
    from gradscope.runs.merging import merge

    run = merge(
        options.folders,
        options.output,
        track=lambda pieces: tracked(pieces, "merging", len(pieces)),
    )
    print(f"merged {run.meta['merged']} ranks, {len(run.steps)} steps, to {plain(options.output)}")


def what_if(options: argparse.Namespace) -> None:
    """Try changes on copies of a net, and print what became of them."""
    from gradscope.script import returned
    from gradscope.session.what_if import what_if

    model, loss_fn, batches, optimizer = returned(options.script)
    what = what_if(
        model,
        loss_fn,
        batches,
        optimizer,
        changes=options.changes,
        steps=options.steps,
        seconds=options.seconds,
        run=options.run,
    )
    if options.json:
        rows = [asdict(row) for row in (what.unchanged, *what.tried)]
        print(json.dumps(finite({"run": str(what.run), "tried": rows}), indent=1))
    else:
        print("\n".join(plain(line) for line in f"{what}\nrun: {what.run}".splitlines()))


def bench(options: argparse.Namespace) -> None:
    """Measure what watching costs, and print it."""
    from gradscope.benchmark.cost import bench

    result = bench(
        options.device,
        options.nets,
        options.threads,
        options.rounds,
        options.alone,
        options.every,
        options.against,
        track=lambda costs, total: tracked(costs, "measuring", total),
    )
    print(json.dumps(finite(asdict(result)), indent=1) if options.json else result)


def doctor(options: argparse.Namespace) -> int:
    """Print what is on this machine; return 1 if something is wrong."""
    from gradscope.doctor import examine

    is_wrong = False
    for line in examine():
        mark = "!" if line.is_wrong else " "
        print(f"{mark} {line.what:<14} {plain(line.found)}", flush=True)
        is_wrong |= line.is_wrong
    print("\nPut this into a report of a fault, with the notes of the run: gradscope diagnose RUN")
    return int(is_wrong)


def dashboard(options: argparse.Namespace) -> None:
    """Serve the page of a folder until it is interrupted."""
    if not Path(options.folder).is_dir():
        raise GradscopeError(f"{options.folder}: there is no such folder")
    with extra_for("the dashboard"):
        from gradscope_dashboard import start
    server = start(options.folder, host=options.host, port=options.port, what_if=options.what_if)
    server.attend(open_browser=not options.no_browser)
