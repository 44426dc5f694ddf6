"""The whole language model."""

from minimoe.model.transformer import Block, ModelOutput, MoETransformer, copy_model

__all__ = ["Block", "MoETransformer", "ModelOutput", "copy_model"]
