"""The whole language model."""

from minimoe.model.transformer import Block, MoETransformer, copy_model

__all__ = ["Block", "MoETransformer", "copy_model"]
