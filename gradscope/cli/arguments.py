"""The arguments of the command line."""

from __future__ import annotations

import argparse
from typing import Any

from gradscope._version import __version__
from gradscope.cli import commands
from gradscope.schema import RECORDED_VERDICTS

_FOLDERS = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d"}  # as shtab.DIRECTORY


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, for tools such as shtab, too."""
    parser = argparse.ArgumentParser(
        prog="gradscope", description="See why a deep net does not learn: look at recorded runs."
    )
    parser.add_argument("--version", action="version", version=f"gradscope {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    runs = _command(
        subparsers, "runs", commands.runs, "list the runs in a folder", "gradscope runs runs/"
    )
    _folder(runs, "folder", metavar="DIR", help="folder of runs")
    runs.add_argument("--json", action="store_true", help="print JSON instead of a table")

    diagnose = _command(
        subparsers,
        "diagnose",
        commands.diagnose,
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
        subparsers,
        "export",
        commands.export,
        "write a run's readings to a CSV file",
        "gradscope export runs/resnet56 -o report.csv",
    )
    _folder(export, "run", metavar="RUN", help="folder of a run")
    export.add_argument("-o", "--output", metavar="FILE", required=True, help="file to write")
    export.add_argument("--force", action="store_true", help="replace the file if it exists")

    report = _command(
        subparsers,
        "report",
        commands.report,
        "write verdicts and figures of runs to one HTML file",
        "gradscope report runs/plain runs/residual -o report.html",
    )
    _folder(report, "runs", metavar="RUN", nargs="+", help="folder of a run")
    report.add_argument("-o", "--output", metavar="FILE", required=True, help="file to write")
    report.add_argument("--force", action="store_true", help="replace the file if it exists")

    card = _command(
        subparsers,
        "card",
        commands.card,
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
        subparsers,
        "merge",
        commands.merge,
        "put the runs of all ranks of one training together, with the norms over all of them",
        "gradscope merge runs/ddp -o runs/ddp-merged",
    )
    ranks = "run of a rank, or folder of those of all ranks"
    _folder(merge, "folders", metavar="RUN", nargs="+", help=ranks)
    merge.add_argument("-o", "--output", metavar="RUN", required=True, help="run to write")

    _command(
        subparsers,
        "doctor",
        commands.doctor,
        "say what is on this machine, and whether a small training is read rightly",
        "gradscope doctor",
    )
    what_if = _command(
        subparsers,
        "what-if",
        commands.what_if,
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
        subparsers,
        "bench",
        commands.bench,
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
        subparsers,
        "dashboard",
        commands.dashboard,
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
    subparsers: Any, name: str, command: Any, summary: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


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
