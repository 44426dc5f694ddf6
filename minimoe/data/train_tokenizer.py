"""Trains the byte-level BPE tokenizer on the training split; how ``tokenizer.json`` was made.

    python -m minimoe.data.train_tokenizer --vocab-size 2048 --out tokenizer.json

The result depends on the text and the size alone: a second run writes the same bytes.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence

import tokenizers

from minimoe.data.corpus import Document, documents
from minimoe.data.tokenizer import END_OF_TEXT, BPETokenizer, Tokenizer
from minimoe.data.user_text import load_text
from minimoe.errors import UserError

MIN_VOCAB_SIZE = 257  # 256 bytes and the end of text

# Merges never cross the pieces that this cuts. First match wins.
SPLIT_PATTERN = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",  # English endings
        r"[^\r\n\p{L}\p{N}]?\p{L}+",  # a word with the one blank or sign before it
        r"\p{N}",  # every digit alone: place value can be learnt, which lessons in arithmetic need
        r" ?[^\s\p{L}\p{N}]+(?:[\r\n]+(?: +(?= ))?)?",  # signs, with a line end and the indentation after it
        r"\s*[\r\n]+(?: +(?= ))?",  # line ends with the next line's indentation, less the blank that its word takes
        r"\s+(?!\S)",  # other blanks, again leaving one to the next word
        r"\s+",
    ]
)
# The trainer's time grows with the square of the longest piece: two million letters in a row would take it half a day.
LONGEST_RUN = re.compile(r"\S{1000}|\s{1000}")


def train(texts: Sequence[str], vocab_size: int = 2048) -> BPETokenizer:
    """Learns the merges of byte-pair encoding from some texts.

    Args:
      texts: training documents. A run of signs or of white space is cut after each 1,000 characters, and no merge crosses
        the cut.
      vocab_size: V, end of text (id 0) and the 256 single bytes included; fewer come out if the texts run out of pairs.

    Raises:
      UserError: if ``vocab_size`` has no room for the bytes.

    Example:
      >>> train(["banana banana"], vocab_size=258).token_bytes(257)
      b'an'
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(
            f"vocab_size={vocab_size} has no room for 256 bytes and the end of text; use {MIN_VOCAB_SIZE} or more"
        )
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), behavior="isolated")
    to_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((part for text in texts for part in _cut_runs(text)), trainer)
    return BPETokenizer(backend)


def _cut_runs(text: str) -> Iterator[str]:
    """The text, cut where `LONGEST_RUN` ends."""
    begin = 0
    for run in LONGEST_RUN.finditer(text):
        yield text[begin : run.end()]
        begin = run.end()
    yield text[begin:]


def bytes_per_token(tokenizer: Tokenizer, texts: Sequence[Document]) -> dict[str, float]:
    """Compression by domain, in bytes of text per token: larger means shorter sequences.

    Example:
      >>> from minimoe.data.tokenizer import ByteTokenizer
      >>> bytes_per_token(ByteTokenizer(), documents("math", "val"))
      {'math': 1.0}
    """
    ids = tokenizer.encode_documents([document.text for document in texts])
    num_bytes: dict[str, int] = {}
    num_tokens: dict[str, int] = {}
    for document, tokens in zip(texts, ids, strict=True):
        num_bytes[document.domain] = num_bytes.get(document.domain, 0) + document.num_bytes
        num_tokens[document.domain] = num_tokens.get(document.domain, 0) + len(tokens)
    return {domain: num_bytes[domain] / num_tokens[domain] for domain in num_bytes}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code, 2 for a `UserError`."""
    parser = argparse.ArgumentParser(
        prog="python -m minimoe.data.train_tokenizer",
        description="Train a byte-level BPE tokenizer on training text and print bytes per token on validation text.",
        epilog="example: python -m minimoe.data.train_tokenizer --vocab-size 2048 --out tokenizer.json",
    )
    parser.add_argument("--vocab-size", type=int, default=2048, help="tokens, at least 257 (default: %(default)s)")
    parser.add_argument("--out", required=True, help="the tokenizer.json to write")
    parser.add_argument("--text", help="a file or folder to train on (default: the bundled corpus)")
    arguments = parser.parse_args(argv)
    try:
        found = documents() if arguments.text is None else load_text(arguments.text)
        tokenizer = train([document.text for document in found if document.split == "train"], arguments.vocab_size)
        tokenizer.save(arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: {tokenizer.vocab_size} tokens; bytes per token on validation text:")
    for domain, value in bytes_per_token(tokenizer, [d for d in found if d.split == "val"]).items():
        print(f"  {domain:12} {value:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
