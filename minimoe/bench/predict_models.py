"""What `minimoe bench predict` times, by name; JAX is not loaded."""

MODEL_NAMES = ("nano", "dense-nano", "v4-nano", "small", "dense-small")
SEQUENCES, LENGTH = 8, 256  # of a training step
BATCHES, NEW_TOKENS = (1, 8, 32), 96  # decoded after one token
