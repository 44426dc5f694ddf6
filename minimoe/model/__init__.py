"""The whole language model."""

from minimoe.model.copies import copy_model, with_config, without_arrays
from minimoe.model.fingerprint import model_fingerprint
from minimoe.model.mtp import MTPHead
from minimoe.model.paths import path_name
from minimoe.model.transformer import Block, ModelOutput, MoETransformer, check_trainable

__all__ = [
    "Block",
    "MTPHead",
    "MoETransformer",
    "ModelOutput",
    "check_trainable",
    "copy_model",
    "model_fingerprint",
    "path_name",
    "with_config",
    "without_arrays",
]
