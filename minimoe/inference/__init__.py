"""Generation from a trained model: `generate` for prompts of one length, `continue_prompts` for many of different lengths.

Both use the one loop of `decoding`. `generate_speculative` has a loop of its own, which writes up to two tokens a turn.
"""

from minimoe.inference.decoding import filter_logits
from minimoe.inference.generate import generate
from minimoe.inference.prompts import continue_prompts
from minimoe.inference.speculative import Speculation, generate_speculative

__all__ = ["Speculation", "continue_prompts", "filter_logits", "generate", "generate_speculative"]
