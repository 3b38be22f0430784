"""`run.edges`: between which layers data flow, on nets whose edges are known."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gradscope
from gradscope import schema


def edges_of(model, loss_of, path, steps=2, **settings):
    """Return the edges by name; "out" stands for what the model returns."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gradscope.watch(model, path, **settings) as scope:
        for _ in range(steps):
            loss_of(model).backward()
            optimizer.step()
            optimizer.zero_grad()
    run = scope.run
    assert run.notes == []
    assert list(run.edges) == schema.names(schema.EDGES)
    names = {-1: "out", **dict(enumerate(run.layers.name))}
    return {(names[s], names[t]) for s, t in run.edges.itertuples(index=False)}


def chain(*names):
    return set(pairwise(names))


def on(*shape):
    torch.manual_seed(1)
    x = torch.randn(*shape)

    def loss(model):
        out = model(x)
        return sum(o.square().mean() for o in (out if isinstance(out, tuple) else (out,)))

    return loss


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.actor, self.critic = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, x):
        h = torch.tanh(self.body(x))
        return self.actor(h), self.critic(h)


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(4, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.left(x) * self.right(-x))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 2, 3, 1, 1), nn.Conv2d(2, 3, 3, 2, 1)
        self.middle, self.up = nn.Conv2d(3, 3, 3, 1, 1), nn.Conv2d(5, 2, 3, 1, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        a = self.down1(x)
        b = self.act(self.down2(a))
        return self.up(torch.cat([a, F.interpolate(self.middle(b), scale_factor=2)], 1))


class Residual(nn.Module):
    def __init__(self, depth=3):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.head(x)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.c(self.a(self.b(self.a(x))))


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRUCell(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        h = torch.zeros(len(x), 5)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.head(h)


class Vision(nn.Module):
    """Owns parameters where data enter and where they leave, and holds layers."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm, self.mlp = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 6)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.place = nn.Parameter(torch.randn(1, 4, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.patches(x)], 1) + self.place
        x = x + self.mlp(self.norm(x))
        return self.head(x[:, 0])


class Scaled(nn.Module):
    """A layer that scales what the layer within it returns, with parameters of its own."""

    def __init__(self):
        super().__init__()
        self.inner, self.gamma = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x + self.gamma * self.inner(x)


class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.side, self.last = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        x = self.stem(x)
        self.extra = self.last(self.side(x))
        return self.head(x)


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(x).detach())


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.block = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.reentrant = reentrant

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + checkpoint(self.block, x, use_reentrant=self.reentrant))


class CheckpointedLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())

    def forward(self, x):
        return checkpoint(self.block, self.stem(x), use_reentrant=True)


def of_checkpointed():
    return {
        *chain("stem", "block.0", "block.1", "block.2", "head", "out"),
        ("stem", "head"),
    }


NETS = {
    "plain": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 2)),
        on(3, 4),
        chain("0", "1", "3", "out"),
    ),
    "in-place activation on a view": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)),
        on(3, 2, 4),
        chain("0", "1", "2", "out"),
    ),
    "batch norm": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 3)),
        on(2, 1, 8, 8),
        chain("0", "1", "2", "3", "out"),
    ),
    "parallel heads": (
        Heads,
        on(3, 4),
        {*chain("body", "actor", "out"), *chain("body", "critic", "out")},
    ),
    "two towers": (
        Towers,
        on(3, 4),
        {("left", "head"), ("right", "head"), ("head", "out")},
    ),
    "skips of a U-Net": (
        UNet,
        on(2, 1, 8, 8),
        {*chain("down1", "down2", "act", "middle", "up", "out"), ("down1", "up")},
    ),
    "residual sums": (
        Residual,
        on(3, 4),
        {
            *chain("stem", "blocks.0", "blocks.1", "blocks.2", "head", "out"),
            ("stem", "blocks.1"),
            ("stem", "blocks.2"),
            ("stem", "head"),
            ("blocks.0", "blocks.2"),
            ("blocks.0", "head"),
            ("blocks.1", "head"),
        },
    ),
    "a shared module": (
        Shared,
        on(3, 4),
        {("a", "b"), ("b", "a"), ("a", "c"), ("c", "out")},
    ),
    "a recurrent cell": (Cell, on(3, 6, 3), {("cell", "cell"), *chain("cell", "head", "out")}),
    "a recurrent layer": (
        lambda: nn.ModuleList([nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)]),
        lambda model: model[1](model[0](torch.ones(2, 4, 3))[0]).square().mean(),
        chain("0", "1", "out"),
    ),
    "a layer that holds all others": (
        Vision,
        on(3, 3, 4),
        {
            *chain("patches", "(root)", "norm", "mlp", "head", "out"),
            ("(root)", "head"),
        },
    ),
    "a layer around another": (
        lambda: nn.Sequential(nn.Linear(4, 4), Scaled(), nn.Linear(4, 2)),
        on(3, 4),
        {*chain("0", "1.inner", "1", "2", "out"), ("0", "2")},
    ),
    "an auxiliary loss": (
        Auxiliary,
        lambda model: model(torch.ones(2, 4)).sum() + model.extra.sum(),
        {*chain("stem", "head", "out"), *chain("stem", "side", "last", "out")},
    ),
    "detached": (Detached, on(3, 4), {("head", "out")}),
    "checkpointed": (lambda: Checkpointed(False), on(3, 4), of_checkpointed()),
    "checkpointed, re-entrant": (lambda: Checkpointed(True), on(3, 4), of_checkpointed()),
    "checkpointed at the end, re-entrant": (
        lambda: CheckpointedLast(),
        on(3, 4),
        chain("stem", "block.0", "block.1", "out"),
    ),
    "attention": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True),
        on(2, 3, 4),
        {
            *chain("self_attn", "norm1", "linear1", "linear2", "norm2", "out"),
            ("norm1", "norm2"),
        },
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_edges_are_the_ways_of_the_data(name, tmp_path):
    torch.manual_seed(0)
    make, loss_of, expected = NETS[name]
    assert edges_of(make(), loss_of, tmp_path / "run") == expected


class Parts(nn.Module):
    """Its forward is never called; the loss calls its parts."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.mean, self.spread, self.decoder = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(3, 4)

    def loss(self, x):
        hidden = self.encoder(x)
        mean, spread = self.mean(hidden), self.spread(hidden)
        return (self.decoder(mean + spread.exp() * torch.randn_like(mean)) - x).square().mean()


class TwoSources(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.decoder = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)

    def loss(self, x):
        return self.decoder(self.one(x)).sum() + self.decoder(self.two(x) * 2).sum()


class Pyramid(nn.Module):
    """An encoder that returns two tensors, which a decoder called on its own takes."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            a = self.a(x)
            return a, self.b(a)

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.of_a, self.of_b = nn.Linear(3, 1), nn.Linear(2, 1)

        def forward(self, a, b):
            return self.of_a(a) + self.of_b(b)

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = self.Encoder(), self.Decoder()

    def loss(self, x):
        return self.decoder(*self.encoder(x)).square().mean()


CALLED_BY_PARTS = {
    "reparameterisation": (
        Parts,
        {
            *chain("encoder.0", "encoder.1", "mean", "decoder", "out"),
            *chain("encoder.1", "spread", "decoder"),
        },
    ),
    "two sources of one part": (
        TwoSources,
        {*chain("one", "decoder", "out"), ("two", "decoder")},
    ),
    "several tensors": (
        Pyramid,
        {
            *chain("encoder.a", "encoder.b", "decoder.of_b", "out"),
            *chain("encoder.a", "decoder.of_a", "out"),
        },
    ),
}


@pytest.mark.parametrize("name", CALLED_BY_PARTS)
def test_edges_lead_from_one_part_to_another_that_is_called_on_its_own(name, tmp_path):
    torch.manual_seed(0)
    make, expected = CALLED_BY_PARTS[name]
    x = torch.randn(5, 4)
    assert edges_of(make(), lambda model: model.loss(x), tmp_path / "run") == expected


def test_a_recurrent_cell_that_is_the_model_leads_to_itself_and_to_the_loss(tmp_path):
    def loss(cell):
        h = torch.zeros(2, 5)
        for _ in range(4):
            h = cell(torch.ones(2, 3), h)
        return h.square().mean()

    edges = edges_of(nn.GRUCell(3, 5), loss, tmp_path / "run")
    assert edges == {("(root)", "(root)"), ("(root)", "out")}


def test_every_structure_adds_its_edges(tmp_path):
    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return (self.a if self.calls % 2 else self.b)(self.stem(x))

    edges = edges_of(Either(), on(3, 4), tmp_path / "run")
    assert edges == {*chain("stem", "a", "out"), *chain("stem", "b", "out")}


def test_of_a_long_residual_stream_the_edges_grow_with_its_length_alone(tmp_path):
    depth = 60
    edges = edges_of(Residual(depth), on(3, 4), tmp_path / "run", steps=1)
    assert len(edges) < 33 * (depth + 2)
    assert {(f"blocks.{i}", f"blocks.{i + 1}") for i in range(depth - 1)} <= edges
    assert ("stem", "blocks.0") in edges


def test_of_many_parallel_layers_every_edge_stays(tmp_path):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(4, 1) for _ in range(50))
            self.head = nn.Linear(50, 1)

        def forward(self, x):
            return self.head(torch.cat([part(x) for part in self.parts], 1))

    edges = edges_of(Wide(), on(3, 4), tmp_path / "run", steps=1)
    assert edges == {("head", "out")} | {(f"parts.{i}", "head") for i in range(50)}


def test_a_run_that_is_resumed_keeps_its_edges(tmp_path):
    class Switch(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)
            self.which = "a"

        def forward(self, x):
            return getattr(self, self.which)(self.stem(x))

    model = Switch()
    edges_of(model, on(3, 4), tmp_path / "run")
    model.which = "b"
    edges = edges_of(model, on(3, 4), tmp_path / "run", resume=True)
    assert edges == {*chain("stem", "a", "out"), *chain("stem", "b", "out")}


def test_a_run_of_an_older_gradscope_has_none(tmp_path):
    edges_of(Shared(), on(3, 4), tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    meta = json.loads(file.read_bytes())
    del meta["edges"], meta["crc32"]
    file.write_text(json.dumps(meta))
    with pytest.warns(gradscope.GradscopeWarning, match="checksum"):
        run = gradscope.load(tmp_path / "run")
    assert list(run.edges) == ["source", "target"]
    assert len(run.edges) == 0


def test_edges_are_found_once_for_a_structure(tmp_path, monkeypatch):
    from gradscope.capture.forwards import edges

    found = []
    find = edges.find_flow
    monkeypatch.setattr(edges, "find_flow", lambda *args: found.append(1) or find(*args))
    edges_of(Residual(), on(3, 4), tmp_path / "run", steps=5)
    assert len(found) == 1


@pytest.mark.parametrize("whole", [True, False])
def test_a_compiled_model_trains_on_whether_its_edges_are_seen_or_not(whole, tmp_path):
    model = Residual(1)
    compiled = torch.compile(model, backend="eager") if whole else model
    if not whole:
        model.blocks[0].compile(backend="eager")
    edges = edges_of(compiled, on(3, 4), tmp_path / "run", steps=3)
    known = {*chain("stem", "blocks.0", "head", "out"), ("stem", "head")}
    assert edges <= known


def test_losses_of_what_is_kept_on_the_way_see_the_same_edges(tmp_path):
    class Keeps(Auxiliary):
        def forward(self, x):
            out = super().forward(x)
            self.unused = self.last(self.side(x))
            return out

    edges = edges_of(Keeps(), on(3, 4), tmp_path / "run")
    assert edges == {*chain("stem", "head", "out"), *chain("stem", "side", "last")} - {
        ("last", "out")
    }
