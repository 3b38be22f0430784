"""The Llama on four processes, against plain autograd of the same net on the whole batch in one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import gradscope
from releases import shards_on_the_cpu

EXAMPLE = Path(__file__).parents[2] / "examples" / "llama_on_four.py"
STEPS = 3


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the run of the example, and what it printed."""
    run = tmp_path_factory.mktemp("llama") / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    done = subprocess.run(
        [*launch, str(EXAMPLE), str(run), "eager", str(STEPS)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return run, done.stdout


def truth() -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Return the norms of gradients and of signals, by layer, of each step."""
    spec = importlib.util.spec_from_file_location("llama_on_four", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    torch.manual_seed(0)
    model = example.Llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    outputs = {}
    for name, module in model.named_modules():
        if not list(module.children()):

            def keep(_, inputs, output, name=name):
                output.retain_grad()
                outputs[name] = output

            module.register_forward_hook(keep)
    gradients, signals = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        tokens = torch.cat([example.batch(step, place) for place in range(2)])
        example.loss_of(model, tokens).backward()
        layers = {name: module for name, module in model.named_modules() if name in outputs}
        gradients.append({n: m.weight.grad.norm().item() for n, m in layers.items()})
        signals.append({n: output.grad.norm().item() for n, output in outputs.items()})
        optimizer.step()
    return gradients, signals


@pytest.mark.slow
@shards_on_the_cpu
def test_one_run_reads_as_the_net_in_one_process(said):
    path, printed = said
    run = gradscope.load(path)
    gradients, signals = truth()
    assert run.steps.step.tolist() == [0, 2]
    names = run.layers.name.tolist()
    assert set(names) == gradients[0].keys() and names[0] == "tok_embeddings"
    for step in run.steps.step:
        read = run.frame()[run.frame().step == step].set_index("name")
        for column, expected in ("grad_norm", gradients[step]), ("signal_norm", signals[step]):
            right = [expected[name] for name in names]
            np.testing.assert_allclose(read[column], right, rtol=2e-3, err_msg=f"{column}, {step}")
    assert len(run.shortcuts) == 8 and set(run.shortcuts.form) == {"identity"}
    (note,) = run.notes
    assert "input_signal_norm is NaN" in note
    assert "healthy" in printed and "layers.3.ffn_norm" in printed
