"""Rows to files, and back, so that a crash loses nothing that was flushed.

In: columns as `gradscope.schema` has them. Out: part files and `run.json` in the folder of a run,
one writer at a time, any number of readers.
"""
