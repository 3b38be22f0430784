"""The command `gradscope`: look at recorded runs, merge ranks, measure what watching costs."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

from gradscope.cli.arguments import parser
from gradscope.cli.printing import plain
from gradscope.errors import GradscopeError, GradscopeWarning

__all__ = ["main", "parser"]

_USER_ERROR = 2
_INTERRUPTED = 130  # 128 + SIGINT, as shells count
_PIPE_CLOSED = 141  # 128 + SIGPIPE


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
            print(f"gradscope: {plain(str(error))}", file=sys.stderr)
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


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"gradscope: warning: {plain(str(message))}", file=sys.stderr)
