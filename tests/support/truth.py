"""What a run must hold, by public hooks of torch alone: no graph walk, no hook of ours."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import gradscope
from reference import root_sum_square
from situations import Situation

Row = dict[str, dict[str, float]]  # metric -> layer -> number


class Truth:
    """Reads each step of a model, as a context manager; the rows are in `rows`.

    A step ends with the next forward after an optimizer has stepped, or when that steps once more,
    and is none unless a backward came before. Modules that a training adds are not seen.
    """

    def __init__(self, model: nn.Module) -> None:
        self.rows: list[Row] = []
        self._model = model
        self._signals: dict[str, list[Tensor]] = defaultdict(list)
        self._accumulated: dict[nn.Parameter, Tensor] = {}
        self._clipped: dict[nn.Parameter, Tensor] = {}
        self._before: dict[nn.Parameter, Tensor] = {}
        self._after: dict[nn.Parameter, Tensor] = {}
        self._stepped: list[Optimizer] = []
        self._hooked: set[nn.Parameter] = set()

    def __enter__(self) -> Truth:
        self._handles = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        for name, module in self._model.named_modules():
            self._handles += [
                module.register_forward_pre_hook(self._begin),
                module.register_forward_hook(self._tap(name)),
            ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._close()

    def _begin(self, *_: object) -> None:
        if torch.is_grad_enabled():
            self._close()
        for p in self._model.parameters():
            if p.requires_grad and p not in self._hooked:
                self._hooked.add(p)
                self._handles.append(p.register_post_accumulate_grad_hook(self._note))

    def _tap(self, name: str):
        def tap(module: nn.Module, args: object, out: object) -> None:
            if isinstance(out, Tensor) and out.requires_grad:
                out.register_hook(self._signals[name].append)

        return tap

    def _note(self, p: nn.Parameter) -> None:
        self._accumulated[p] = p.grad.detach().clone()

    def _before_step(self, optimizer: Optimizer, *_: object) -> None:
        if optimizer in self._stepped:
            self._close()
        for p in self._take_gradients(optimizer):
            self._before.setdefault(p, p.detach().clone())

    def _after_step(self, optimizer: Optimizer, args: tuple[object, ...], kwargs: object) -> None:
        if len(args) > 1:  # its closure went backward
            self._take_gradients(optimizer)
        if self._accumulated:
            self._stepped.append(optimizer)
            self._after = {p: p.detach().clone() for p in self._before}
        else:
            self._before.clear()

    def _take_gradients(self, optimizer: Optimizer) -> list[nn.Parameter]:
        own = set(self._model.parameters())
        held = [p for group in optimizer.param_groups for p in group["params"] if p in own]
        self._clipped.update({p: p.grad.detach().clone() for p in held if p.grad is not None})
        return held

    def _close(self) -> None:
        if not self._stepped:
            return
        row: Row = defaultdict(dict)
        for name, module in self._model.named_modules():
            own = list(module.parameters(recurse=False))
            for metric, known in (
                ("grad_norm", self._accumulated),
                ("clipped_grad_norm", self._clipped),
                ("weight_norm", self._before),
            ):
                if found := [known[p] for p in own if p in known]:
                    row[metric][name] = root_sum_square(found)
            if moved := [self._after[p] - self._before[p] for p in own if p in self._after]:
                row["update_norm"][name] = root_sum_square(moved)
            if self._signals[name]:
                row["signal_norm"][name] = root_sum_square(self._signals[name])
        self.rows.append(row)
        for kept in (self._signals, self._accumulated, self._clipped, self._before, self._after):
            kept.clear()
        self._stepped.clear()


def hold(situation: Situation, folder: Path, every: int = 1) -> None:
    """Train watched and with `Truth`, and hold all readings of the one against the other."""
    plain, truth = _trained(situation, Truth)
    model, scope = _trained(situation, lambda model: gradscope.watch(model, folder, every=every))
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)
    run = scope.run
    assert run.notes == []
    rows = dict(list(enumerate(truth.rows))[::every])
    assert run.steps.step.tolist() == list(rows)
    frame = run.frame().set_index(["step", "name"])
    for step, row in rows.items():
        read = frame.loc[step]
        for metric, expected in row.items():
            found = read[metric].dropna().to_dict()
            expected = {name: value for name, value in expected.items() if name in read.index}
            assert found == pytest.approx(expected, rel=1e-9), (step, metric)


def _trained(situation: Situation, watch: Callable[[nn.Module], Any]) -> tuple[nn.Module, Any]:
    """Train with what `watch` makes of the model around it; return both."""
    training = situation()
    model = next(training)
    with watch(model) as watching:
        for _ in training:
            pass
    return model, watching
