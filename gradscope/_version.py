"""The version: that of the tag, as the build wrote it into `_tag.py`."""

try:
    from gradscope._tag import __version__  # type: ignore[import-not-found, unused-ignore]
except ImportError:  # a checkout that was never installed
    __version__ = "0+unknown"
