"""The command `gradscope`: look at recorded runs, merge ranks, measure what watching costs."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradscope._version import __version__
from gradscope.errors import GradscopeError, GradscopeWarning, extra_for
from gradscope.progress import tracked
from gradscope.schema import RECORDED_VERDICTS
from gradscope.wording import setting

if TYPE_CHECKING:
    from gradscope.diagnosis.summary import Summary

_FOUND = 1
_USER_ERROR = 2
_INTERRUPTED = 130  # 128 + SIGINT, as shells count
_PIPE_CLOSED = 141  # 128 + SIGPIPE
_FOLDERS = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d"}  # as shtab.DIRECTORY


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the command's name; those of the process by default.

    Returns
    -------
    int
        The exit code: 0, or 2 after a mistake of the user's, told in one line on stderr;
        1 where `diagnose --fail-on` found what it was to look for, or `doctor` something wrong.
        As shells count signals, 130 after Ctrl-C, and 141 where nobody reads the output to its end.
    """
    options = parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("always", GradscopeWarning)
        warnings.showwarning = _show_warning
        try:
            code: int | None = options.command(options)
            sys.stdout.flush()
        except GradscopeError as error:
            print(f"gradscope: {_plain(str(error))}", file=sys.stderr)
            return _USER_ERROR
        except KeyboardInterrupt:
            return _INTERRUPTED
        except BrokenPipeError:
            _discard_output()
            return _PIPE_CLOSED
        except OSError as error:  # of the output: what files refuse is a GradscopeError
            _discard_output()
            print(f"gradscope: cannot write the output: {error}", file=sys.stderr)
            return _USER_ERROR
    return code or 0


def _discard_output() -> None:
    """Let the output that is left go nowhere, lest Python tries it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, for tools such as shtab, too."""
    parser = argparse.ArgumentParser(
        prog="gradscope", description="See why a deep net does not learn: look at recorded runs."
    )
    parser.add_argument("--version", action="version", version=f"gradscope {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    runs = _command(commands, "runs", _runs, "list the runs in a folder", "gradscope runs runs/")
    _folder(runs, "folder", metavar="DIR", help="folder of runs")
    runs.add_argument("--json", action="store_true", help="print JSON instead of a table")

    diagnose = _command(
        commands,
        "diagnose",
        _diagnose,
        "say whether a run's gradient is healthy, and if not why",
        "gradscope diagnose runs/resnet56",
    )
    _folder(diagnose, "run", metavar="RUN", help="folder of a run")
    diagnose.add_argument("--json", action="store_true", help="print JSON instead of text")
    diagnose.add_argument(
        "--fail-on",
        metavar="VERDICTS",
        type=_verdicts,
        default=frozenset(),
        help="exit with 1 if the run has one of these, commas between: vanishing,exploding",
    )

    export = _command(
        commands,
        "export",
        _export,
        "write a run's readings to a CSV file",
        "gradscope export runs/resnet56 -o report.csv",
    )
    _folder(export, "run", metavar="RUN", help="folder of a run")
    export.add_argument("-o", "--output", metavar="FILE", required=True, help="file to write")
    export.add_argument("--force", action="store_true", help="replace the file if it exists")

    report = _command(
        commands,
        "report",
        _report,
        "write verdicts and figures of runs to one HTML file",
        "gradscope report runs/plain runs/residual -o report.html",
    )
    _folder(report, "runs", metavar="RUN", nargs="+", help="folder of a run")
    report.add_argument("-o", "--output", metavar="FILE", required=True, help="file to write")
    report.add_argument("--force", action="store_true", help="replace the file if it exists")

    card = _command(
        commands,
        "card",
        _card,
        "draw a run's verdict, profile and remedy as one picture, 1200 x 630",
        "gradscope card runs/resnet56 -o card.png",
    )
    _folder(card, "run", metavar="RUN", help="folder of a run")
    card.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="file to write, .png or .svg"
    )
    card.add_argument("--dark", action="store_true", help="on a dark ground")
    card.add_argument("--force", action="store_true", help="replace the file if it exists")

    merge = _command(
        commands,
        "merge",
        _merge,
        "put the runs of all ranks of one training together, with the norms over all of them",
        "gradscope merge runs/ddp -o runs/ddp-merged",
    )
    ranks = "run of a rank, or folder of those of all ranks"
    _folder(merge, "folders", metavar="RUN", nargs="+", help=ranks)
    merge.add_argument("-o", "--output", metavar="RUN", required=True, help="run to write")

    _command(
        commands,
        "doctor",
        _doctor,
        "say what is on this machine, and whether a small training is read rightly",
        "gradscope doctor",
    )
    what_if = _command(
        commands,
        "what-if",
        _what_if,
        "try on copies of a net what would make it learn",
        "gradscope what-if train.py:setup --changes shortcuts he lr/10",
    )
    what_if.add_argument(
        "script",
        metavar="SCRIPT:FUNCTION",
        help="function of a script or module that returns (model, loss_fn, batches, optimizer)",
    )
    what_if.add_argument(
        "--changes", metavar="CHANGE", nargs="+", help="those to try (default: what fits)"
    )
    what_if.add_argument(
        "--steps", metavar="N", type=int, default=50, help="of each training (default: 50)"
    )
    what_if.add_argument(
        "--seconds", type=float, help="after which no other change is begun (default: no end)"
    )
    what_if.add_argument("--run", metavar="RUN", help="run to write (default: runs/<time>-<model>)")
    what_if.add_argument("--json", action="store_true", help="print JSON instead of a table")

    bench = _command(
        commands,
        "bench",
        _bench,
        "measure what watching costs on this machine",
        "gradscope bench --device cuda",
    )
    bench.add_argument("--device", default="cpu", help="cpu, cuda, mps ... (default: cpu)")
    bench.add_argument(
        "--nets",
        metavar="NET",
        nargs="+",
        default=[],
        help="default: deep, resnet, gpt, wide; on cuda gpt2, resnet50, deep, wide",
    )
    bench.add_argument(
        "--every",
        metavar="N",
        type=int,
        nargs="+",
        default=[1, 10],
        help="record every Nth step (default: 1 10)",
    )
    bench.add_argument(
        "--threads", metavar="N", type=int, nargs="+", default=[1, 2], help="default: 1 2"
    )
    bench.add_argument(
        "--rounds", metavar="N", type=int, default=7, help="more resolve more (default: 7)"
    )
    bench.add_argument("--alone", action="store_true", help="measure none of the alternatives")
    bench.add_argument(
        "--against",
        metavar="NAME",
        nargs="+",
        default=[],
        help="naive, wandb, tensorboard, lightning (default: what is installed)",
    )
    bench.add_argument("--json", action="store_true", help="print JSON instead of a table")

    dashboard = _command(
        commands,
        "dashboard",
        _dashboard,
        "look at runs in a browser, live while they train",
        "gradscope dashboard runs/ --port 8050 --no-browser",
    )
    _folder(dashboard, "folder", metavar="DIR", help="folder of runs, or a run")
    dashboard.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine alone)"
    )
    dashboard.add_argument("--port", type=_port, default=0, help="port (default: a free one)")
    dashboard.add_argument("--no-browser", action="store_true", help="only print the address")
    dashboard.add_argument(
        "--what-if",
        metavar="SCRIPT:FUNCTION",
        help="let the page start `gradscope what-if` on it, on this machine alone",
    )
    return parser


def _folder(parser: argparse.ArgumentParser, name: str, **options: Any) -> None:
    """Add an argument that is a folder, and let shells complete it as one."""
    parser.add_argument(name, **options).complete = _FOLDERS  # type: ignore[attr-defined]


def _command(
    commands: Any, name: str, command: Any, summary: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


def _runs(options: argparse.Namespace) -> None:
    rows = list(_rows(options.folder))
    if options.json:
        print(json.dumps(rows, indent=1))
    elif rows:
        print(_text_table(rows))
    else:
        print(f"no runs in {_plain(options.folder)}")


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


def _text_table(rows: list[dict[str, Any]]) -> str:
    columns = [name for name in rows[0] if name != "path"]
    cells = [columns] + [[_cell(row[name]) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return setting(value, 4) if isinstance(value, float) else _plain(str(value))


def _diagnose(options: argparse.Namespace) -> int:
    from gradscope.diagnosis.verdict import diagnose
    from gradscope.runs.loading import load

    diagnosis = diagnose(load(options.run))
    if options.json:
        print(json.dumps(_finite(asdict(diagnosis)), indent=1))
    else:
        print("\n".join(_plain(line) for line in str(diagnosis).splitlines()))
    return _FOUND if options.fail_on & diagnosis.verdicts else 0


def _finite(value: Any) -> Any:
    """Return `value` with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _export(options: argparse.Namespace) -> None:
    from gradscope.runs.export import write_whole
    from gradscope.runs.loading import load

    run = load(options.run)
    rows = len(run.steps) * len(run.layers)
    chunks = tracked(run.csv_chunks(), "exporting", rows, lambda chunk: chunk.count(b"\n"))
    write_whole(Path(options.output), chunks, overwrite=options.force)
    print(f"wrote {rows} rows to {_plain(options.output)}")


def _report(options: argparse.Namespace) -> None:
    from gradscope.runs.export import write_whole
    from gradscope.runs.loading import load

    with extra_for("a report"):
        from gradscope.plots.report import report_html
    runs = [load(path) for path in options.runs]
    page = report_html(runs, lambda figures: tracked(figures, "drawing", len(figures)))
    write_whole(Path(options.output), [page.encode()], overwrite=options.force)
    print(f"wrote {len(runs)} run{'s' if len(runs) > 1 else ''} to {_plain(options.output)}")


def _card(options: argparse.Namespace) -> None:
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
    print(f"wrote {_plain(options.output)}")


def _merge(options: argparse.Namespace) -> None:
    from gradscope.runs.merging import merge

    run = merge(
        options.folders,
        options.output,
        track=lambda pieces: tracked(pieces, "merging", len(pieces)),
    )
    print(f"merged {run.meta['merged']} ranks, {len(run.steps)} steps, to {_plain(options.output)}")


def _what_if(options: argparse.Namespace) -> None:
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
        print(json.dumps(_finite({"run": str(what.run), "tried": rows}), indent=1))
    else:
        print("\n".join(_plain(line) for line in f"{what}\nrun: {what.run}".splitlines()))


def _bench(options: argparse.Namespace) -> None:
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
    print(json.dumps(_finite(asdict(result)), indent=1) if options.json else result)


def _doctor(options: argparse.Namespace) -> int:
    from gradscope.doctor import examine

    is_wrong = False
    for line in examine():
        mark = "!" if line.is_wrong else " "
        print(f"{mark} {line.what:<14} {_plain(line.found)}", flush=True)
        is_wrong |= line.is_wrong
    print("\nPut this into a report of a fault, with the notes of the run: gradscope diagnose RUN")
    return int(is_wrong)


def _dashboard(options: argparse.Namespace) -> None:
    if not Path(options.folder).is_dir():
        raise GradscopeError(f"{options.folder}: there is no such folder")
    with extra_for("the dashboard"):
        from gradscope_dashboard import start
    server = start(options.folder, host=options.host, port=options.port, what_if=options.what_if)
    server.attend(open_browser=not options.no_browser)


def _verdicts(text: str) -> frozenset[str]:
    from gradscope.diagnosis.findings import CANNOT_TELL

    known = [*RECORDED_VERDICTS, CANNOT_TELL]
    asked = frozenset(name.strip() for name in text.split(","))
    if unknown := sorted(asked.difference(known)):
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r} is no verdict of a recording; there are {', '.join(known)}"
        )
    return asked


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is no port; give 0 to 65535")
    return port


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"gradscope: warning: {_plain(str(message))}", file=sys.stderr)


def _plain(text: str) -> str:
    """Return `text` on one line, without what a terminal would take for a command."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


if __name__ == "__main__":
    sys.exit(main())
