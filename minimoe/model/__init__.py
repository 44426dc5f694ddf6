"""The whole language model."""

from minimoe.model.fingerprint import model_fingerprint
from minimoe.model.transformer import Block, ModelOutput, MoETransformer, check_trainable, copy_model

__all__ = ["Block", "MoETransformer", "ModelOutput", "check_trainable", "copy_model", "model_fingerprint"]
