"""A compiled optimizer step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from client_nets import LR, NUM_BATCHES, QUIET, Client, density_of, error, loader
from torch import optim

from regkit import Regularizer, Schedule
from regkit.penalties import L1

pytestmark = QUIET


def compiled_course(step: Callable[[optim.Optimizer], Any], make: Callable[..., Any]) -> Client:
    module = Client().double()
    optimizer = make(module.parameters())
    schedule = Schedule(ramp="linear", ramp_until=0.5, settle=0.8, num_steps=NUM_BATCHES)
    Regularizer(module, L1(0.05), schedule=schedule).attach(optimizer)
    go = step(optimizer)
    for batch in loader():
        optimizer.zero_grad()
        error(module, [part.double() for part in batch]).backward()
        go()
    return module


MAKERS: dict[str, Callable[..., Any]] = {
    "sgd": lambda p: optim.SGD(p, LR / 5, momentum=0.9),
    "adamw": lambda p: optim.AdamW(p, 0.01),
}


@pytest.mark.parametrize(
    ("name", "backend"), [("sgd", "inductor"), ("sgd", "eager"), ("adamw", "eager")]
)
def test_a_compiled_step_is_the_step(name: str, backend: str):
    torch._dynamo.reset()
    plain = compiled_course(lambda optimizer: optimizer.step, MAKERS[name])
    compiled = compiled_course(
        lambda optimizer: torch.compile(optimizer.step, backend=backend), MAKERS[name]
    )
    assert 0 < density_of([plain.head.weight]) < 1
    for p, q in zip(compiled.parameters(), plain.parameters(), strict=True):
        # Compiled, torch's AdamW corrects its moments in float32: 7e-7 apart without regkit.
        torch.testing.assert_close(p, q, rtol=0, atol=5e-6)
        assert torch.equal(p == 0, q == 0)
