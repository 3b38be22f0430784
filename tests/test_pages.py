"""README.md and the pages of docs/: every block of code runs, every link leads somewhere.

A page's blocks run in order, in a folder of their own, on small nets: what a page leaves to its
reader (`model`, `loader`, `loss_fn` ...) is made by `yours`. What is not run has its reason in the
page.
"""

from __future__ import annotations

import json
import re
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import code_blocks
import gradscope
import plain_loop
import synthetic
import trackers
from code_blocks import PAGES, ROOT, Block
from gradscope import cli, schema

BLOCKS = [block for page in PAGES for block in code_blocks.blocks(page)]
RUN = [page for page in PAGES if any(b.language == "python" for b in code_blocks.blocks(page))]


def loader(steps: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(steps * 4, 5, generator=generator)
    y = torch.randint(0, 2, (steps * 4,), generator=generator)
    return list(zip(x.split(4), y.split(4), strict=True))


def yours(folder: Path) -> dict[str, object]:
    """Return what a page takes for granted: a model that trains, and runs on disk."""
    model = plain_loop.Net()
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05),
        "loss_fn": F.cross_entropy,
        "loader": loader(),
        "batches": loader(),
        "gradscope": gradscope,
        "torch": torch,
        "nn": nn,
        "json": json,
        "Path": Path,
    }


def of_trainers(names: dict[str, object], folder: Path) -> None:
    """Add the trainers and trackers of docs/integrations.md, each small."""
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    engine = pytest.importorskip("ignite.engine", reason="pytorch-ignite is not installed")
    skorch = pytest.importorskip("skorch", reason="skorch is not installed")
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is missing")

    class Lightning(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = plain_loop.Net()

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> object:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> object:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    class Labelled(plain_loop.Net):
        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = super().forward(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    def trainer(**options: object) -> object:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        return lightning.Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **options)

    x, y = (torch.cat(part) for part in zip(*loader(), strict=True))
    model, optimizer = names["model"], names["optimizer"]
    net = skorch.NeuralNet(
        plain_loop.Net, criterion=nn.CrossEntropyLoss, lr=0.05, batch_size=4, max_epochs=1,
        train_split=None, verbose=0,
    )  # fmt: skip
    names |= {
        "Trainer": trainer,
        "lightning_module": Lightning(),
        "loader": torch.utils.data.DataLoader(loader(), batch_size=None),
        "HuggingFaceTrainer": transformers.Trainer,
        "language_model": Labelled(),
        "args": transformers.TrainingArguments(
            output_dir=str(folder / "trainer"), report_to="none", save_strategy="no", use_cpu=True,
            disable_tqdm=True, max_steps=3,
        ),
        "data": [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)],
        "net": net,
        "x": x,
        "y": y,
        "SummaryWriter": tensorboard.SummaryWriter,
        "experiment": trackers.Comet(),
        "trackio_run": trackers.Trackio(),
        "aim_run": trackers.Aim(),
        "neptune_run": trackers.Neptune(),
        "ignite_trainer": engine.create_supervised_trainer(model, optimizer, F.cross_entropy),
    }  # fmt: skip
    other = plain_loop.Net()
    beside = {"model": other, "optimizer": torch.optim.SGD(other.parameters(), lr=0.05)}
    watched(beside, folder)
    names |= {"scope": beside["scope"], "kept": other}  # a scope ends with its model


def of_runs(names: dict[str, object], folder: Path) -> None:
    """Add two runs."""
    for name, residual in (("plain", False), ("resnet56", True)):
        synthetic.write_run(folder / "runs" / name, n_layers=9, n_steps=30, residual=residual)


def of_tables(names: dict[str, object], folder: Path) -> None:
    """Add the other readers of docs/data.md."""
    of_runs(names, folder)
    names["duckdb"] = pytest.importorskip("duckdb", reason="duckdb is not installed")
    names["pl"] = pytest.importorskip("polars", reason="polars is not installed")


def of_listed_runs(names: dict[str, object], folder: Path) -> None:
    """Add the readers of docs/on-a-cluster.md, and runs that were listed before."""
    of_tables(names, folder)
    assert cli.main(["runs", str(folder / "runs")]) == 0


def of_scope(names: dict[str, object], folder: Path) -> None:
    """Add a recording that is under way, and nets small enough to try changes on."""
    watched(names, folder)
    names["batches"] = loader(3)


def watched(names: dict[str, object], folder: Path) -> None:
    """Add the scope of a recording that is under way."""
    names["scope"] = gradscope.watch(names["model"], folder / "runs" / "watched")
    for x, y in loader():
        names["optimizer"].zero_grad()
        F.cross_entropy(names["model"](x), y).backward()
        names["optimizer"].step()


SCENES: dict[str, Callable[[dict[str, object], Path], None]] = {
    "integrations": of_trainers,
    "data": of_tables,
    "on-a-cluster": of_listed_runs,
    "what-if": of_scope,
    "README": of_runs,
    "recipes": of_runs,
    "command-line": of_runs,
}


def run(block: Block, names: dict[str, object], folder: Path) -> None:
    """Do what the reader of a block does with it: save it, execute it, or type it."""
    saved = re.match(r"# (\w+\.py)\n", block.code)
    if saved:
        (folder / saved[1]).write_text(block.code)
    elif block.language == "python":
        block.run(names)
    else:
        for line in block.code.splitlines():
            command, *words = shlex.split(line, comments=True)
            assert command == "gradscope", f"{block.page.name}:{block.line}: {line}"
            assert cli.main(words) in ((0, 1) if "--fail-on" in words else (0,)), line


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_every_block_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = yours(tmp_path)
    SCENES.get(page.stem, lambda names, folder: None)(names, tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
        for block in code_blocks.blocks(page):
            if block.language in ("python", "sh") and not block.reason:
                torch.manual_seed(0)
                run(block, names, tmp_path)
            if page.stem == "verdicts" and block.heading in schema.VERDICTS:
                holds(block.heading, names)
    if isinstance(names.get("scope"), gradscope.Scope):
        names["scope"].close()


def holds(verdict: str, names: dict[str, object]) -> None:
    """Check that the net that is ill has the verdict of its section, and the mended one none."""
    if verdict == "shattered":
        found = [names[name].verdict for name in ("shattered", "smooth")]
        assert found == ["shattered", "healthy"]
    elif verdict == "healthy":
        assert gradscope.diagnose(names["run"]).verdict == "healthy"
    else:
        ill = gradscope.diagnose(names.pop("ill"))
        severities = {finding.verdict: finding.severity for finding in ill.findings}
        assert verdict in severities, f"{verdict}: {ill}"
        assert (severities[verdict] == "information") == (ill.verdict == "healthy"), verdict
        assert gradscope.diagnose(names.pop("mended")).verdict == "healthy", verdict


def test_what_is_not_run_says_why():
    languages = {block.language for block in BLOCKS}
    assert {name for name in languages if not name.startswith("{")} == {"python", "sh", "text"}
    reasons = [block.reason for block in BLOCKS if block.reason]
    assert [reason for reason in reasons if len(reason.split()) < 4] == []
    assert len(reasons) < len(BLOCKS) / 8


def test_each_verdict_has_its_section():
    page = (ROOT / "docs" / "verdicts.md").read_text()
    assert tuple(re.findall(r"^## `(.+)`$", page, re.MULTILINE)) == schema.VERDICTS


def links(page: Path) -> list[str]:
    """Return where the links and pictures of a page lead."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_of_a_page_leads_somewhere(page):
    for link in links(page):
        target, _, anchor = link.partition("#")
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


def test_every_page_and_picture_is_led_to():
    listed = {page for name in site_pages() for page in (ROOT / "docs").glob(f"{name}.md")}
    assert listed == set(PAGES) - {ROOT / "README.md", ROOT / "docs" / "index.md"}
    shown = {(page.parent / link).resolve() for page in PAGES for link in links(page)}
    assert set((ROOT / "docs" / "pictures").rglob("*.png")) - shown == set()


def site_pages() -> list[str]:
    """Return the names in the site's tables of contents."""
    text = (ROOT / "docs" / "index.md").read_text()
    tables = re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL)
    return [line for table in tables for line in table.splitlines() if line and line[0] != ":"]
