"""Questions put to a model at rest, on one batch.

In: a model, a loss function, a batch. Out: the signal with shortcuts cut, the gradient by number
of branches passed, how shattered it is. The model and its gradients are left as they were.
"""
