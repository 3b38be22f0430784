"""Judge the verdicts on trainings that are known to be healthy or broken.

    python tests/benchmarks/verdicts                    # the table and the rates
    python tests/benchmarks/verdicts --only lstm --say  # what is said of some, in full

Each training is recorded once, for 100 steps, into `--cache`, and judged from there as it was after
1, 8, 30 and 100 steps: rules can be changed and judged in seconds. Half A, by a hash of the name,
is there to choose rules on, half B to see whether they hold. Those whose packages are not
installed are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

if not __package__:  # run as a folder: python tests/benchmarks/verdicts
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from verdicts import judging, recording, trainings
from verdicts.table import rates, table
from verdicts.trainings import LOOKS, Training


def main(arguments: list[str] | None = None) -> int:
    """Record what is not recorded yet, judge all, and print it."""
    options = _parser().parse_args(arguments)
    more = [folder.resolve() for folder in options.more]
    chosen = [
        training
        for training in trainings.load(more).values()
        if any(word in training.name or word == training.group for word in options.only or [""])
        and training.half in options.half
    ]
    for training in [t for t in chosen if t.missing]:
        print(f"left out: {training.name} needs {', '.join(training.missing)}", file=sys.stderr)
        chosen.remove(training)
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        chosen = _recorded(pool, chosen, more, options)
        looks = _judged(pool, chosen, options)
    if options.json:
        options.json.write_text(json.dumps([asdict(look) for look in looks], indent=1))
    if options.say:
        for training in chosen:
            path = recording.folder_of(options.cache, training, options.log_loss)
            for steps in LOOKS:
                print(f"\n== {training.name}, {steps} steps ({recording.look_of(path, steps)})")
                print(judging.diagnosed(recording.look_of(path, steps)))
        return 0
    wrong = {look.name for look in looks if look.visible and not look.right}
    shown = [look for look in looks if look.name in wrong or not options.wrong]
    print(*table(shown), "", *rates(looks), sep="\n")
    return 0


def _recorded(
    pool: ProcessPoolExecutor,
    chosen: list[Training],
    more: list[Path],
    options: argparse.Namespace,
) -> list[Training]:
    """Record what is not recorded yet; return what can be judged."""
    cache, log_loss = options.cache, options.log_loss
    folders = {t.name: recording.folder_of(cache, t, log_loss) for t in chosen}
    new = [t for t in chosen if options.again or recording.about(folders[t.name]) is None]
    jobs = [(t, pool.submit(recording.record, t.name, more, cache, log_loss)) for t in new]
    for place, (training, job) in enumerate(jobs, 1):
        wrong = job.result()
        about = recording.about(folders[training.name]) or {}
        told = wrong or f"{about.get('seconds')} s"
        print(f"{place}/{len(jobs)} {training.name}: {told}", file=sys.stderr)
    known = {t.name: recording.about(folders[t.name]) for t in chosen}
    others = [name for name, about in known.items() if about and _is_older(about)]
    if others:
        print(
            f"{len(others)} of {len(known)} recorded by another version: see --again",
            file=sys.stderr,
        )
    for training in chosen:
        about = known[training.name]
        if about and training.fault is None and not recording.learnt(about["progress"]):
            print(f"{training.name} does not learn: it is no healthy training", file=sys.stderr)
    return [t for t in chosen if known[t.name]]


def _is_older(about: dict[str, object]) -> bool:
    return about["recorder"] != recording.recorder()


def _judged(
    pool: ProcessPoolExecutor, chosen: list[Training], options: argparse.Namespace
) -> list[judging.Look]:
    places = [
        (training, steps, recording.look_of(folder, steps))
        for training in chosen
        for folder in [recording.folder_of(options.cache, training, options.log_loss)]
        for steps in LOOKS
    ]
    diagnoses = pool.map(judging.diagnosed, [path for *_, path in places], chunksize=16)
    return [
        judging.judge(training, steps, diagnosis)
        for (training, steps, _), diagnosis in zip(places, diagnoses, strict=True)
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python tests/benchmarks/verdicts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Path(tempfile.gettempdir()) / "gradscope-verdicts"
    add = parser.add_argument
    add("--cache", type=Path, default=default, help=f"folder of recorded runs ({default})")
    add("--only", nargs="+", metavar="WORD", help="names that have a word in them, or a group")
    add("--half", choices=["A", "B", "AB", *"CDE"], default="ABCDE", help="some of the trainings")
    add("--more", type=Path, nargs="+", default=[], help="folders with other trainings")
    add("--jobs", type=int, default=2, help="processes (2)")
    add("--again", action="store_true", help="record anew")
    add("--without-loss", dest="log_loss", action="store_false", help="log no loss")
    add("--json", type=Path, help="file to write every look to, with the findings")
    add("--say", action="store_true", help="print the diagnoses instead of the table")
    add("--wrong", action="store_true", help="show trainings that are judged wrongly at a look")
    return parser


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
