"""Rows of tensors, numpy arrays and scipy CSR matrices, as dense tensors."""

import sys
from typing import Any

import numpy as np
import torch

_MOST = np.iinfo(np.int64).max


def is_sparse(value: Any) -> bool:
    """Whether ``value`` is a scipy sparse matrix or array; does not import scipy."""
    scipy_sparse = sys.modules.get("scipy.sparse")
    return scipy_sparse is not None and scipy_sparse.issparse(value)


def is_array(value: Any) -> bool:
    """Whether ``value`` is a tensor, a numpy array or a scipy sparse matrix."""
    return isinstance(value, torch.Tensor | np.ndarray) or is_sparse(value)


def as_tensor(value: Any, name: str = "data") -> torch.Tensor:
    """Return a dense tensor of ``value``.

    It has the dtype of the data, but for unsigned whole numbers of more than a byte, which become int64.

    Args:
        value: a tensor, numpy array or scipy CSR matrix.
        name: what to call it in an error.

    Raises:
        TypeError: for a sparse tensor, or an array that torch cannot hold (strings, objects, more than double
            precision, a mask).
        ValueError: for whole numbers beyond those of int64.
    """
    if isinstance(value, torch.Tensor):
        _check_layout(value, name)
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array, whose mask a tensor would lose; pass its .data and its mask as two arrays, "
            "and mask the site by it, or fill it first"
        )
    array = value.toarray() if is_sparse(value) else value
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise TypeError(
            f"{name} has numpy dtype {array.dtype}; needed numbers of at most 64 bits or booleans. Encode it so first"
        )
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        if array.size and array.max() > _MOST:
            raise ValueError(f"{name} holds {array.max()}; needed whole numbers of at most {_MOST}")
        array = array.astype(np.int64)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(np.asarray(array, dtype=array.dtype.newbyteorder("=")))


def placed(tensor: torch.Tensor, device: torch.device | str | None, dtype: torch.dtype | None) -> torch.Tensor:
    """Return a tensor on a device and, where it holds floating numbers, of a dtype; None leaves either as it is."""
    return tensor.to(device, dtype if tensor.is_floating_point() else None)


def check_dtype(dtype: Any) -> None:
    """Raise a TypeError unless ``dtype`` is None or a floating dtype of torch."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype is {dtype!r}; needed a floating dtype, such as torch.float32, or None")


def check_rows(value: Any, name: str) -> None:
    """Raise a TypeError unless ``value`` is an array whose rows can be picked one by one.

    Args:
        value: what came.
        name: what to call it in the error.
    """
    if isinstance(value, torch.Tensor):
        _check_layout(value, name)
    if is_sparse(value) and value.format != "csr":
        raise TypeError(f"{name} is a scipy sparse matrix in {value.format} format; call .tocsr() on it")
    if not is_array(value):
        raise TypeError(
            f"{name} is a {type(value).__name__}; needed a tensor, numpy array or scipy CSR matrix "
            "(for a pandas object, its .to_numpy())"
        )
    if len(value.shape) == 0:
        raise ValueError(f"{name} has no axis of rows; needed at least one dimension")


def _check_layout(tensor: torch.Tensor, name: str) -> None:
    if tensor.layout != torch.strided:
        raise TypeError(
            f"{name} is a {tensor.layout} tensor; needed a dense tensor or a scipy CSR matrix. Call .to_dense() on it"
        )


def pick_rows(value: Any, indices: torch.Tensor, name: str = "data") -> torch.Tensor:
    """Return the given rows as a dense tensor, in the order of ``indices``."""
    if isinstance(value, torch.Tensor):
        return value[indices.to(value.device)]
    return as_tensor(value[indices.numpy()], name)
