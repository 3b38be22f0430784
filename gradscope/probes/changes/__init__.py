"""Changes that may cure a net, each one object: they are tried on a copy, never on the net itself.

In: a `Copy` of a model and its optimizer. Out: the same copy, changed in place. `catalogue.py`
lists those that are tried unasked; what a change is told of the net is in `change.py`, and how the
layers of a net follow each other in `chain.py`.
"""
