"""Remedies that are tried before they are advised, on copies of a net, one after the other.

In: a model, its optimizer, a loss function, some batches, and how a copy is watched. Out: a run of
each change, and a table of what they did. The user's model, optimizer, random numbers and data are
left as they were, to the bit.
"""
