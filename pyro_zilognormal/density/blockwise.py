"""The log density and its derivatives on CPU, block by block, in one pass over the data.

A chain of tensor operations spends most of its time on memory: every temporary is as large as the data and newly
mapped. Here temporaries have the size of a block and are used again, and only what is returned is as large as the data.

torch.where takes twenty times as long as an addition on CPU, because torch does not vectorise it. These operations,
which it does, distinguish positive values from zeros instead:

- `threshold(x, 0, 1)`: x where x > 0, else 1;
- its derivative, here `where_positive`: y where x > 0, else 0, even if y is infinite or NaN;
- that of leaky_relu, here `signed`: y where x > 0, else -y;
- `sign(x)`: 1 where x > 0, else 0.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_zilognormal.numerics.normal import HALF_LOG_2PI
from pyro_zilognormal.numerics.shapes import broadcast

BYTES = 2**20  # of a buffer: few calls, and all buffers stay in the cache
LINEAR = 40.0  # from here on log(1 + exp(t)) is t to the last digit, and exp(t) does not overflow


def evaluate(
    arguments: Sequence[Tensor], wanted: Sequence[bool], weight: Tensor | None = None
) -> tuple[Tensor, list[Tensor | None]]:
    """The log density and its derivatives, times a weight, summed to the shapes of their arguments.

    Args:
        arguments: value in [0, inf), loc, scale and zero part: either logits, or log P(X = 0) and log P(X > 0).
        wanted: for each, whether its derivative is.
        weight: of each entry of the log density, of its shape; 1 by default.
    """
    shape = broadcast(*(a.shape for a in arguments)) or (1,)
    lifted = [lift(a, len(shape)) for a in arguments]
    result = lifted[0].new_empty(shape)
    slopes = [_Slope(a, shape) if w else None for a, w in zip(lifted, wanted, strict=True)]
    for block in _blocks(shape, result, weight):
        _evaluate_block(block, slopes, *map(block.of, (result, *lifted)))
    totals = [None if s is None else s.total.view(a.shape) for s, a in zip(slopes, arguments, strict=True)]
    return result if any(a.dim() for a in arguments) else result[0], totals


def lift(tensor: Tensor, dims: int) -> Tensor:
    """The tensor with leading dimensions of length 1 up to a number of dimensions."""
    return tensor.reshape((1,) * (dims - tensor.dim()) + tensor.shape)


class _Block(NamedTuple):
    """A part of a broadcast shape, the weights there, and buffers of its own shape to overwrite."""

    spans: tuple[tuple[int, int], ...]  # (first, length) of each of the leading dimensions; the others are whole
    shape: tuple[int, ...]
    weight: Tensor | None
    buffers: list[Tensor]

    def of(self, tensor: Tensor) -> Tensor:
        """The part of a tensor of as many dimensions, which broadcasts to the whole, as a view."""
        return _narrow(tensor, self.spans)


def _blocks(shape: Sequence[int], like: Tensor, weight: Tensor | None) -> Iterator[_Block]:
    most = BYTES // like.element_size()
    memory = like.new_empty(4, min(most, math.prod(shape)))
    for spans in _spans(shape, most):
        part = (*(length for _, length in spans), *shape[len(spans) :])
        buffers = [m[: math.prod(part)].view(part) for m in memory]
        yield _Block(spans, part, None if weight is None else _narrow(lift(weight, len(shape)), spans), buffers)


def _spans(shape: Sequence[int], most: int) -> Iterator[tuple[tuple[int, int], ...]]:
    row = math.prod(shape[1:])
    if row > most:
        for index in range(shape[0]):
            yield from (((index, 1), *rest) for rest in _spans(shape[1:], most))
        return
    step = most // row
    for first in range(0, shape[0], step):
        yield ((first, min(step, shape[0] - first)),)


def _narrow(tensor: Tensor, spans: tuple[tuple[int, int], ...]) -> Tensor:
    for dim, (first, length) in enumerate(spans):
        if tensor.shape[dim] != 1:
            tensor = tensor.narrow(dim, first, length)
    return tensor


class _Slope:
    """The derivative in an argument that broadcasts to a shape, gathered block by block."""

    def __init__(self, argument: Tensor, shape: Sequence[int]) -> None:
        self._summed = [dim for dim, length in enumerate(argument.shape) if length != shape[dim]]
        new = argument.new_zeros if self._summed else argument.new_empty
        self.total = new(argument.shape)

    def room(self, block: _Block) -> Tensor:
        """Where to write the derivative in a block: its place in the total; if it is to be summed, the last buffer."""
        return block.buffers[-1] if self._summed else block.of(self.total)

    def add(self, block: _Block, slope: Tensor) -> None:
        """Add the derivative in a block, in its room or not, times the weights."""
        room = self.room(block)
        if block.weight is not None:
            slope = torch.mul(slope, block.weight, out=room)
        if self._summed:
            block.of(self.total).add_(slope.sum(self._summed, keepdim=True))
        elif slope.data_ptr() != room.data_ptr():
            room.copy_(slope)


Slopes = Sequence[_Slope | None]


def _evaluate_block(
    block: _Block, slopes: Slopes, result: Tensor, x: Tensor, loc: Tensor, scale: Tensor, *zero: Tensor
) -> None:
    log_x, z, sign, spare = block.buffers
    x = x.expand(block.shape)
    torch.threshold(x, 0, 1, out=log_x).log_()
    # Standardise before squaring: scale**2 underflows long before scale does.
    torch.sub(log_x, loc, out=z).div_(scale)
    where_positive(z, x, z)
    torch.sign(x, out=sign)
    rest = torch.log(scale, out=spare.view(-1)[: scale.numel()].view(scale.shape))
    loss = log_x.addcmul_(z, z, value=0.5).add_(rest if len(zero) == 1 else rest - zero[1])
    positive = torch.sub(loss.new_full((), -HALF_LOG_2PI), loss, out=loss)
    where_positive(positive, x, positive)
    _differentiate_positive(block, slopes, x, scale, z, sign)
    if len(zero) == 1:
        _add_log_sigmoid(block, slopes[3], positive, x, zero[0], z, result)
    else:
        _add_log_zero(block, slopes[3:], positive, zero[0], sign, result)


def _differentiate_positive(block: _Block, slopes: Slopes, x: Tensor, scale: Tensor, z: Tensor, sign: Tensor) -> None:
    """The derivatives in x, loc and scale: -(z / scale + 1) / x, z / scale and (z^2 - 1) / scale; z is overwritten."""
    in_x, in_loc, in_scale, *_ = slopes
    if in_x is not None:
        slope = torch.div(z, scale, out=in_x.room(block)).add_(sign).div_(torch.threshold(x, 0, 1)).neg_()
        in_x.add(block, slope)
    if in_loc is not None:
        in_loc.add(block, torch.div(z, scale, out=in_loc.room(block)))
    if in_scale is not None:
        in_scale.add(block, torch.div(z.mul_(z).sub_(sign), scale, out=in_scale.room(block)))


def _add_log_sigmoid(
    block: _Block, slope: _Slope | None, positive: Tensor, x: Tensor, logits: Tensor, t: Tensor, result: Tensor
) -> None:
    """log P = -log(1 + exp(t)) with the logits as t where x > 0, minus the logits where x = 0."""
    signed(logits.expand(block.shape), x, t)
    if slope is not None:
        room = slope.room(block)
        slope.add(block, signed(torch.sigmoid(t, out=room).neg_(), x, room))
    torch.sub(positive, softplus_(t), out=result)


def _add_log_zero(
    block: _Block, slopes: Slopes, positive: Tensor, log_zero: Tensor, sign: Tensor, result: Tensor
) -> None:
    """log P(X = 0) where x = 0; log P(X > 0) is part of the positive part."""
    in_log_zero, in_log_positive = slopes
    if in_log_positive is not None:
        in_log_positive.add(block, sign)
    is_zero = torch.sub(sign.new_ones(()), sign, out=sign)
    if in_log_zero is not None:
        in_log_zero.add(block, is_zero)
    where_positive(log_zero.expand(block.shape), is_zero, result).add_(positive)


def where_positive(y: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """y where x > 0, else 0."""
    return torch.ops.aten.threshold_backward.grad_input(y, x, 0, grad_input=out)


def signed(y: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """y where x > 0, else -y."""
    return torch.ops.aten.leaky_relu_backward.grad_input(y, x, -1, False, grad_input=out)


def softplus_(t: Tensor) -> Tensor:
    """log(1 + exp(t)), in place: torch's softplus and logsigmoid are not made of its fastest routines."""
    if t.amax().item() <= LINEAR:
        return t.exp_().log1p_()
    excess = torch.sub(t, LINEAR).clamp_(min=0)
    return t.clamp_(max=LINEAR).exp_().log1p_().add_(excess)  # NaN passes through
