"""Small trainings on four processes, a parallel layout each, and the same in one process.

What is trained is a stack of residual blocks over tokens, in float64, so that all layouts have
one truth: plain autograd on the whole batch.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import gradscope

SIZE, STEPS, BATCH, TOKENS, WIDTH, CLASSES = 4, 3, 8, 4, 8, 8
LR = 0.1
MICRO = 4  # micro-batches of a pipeline


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.act = nn.Tanh()
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))


class Attending(nn.Module):
    """A block over all tokens of a sequence, of which `gather` brings those of other processes."""

    gather = staticmethod(lambda x: x)

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.gather(self.k(x)), self.gather(self.v(x))
        return x + self.o(F.scaled_dot_product_attention(self.q(x), k, v))


class Experts(nn.Module):
    """A block of which each token takes one of SIZE experts; `exchange` has those of others."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, SIZE)
        self.experts = nn.ModuleDict({str(i): nn.Linear(WIDTH, WIDTH) for i in range(SIZE)})

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weights, taken = self.gate(flat).softmax(-1).max(-1)
        order = taken.argsort(stable=True)
        sizes = torch.bincount(taken, minlength=SIZE).tolist()
        given = flat[order]
        if len(self.experts) < SIZE:  # the others are elsewhere
            made = self.exchanged(given, sizes)
        else:
            parts = given.split(sizes)
            made = torch.cat([self.experts[str(i)](p) for i, p in enumerate(parts)])
        return x + (made[order.argsort()] * weights[:, None]).view_as(x)

    def exchanged(self, given: Tensor, sizes: list[int]) -> Tensor:
        from torch.distributed.nn.functional import all_to_all_single

        got = torch.empty(SIZE, dtype=torch.long)
        dist.all_to_all_single(got, torch.tensor(sizes))
        here = all_to_all_single(given.new_empty(int(got.sum()), WIDTH), given, got.tolist(), sizes)
        (expert,) = self.experts.values()
        return all_to_all_single(torch.empty_like(given), expert(here), sizes, got.tolist())


class Net(nn.Module):
    """Stages of it are made by leaving out layers, as of a pipeline."""

    def __init__(self, block: type[nn.Module] = Block) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding: nn.Module | None = nn.Embedding(16, WIDTH)
        self.layers = nn.ModuleDict({str(i): block() for i in range(4)})
        self.norm: nn.Module | None = nn.LayerNorm(WIDTH)
        self.head: nn.Module | None = nn.Linear(WIDTH, CLASSES)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.embedding is None else self.embedding(x)
        for block in self.layers.values():
            x = block(x)
        x = x if self.norm is None else self.norm(x)
        return x if self.head is None else self.head(x)


def batches() -> list[tuple[Tensor, Tensor]]:
    """Return tokens and targets of each step, (BATCH, TOKENS)."""
    torch.manual_seed(1)
    shape = BATCH, TOKENS
    return [(torch.randint(0, 16, shape), torch.randint(0, CLASSES, shape)) for _ in range(STEPS)]


def loss_of(out: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, 1), target.flatten())


class Training(NamedTuple):
    """What is watched, and how a step goes up to its gradients."""

    model: nn.Module
    backward: Callable[[Tensor, Tensor], object]
    optimizer: torch.optim.Optimizer | None = None


EACH = ("pipeline", "expert_parallel", "tensor_and_fsdp2")
"""Those of which each process writes a run of its own, too, to be merged."""

LAYOUTS: dict[str, Callable[[], Training]] = {}

BARE = ("fsdp1", "tensor_and_fsdp2", "interleaved_and_data", "expert_parallel")
"""Those of which weights are compared, to the bit, with those of the training without us."""


def layout(make: Callable[[], Training]) -> Callable[[], Training]:
    LAYOUTS[make.__name__] = make
    return make


def mine(x: Tensor, place: int | None = None, places: int = SIZE, dim: int = 0) -> Tensor:
    """Return the part of a batch that is this process's."""
    return x.chunk(places, dim)[dist.get_rank() if place is None else place]


def on_own_part(model: nn.Module, factor: float = 1.0) -> Callable[[Tensor, Tensor], object]:
    return lambda x, y: (loss_of(model(mine(x)), mine(y)) * factor).backward()


# --- parts of the batch ---------------------------------------------------------------------------


@layout
def ddp() -> Training:
    model = DistributedDataParallel(Net())
    return Training(model, on_own_part(model))


@layout
def zero() -> Training:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = DistributedDataParallel(Net())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=LR)
    return Training(model, on_own_part(model), optimizer)


def mesh_of(*shape: int, names: tuple[str, ...] = ()):
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", shape, mesh_dim_names=names or None)


def sharded(model: Net, mesh, **options: object) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for block in model.layers.values():
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


@layout
def fsdp2() -> Training:
    model = sharded(Net(), mesh_of(SIZE))
    return Training(model, on_own_part(model))


@layout
def hsdp() -> Training:
    model = sharded(Net(), mesh_of(2, 2, names=("replicate", "shard")))
    return Training(model, on_own_part(model))


@layout
def summed() -> Training:
    """Losses are sums over tokens, gradients sums over processes."""
    model = sharded(Net(), mesh_of(SIZE))
    for module in model.modules():
        if hasattr(module, "set_gradient_divide_factor"):
            module.set_gradient_divide_factor(1.0)
    return Training(model, on_own_part(model, 1 / SIZE))


def wrapped(strategy: str, **options: object) -> Training:
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    model = FullyShardedDataParallel(
        Net(),
        auto_wrap_policy=ModuleWrapPolicy({Block}),
        sharding_strategy=ShardingStrategy[strategy],
        device_id=torch.device("cpu"),
        **options,
    )
    return Training(model, on_own_part(model))


@layout
def fsdp1() -> Training:
    return wrapped("FULL_SHARD", use_orig_params=True)


@layout
def fsdp1_hybrid() -> Training:
    mesh = mesh_of(2, 2, names=("replicate", "shard"))
    return wrapped("HYBRID_SHARD", use_orig_params=True, device_mesh=mesh)


@layout
def fsdp1_flat() -> Training:
    return wrapped("FULL_SHARD", use_orig_params=False)


# --- parts of layers ------------------------------------------------------------------------------


def share_out(model: Net, mesh, sequence: bool = False, loss: bool = False) -> Net:
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    between = Shard(1) if sequence else Replicate()
    plan: dict[str, object] = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=between),
        "head": ColwiseParallel(
            input_layouts=between,
            output_layouts=Shard(-1) if loss else Replicate(),
            use_local_output=not loss,
        ),
    }
    if sequence:
        plan["norm"] = SequenceParallel()
    parallelize_module(model, mesh, plan)
    for block in model.layers.values():
        inner: dict[str, object] = {
            "up": ColwiseParallel(input_layouts=between),
            "down": RowwiseParallel(output_layouts=between),
        }
        if sequence:
            inner["norm"] = SequenceParallel()
        parallelize_module(block, mesh, inner)
    return model


def on_all(model: nn.Module) -> Callable[[Tensor, Tensor], object]:
    return lambda x, y: loss_of(model(x), y).backward()


@layout
def tensor_parallel() -> Training:
    model = share_out(Net(), mesh_of(SIZE))
    return Training(model, on_all(model))


class Own(torch.autograd.Function):
    """A tanh, of which nobody can know whether it asks other processes for something."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(y := x.tanh())
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return gradient * (1 - y * y)


class Tanh(nn.Tanh):
    def forward(self, x: Tensor) -> Tensor:
        return Own.apply(x)


@layout
def function_of_its_own() -> Training:
    model = share_out(Net(), mesh_of(SIZE))
    model.layers["2"].act = Tanh()
    return Training(model, on_all(model))


@layout
def sequence_parallel() -> Training:
    model = share_out(Net(), mesh_of(SIZE), sequence=True)
    return Training(model, on_all(model))


@layout
def loss_parallel() -> Training:
    from torch.distributed.tensor.parallel import loss_parallel as parallel

    model = share_out(Net(), mesh_of(SIZE), sequence=True, loss=True)

    def backward(x: Tensor, y: Tensor) -> None:
        with parallel():
            loss_of(model(x), y).backward()

    return Training(model, backward)


@layout
def tensor_and_fsdp2() -> Training:
    mesh = mesh_of(2, 2, names=("data", "tensor"))
    model = sharded(share_out(Net(), mesh["tensor"], sequence=True), mesh["data"])
    place = mesh.get_local_rank("data")

    def backward(x: Tensor, y: Tensor) -> None:
        loss_of(model(mine(x, place, 2)), mine(y, place, 2)).backward()

    return Training(model, backward)


# --- stages of a pipeline -------------------------------------------------------------------------


def stage_of(numbers: range) -> Net:
    """Return the part of the net with some of its blocks, and what comes before and after them."""
    net = Net()
    for i in range(4):
        if i not in numbers:
            del net.layers[str(i)]
    if 0 not in numbers:
        net.embedding = None
    if 3 not in numbers:
        net.norm = net.head = None
    return net


def piped(kind: str, stages: int, mesh, scaled: bool = True) -> Training:
    from torch.distributed import pipelining

    group, place = mesh.get_group("pipe"), mesh.get_local_rank("pipe")
    size, per = mesh["pipe"].size(), 4 // stages
    numbers = range(place, stages, size)
    data = mesh.get_local_rank("data") if "data" in mesh.mesh_dim_names else 0
    parts = SIZE // size
    nets = nn.ModuleDict({str(i): stage_of(range(i * per, i * per + per)) for i in numbers})
    if parts > 1:
        for net in nets.values():
            sharded(net, mesh["data"])
    optimizer = torch.optim.SGD(nets.parameters(), lr=LR)
    made = [
        pipelining.PipelineStage(nets[str(i)], i, stages, torch.device("cpu"), group=group)
        for i in numbers
    ]
    kinds = {
        "1F1B": pipelining.Schedule1F1B,
        "interleaved": pipelining.ScheduleInterleaved1F1B,
    }
    loss = loss_of if scaled else lambda out, y: loss_of(out, y) / MICRO
    some = made if kind == "interleaved" else made[0]
    schedule = kinds[kind](some, MICRO, loss_fn=loss, scale_grads=scaled)

    def backward(x: Tensor, y: Tensor) -> None:
        x, y = mine(x, data, parts), mine(y, data, parts)
        schedule.step(*([x] if 0 in numbers else []), target=y if stages - 1 in numbers else None)

    model = nets if kind == "interleaved" else nets[str(place)]
    return Training(model, backward, optimizer)


@layout
def pipeline() -> Training:
    return piped("1F1B", 4, mesh_of(4, names=("pipe",)), scaled=False)


@layout
def interleaved_and_data() -> Training:
    return piped("interleaved", 4, mesh_of(2, 2, names=("data", "pipe")))


@layout
def stages_of_one_name() -> Training:
    training = piped("1F1B", 4, mesh_of(4, names=("pipe",)))
    (block,) = training.model.layers.values()
    return training._replace(model=nn.Sequential(block))


@layout
def pipeline_and_data() -> Training:
    """The schedule divides gradients by the number of micro-batches, when they are there."""
    return piped("1F1B", 2, mesh_of(2, 2, names=("data", "pipe")))


# --- parts of sequences, and experts --------------------------------------------------------------


@layout
def context_parallel() -> Training:
    from torch.distributed.nn.functional import all_gather

    model = DistributedDataParallel(Net(Attending))
    for block in model.module.layers.values():
        block.gather = lambda x: torch.cat(all_gather(x), dim=1)

    def backward(x: Tensor, y: Tensor) -> None:
        loss_of(model(mine(x, dim=1)), mine(y, dim=1)).backward()

    return Training(model, backward)


@layout
def expert_parallel() -> Training:
    model = Net(Experts)
    for block in model.layers.values():
        block.experts = nn.ModuleDict(
            {k: e for k, e in block.experts.items() if int(k) == dist.get_rank()}
        )

    def reduce(parameter: Tensor, name: str) -> None:
        if ".experts." not in name:
            dist.all_reduce(parameter.grad)
        parameter.grad /= SIZE

    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: reduce(p, name))
    return Training(model, on_own_part(model))


# --- run --------------------------------------------------------------------------------------


def train(kind: str, path: str, **options: object) -> list[Tensor]:
    """Train a layout, watched if there is a path; return what this process then has of weights."""
    training = LAYOUTS[kind]()
    optimizer = training.optimizer or torch.optim.SGD(training.model.parameters(), lr=LR)
    with ExitStack() as stack:
        scope = path and stack.enter_context(gradscope.watch(training.model, path, **options))
        for x, y in batches():
            optimizer.zero_grad()
            training.backward(x, y)
            optimizer.step()
            if scope:
                scope.log(loss_by_rank=float(dist.get_rank()))
    held = [p.detach() for p in training.model.parameters()]
    return [p.to_local().clone() if hasattr(p, "to_local") else p.clone() for p in held]


def serve(folder: str, kinds: list[str]) -> None:
    """Train all `kinds` on the processes of one group, one after the other."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for kind in kinds:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                weights = train(kind, f"{folder}/{kind}")
                if kind in BARE:
                    pairs = zip(weights, train(kind, ""), strict=True)
                    assert all(torch.equal(mine, bare) for mine, bare in pairs), "weights differ"
                if kind in EACH:
                    train(kind, f"{folder}/each-{kind}", ranks="all")
                if kind == "pipeline_and_data":  # once more, into one run
                    for _ in range(2):
                        train(kind, f"{folder}/resumed", resume=True)
        except Exception as error:
            import traceback

            Path(f"{folder}/{kind}-{dist.get_rank()}.error").write_text(traceback.format_exc())
            print(kind, type(error), file=sys.stderr)
        dist.barrier()
    dist.destroy_process_group()


def main(folder: str, kinds: list[str]) -> None:
    import torch._dynamo
    import torch.distributed.fsdp
    import torch.distributed.pipelining
    import torch.distributed.tensor.parallel  # noqa: F401

    import gradscope.session.scope  # noqa: F401

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(SIZE)}
    children = []
    for rank in range(SIZE):
        children.append(os.fork())
        if children[-1] == 0:
            os.environ["RANK"] = str(rank)
            serve(folder, kinds)
            return
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or list(LAYOUTS))
