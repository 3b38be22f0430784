"""Doubles of trackers: the signature of each one's own method, and nothing else.

The packages are heavy, or want a server.
"""

from __future__ import annotations

from collections import defaultdict


class Comet:
    """As comet_ml.Experiment."""

    def __init__(self):
        self.got = {}

    def log_metrics(self, dic, prefix=None, step=None, epoch=None):
        self.got[step] = dict(dic)


class Trackio:
    """As what trackio.init returns: the module's own `log` knows its thread alone."""

    def __init__(self):
        self.got = {}

    def log(self, metrics, step=None):
        self.got[step] = dict(metrics)


class Aim:
    """As aim.Run."""

    def __init__(self):
        self.got = defaultdict(dict)

    def track(self, value, name=None, step=None, epoch=None, *, context=None):
        self.got[step][name] = value


class Neptune:
    """As neptune.Run, whose fields are made by their names."""

    def __init__(self):
        self.got = defaultdict(dict)

    def __getitem__(self, name):
        run = self

        class Field:
            def append(self, value, *, step=None, timestamp=None, wait=False):
                run.got[step][name] = value

        return Field()
