"""The graph that one forward leaves behind, read without changing it.

In: nodes of a graph and the module calls that made them. Out: walks, fingerprints, residual joins.
Whatever torch does not promise to keep is used in `torch_internals`, and nowhere else.
"""
