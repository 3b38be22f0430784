"""The rules of a diagnosis: each looks at a case and returns what it found.

A rule compares layers of one net with each other, or a quantity with a bound that follows from
its definition. None compares a gradient with a fixed number: that would change with the loss's
scale, the batch and the width.
"""
