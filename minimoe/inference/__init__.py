"""Generation from a trained model."""

from minimoe.inference.generate import filter_logits, generate

__all__ = ["filter_logits", "generate"]
