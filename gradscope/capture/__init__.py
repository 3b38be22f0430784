"""Hooks to rows: what a training does while it is watched.

In: a model, its optimizers, every forward, backward and step. Out: one `rows.Row` a recorded step,
its values still on their devices. Nothing here waits, writes, or ends a training.
"""
