"""The rules of a diagnosis: each looks at the evidence of one run and yields what it finds.

In: `Evidence`, the readings of a run in windows of steps. Out: findings, each with its numbers.
A rule compares layers of one net with each other, or a quantity with a bound that follows from
its definition. None compares a gradient with a fixed number: that would change with the loss's
scale, the batch and the width.
"""
