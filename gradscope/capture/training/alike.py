"""Layers all of whose units start from the same weights: symmetry that no gradient breaks."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from gradscope import measure
from gradscope.capture.net.modules import Modules
from gradscope.capture.training.parameters import Parameters


@torch.no_grad()
def units_alike(parameters: Parameters, modules: Modules) -> list[str]:
    """Return the names of layers with trained matrices or kernels, the rows of each all the same.

    Not those that are all zero, as a branch that adds nothing yet; nor grouped convolutions, whose
    units see different inputs. A number for each unit, as a gain, is no row. Of most weights two
    rows are looked at. Waits for each device once, and once more where these two are the same.
    """
    suspects = []
    kinds = dict(modules)
    for number, _, place in parameters.listed:
        if place is None or getattr(kinds.get(number), "groups", 1) != 1:
            continue
        weight = parameters.tensors[place]
        is_matrix = weight.dim() > 1 and weight.numel() > len(weight) > 1
        if is_matrix and _is_here(weight):
            suspects.append((number, weight))
    every = suspects
    pairs = [measure.in_memory(weight[:2]) for _, weight in suspects]
    twins = _told([(one == other).all() for one, other in pairs])
    suspects = [one for one, told in zip(suspects, twins, strict=True) if told]
    whole = [measure.in_memory(weight) for _, weight in suspects]
    alike = _told([(w == w[:1]).all() & (w[0] != 0).any() for w in whole])
    same = [one for one, told in zip(suspects, alike, strict=True) if told]
    found = Counter(number for number, _ in same)
    all_of = Counter(number for number, _ in every)
    return [modules.info(n).name for n, count in found.items() if count == all_of[n]]


def _is_here(weight: Tensor) -> bool:
    return type(weight) is torch.nn.Parameter and weight.is_floating_point() and not weight.is_meta


def _told(answers: list[Tensor]) -> list[bool]:
    """Return the answers, fetched from each device at once."""
    result: dict[int, bool] = {}
    for device in {answer.device for answer in answers}:
        mine = [i for i, answer in enumerate(answers) if answer.device == device]
        result.update(zip(mine, torch.stack([answers[i] for i in mine]).tolist(), strict=True))
    return [result[i] for i in range(len(answers))]
