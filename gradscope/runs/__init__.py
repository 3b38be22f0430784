"""Files to frames: recorded runs as data.

In: the folder or URL of a run, finished or being written. Out: `Run` with its pandas frames, NumPy
arrays and CSV; and of the runs of all ranks of a training, one run.
"""
