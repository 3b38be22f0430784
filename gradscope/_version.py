"""The version: that of the tag, as the build wrote it into `_tag.py`."""

from importlib import import_module

try:
    __version__: str = import_module("gradscope._tag").__version__
except ImportError:  # a checkout that was never installed
    __version__ = "0+unknown"
