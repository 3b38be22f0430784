"""The rules of a diagnosis: each looks at the evidence of one run and yields what it finds.

A rule compares layers of one net with each other, or a quantity with a bound that follows from
its definition. None compares a gradient with a fixed number: that would change with the loss's
scale, the batch and the width.
"""
