"""What is told of calls that are not read, or not as they should be (calls.py)."""

APART = (
    "what a backward computes anew, by re-entrant checkpointing or by a Function of one's own as of"
    " reversible blocks, calls several modules, or goes on from what one returns: shortcuts in it,"
    " outside of these, are not seen. checkpoint(..., use_reentrant=False) has them"
)

UNREAD = (
    ": computed within a backward, whose gradients autograd.grad takes, as one's own checkpoint"
    " or an adjoint solver does: no signals or activations are read there, and their shortcuts are"
    " not split. torch.utils.checkpoint.checkpoint(..., use_reentrant=False) has them all, and so"
    " has a solver without adjoint"
)

TRANSFORMED = (
    ": called within torch.func (vmap, grad, jacrev ...), gradients on: what they do there is not"
    " read, and signals and activations of such steps are NaN. torch.autograd.grad in place of"
    " torch.func.grad has them; where nothing trains by it, call it within torch.no_grad()"
)

UNSEEN = (
    "no forward of the model was seen in step {step}, though its parameters have gradients: it and"
    " others like it have readings of parameters only. Call model(x), not model.forward(x), to have"
    " them all; gradients that are set by hand have no signals"
)

COMPILED = (
    "no forward was seen in step {step}, which seems to have run compiled: it has readings of"
    " parameters only. From now on recorded steps run without torch.compile; hand watch() what"
    " torch.compile returned to have them all"
)

PARTS = (
    " ran compiled in step {step}, and maybe before, where nothing of them is seen: signals and"
    " activations are NaN. From then on recorded steps run without torch.compile; call"
    " torch.compile before watch(), and hand that what it returned, to have them all"
)

UNCALLED = (
    ": weights are used without a call of the module: there are no signals and activations. Call"
    " layer(x), not layer.forward(x) nor a function with layer.weight, to have them"
)

UNREACHED = (
    "the model, or a part of it, was called in step {step}, and no gradient came to the outputs of"
    " its layers, though its parameters have gradients: it and others like it have readings of"
    " parameters only. Layers called as functions have no outputs of theirs, gradients that are set"
    " by hand have no signals, and what the model returns is looked into as far as it is made of"
    " tensors, containers and objects with attributes"
)

CAPTURED = (
    "a CUDA graph is being captured: what runs in it is not read, nor are its replays, of which"
    " nothing tells. Train without CUDA graphs for a while to have them read"
)

THREADS = (
    "the model was called in several threads at once, gradients on: their calls cannot be told"
    " apart. Those of one alone are read, and signals and activations of such steps are NaN. Call"
    " it within torch.no_grad() where it does not train, or one call after the other"
)

NOT_RETURNED = (
    "an optimizer has made a step before a forward of the model returned, which an interrupt has"
    " cut short, or within which it steps: signals and activations of such steps are NaN. Step"
    " after model(x) has returned to have them"
)

LOST = (
    "in step {step} an activation or a gradient was overwritten, or its memory freed, before it was"
    " read, which had not happened in the steps before: its reading of that step is NaN. From then"
    " on it is read as soon as it is there, so nothing is to be done. Others to which this happens"
    " later are NaN for one step, too, and are not told of again"
)
