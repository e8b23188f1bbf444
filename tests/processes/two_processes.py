"""Run by test_distributed: two processes with gloo train as one does, replicated and sharded."""

import copy
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn, optim
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from regkit import Regularizer, density
from regkit.penalties import ElasticNet, TemporalSmoothness

NUM_STEPS = 6
PENALTIES = {"en": ElasticNet(0.1), "smooth": TemporalSmoothness(0.5, module="encoder")}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(6, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.encoder(clip).mean(1))


def train(net: nn.Module, clips: Tensor) -> Regularizer:
    """Take some steps; `clips` are those of this process, (step, batch, frames, dim)."""
    reg = Regularizer(net, PENALTIES)
    optimizer = optim.AdamW(net.parameters(), lr=0.05)
    reg.attach(optimizer)
    for clip in clips:
        optimizer.zero_grad()
        (net(clip).square().mean() + reg.activation_loss()).backward()
        optimizer.step()
    return reg


def same_everywhere(tensor: Tensor) -> bool:
    both = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(both, tensor.contiguous())
    return torch.equal(both[0], both[1])


def main(rank: int, store: str) -> None:
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    clips = torch.randn(NUM_STEPS, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    alone = Net()
    value = train(alone, clips).value()
    zeros = [int((p == 0).sum()) for p in alone.parameters()]
    assert sum(zeros) > 5
    mine = clips[:, 2 * rank : 2 * rank + 2]

    replicated = DistributedDataParallel(Net())
    reg = train(replicated, mine)
    assert set(reg.named_parameters()) == {"encoder.weight", "head.weight"}
    sharded = Net()
    for layer in (sharded.encoder, sharded.head):
        fully_shard(layer)
    fully_shard(sharded)
    sharded_reg = train(sharded, mine)
    for p, q, r in zip(
        alone.parameters(), replicated.parameters(), sharded.parameters(), strict=True
    ):
        whole = r.full_tensor()  # type: ignore[attr-defined]
        assert same_everywhere(q.detach())
        assert same_everywhere(whole.detach())
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(p, whole, rtol=1e-4, atol=1e-6)
        assert torch.equal(p == 0, q == 0)
        assert torch.equal(p == 0, whole == 0)
    torch.testing.assert_close(sharded_reg.value(), value, rtol=1e-4, atol=1e-6)
    assert density(sharded).total == density(copy.deepcopy(alone)).total
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        spawn(main, (sys.argv[1],), nprocs=2)
        print("equal")
