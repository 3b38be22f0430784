"""Recurrent layers whose input does not show the gradient through time: run again on few samples.

An input that needs no gradient gets none, one that goes both ways gets that of both, and a packed
one has no dimension of time. So now and then some samples are copied when such a layer is called,
and so are the gradients that arrive at its outputs; once the backward has ended, the layer is run
on them with the same weights, as nobody has changed these yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from gradscope.autograd.torch_internals import version
from gradscope.capture.keys import OfLayer
from gradscope.capture.net.recurrence import FEWEST
from gradscope.capture.reading.readings import Readings

SAMPLES = 8
"""That a layer is run on; of a packed batch those that are longest."""

EVERY = 4
"""Looks at units from one replay to the next."""


class Replay:
    """One call of a recurrent layer, to be run again.

    Attributes
    ----------
    keys : of the gradients at the first and at the last step
    outputs : int
        Tensors that the call returned: the sequence, and one or two states.
    """

    def __init__(
        self, layer: int, module: nn.RNNBase, x: Tensor, state: list[Tensor], sample: _Sample
    ) -> None:
        self.keys = tuple((OfLayer(f"{end}_signal_norm", layer),) for end in ("first", "last"))
        self.outputs = 1 + len(state)
        self._x = x
        self._state = state
        self._sample = sample
        self._kind = module.mode.lower()
        self._layers, self._bias = module.num_layers, module.bias
        self._ways = 1 + module.bidirectional
        self._weights = [p.detach() for p in module.parameters(recurse=False)]
        self._versions = [version(weight) for weight in self._weights]
        self._gradients: dict[int, Tensor] = {}

    def keep(self, output: int, gradient: Tensor) -> None:
        """Take some samples of the gradient that has arrived at an output; they are flat."""
        take = self._sample.sequence if output == 0 else self._sample.state
        self._gradients[output] = take(gradient).clone()

    def read(self, readings: Readings) -> None:
        """Run it again, and read the gradients at its ends."""
        for ends in self.ends():
            for gradient, keys in zip(ends, self.keys, strict=True):
                readings.read_norm(gradient, keys)

    def ends(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, of each direction, the gradients at its first and at its last time step.

        Nothing where no gradient has come since, or where the weights were changed meanwhile.
        """
        gradients, self._gradients = self._gradients, {}
        if not gradients or [version(weight) for weight in self._weights] != self._versions:
            return
        with torch.enable_grad():
            x = self._x.clone().requires_grad_()
            outputs = self._run(x)
        for way in range(self._ways):
            through = {i: self._of(way, i, gradient) for i, gradient in gradients.items()}
            (gradient,) = torch.autograd.grad(
                [outputs[i] for i in through],
                x,
                [g.to(x.dtype) for g in through.values()],
                retain_graph=way + 1 < self._ways,
            )
            first, last = gradient[0], gradient[-1]
            yield (last, first) if way else (first, last)

    def _run(self, x: Tensor) -> Sequence[Tensor]:
        function: Any = getattr(torch, self._kind)
        state = self._state[0] if len(self._state) == 1 else self._state
        both = self._ways == 2
        # in training, as cuDNN asks for it, without dropout: no random number is drawn
        return function(  # type: ignore[no-any-return]
            x, state, self._weights, self._bias, self._layers, 0.0, True, both, False
        )

    def _of(self, way: int, output: int, gradient: Tensor) -> Tensor:
        """Return the part of a gradient that is of one direction, zeros for the other one."""
        if self._ways == 1:
            return gradient
        part = torch.zeros_like(gradient)
        if output == 0:
            half = gradient.shape[-1] // 2
            mine = slice(way * half, (way + 1) * half)
            part[..., mine] = gradient[..., mine]
        else:
            part[way] = gradient[way]
        return part


class _Sample:
    """Some samples of what a layer takes and returns, time first."""

    def __init__(self, given: Tensor | PackedSequence, batch_first: bool) -> None:
        self._batch_first = batch_first
        self._rows: list[int] | None = None
        self._order: Tensor | None = None
        if isinstance(given, PackedSequence):
            self._rows = given.batch_sizes.tolist()
            self.steps, self._count = len(self._rows), min(self._rows[-1], SAMPLES)
            if given.sorted_indices is not None:
                self._order = given.sorted_indices[: self._count]
        else:
            batch, time = given.shape[:2] if batch_first else given.shape[1::-1]
            self.steps, self._count = time, min(batch, SAMPLES)

    def sequence(self, x: Tensor) -> Tensor:
        """Return a sequence of these, shape (time, samples, features)."""
        if self._rows is not None:
            return torch.stack([step[: self._count] for step in torch.split(x, self._rows)])
        return x[: self._count].transpose(0, 1) if self._batch_first else x[:, : self._count]

    def state(self, x: Tensor) -> Tensor:
        """Return a state of these, shape (layers and directions, samples, features)."""
        if self._order is not None:
            return x.index_select(1, self._order)
        return x[:, : self._count]


def replay_of(layer: int, module: nn.Module, args: tuple[Any, ...]) -> Replay | None:
    """Return a call of `module` to be run again; None if its input tells, or it cannot be.

    It cannot be where dropout lies between its layers, where several go both ways, which mixes
    the steps, and where its weights are not plain tensors of its own.
    """
    if not isinstance(module, nn.RNNBase) or not 0 < len(args) < 3:
        return None
    given, state = args if len(args) == 2 else (args[0], None)
    is_packed = isinstance(given, PackedSequence)
    x = given.data if is_packed else given
    if type(x) is not Tensor or x.dim() != 3 - is_packed or x.numel() == 0:
        return None
    if module.num_layers > 1 and (module.bidirectional or (module.training and module.dropout)):
        return None
    if x.requires_grad and not module.bidirectional and not is_packed:
        return None
    weights = list(module.parameters(recurse=False))
    each = 2 + 2 * module.bias + (module.proj_size > 0)
    if len(weights) != each * module.num_layers * (1 + module.bidirectional) or any(
        type(weight) not in (nn.Parameter, Tensor) for weight in weights
    ):
        return None
    sample = _Sample(given, module.batch_first)
    if sample.steps < FEWEST:
        return None
    dtype = weights[0].dtype
    copy = sample.sequence(x.detach()).to(dtype, copy=True)
    if state is None:
        sizes = [module.proj_size or module.hidden_size, module.hidden_size]
        count = module.num_layers * (1 + module.bidirectional), copy.shape[1]
        states = [copy.new_zeros(*count, size) for size in sizes[: 1 + (module.mode == "LSTM")]]
    else:
        given = state if isinstance(state, tuple) else (state,)
        states = [sample.state(part.detach()).to(dtype, copy=True) for part in given]
    return Replay(layer, module, copy, states, sample)
