"""The parameters of a model that are trained, as they are at each step, and memory for copies."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from gradscope.capture.keys import Layout, OfParameter
from gradscope.capture.net import layers
from gradscope.capture.net.distributed import replicas
from gradscope.capture.training.getter import Getter, GradientGetter
from gradscope.capture.training.weak_table import WeakTable

Places = tuple[int, ...]

_LAYOUTS = 64  # that are remembered


class Parameters:
    """The trainable parameters of a model, in order of definition, each once.

    They are looked up anew at each recorded step, since parameters get frozen, added, materialised
    and replaced while a model trains. `owners` holds, for each, the numbers of the modules that own
    it: more than one where weights are tied.

    Parameters
    ----------
    keep_copies : bool, optional
        Keep the memory for copies of the weights from step to step. By default on the CPU only,
        where to have it mapped anew costs more than to fill it (6.6 against 1.1 ms for 3 million
        elements); accelerators have allocators that cache.
    updates : bool or "sampled", optional
        Whether to read updates, and of a sample of each parameter alone (sampling.py).
    gradient : where to get gradients, optional
        As `Getter` takes it.
    tell : called with a sentence, optional
    """

    def __init__(
        self,
        keep_copies: bool | None = None,
        updates: bool | str = True,
        gradient: GradientGetter = None,
        tell: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.updates = updates
        self.gradient = Getter(gradient, tell)
        self.tell = tell
        self._keep = keep_copies
        self._copies: dict[int, Tensor] = {}
        self.tensors: list[Tensor] = []
        self.owners: list[tuple[int, ...]] = []
        self.replicas: list[int] = []
        self.gradient_replicas: dict[int, int] = {}  # where a gradient is spread otherwise
        self._sharded: dict[tuple[int, str], Tensor] = {}  # by module and name
        self._distributed: list[int] = []  # places of those that are spread over processes
        self.wide = False  # whether some are float64
        self.shared: set[int] = set()  # places that several optimizers update in one step
        self.optimizers: WeakTable[Optimizer, None] = WeakTable()  # that have made a step
        self.holders: WeakTable[Optimizer, None] = WeakTable()  # these, and others alive
        self.others: dict[int, bool] = {}  # whether something else changes what none of them holds
        self.touched: set[int] = set()  # places that had a gradient in a recorded step
        self.listed: list[tuple[int, str, int | None]] = []  # all: module, name, place if it trains
        self.changes = 0
        self._touched_names: set[tuple[int, str]] = set()
        self._others_names: dict[tuple[int, str], bool] = {}
        self.ends_are_told = True  # of backwards: what an optimizer shows first was not clipped
        self._unheld: tuple[tuple[object, ...], set[int]] = ((), set())
        self._found: list[Tensor | None] = []
        self._found_as: tuple[list[int], list[type[Tensor] | bool]] = ([], [])
        self._place: dict[int, int] = {}
        self._layouts: dict[tuple[Places, tuple[str, ...]], Layout] = {}
        self._places: dict[tuple[int, ...], Places] = {}  # of optimizers, by identities of theirs

    def look_up(self, modules: Iterable[tuple[int, nn.Module]]) -> None:
        """Take the parameters as they are now."""
        numbers: list[int] = []
        found: list[Tensor | None] = []
        for number, module in modules:
            if own := layers.held_parameters(module):
                if self._sharded:
                    own = {n: self._as_sharded((number, n), p) for n, p in own.items()}
                found += own.values()
                numbers += [number] * len(own)
        # False for a frozen one, else its class, which a lazy one changes
        states: list[type[Tensor] | bool] = [
            p is not None and p.requires_grad and type(p) for p in found
        ]
        found_as = numbers, states
        if found_as == self._found_as and all(map(is_, found, self._found)):
            return
        self._found, self._found_as = found, found_as
        self._touched_names |= {
            (m, name) for m, name, place in self.listed if place in self.touched
        }
        self._others_names |= {
            (m, n): self.others[at]
            for m, n, at in self.listed
            if at is not None and at in self.others
        }
        self.listed = []
        names = [n for _, module in modules for n, _ in layers.held_parameters(module).items()]
        tensors: list[Tensor] = []
        owners: list[tuple[int, ...]] = []
        place: dict[int, int] = {}
        for number, name, parameter, trains in zip(numbers, names, found, states, strict=True):
            if parameter is None or layers.is_lazy(parameter):
                continue
            if not trains:
                self.listed.append((number, name, None))
                continue
            self.listed.append((number, name, place.get(id(parameter), len(tensors))))
            known = place.get(id(parameter))
            if known is None:
                place[id(parameter)] = len(tensors)
                tensors.append(parameter)
                owners.append((number,))
            else:
                owners[known] += (number,)
        self.changes += 1
        self.touched = {
            at for m, n, at in self.listed if at is not None and (m, n) in self._touched_names
        }
        self.others = {
            at: self._others_names[m, n]
            for m, n, at in self.listed
            if at is not None and (m, n) in self._others_names
        }
        self._layouts.clear()
        self._places.clear()
        self.shared.clear()
        self.replicas = [replicas(tensor) for tensor in tensors]
        self.gradient_replicas.clear()
        self._distributed = [i for i, t in enumerate(tensors) if hasattr(t, "device_mesh")]
        self.wide = any(t.dtype in (torch.float64, torch.complex128) for t in tensors)
        self._sharded |= {
            (m, name): tensors[at]
            for m, name, at in self.listed
            if at is not None and hasattr(tensors[at], "device_mesh")
        }
        self.tensors, self.owners, self._place = tensors, owners, place

    def let_go(self) -> None:
        """Forget the parameters, and the memory for copies of them."""
        self.forget_copies()
        self._sharded.clear()
        self.look_up(())

    def froze_or_thawed(self) -> bool:
        """Whether one was frozen since they were looked up, or is trained again."""
        both = zip(self._found, self._found_as[1], strict=True)
        return any([p is not None and p.requires_grad == (was is False) for p, was in both])

    @property
    def may_be_gathered(self) -> bool:
        """Whether the model may compute with tensors that stand for its parameters for a while."""
        return bool(self._sharded)

    def _as_sharded(self, name: tuple[int, str], parameter: Any) -> Any:
        """Return what the optimizer has of a parameter that fully_shard has gathered for now.

        The memory of what it gathers is gone when it is done with it.
        """
        known: Any = self._sharded.get(name)
        if known is None or parameter is None:
            return parameter
        mesh = getattr(parameter, "device_mesh", None)
        is_gathered = mesh is None or mesh.ndim < known.device_mesh.ndim
        return known if is_gathered else parameter

    def of(self, optimizer: Optimizer) -> Places:
        """Return the places of the parameters that `optimizer` updates."""
        held = tuple([id(p) for group in optimizer.param_groups for p in group["params"]])
        places = self._places.get(held)
        if places is None:
            if len(self._places) >= _LAYOUTS:
                self._places.clear()
            places = self._places[held] = tuple(self._place[p] for p in held if p in self._place)
        return places

    def gradients(self) -> list[Tensor | None]:
        """Return the gradient of each; none of all where a function has them, that computes."""
        return [] if self.gradient.is_function else list(map(self.gradient, self.tensors))

    def meet(self, optimizer: Optimizer) -> None:
        """Take note of `optimizer`, and of those that hold what none does that was met before.

        Called as `optimizer` makes a step: what holds what is known as of then, since an optimizer
        may be gone before the row of that step is made.
        """
        if optimizer not in self.holders:
            self.holders[optimizer] = None
            self._unheld = (), set()
            if self._find_unheld():
                self.holders.update({o: None for o in all_optimizers() if self.of(o)})
        self._find_unheld()

    def unheld(self) -> set[int]:
        """Return the places of parameters that no optimizer held as the latest made a step."""
        as_of, places = self._unheld
        return places if as_of and as_of[0] == self.changes else self._find_unheld()

    def _find_unheld(self) -> set[int]:
        of_what = self.changes, *[(id(o), len(o.param_groups)) for o in self.holders]
        if of_what != self._unheld[0]:
            held = {place for optimizer in self.holders for place in self.of(optimizer)}
            self._unheld = of_what, set(range(len(self.tensors))) - held
        return self._unheld[1]

    @property
    def are_divided(self) -> bool:
        """Whether several optimizers held them as the latest made a step."""
        return len(self._unheld[0]) > 2

    def look_at_gradients(self) -> None:
        """Note which processes hold gradients, where those of parameters are spread over some."""
        for i in self._distributed:
            gradient = self.tensors[i].grad
            held = self.replicas[i] if gradient is None else replicas(gradient)
            if self.gradient_replicas.get(i, self.replicas[i]) != held:
                self.gradient_replicas[i] = held
                self._layouts.clear()

    def holds(self, group: dict[str, Any]) -> bool:
        """Whether one of the parameters is in `group` of an optimizer."""
        return any(id(p) in self._place for p in group["params"])

    def copy_of(self, weight: Tensor, place: int) -> Tensor:
        """Return memory for a copy of `weight`.

        In its own dtype. Differences do not round, but where torch takes those of half types on an
        accelerator: of numbers that are not within a factor of 2 of each other they are off by
        2^-9 in bfloat16, 2^-12 in float16, at most.
        """
        kept = self._copies.get(place)
        if (
            kept is None
            or kept.dtype is not weight.dtype
            or kept.shape != weight.shape
            or kept.stride() != weight.stride()
            or kept.device != weight.device
        ):
            kept = torch.empty_like(weight)
            if weight.is_cpu if self._keep is None else self._keep:
                self._copies[place] = kept
        return kept

    def forget_copies(self) -> None:
        """Let go of the memory that is kept for copies."""
        self._copies.clear()

    def layout(self, places: Places, metrics: tuple[str, ...]) -> Layout:
        """Return what the values of a tensor are that holds `metrics` of the ones at `places`."""
        layout = self._layouts.get((places, metrics))
        if layout is None:
            if len(self._layouts) >= _LAYOUTS:  # a net that skips blocks has any number of them
                self._layouts.clear()
            of_gradients = self.gradient_replicas
            layout = self._layouts[places, metrics] = tuple(
                tuple(
                    OfParameter(
                        metric,
                        self.owners[i],
                        of_gradients.get(i, self.replicas[i])
                        if metric.endswith("grad_norm")
                        else self.replicas[i],
                    )
                    for metric in metrics
                )
                for i in places
            )
        return layout


def all_optimizers() -> list[Optimizer]:
    """Return every torch.optim.Optimizer of this process: takes some milliseconds."""
    # by their type: to ask a proxy of what is gone for its class would raise
    return [o for o in gc.get_objects() if issubclass(type(o), Optimizer)]
