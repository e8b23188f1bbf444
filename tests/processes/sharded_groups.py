"""Run by test_processes: group penalties on weights that ranks share train as on one process."""

import copy
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn, optim
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

import regkit.structure.distributed
from regkit import Regularizer, Schedule, density
from regkit.errors import InputError
from regkit.optim.fused_optimizers import ProxAdamW, ProxSGD
from regkit.penalties import L1, GroupLasso, GroupMCP, Nuclear, SparseGroupLasso

NUM_STEPS = 6
CLIPS = torch.randn(NUM_STEPS, 6, 2, 5, 4, 4, generator=torch.Generator().manual_seed(1)).double()


class Net(nn.Module):
    """Layers of every kind; on two or three ranks some have uneven shards and some empty ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(2, 5, (2, 3, 3))
        self.norm = nn.BatchNorm3d(5)
        self.mix = nn.Linear(5, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.gru = nn.GRU(4, 3, batch_first=True)
        self.head = nn.Linear(3, 1)
        # Ranks see different batches: only fixed statistics make them train as one process.
        self.norm.eval()
        self.double()

    def forward(self, clip: Tensor) -> Tensor:
        z = self.norm(self.conv(clip)).relu().mean((3, 4)).transpose(1, 2)
        z = self.mix(z).relu()
        return self.head(self.gru(z + self.attention(z, z, z)[0])[0][:, -1])


def sgd(net: nn.Module) -> optim.Optimizer:
    return optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


def adam(net: nn.Module) -> optim.Optimizer:
    return optim.AdamW(net.parameters(), lr=0.01)


def nadam(net: nn.Module) -> optim.Optimizer:
    return optim.NAdam(net.parameters(), lr=0.01)


def prox_adam(net: nn.Module) -> optim.Optimizer:
    return ProxAdamW(net.parameters(), lr=0.01)


def prox_sgd(net: nn.Module) -> optim.Optimizer:
    return ProxSGD(net.parameters(), lr=0.05, momentum=0.9)


OPTIMIZERS: dict[str, Callable[[nn.Module], optim.Optimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "nadam": nadam,
    "prox_adam": prox_adam,
    "prox_sgd": prox_sgd,
}
LAYERS = ("conv", "mix", "head")

# Penalties, the optimizer, options, and how many collectives a step costs (None: it depends).
CASES: dict[str, tuple[Any, str, dict[str, Any], int | None]] = {
    "filter": (GroupLasso(0.3, params=LAYERS), "sgd", {}, 0),
    "filter of gates": (SparseGroupLasso(0.2, params=(*LAYERS, "gru")), "prox_adam", {}, 1),
    "in_channel": (GroupLasso(0.3, groups="in_channel"), "adam", {}, 1),
    "input, concave": (GroupMCP(0.2, groups="in_channel"), "sgd", {}, 1),
    "kernel and unit": (
        [GroupLasso(0.3, groups="kernel", params="conv"), GroupLasso(0.3, groups="hidden_unit")],
        "nadam",
        {},
        1,
    ),
    "tap and head": (
        [GroupLasso(0.3, groups="time_tap"), GroupLasso(0.3, groups="head"), L1(0.01)],
        "adam",
        {},
        1,
    ),
    "rank": (Nuclear(0.3), "adam", {}, 1),
    "debiased": (
        GroupLasso(0.3, groups="in_channel"),
        "sgd",
        {"ramp": "linear", "debias": 5 / 6},
        0,
    ),
    "aimed": (
        GroupLasso(0.1, groups="in_channel", params="mix"),
        "adam",
        {"target_density": 0.6},
        None,
    ),
    "layerwise": (
        {"group": GroupLasso(0.1, groups="in_channel"), "entries": L1(0.05)},
        "adam",
        {"target_density": 0.6, "layerwise": True},
        None,
    ),
    "channel": (GroupLasso(0.3, groups="channel", params=("conv", "mix")), "adam", {}, 0),
    "channel_inputs": (GroupLasso(0.3, groups="channel_inputs"), "prox_sgd", {}, 1),
}


# Whether the penalties are bound before the sharding; after it alone where this says nothing.
BOUND = {
    "in_channel": (True, False),
    "layerwise": (True, False),
    "tap and head": (True,),
    "channel": (True,),
    "channel_inputs": (True,),
}


def shard(net: Net, **options: Any) -> Net:
    for layer in (net.conv, net.mix, net.attention, net.gru):
        fully_shard(layer, **options)
    fully_shard(net, **options)
    return net


def run(net: nn.Module, optimizer: optim.Optimizer, clips: Tensor) -> CommDebugMode:
    """Take a step for each clip; return the collectives of the last one's optimizer."""
    seen = CommDebugMode()
    for clip in clips:
        optimizer.zero_grad()
        net(clip).square().mean().backward()
        with seen:
            optimizer.step()
    return seen


def mine(clips: Tensor) -> Tensor:
    each = clips.shape[1] // dist.get_world_size()
    return clips[:, dist.get_rank() * each :][:, :each]


def whole(net: nn.Module) -> dict[str, Tensor]:
    return {n: p.full_tensor() for n, p in net.named_parameters()}  # type: ignore[attr-defined]


def check_weights(found: Mapping[str, Tensor], alone: nn.Module) -> None:
    """Compare with a net that trained alone: close weights, and zeros at the same places."""
    for name, p in alone.named_parameters():
        torch.testing.assert_close(found[name], p.detach(), rtol=1e-7, atol=1e-9)
        zeros, others = (determined(name, t) == 0 for t in (p, found[name]))
        assert torch.equal(zeros, others), f"{name}: zeros of one process {zeros}, here {others}"


def determined(name: str, p: Tensor) -> Tensor:
    """Return a parameter without the bias of attention's keys.

    Softmax ignores a number that is added to all its inputs, so this bias has no gradient, but for
    its rounding: 1e-20, or 0, as the processor's kernels and the size of the batch have it. Hence
    Adam leaves an entry at its first 0 on one side and moves it to 1e-14 on the other.
    """
    if name != "attention.in_proj_bias":
        return p
    query, _, value = p.chunk(3)
    return torch.cat([query, value])


def check_same(net: nn.Module, reg: Regularizer, alone: nn.Module, alone_reg: Regularizer) -> None:
    """Compare a sharded net with one that trained alone: weights, zeros and numbers."""
    check_weights(whole(net), alone)
    torch.testing.assert_close(reg.value(), alone_reg.value(), rtol=1e-7, atol=1e-9)
    assert reg.live_groups() == alone_reg.live_groups()
    assert reg.layer_density() == alone_reg.layer_density()
    torch.testing.assert_close(reg.current_layer_lams(), alone_reg.current_layer_lams())
    assert density(net) == density(alone)
    assert density(reg.counted_parameters()) == density(alone_reg.counted_parameters())
    torch.testing.assert_close(reg.current_lams(), alone_reg.current_lams())


def train_alone(case: str) -> tuple[Net, Regularizer]:
    penalties, kind, options, _ = CASES[case]
    net = Net()
    optimizer = OPTIMIZERS[kind](net)
    schedule = Schedule(num_steps=NUM_STEPS, **options)
    reg = Regularizer(net, penalties, example=CLIPS[0], schedule=schedule)
    reg.attach(optimizer)
    run(net, optimizer, CLIPS)
    return net, reg


def check_case(case: str) -> None:
    """Train alone and sharded, the penalties bound before or after the sharding."""
    penalties, kind, options, num_collectives = CASES[case]
    schedule = Schedule(num_steps=NUM_STEPS, **options)
    alone, alone_reg = train_alone(case)
    zeros = sum(int((p == 0).sum()) for p in alone.parameters())
    total = sum(p.numel() for p in alone.parameters())
    assert case == "rank" or 4 < zeros < total - 4, (case, zeros, total)
    for early in BOUND.get(case, (False,)):
        net = Net()
        if early:
            reg = Regularizer(net, penalties, example=CLIPS[0], schedule=schedule)
            shard(net)
        else:
            reg = Regularizer(shard(net), penalties, schedule=schedule)
        optimizer = OPTIMIZERS[kind](net)
        reg.attach(optimizer)
        seen = run(net, optimizer, mine(CLIPS))
        check_same(net, reg, alone, alone_reg)
        if num_collectives is not None:
            assert seen.get_total_counts() == num_collectives, (case, seen.get_comm_counts())
        if case != "debiased":
            for some, clips in ((net, mine(CLIPS)), (alone, CLIPS)):
                some.zero_grad()
                some(clips[0]).square().mean().backward()
            torch.testing.assert_close(reg.kkt_residual(), alone_reg.kkt_residual())


def check_resumed() -> None:
    """Stop half way, load into a new net, and end with the same weights to the bit."""
    penalties = [
        L1(0.01, params="!head"),
        GroupLasso(0.3, groups="in_channel", params="!head"),
        Nuclear(0.1, params="head"),
    ]

    def start() -> tuple[nn.Module, optim.Optimizer, Regularizer]:
        net = shard(Net())
        optimizer = sgd(net)
        schedule = Schedule(ramp="linear", ramp_until=1.0, num_steps=NUM_STEPS)
        reg = Regularizer(net, penalties, schedule=schedule)
        return net, optimizer, reg.attach(optimizer)

    net, optimizer, reg = start()
    run(net, optimizer, mine(CLIPS)[:3])
    parts = copy.deepcopy((net.state_dict(), optimizer.state_dict(), reg.state_dict()))
    run(net, optimizer, mine(CLIPS)[3:])
    other, other_optimizer, other_reg = start()
    other.load_state_dict(parts[0])
    other_optimizer.load_state_dict(parts[1])
    other_reg.load_state_dict(parts[2])
    run(other, other_optimizer, mine(CLIPS)[3:])
    for p, q in zip(whole(net).values(), whole(other).values(), strict=True):
        assert torch.equal(p, q)
    (gates,), (other_gates,) = ([s.support.snapshot() for s in r._steps] for r in (reg, other_reg))
    assert gates
    for one, two in zip(gates, other_gates, strict=True):
        assert torch.equal(one, two)


def check_buckets() -> None:
    """Gather in pieces: more collectives, the same weights."""
    penalty = GroupLasso(0.3, groups="in_channel")
    ends, counts = [], []
    for most in (2**24, 60):
        regkit.structure.distributed.GATHERED_ENTRIES = most
        net = shard(Net())
        optimizer = adam(net)
        Regularizer(net, penalty).attach(optimizer)
        seen = run(net, optimizer, mine(CLIPS))
        counts.append(seen.get_total_counts())
        ends.append(whole(net))
    regkit.structure.distributed.GATHERED_ENTRIES = 2**24
    assert counts[0] == 1
    assert counts[1] == 5
    for p, q in zip(ends[0].values(), ends[1].values(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
        assert torch.equal(p == 0, q == 0)


def check_types() -> None:
    """Gather tensors of unlike types and sizes by one collective."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    shapes = [((5, 3), torch.bfloat16), ((1,), torch.float64), ((4, 0), torch.float32)]
    plain = [torch.randn(shape).to(dtype) for shape, dtype in [*shapes, ((7, 1), torch.float16)]]
    tensors = [distribute_tensor(t, mesh, [Shard(0)]) for t in plain]
    with CommDebugMode() as seen:
        found = regkit.structure.distributed.gathered(tensors)
    assert seen.get_total_counts() == 1
    for one, t in zip(found, tensors, strict=True):
        assert torch.equal(one, t.full_tensor())


def check_meshes() -> None:
    """Share rows within one axis of a mesh of two; refuse to share anything else."""
    world = dist.get_world_size()
    alone, alone_reg = train_alone("in_channel")
    mesh = init_device_mesh("cpu", (1, world), mesh_dim_names=("replicate", "shard"))
    net = shard(Net(), mesh=mesh)
    optimizer = adam(net)
    reg = Regularizer(net, CASES["in_channel"][0]).attach(optimizer)
    run(net, optimizer, mine(CLIPS))
    check_same(net, reg, alone, alone_reg)
    refused(
        "GroupLasso on 'weight': .*axis 0 only",
        lambda: Regularizer(
            fully_shard(nn.Linear(6, 6), shard_placement_fn=lambda p: Shard(p.ndim - 1)),
            GroupLasso(0.1),
        ),
    )
    refused(
        "before fully_shard",
        lambda: Regularizer(shard(Net()), CASES["channel_inputs"][0], example=CLIPS[0]),
    )
    half = nn.GRU(4, 3)
    fully_shard(half, ignored_params={half.bias_ih_l0})
    refused(
        "not sharded over the same", lambda: Regularizer(half, GroupLasso(1, groups="hidden_unit"))
    )


def refused(message: str, act: Callable[[], object]) -> None:
    try:
        act()
    except InputError as error:
        if re.search(message, str(error)):
            return
        raise
    raise AssertionError(f"not refused: {message}")


def check_replicas() -> None:
    """Replicas (DDP) hold the same bits, and train as one process."""
    for case in ("in_channel", "filter of gates", "rank"):
        alone, _ = train_alone(case)
        net = DistributedDataParallel(Net())
        optimizer = OPTIMIZERS[CASES[case][1]](net)
        Regularizer(net, CASES[case][0]).attach(optimizer)
        seen = run(net, optimizer, mine(CLIPS))
        assert seen.get_total_counts() == 0
        check_weights(dict(net.module.named_parameters()), alone)
        bits = torch.cat([p.detach().view(-1) for p in net.parameters()]).view(torch.int64)
        every = [torch.empty_like(bits) for _ in range(dist.get_world_size())]
        dist.all_gather(every, bits)
        assert all(torch.equal(every[0], other) for other in every)


def main(rank: int, store: str, world: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world)
    if world == 2:
        for case in CASES:
            check_case(case)
        check_resumed()
        check_buckets()
        check_types()
        check_meshes()
        check_replicas()
    elif world == 1:
        check_resumed()
    else:
        for case in ("filter", "filter of gates", "kernel and unit", "rank"):
            check_case(case)
        check_types()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        for world in (1, 2, 3):
            # A fork has all imports done; nothing has started a thread before.
            start_processes(main, (f"{sys.argv[1]}{world}", world), world, start_method="fork")
        print("equal")
