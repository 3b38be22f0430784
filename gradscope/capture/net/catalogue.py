"""The layers and shortcuts of one run, numbered once and for all in the order they were met."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from gradscope.autograd.heads import Head
from gradscope.capture.net.edge_list import EdgeList
from gradscope.capture.net.outside import Outside
from gradscope.capture.net.shortcut_list import ShortcutList
from gradscope.schema import TRAINING

if TYPE_CHECKING:
    from gradscope.capture.net.distributed import Sharing

Json = dict[str, Any]


@dataclass(frozen=True)
class LayerInfo:
    """A layer as the recorder knows it: `module` is its number among all modules."""

    module: int
    name: str
    kind: str
    parameters: int
    weight_layer: bool
    parent: int | None


class Spread(NamedTuple):
    """How many processes hold the same elements of what a layer returns; NaN if not known.

    `output` and `gradient` are of the output, `into` of the gradient at the layer's input.
    """

    output: float
    gradient: float
    into: float


class Catalogue:
    """Numbers layers and shortcuts; a number, once given, stays.

    Parameters
    ----------
    layers, shortcuts, edges : rows of run.json
        Those of a run that is resumed.
    """

    def __init__(
        self,
        layers: Sequence[Json] = (),
        shortcuts: Sequence[Json] = (),
        edges: Sequence[Json] = (),
    ) -> None:
        self.layers = [{TRAINING: "", **row} for row in layers]
        self.joins = ShortcutList(shortcuts)
        self.edges = EdgeList(edges)
        self.heads: dict[Head, None] = {}  # in the order of sight
        self.facts: Json = {}  # `schema.FACTS`
        self.outside = Outside()
        self.changes = 0  # of what run.json lists
        self.layer_of: dict[int, int] = {}
        self.function_of: dict[int, str] = {}  # module -> activation called on its output
        self.sharing: Sharing | None = None  # with other processes
        self.spread: dict[int, Spread] = {}  # of modules, over processes
        self.shortcut_spread: dict[int, float] = {}
        self._resumed = {row["name"]: row["layer"] for row in layers}

    def difference(self, layers: Iterable[LayerInfo]) -> str:
        """Say where the `layers` of a model are not those of the run that is resumed, "" if not."""
        known = {row["name"]: (row["kind"], row["parameters"]) for row in self.layers}
        given = {info.name: (info.kind, info.parameters) for info in layers}
        if not known:  # nothing was recorded yet
            return ""
        for name in known | given:
            if name not in given:
                return f"it has the layer {name!r:.80}, which the model has not"
            if name not in known:
                return f"the model has the layer {name!r:.80}, which it has not"
            (kind, parameters), (new_kind, new_parameters) = known[name], given[name]
            if new_kind.startswith("Lazy"):  # its class and parameters are not settled yet
                continue
            if (kind, parameters) != (new_kind, new_parameters):
                return (
                    f"its layer {name!r:.80} is a {kind} of {parameters} parameters, that of the"
                    f" model a {new_kind} of {new_parameters}"
                )
        return ""

    def add_layers(self, layers: Iterable[LayerInfo], executed: Iterable[int]) -> list[str]:
        """Give a number to each layer that has none yet.

        Parameters
        ----------
        layers : LayerInfo of every layer of the model, in order of definition
        executed : module numbers in the order of their first execution
            A layer that was never called stands behind the layer that holds it (as the `out_proj`
            of a MultiheadAttention does), or at the end.

        Returns
        -------
        list of str
            Names of layers that took the place of others: they keep their numbers.
        """
        place = {module: i for i, module in enumerate(executed)}
        last = len(place)

        def key(info: LayerInfo) -> tuple[int, int]:
            if info.module in place:
                return place[info.module], 0
            holder = info.parent if info.parent in holders else None
            return (place.get(holder, last) if holder is not None else last), 1

        layers = list(layers)
        holders = {info.module for info in layers if info.module != 0}
        depth = self.layers[-1]["depth"] if self.layers else 0
        present = {info.module for info in layers}
        taken = {self.layer_of[module] for module in present & self.layer_of.keys()}
        left = {
            str(self.layers[number]["name"]): number
            for module, number in self.layer_of.items()
            if module not in present and number not in taken
        }
        replaced = []
        self._rename(layers, left)
        for info in sorted(layers, key=key):  # stable: ties stay in order of definition
            if info.module in self.layer_of:
                continue
            if info.name in self._resumed:
                self.layer_of[info.module] = self._resumed.pop(info.name)
                continue
            if info.name in left:
                number = self.layer_of[info.module] = left[info.name]
                self.layers[number] |= {"kind": info.kind, "parameters": info.parameters}
                self.changes += 1
                replaced.append(info.name)
                continue
            depth += info.weight_layer
            self.layer_of[info.module] = len(self.layers)
            row: Json = {
                "layer": len(self.layers),
                "name": info.name,
                "kind": info.kind,
                "depth": depth,
                "parameters": info.parameters,
                TRAINING: "",
            }
            if info.module in self.function_of:
                row["function"] = self.function_of[info.module]
            self.layers.append(row)
            self.changes += 1
        return replaced

    def _rename(self, layers: Sequence[LayerInfo], left: Mapping[str, int]) -> None:
        """Call each layer as its module is called now: modules move when others come or go."""
        names = {info.name for info in layers}
        for info in layers:
            number = self.layer_of.get(info.module)
            if number is not None and self.layers[number]["name"] != info.name:
                self.layers[number]["name"] = info.name
                self.changes += 1
        new = {info.name for info in layers if info.module not in self.layer_of}
        for name, number in left.items():
            if name in names - new and self.layers[number]["name"] == name:
                self.layers[number]["name"] = f"{name} (removed)"
                self.changes += 1

    def set_training(self, of: Mapping[int, str]) -> None:
        """Say of the parameters of modules what `schema.LAYERS` has of a layer's `training`."""
        for module, words in of.items():
            number = self.layer_of.get(module)
            if number is not None and self.layers[number][TRAINING] != words:
                self.layers[number][TRAINING] = words
                self.changes += 1

    def set_fact(self, name: str, value: object) -> None:
        """Say something of the training that is no reading."""
        if self.facts.get(name) != value:
            self.facts[name] = value
            self.changes += 1

    def add_to_fact(self, name: str, of: Mapping[str, object]) -> None:
        """Add to what is said of modules, by their names; the newest word counts."""
        if of:
            self.set_fact(name, self.facts.get(name, {}) | of)

    def edge_rows(self) -> list[dict[str, int]]:
        """Return the edges between the layers that have a number by now."""
        return self.edges.rows(dict(self.layer_of))

    @property
    def shortcuts(self) -> list[Json]:
        """The rows of the shortcuts that have one."""
        return self.joins.rows

    def add_shortcuts(self, executed: Iterable[int]) -> None:
        """Give a row to each join that has none yet; `executed` as for `add_layers`."""
        if self.joins.are_new:
            of = self.layer_of
            self.joins.settle({m: str(self.layers[of[m]]["name"]) for m in executed if m in of})
            self.changes += 1
