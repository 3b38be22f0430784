"""Recurrent nets, whose state is carried through gates."""

from __future__ import annotations

import torch
from torch import nn

from residual_zoo.harness import TEXT, lin, mlp, net


@net(
    "identity (root) stem (root) r1",
    "identity (root) (root) (root) r2",
    stem=lin(),
    r1=nn.LSTM(8, 8, batch_first=True),
    r2=nn.LSTM(8, 8, batch_first=True),
    x=TEXT,
)
def residual_lstm(m, x):
    x = m.stem(x)
    x = x + m.r1(x)[0]
    return x + m.r2(x)[0]


@net(rnn=nn.LSTM(8, 8, batch_first=True), head=lin(), x=TEXT)
def fused_lstm(m, x):
    return m.head(m.rnn(x)[0])


@net(cell=nn.RNNCell(8, 8), embed=nn.Embedding(9, 8), x=(torch.ones(2, 4).long(),))
def recurrent_cell_on_embeddings(m, x):
    x = m.embed(x)
    h = x.new_zeros(2, 8)
    for t in range(4):
        h = m.cell(x[:, t], h)
    return h


@net(cell=nn.LSTMCell(8, 8), x=(4, 1, 8))
def one_step_of_an_lstm_cell(m, x):
    return m.cell(x[:, 0])[0]


@net(*["gated (root) cell cell cell"] * 2, cell=nn.LSTMCell(8, 8), x=(4, 3, 8))
def lstm_cell(m, x):
    state = None
    for t in range(3):
        state = m.cell(x[:, t], state)
    return state[0]


@net(enc=nn.GRU(8, 8, batch_first=True), q=lin(), out=lin(), x=(2, 1, 8))
def one_step_gru(m, x):
    return m.out(m.enc(x)[0])


@net(*["gated cell cell cell cell"] * 2, cell=nn.GRUCell(8, 8), x=(4, 3, 8))
def gru_cell(m, x):
    h = x.new_zeros(len(x), 8)
    for t in range(3):
        h = m.cell(x[:, t], h)
    return h


class GTrXL(nn.Module):
    def __init__(self):
        super().__init__()
        self.n = nn.LayerNorm(8)
        self.f = mlp()
        self.wr = lin()
        self.ur = lin()
        self.wz = lin()
        self.uz = lin()
        self.wg = lin()
        self.ug = lin()

    def forward(self, x):
        y = self.f(self.n(x))
        r = torch.sigmoid(self.wr(y) + self.ur(x))
        zz = torch.sigmoid(self.wz(y) + self.uz(x) - 2)
        h = torch.tanh(self.wg(y) + self.ug(r * x))
        return (1 - zz) * x + zz * h


@net("gated g stem g g.n", stem=lin(), g=GTrXL())
def gated_transformer(m, x):
    return m.g(m.stem(x))


@net(
    "gated rnn rnn rnn rnn",
    "gated rnn rnn rnn rnn",
    rnn=nn.GRU(8, 8, batch_first=True),
    head=lin(),
    x=(2, 3, 8),
)
def fused_gru(m, x):
    return m.head(m.rnn(x)[0][:, -1])


class HandLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.x = lin(8, 32)
        self.h = lin(8, 32)

    def forward(self, x, h, c):
        i, f, g, o = (self.x(x) + self.h(h)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


@net(
    "gated (root) cell cell cell",
    emb=nn.Embedding(9, 8),
    cell=HandLSTM(),
    x=(torch.ones(2, 2).long(),),
)
def hand_written_lstm(m, x):
    e = m.emb(x)
    h = c = torch.zeros_like(e[:, 0])
    for t in range(2):
        h, c = m.cell(e[:, t], h, c)
    return h


class HandGRU(nn.Module):
    def __init__(self):
        super().__init__()
        [setattr(self, k, lin()) for k in ("wz", "uz", "wr", "ur", "wh", "uh")]

    def forward(self, x, h):
        zz = torch.sigmoid(self.wz(x) + self.uz(h))
        r = torch.sigmoid(self.wr(x) + self.ur(h))
        n = torch.tanh(self.wh(x) + self.uh(r * h))
        return (1 - zz) * h + zz * n


@net(
    "gated cell cell cell cell.uh",
    emb=nn.Embedding(9, 8),
    cell=HandGRU(),
    x=(torch.ones(2, 2).long(),),
)
def hand_written_gru(m, x):
    e = m.emb(x)
    h = torch.zeros_like(e[:, 0])
    for t in range(2):
        h = m.cell(e[:, t], h)
    return h


@net(
    "gated a a a a.uh",
    "gated b b b b.uh",
    emb=nn.Embedding(9, 8),
    a=HandGRU(),
    b=HandGRU(),
    x=(torch.ones(2, 2).long(),),
)
def stacked_gru(m, x):
    e = m.emb(x)
    h = g = torch.zeros_like(e[:, 0])
    for t in range(2):
        h = m.a(e[:, t], h)
        g = m.b(h, g)
    return g
