"""The whole language model."""

from minimoe.model.transformer import Block, MoETransformer

__all__ = ["Block", "MoETransformer"]
