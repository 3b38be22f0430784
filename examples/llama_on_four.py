"""A small Llama trained as large ones are: compiled blocks, selective checkpoints, FSDP2 and TP.

    torchrun --nproc-per-node 4 examples/llama_on_four.py [RUN [BACKEND [STEPS]]]

Two processes share the samples between them, and of each sample two share the layers. On process 0
it prints the shortcuts of the whole net and the verdict, of one run.
"""

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional as F
from torch.utils.checkpoint import create_selective_checkpoint_contexts

import gradscope

WIDTH, HEADS, BLOCKS, WORDS, TOKENS = 32, 4, 4, 64, 16


class Attention(nn.Module):
    """Causal attention, by as many heads as this process has."""

    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        heads = [w(x).unflatten(-1, (-1, WIDTH // HEADS)) for w in (self.wq, self.wk, self.wv)]
        q, k, v = (h.transpose(1, 2) for h in heads)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(WIDTH, 4 * WIDTH, bias=False) for _ in range(2))
        self.w2 = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Two residual sums."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.attention, self.feed_forward = Attention(), FeedForward()

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nn.Module):
    """Without positions: they change no more than what is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleDict({str(i): Block() for i in range(BLOCKS)})
        self.norm = nn.RMSNorm(WIDTH)
        self.output = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:  # noqa: D102
        x = self.tok_embeddings(tokens)
        for block in self.layers.values():
            x = block(x)
        return self.output(self.norm(x))


def parallelised(model: Llama, mesh: DeviceMesh, backend: str) -> Llama:
    """Split layers over the mesh's dimension `tensor`, and parameters over `data`."""
    split = Shard(1)  # between blocks, each process has a part of the sequence
    plan = {
        "tok_embeddings": RowwiseParallel(input_layouts=Replicate(), output_layouts=split),
        "norm": SequenceParallel(),
        "output": ColwiseParallel(input_layouts=split, output_layouts=Replicate()),
    }
    parallelize_module(model, mesh["tensor"], plan)
    whole = PrepareModuleInput(input_layouts=(split,), desired_input_layouts=(Replicate(),))
    columns = ("attention.wq", "attention.wk", "attention.wv", "feed_forward.w1", "feed_forward.w3")
    plan = {"attention_norm": SequenceParallel(), "ffn_norm": SequenceParallel()}
    plan |= {"attention": whole, "feed_forward": whole}
    plan |= {name: ColwiseParallel() for name in columns}
    plan |= {
        name: RowwiseParallel(output_layouts=split) for name in ("attention.wo", "feed_forward.w2")
    }
    for name, block in model.layers.items():
        parallelize_module(block, mesh["tensor"], plan)
        block = checkpoint_wrapper(
            block,
            context_fn=lambda: create_selective_checkpoint_contexts([torch.ops.aten.mm.default]),
        )
        block.compile(backend=backend)
        model.layers[name] = fully_shard(block, mesh=mesh["data"])
    return fully_shard(model, mesh=mesh["data"])


def batch(step: int, place: int) -> Tensor:
    """Return sequences of words that count on, (8, TOKENS + 1), other ones in each place."""
    generator = torch.Generator().manual_seed(2 * step + place)
    start = torch.randint(0, WORDS, (8, 1), generator=generator)
    return (start + torch.arange(TOKENS + 1)) % WORDS


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the cross-entropy of each next word."""
    logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def main(run: str = "runs/llama-on-four", backend: str = "aot_eager", steps: str = "24") -> None:
    """Train on this process, one of four."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    torch.manual_seed(0)
    model = parallelised(Llama(), mesh, backend)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with gradscope.watch(model, run, every=2) as scope:
        for step in range(int(steps)):
            loss = loss_of(model, batch(step, mesh.get_local_rank("data")))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scope.log(train_loss=loss.item())
    if dist.get_rank() == 0:
        recorded = gradscope.load(run)
        print(recorded.shortcuts[["name", "form", "branch"]].to_string(index=False))
        print(gradscope.diagnose(recorded))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
