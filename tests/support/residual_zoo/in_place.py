"""Blocks that write in place on views: behind norms by instance, in slices, reshaped."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from residual_zoo.harness import IMAGE, TEXT, conv, lin, mlp, net


def instance_norm(width):
    return nn.InstanceNorm2d(width, affine=True)


class DynBlock(nn.Module):
    """A block of nnU-Net in MONAI: instance norms, one in-place activation for all."""

    def __init__(self, cin, cout, stride=1, norm=instance_norm, act=None):
        super().__init__()
        self.conv1, self.conv2 = conv(cin, cout, stride), conv(cout, cout)
        self.norm1, self.norm2 = norm(cout), norm(cout)
        self.lrelu = act or nn.LeakyReLU(0.01, inplace=True)
        if stride > 1 or cin != cout:
            self.conv3, self.norm3 = conv(cin, cout, stride, 1), norm(cout)

    def forward(self, x):
        residual = x
        y = self.norm2(self.conv2(self.lrelu(self.norm1(self.conv1(x)))))
        if hasattr(self, "conv3"):
            residual = self.norm3(self.conv3(residual))
        y += residual
        return self.lrelu(y)


class UpBlock(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.transp_conv = nn.ConvTranspose2d(cin, cout, 2, 2, bias=False)
        self.conv, self.norm = conv(2 * cout, cout), instance_norm(cout)
        self.lrelu = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x, skip):
        return self.lrelu(self.norm(self.conv(torch.cat((self.transp_conv(x), skip), dim=1))))


@net(
    "projection a (root) a a.conv1",
    "projection b a.lrelu b b.conv1",
    "identity c b.lrelu c c.conv1",
    "concat (root) a.lrelu up b.conv1",
    stem=conv(),
    a=DynBlock(4, 6),
    b=DynBlock(6, 8, 2),
    c=DynBlock(8, 8),
    up=UpBlock(8, 6),
    head=conv(6, 2),
    x=IMAGE,
)
def dynamic_u_net(m, x):
    a = m.a(F.relu(m.stem(x)))
    return m.head(m.up(m.c(m.b(a)), a))


class FlowBlock(nn.Module):
    """A block of RAFT's encoders: a ReLU in place before the sum, another after."""

    def __init__(self, cin, cout, norm, stride=1):
        super().__init__()
        self.conv1, self.conv2 = conv(cin, cout, stride), conv(cout, cout)
        self.norm1, self.norm2, self.relu = norm(cout), norm(cout), nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(conv(cin, cout, stride, 1), norm(cout))

    def forward(self, x):
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.relu(self.norm2(self.conv2(y)))
        if self.downsample is not None:
            x = self.downsample(x)
        return self.relu(x + y)


class FlowEncoder(nn.Sequential):
    def __init__(self, norm):
        super().__init__()
        self.conv1, self.norm1, self.relu1 = conv(4, 4), norm(4), nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(FlowBlock(4, 4, norm), FlowBlock(4, 4, norm))
        self.layer2 = nn.Sequential(FlowBlock(4, 6, norm, 2), FlowBlock(6, 6, norm))
        self.conv2 = conv(6, 6, 1, 1)


def flow_encoder(name, before="relu1"):
    return (
        f"identity {name}.layer1.0 {name}.{before} {name}.layer1.0 {name}.layer1.0.conv1",
        f"identity {name}.layer1.1 {name}.layer1.0.relu {name}.layer1.1 {name}.layer1.1.conv1",
        f"projection {name}.layer2.0 {name}.layer1.1.relu {name}.layer2.0 {name}.layer2.0.conv1",
        f"identity {name}.layer2.1 {name}.layer2.0.relu {name}.layer2.1 {name}.layer2.1.conv1",
    )


@net(
    *flow_encoder("features"),
    *flow_encoder("context"),
    features=FlowEncoder(nn.InstanceNorm2d),
    context=FlowEncoder(nn.BatchNorm2d),
    x=(torch.Size(IMAGE), torch.Size(IMAGE)),
)
def optical_flow_encoders(m, one, other):
    one, other = m.features(torch.cat([one, other])).chunk(2)
    return one * other, m.context(one.detach()[:, :4])


def block(act, norm, cin=4):
    return DynBlock(cin, 8, 2, norm, act)


def group_norm(width):
    return nn.GroupNorm(2, width)


class ChannelNorm(nn.Module):
    """A layer norm over channels, whose output is a permuted view."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@net(
    "projection a stem a a.conv1", "projection b stem b b.conv1", "projection c stem c c.conv1",
    "projection d stem d d.conv1", "projection e stem e e.conv1", "projection f stem f f.conv1",
    stem=conv(),
    a=block(nn.ReLU(inplace=True), instance_norm),
    b=block(nn.ELU(inplace=True), nn.BatchNorm2d),
    c=block(nn.SiLU(inplace=True), group_norm),
    d=block(nn.Hardswish(inplace=True), ChannelNorm),
    e=block(nn.ReLU6(inplace=True), ChannelNorm),
    f=block(nn.CELU(inplace=True), nn.InstanceNorm2d),
    x=IMAGE,
)  # fmt: skip
def activations_in_place_behind_norms(m, x):
    x = m.stem(x)
    return [block(x) for block in (m.a, m.b, m.c, m.d, m.e, m.f)]


class TokenBlock(nn.Module):
    """Layers over tokens give views of matrices: ReLU in place, and a projection."""

    def __init__(self, cin, cout):
        super().__init__()
        self.fc1, self.fc2, self.short = lin(cin, cout), lin(cout), lin(cin, cout)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.fc2(self.act(self.fc1(x)))
        y += self.short(x)
        return self.act(y)


@net("projection b stem b b.fc1", stem=lin(), b=TokenBlock(8, 6), x=TEXT)
def projected_tokens_in_place(m, x):
    return m.b(m.stem(x))


@net(
    "projection (root) stem (root) a",
    stem=conv(),
    a=conv(4, 8),
    b=conv(8, 8),
    s=conv(4, 8),
    x=IMAGE,
)
def activation_of_a_slice_in_place(m, x):
    x = m.stem(x)
    y = m.a(x) * 1
    y[:, :4].relu_()
    return m.s(x) + m.b(y)


@net(stem=conv(), a=conv(4, 8), b=conv(8, 8), s=conv(4, 8), x=IMAGE)
def two_linear_ways(m, x):
    x = m.stem(x)
    return m.s(x) + m.b(m.a(x))


@net(
    "identity (root) (root) (root) f",
    stem=conv(), f=conv(4, 2), x=IMAGE,
)  # fmt: skip
def branch_added_into_a_slice(m, x):
    y = m.stem(x) * 1
    y[:, :2] += m.f(F.relu(y))
    return y


@net(
    "identity (root) stem (root) f",
    stem=conv(), f=conv(4, 2), x=IMAGE,
)  # fmt: skip
def branch_added_into_a_slice_of_a_clone(m, x):
    x = m.stem(x)
    y = x.clone()
    y[:, :2] += m.f(x)
    return y


@net(
    "identity (root) stem (root) f.0",
    "identity (root) (root) (root) g.0",
    stem=lin(), f=mlp(), g=mlp(), x=TEXT,
)  # fmt: skip
def branches_added_to_a_view(m, x):
    x = m.stem(x)
    y = x.view(10, 8)
    z = m.f(y).view(2, 5, 8)
    z.add_(x)
    w = m.g(z)
    w.view(10, 8).add_(z.view(10, 8))
    return w


@net(
    "projection (root) stem (root) f.0",
    stem=conv(), f=nn.Sequential(conv(4, 8), nn.ReLU(), conv(8, 8)), x=IMAGE,
)  # fmt: skip
def input_added_into_a_slice_of_the_branch(m, x):
    x = m.stem(x)
    y = m.f(x)
    y[:, :4].add_(x)
    return y


@net(
    "identity (root) stem (root) f",
    stem=lin(), f=lin(), x=TEXT,
)  # fmt: skip
def activated_shortcut_in_place(m, x):
    x = m.stem(x)
    y = m.f(F.relu(x))
    return y + x.relu_()


@net(stem=lin(), a=lin(), b=lin(), s=lin(), x=TEXT)
def linear_ways_scaled_in_place(m, x):
    x = m.stem(x)
    y = m.a(x)
    y *= 0.5
    return m.s(x) + m.b(y)


def unit(kernel):
    return nn.Sequential(conv(4, 4, 1, kernel), nn.InstanceNorm2d(4), nn.ReLU(inplace=True))


@net(stem=conv(), a=unit(1), b=nn.Sequential(unit(1), unit(3)), x=IMAGE)
def two_activated_ways(m, x):
    x = m.stem(x)
    return m.a(x) + m.b(x)
