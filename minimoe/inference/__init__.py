"""Generation from a trained model: `generate` for prompts of one length, `continue_prompts` for many of different lengths.

Both use the one loop of `decoding`.
"""

from minimoe.inference.decoding import filter_logits
from minimoe.inference.generate import generate
from minimoe.inference.prompts import continue_prompts

__all__ = ["continue_prompts", "filter_logits", "generate"]
