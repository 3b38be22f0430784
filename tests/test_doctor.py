"""`gradscope doctor`: what it says of a machine that is well, and of one that is not."""

from __future__ import annotations

import pytest
import torch

import gradscope
from gradscope.autograd.torch_internals import nodes
from gradscope.cli import main


def said(capsys) -> dict[str, str]:
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    return {line[2:16].strip(): line[0] + line[17:] for line in lines}


def test_it_names_versions_and_reads_a_training_rightly(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    state = torch.get_rng_state()
    assert main(["doctor"]) == 0
    told = said(capsys)
    assert gradscope.__version__ in told["gradscope"] and torch.__version__ in told["torch"]
    assert "numpy" in told["packages"] and "cpu" in told["devices"]
    assert told["kernel on cpu"].strip()[:1] in ("C", "t")
    assert told["cache folder"].strip() == str(tmp_path / "gradscope")
    assert told["this torch"] == " has all that is asked of it"
    assert told["a training"] == " of 3 steps is read rightly"
    assert torch.equal(torch.get_rng_state(), state)


def test_it_says_what_this_torch_lacks_and_ends_with_1(capsys, monkeypatch):
    def renamed(kind: type) -> str:
        return kind.__name__.replace("Add", "Plus")

    monkeypatch.setattr(nodes, "kind_name", renamed)
    monkeypatch.setattr("gradscope.autograd.torch_internals.kind_name", renamed)
    names = "gradscope.autograd.torch_internals.node_names.strange_names"
    monkeypatch.setattr(names, gradscope_names().__wrapped__)
    assert main(["doctor"]) == 1
    told = said(capsys)
    assert told["this torch"].startswith("!") and "names of nodes" in told["this torch"]
    assert told["a training"].startswith("!") and "shortcut is not found" in told["a training"]


def gradscope_names():
    from gradscope.autograd.torch_internals import node_names

    return node_names.strange_names


def test_a_training_that_is_read_wrongly_is_said_to_be(capsys, monkeypatch):
    read = torch.Tensor.norm
    monkeypatch.setattr(torch.Tensor, "norm", lambda x, *args: read(x, *args) * 2)
    assert main(["doctor"]) == 1
    assert said(capsys)["a training"].startswith("!is read wrongly")


@pytest.mark.parametrize("asked", ["0", "1"])
def test_it_says_by_what_tensors_are_read(asked, capsys, monkeypatch):
    from gradscope.measure import cpu_kernel

    monkeypatch.setenv("GRADSCOPE_KERNEL", asked)
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr(cpu_kernel, "kernel", lambda: None)
    assert main(["doctor"]) == 0
    reason = "GRADSCOPE_KERNEL=0" if asked == "0" else "no C compiler"
    assert reason in said(capsys)["kernel on cpu"]
