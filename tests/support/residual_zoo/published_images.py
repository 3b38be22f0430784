"""Convolutional blocks as published code writes them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from residual_zoo.harness import IMAGE, TEXT, conv, lin, mlp, net


class ResnetBlock2D(nn.Module):
    """As in diffusers: a time embedding is added in the middle of the branch."""

    def __init__(self, cin, cout):
        super().__init__()
        self.norm1 = nn.GroupNorm(2, cin)
        self.conv1 = conv(cin, cout)
        self.time_emb_proj = nn.Linear(8, cout)
        self.norm2 = nn.GroupNorm(2, cout)
        self.dropout = nn.Dropout(0.0)
        self.conv2 = conv(cout, cout)
        self.nonlinearity = nn.SiLU()
        self.conv_shortcut = conv(cin, cout, 1, 1) if cin != cout else None

    def forward(self, input_tensor, temb):
        h = self.conv1(self.nonlinearity(self.norm1(input_tensor)))
        h = h + self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
        h = self.conv2(self.dropout(self.nonlinearity(self.norm2(h))))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        return (input_tensor + h) / 1.4142


class Transformer2D(nn.Module):
    """Over the pixels, with cross-attention to a text, around all of which goes a shortcut."""

    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(2, 4)
        self.proj_in, self.proj_out = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(4) for _ in range(3))
        self.attn1 = nn.MultiheadAttention(4, 2, batch_first=True)
        self.attn2 = nn.MultiheadAttention(4, 2, batch_first=True, kdim=8, vdim=8)
        self.ff_in, self.ff_out = nn.Linear(4, 16), nn.Linear(8, 4)

    def forward(self, x, text):
        residual = x
        b, c, h, w = x.shape
        x = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).reshape(b, h * w, c)
        y = self.norm1(x)
        x = self.attn1(y, y, y)[0] + x
        x = self.attn2(self.norm2(x), text, text)[0] + x
        y, gate = self.ff_in(self.norm3(x)).chunk(2, dim=-1)
        x = self.ff_out(y * F.gelu(gate)) + x
        x = self.proj_out(x.reshape(b, h, w, c).permute(0, 3, 1, 2).contiguous())
        return x + residual


@net(
    "identity down stem down down.norm1",
    "identity attn attn attn attn.norm1",
    "identity attn attn attn attn.norm2",
    "identity attn attn attn attn.norm3",
    "identity attn down attn attn.norm",
    "concat (root) attn (root) mid.0",
    "projection up (root) up up.norm1",
    stem=conv(),
    time=mlp(),
    text=lin(),
    down=ResnetBlock2D(4, 4),
    attn=Transformer2D(),
    mid=nn.Sequential(conv(4, 8, 2), nn.SiLU(), nn.ConvTranspose2d(8, 4, 2, 2)),
    up=ResnetBlock2D(8, 4),
    x=(torch.Size(IMAGE), torch.Size((2, 8)), torch.Size(TEXT)),
)
def diffusers_unet(m, x, t, text):
    temb = m.time(t)
    x = m.attn(m.down(m.stem(x), temb), m.text(text))
    return m.up(torch.cat([m.mid(x), x], dim=1), temb)


class SplitAttention(nn.Module):
    """ResNeSt: two cardinal groups, summed, weighed by a softmax over them."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn0 = nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x):
        x = F.relu(self.bn0(self.conv(x)))
        b, rc = x.shape[:2]
        splits = torch.split(x, rc // 2, dim=1)
        gap = F.adaptive_avg_pool2d(sum(splits), 1)
        atten = self.fc2(F.relu(self.fc1(gap))).view(b, 2, -1).softmax(dim=1).view(b, -1, 1, 1)
        attens = torch.split(atten, rc // 2, dim=1)
        return sum(att * split for att, split in zip(attens, splits, strict=True))


class ResNeStBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(4, 4, 1, 1), nn.BatchNorm2d(4)
        self.splat, self.conv3, self.bn3 = SplitAttention(), conv(4, 4, 1, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        out = self.splat(F.relu(self.bn1(self.conv1(x))))
        return F.relu(self.bn3(self.conv3(out)) + x)


@net("identity block stem block block.conv1", stem=conv(), block=ResNeStBlock(), x=IMAGE)
def split_attention(m, x):
    return m.block(m.stem(x))


class ConvBnAct(nn.Sequential):
    def __init__(self, cin, cout, kernel):
        super().__init__(conv(cin, cout, 1, kernel), nn.BatchNorm2d(cout), nn.SiLU())


class YoloBottleneck(nn.Module):
    def __init__(self):
        super().__init__()
        self.cv1, self.cv2 = ConvBnAct(4, 4, 1), ConvBnAct(4, 4, 3)
        self.add = True

    def forward(self, x):
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class CrossStagePartial(nn.Module):
    """YOLOv5's C3: one convolution goes through the blocks, the other around them."""

    def __init__(self):
        super().__init__()
        self.cv1, self.cv2, self.cv3 = ConvBnAct(4, 4, 1), ConvBnAct(4, 4, 1), ConvBnAct(8, 4, 1)
        self.m = nn.Sequential(YoloBottleneck(), YoloBottleneck())

    def forward(self, x):
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


@net(
    "identity c3.m.0 c3.cv1.2 c3.m.0 c3.m.0.cv1.0",
    "identity c3.m.1 c3.m.0 c3.m.1 c3.m.1.cv1.0",
    stem=conv(),
    c3=CrossStagePartial(),
    x=IMAGE,
)
def cross_stage_partial(m, x):
    return m.c3(m.stem(x))


class Fractal(nn.Module):
    """f(x) joined with f(f(x)) by a mean; there is no residual in it (Larsson et al. 2017)."""

    def __init__(self):
        super().__init__()
        for name in ("short", "long1", "long2"):
            unit = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU())
            setattr(self, name, unit)

    def forward(self, x):
        return torch.stack([self.short(x), self.long2(self.long1(x))]).mean(dim=0)


@net(stem=conv(), a=Fractal(), b=Fractal(), x=IMAGE)
def fractal(m, x):
    return m.b(m.a(m.stem(x)))


class OdeFunction(nn.Module):
    """Dynamics with the time as a channel of each convolution's input."""

    def __init__(self):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(2, 4), conv(5, 4)
        self.norm2, self.conv2 = nn.GroupNorm(2, 4), conv(5, 4)

    def with_time(self, t, x):
        return torch.cat([torch.full_like(x[:, :1], t), x], dim=1)

    def forward(self, t, x):
        x = self.conv1(self.with_time(t, F.relu(self.norm1(x))))
        return self.conv2(self.with_time(t, F.relu(self.norm2(x))))


@net(
    *["identity (root) stem (root) f.norm1"] * 3,
    "scaled (root) f.conv2 (root) f.norm1",  # the weighted sum of the slopes, each made of the last
    "identity (root) stem (root) f.norm1",
    *["identity (root) (root) (root) f.norm1"] * 3,
    "scaled (root) f.conv2 (root) f.norm1",
    "identity (root) (root) (root) f.norm1",
    stem=conv(),
    f=OdeFunction(),
    head=conv(),
    x=IMAGE,
)
def neural_ode_by_runge_kutta(m, x):
    y, h = m.stem(x), 0.5
    for t in (0.0, h):
        k1 = m.f(t, y)
        k2 = m.f(t + h / 2, y + h * k1 / 2)
        k3 = m.f(t + h / 2, y + h * k2 / 2)
        k4 = m.f(t + h, y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return m.head(y)


class GhostModule(nn.Module):
    def __init__(self, relu=True):
        super().__init__()
        act = nn.ReLU(inplace=True) if relu else nn.Identity()
        self.primary_conv = nn.Sequential(conv(4, 2, 1, 1), nn.BatchNorm2d(2), act)
        self.cheap_operation = nn.Sequential(conv(2, 2), nn.BatchNorm2d(2), act)

    def forward(self, x):
        x1 = self.primary_conv(x)
        return torch.cat([x1, self.cheap_operation(x1)], dim=1)


class GhostBottleneck(nn.Module):
    def __init__(self):
        super().__init__()
        self.ghost1, self.ghost2 = GhostModule(), GhostModule(relu=False)
        self.shortcut = nn.Sequential()

    def forward(self, x):
        x, residual = self.ghost2(self.ghost1(x)), x
        x += self.shortcut(residual)
        return x


@net(
    "concat block.ghost1 block.ghost1.primary_conv.2 block.ghost1 block.ghost1.cheap_operation.0",
    "concat block.ghost2 block.ghost2.primary_conv.1 block.ghost2 block.ghost2.cheap_operation.0",
    "identity block stem block block.ghost1.primary_conv.0",
    stem=conv(),
    block=GhostBottleneck(),
    head=conv(),
    x=IMAGE,
)
def ghost_bottleneck(m, x):
    return m.head(m.block(m.stem(x)))


class ConvNeXtBlock(nn.Module):
    """Channels last in the middle, a layer scale that is a bare parameter."""

    def __init__(self):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(4, 4, 7, padding=3, groups=4), nn.LayerNorm(4)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4)
        self.grn_gamma, self.grn_beta = (nn.Parameter(torch.zeros(4 * 4)) for _ in range(2))
        self.gamma = nn.Parameter(1e-6 * torch.ones(4))

    def forward(self, x):
        input = x
        x = self.pwconv1(self.norm(self.dwconv(x).permute(0, 2, 3, 1)))
        x = self.act(x)
        gx = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        nx = gx / (gx.mean(dim=-1, keepdim=True) + 1e-6)
        x = self.grn_gamma * (x * nx) + self.grn_beta + x
        x = self.gamma * self.pwconv2(x)
        return input + x.permute(0, 3, 1, 2)


@net("identity block stem block block.dwconv", stem=conv(), block=ConvNeXtBlock(), x=IMAGE)
def convnext_v2(m, x):
    return m.block(m.stem(x))
