"""Frames to findings: is the gradient healthy, if not why, and what would help.

In: a `Run`, or several. Out: verdicts with their numbers and remedies, the ledger of where the
gradient was lost, and what runs show beside each other.
"""
