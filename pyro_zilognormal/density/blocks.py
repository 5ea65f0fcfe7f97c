"""A broadcast shape in blocks, so that temporaries are a block in size, and every block uses the same ones."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Of all buffers: so large that the number of calls costs nothing, so small that the buffers stay in the cache.
BYTES = 2**22


class Block(NamedTuple):
    """A part of a broadcast shape, and buffers of its own shape to overwrite."""

    spans: tuple[tuple[int, int], ...]  # (first, length) of each of the leading dimensions; the others are whole
    shape: tuple[int, ...]
    buffers: list[Tensor]

    def of(self, tensor: Tensor) -> Tensor:
        """The part of a tensor of as many dimensions that broadcasts to the whole, as a view."""
        for dim, (first, length) in enumerate(self.spans):
            if tensor.shape[dim] != 1:
                tensor = tensor.narrow(dim, first, length)
        return tensor


def blocks(shape: Sequence[int], like: Tensor, buffers: int) -> Iterator[Block]:
    """The blocks of a shape, with so many buffers of a tensor's dtype."""
    most = BYTES // (max(1, buffers) * like.element_size())
    memory = [like.new_empty(min(most, math.prod(shape))) for _ in range(buffers)]
    views, last = memory, None
    for spans in _spans(shape, most):
        part = (*(length for _, length in spans), *shape[len(spans) :])
        if part != last:
            views, last = [m[: math.prod(part)].view(part) for m in memory], part
        yield Block(spans, part, views)


def _spans(shape: Sequence[int], most: int) -> Iterator[tuple[tuple[int, int], ...]]:
    row = math.prod(shape[1:])
    if row > most:
        for index in range(shape[0]):
            yield from (((index, 1), *rest) for rest in _spans(shape[1:], most))
        return
    step = most // row
    for first in range(0, shape[0], step):
        yield ((first, min(step, shape[0] - first)),)


class Gradient:
    """The gradient in a tensor that broadcasts to a shape, gathered block by block; or nothing, if it is not wanted."""

    def __init__(self, tensor: Tensor, shape: Sequence[int], wanted: bool) -> None:
        self.wanted = wanted
        self._summed = [dim for dim, length in enumerate(tensor.shape) if length != shape[dim]]
        size = tensor.shape if wanted else ()
        self._total = tensor.new_zeros(size) if self._summed else tensor.new_empty(size)
        self._divisor: Tensor | None = None

    def divided_by(self, divisor: Tensor) -> "Gradient":
        """To be divided by a tensor: after it is summed, if the divisor is the same for all that is."""
        if self._summed and all(divisor.shape[dim] == 1 for dim in self._summed):
            self._divisor = divisor
        return self

    def take(
        self, block: Block, spare: Tensor, weight: Tensor | None, function: Callable[..., Tensor], *args: Tensor
    ) -> None:
        """Add what a function returns for a block, times a weight. A spare buffer serves if it has to be summed."""
        if not self.wanted:
            return
        slope = function(*args, out=spare if self._summed else block.of(self._total))
        if weight is not None:
            slope.mul_(weight)
        if self._summed:
            self.add(block, slope)

    def take_quotient(self, block: Block, spare: Tensor, weight: Tensor | None, slope: Tensor, divisor: Tensor) -> None:
        """Add derivatives, times a weight, that are to be divided."""
        if self._divisor is None:
            self.take(block, spare, weight, torch.div, slope, divisor)
        else:
            self.add(block, slope if weight is None else torch.mul(slope, weight, out=spare))

    def add(self, block: Block, slope: Tensor) -> None:
        """Add derivatives of a block's own shape."""
        if self.wanted:
            part = block.of(self._total)
            _ = part.add_(slope.sum(self._summed, keepdim=True)) if self._summed else part.copy_(slope)

    def count_others(self, counts: "Gradient", entries: int) -> None:
        """How many of so many entries in all are not counted in another gradient, of the same shape."""
        if self.wanted:
            self._total = torch.sub(entries // self._total.numel(), counts._total)

    def total(self, shape: Sequence[int]) -> Tensor | None:
        """What was gathered, in a shape of as many entries."""
        if not self.wanted:
            return None
        return (self._total if self._divisor is None else self._total.div_(self._divisor)).reshape(shape)


def lift(tensor: Tensor, dims: int) -> Tensor:
    """The tensor with leading dimensions of length 1 up to so many dimensions."""
    return tensor.reshape((1,) * (dims - tensor.dim()) + tensor.shape)
