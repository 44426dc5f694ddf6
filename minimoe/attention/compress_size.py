"""What the compression of `minimoe.attention.compress` costs: weights, and bytes of the tail that waits."""

from __future__ import annotations


def compressor_params(d_model: int, dim: int, ratio: int, overlap: bool) -> int:
    """Weights: two matrices, the bias of each place, the norm."""
    return compressor_matrices(d_model, dim, overlap) + ratio * (1 + overlap) * dim + dim


def compressor_matrices(d_model: int, dim: int, overlap: bool) -> int:
    """Weights of the two matrices."""
    return 2 * d_model * (1 + overlap) * dim


def tail_bytes(dim: int, ratio: int, overlap: bool) -> int:
    """Bytes of C and Z of the last ``P * m`` tokens, which are float32 always."""
    parts = 1 + overlap
    return 2 * 4 * (parts * ratio) * (parts * dim)
