"""The callback for Hugging Face's Trainer, and Accelerate, against the same training in a loop."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import gradscope
import plain_loop

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
from gradscope.integrations.transformers import GradscopeCallback  # noqa: E402


class Net(plain_loop.Net):
    """Takes and returns what the Trainer expects of a model."""

    def forward(self, x, labels):
        logits = super().forward(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def rows():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(24, 5, generator=generator)
    labels = torch.randint(0, 2, (24,), generator=generator)
    return [{"x": a, "labels": b} for a, b in zip(x, labels, strict=True)]


def batches(size=4):
    found = rows()
    return [
        {name: torch.stack([row[name] for row in found[i : i + size]]) for name in ("x", "labels")}
        for i in range(0, len(found), size)
    ]


class Stream(torch.utils.data.IterableDataset):
    """The rows in their order: the Trainer shuffles what is no stream."""

    def __iter__(self):
        yield from rows()


def fit(model, callback, folder, steps=6, data=None, **options):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"), report_to="none", save_strategy="no", use_cpu=True,
        disable_tqdm=True, per_device_train_batch_size=4, learning_rate=0.05, weight_decay=0.0,
        lr_scheduler_type="constant", logging_steps=1, max_steps=steps, optim="adamw_torch",
        **{"max_grad_norm": 0.0, **options},
    )  # fmt: skip
    transformers.Trainer(
        model, arguments, train_dataset=data or Stream(), eval_dataset=rows(), callbacks=[callback]
    ).train()


def plain(folder, epochs=1, **options):
    """Return the run of the same training in a loop of one's own."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
    return plain_loop.train(model, optimizer, batches() * epochs, loss_of, folder, **options)


def loss_of(model, batch):
    return model(**batch)["loss"]


def assert_same(run, expected):
    assert (run.status, run.notes) == ("closed", [])
    assert run.layers.name.tolist() == expected.layers.name.tolist()
    assert run.steps.step.tolist() == expected.steps.step.tolist()
    ours, theirs = run.frame(), expected.frame()
    for column in plain_loop.READINGS:
        np.testing.assert_allclose(ours[column], theirs[column], rtol=1e-6, err_msg=column)
    for column in ("grad_norm", "clipped_grad_norm"):
        np.testing.assert_allclose(run.steps[column], expected.steps[column], rtol=1e-6)
    np.testing.assert_allclose(run.steps.train_loss, expected.steps.train_loss, atol=1e-4)
    np.testing.assert_allclose(run.shortcut_readings, expected.shortcut_readings, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "loop"),
    [
        ({}, {}),
        ({"steps": 3, "gradient_accumulation_steps": 2}, {"accumulate": 2}),
        ({"max_grad_norm": 0.1}, {"clip": 0.1}),
        ({"bf16": True}, {"autocast": True}),
        ({"torch_compile": True, "torch_compile_backend": "eager"}, {}),
    ],
)
def test_readings_equal_those_of_a_plain_loop(tmp_path, options, loop):
    callback = GradscopeCallback(tmp_path / "run")
    fit(Net(), callback, tmp_path, **options)
    assert_same(callback.scope.run, plain(tmp_path / "plain", **loop))


def test_evaluations_are_logged_and_not_recorded(tmp_path):
    callback = GradscopeCallback(tmp_path / "run", every=2)
    model = Net()
    fit(model, callback, tmp_path, eval_strategy="steps", eval_steps=3)
    run = callback.scope.run
    assert run.steps.step.tolist() == [0, 2, 4, 5]
    logged = run.steps.set_index("step").eval_loss
    assert logged.dropna().index.tolist() == [2, 5]
    with torch.no_grad():
        (whole,) = batches(24)
        assert logged[5] == pytest.approx(float(model(**whole)["loss"]), rel=1e-4)
    assert [name for name in run.steps if "runtime" in name or "per_second" in name] == []


def test_an_exception_closes_the_scope_of_a_with_block(tmp_path):
    class Failing(Stream):
        def __iter__(self):
            yield from rows()[:12]
            raise RuntimeError("out of luck")

    model = Net()
    with (
        pytest.raises(RuntimeError, match="out of luck"),
        GradscopeCallback(tmp_path / "run") as callback,
    ):
        fit(model, callback, tmp_path, data=Failing())
    run = gradscope.load(tmp_path / "run")
    assert run.status == "closed" and len(run.steps) >= 2
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_training_after_one_that_failed_gets_a_scope_of_its_own(tmp_path, monkeypatch):
    class Failing(Stream):
        def __iter__(self):
            yield from rows()[:12]
            raise RuntimeError("out of luck")

    monkeypatch.chdir(tmp_path)
    model, callback = Net(), GradscopeCallback()
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(model, callback, tmp_path, data=Failing())
    failed = callback.scope.path
    fit(model, callback, tmp_path)
    assert gradscope.load(failed).status == "closed"
    assert len(callback.scope.run.steps) == 6


def test_a_missing_package_gives_the_pip_line():
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import gradscope\n"
        "try: import gradscope.integrations.transformers\n"
        "except gradscope.GradscopeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "which is not installed; run: pip install 'transformers[torch]'" in done.stdout


@pytest.mark.parametrize("before", [True, False])
def test_accelerate_needs_nothing_but_watch(tmp_path, before):
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = Net()
    scope = gradscope.watch(model, tmp_path / "run") if before else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
    loader = torch.utils.data.DataLoader(rows(), batch_size=4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    scope = scope or gradscope.watch(model, tmp_path / "run")
    losses = []
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch)["loss"]
            accelerator.backward(loss)
            losses.append(loss.detach())
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                scope.log(train_loss=torch.stack(losses).mean())
                losses = []
    scope.close()
    assert_same(scope.run, plain(tmp_path / "plain", accumulate=2, clip=0.1))
