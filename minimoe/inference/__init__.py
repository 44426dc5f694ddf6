"""Generation from a trained model: `generate` for prompts of one length, `prompts` for many of different lengths."""

from minimoe.inference.generate import filter_logits, generate
from minimoe.inference.prompts import continue_prompts

__all__ = ["continue_prompts", "filter_logits", "generate"]
