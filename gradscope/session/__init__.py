"""One watch, from `watch(model)` to `close()`.

In: rows from `capture`. Out: the same rows on the host, of all ranks, as columns, handed to
`storage`, trackers and callbacks by a thread of its own; and an end that loses nothing.
"""
