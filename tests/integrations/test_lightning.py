"""The callback for Lightning's Trainer, against the same training in a plain loop."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import gradscope
import plain_loop

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
from gradscope.integrations.lightning import GradscopeCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:lightning",
    "ignore::FutureWarning:lightning",
    "ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning",
)


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(24, 5, generator=generator)
    return TensorDataset(x, torch.randint(0, 2, (24,), generator=generator))


def loader():
    return DataLoader(data(), batch_size=4)


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = plain_loop.Net()

    def training_step(self, batch, batch_index):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def validation_step(self, batch, batch_index):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self.net(x), y))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)


class Manual(Module):
    """Two optimizers, stepped by hand; the batch's loss is returned in a dict."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_index):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        return {"loss": loss}

    def configure_optimizers(self):
        head = list(self.net.head.parameters())
        rest = [p for p in self.net.parameters() if all(p is not h for h in head)]
        return [torch.optim.AdamW(head, lr=0.05), torch.optim.AdamW(rest, lr=0.05)]


def fit(module, callback, folder, **options):
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[callback], **{"max_epochs": 1, **options},
    )  # fmt: skip
    trainer.fit(module, loader(), loader())


def plain(folder, epochs=1, **options):
    """Return the run of the same training in a loop of one's own."""
    model = plain_loop.Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    batches = [batch for _ in range(epochs) for batch in loader()]
    return plain_loop.train(model, optimizer, batches, loss_of, folder, **options)


def loss_of(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def assert_same(run, expected):
    assert run.layers.name.tolist() == [f"net.{name}" for name in expected.layers.name]
    assert run.steps.step.tolist() == expected.steps.step.tolist()
    ours, theirs = run.frame(), expected.frame()
    for column in plain_loop.READINGS:
        np.testing.assert_allclose(ours[column], theirs[column], rtol=1e-6, err_msg=column)
    for column in ("grad_norm", "clipped_grad_norm", "train_loss"):
        np.testing.assert_allclose(run.steps[column], expected.steps[column], rtol=1e-6)
    np.testing.assert_allclose(
        run.shortcut_readings.drop(columns="step"), expected.shortcut_readings.drop(columns="step"),
        rtol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "loop"),
    [
        ({}, {}),
        ({"max_epochs": 2}, {"epochs": 2}),
        ({"accumulate_grad_batches": 2}, {"accumulate": 2}),
        ({"gradient_clip_val": 0.1}, {"clip": 0.1}),
        ({"precision": "bf16-mixed"}, {"autocast": True}),
        ({"accumulate_grad_batches": 3, "gradient_clip_val": 0.1}, {"accumulate": 3, "clip": 0.1}),
    ],
)
def test_readings_equal_those_of_a_plain_loop(tmp_path, options, loop):
    callback = GradscopeCallback(tmp_path / "run")
    fit(Module(), callback, tmp_path, **options)
    run = callback.scope.run
    assert (run.status, run.notes) == ("closed", [])
    assert_same(run, plain(tmp_path / "plain", **loop))


def test_a_compiled_module_is_recorded_from_its_first_step_on(tmp_path):
    callback = GradscopeCallback(tmp_path / "run")
    fit(torch.compile(Module(), backend="eager"), callback, tmp_path)
    run = callback.scope.run
    assert run.notes == []
    assert_same(run, plain(tmp_path / "plain"))


def test_several_optimizers_stepped_by_hand_share_a_step(tmp_path):
    callback = GradscopeCallback(tmp_path / "run")
    fit(Manual(), callback, tmp_path)
    assert_same(callback.scope.run, plain(tmp_path / "plain"))


def test_validation_is_logged_to_the_step_before_it_and_not_recorded(tmp_path):
    callback = GradscopeCallback(tmp_path / "run", every=2)
    module = Module()
    fit(module, callback, tmp_path, max_epochs=2, val_check_interval=3)
    run = callback.scope.run
    assert run.steps.step.tolist() == [0, 2, 4, 6, 8, 10, 11]
    logged = run.steps.set_index("step").val_loss
    assert logged.dropna().index.tolist() == [2, 6, 8, 11]
    x, y = data().tensors
    with torch.no_grad():
        assert logged[11] == pytest.approx(float(F.cross_entropy(module.net(x), y)), rel=1e-6)


def test_an_exception_closes_the_scope(tmp_path):
    class Failing(Module):
        def training_step(self, batch, batch_index):
            if batch_index == 3:
                raise RuntimeError("out of luck")
            return super().training_step(batch, batch_index)

    callback = GradscopeCallback(tmp_path / "run")
    module = Failing()
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(module, callback, tmp_path)
    run = gradscope.load(tmp_path / "run")
    assert run.status == "closed" and len(run.steps) == 3
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_a_missing_package_gives_the_pip_line():
    code = (
        "import sys; sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\n"
        "import gradscope\n"
        "try: import gradscope.integrations.lightning\n"
        "except gradscope.GradscopeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "which is not installed; run: pip install lightning" in done.stdout
