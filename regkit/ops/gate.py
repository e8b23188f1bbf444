"""Gates: a byte for each entry, or group, that says whether it may wake from zero.

A unit that was zero before a step, and whose gate is neither open nor free, is zero after it,
whatever the prox says. A gate shuts behind a unit that has woken: if that dies again, it stays so.
Kernels read and write the bytes in the same pass as the weights; who opens gates is
`regkit.optim.support`.
"""

import enum

import torch
from torch import Tensor


class Gate(enum.IntFlag):
    """Bits of a byte.

    ZERO: the unit was zero after the last step. OPEN: it may wake, once. FREE: whenever it will.
    SEEN: it was not zero when supports were last compared. DUE: it is zero, and the evidence is
    that it should not be. Passes leave these as they are, but for what is due and has woken.
    """

    ZERO = 1
    OPEN = 2
    SEEN = 4
    FREE = 8
    DUE = 16


def is_closed(gates: Tensor) -> Tensor:
    """Say which units have to stay zero."""
    return (gates & int(Gate.ZERO | Gate.OPEN | Gate.FREE)) == int(Gate.ZERO)


def keep_zeros(values: Tensor, gates: Tensor) -> Tensor:
    """Return the values after a prox with what has to stay zero put back; NaN is not hidden.

    values: of entries, or with one more axis than `gates` of groups.
    """
    closed = is_closed(gates)
    closed = closed.unsqueeze(-1) if values.ndim > gates.ndim else closed
    return values.masked_fill(closed & (values == values), 0.0)


def recorded(gates: Tensor, is_zero: Tensor) -> Tensor:
    """Return the bytes after a step that leaves these units at zero."""
    alive = gates & int(Gate.SEEN | Gate.FREE)
    return torch.where(is_zero, gates | int(Gate.ZERO), alive)
