"""Trackers whose objects `Scope.send_to` takes as they are, one file each.

In: the readings of one step by name. Out: calls of TensorBoard, Weights & Biases or MLflow, which
are imported by nobody but their user.
"""
