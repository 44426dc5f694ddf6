"""Tokenizers: byte-level BPE with 2,048 tokens, and plain bytes. Axis letters: V vocabulary.

Both stand for bytes, so nothing is ever unknown and two laws hold for every text ``s``: ``decode(encode(s)) == s``, and
the byte lengths of the tokens add up to the bytes of ``s``. The second is why bits per byte compares models across
tokenizers.
"""

from __future__ import annotations

import abc
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import SupportsInt

import numpy as np
import tokenizers
from jaxtyping import Int

from minimoe.errors import UserError
from minimoe.files import write_atomically

END_OF_TEXT = "<|endoftext|>"
NAMES = ("bpe2048", "byte")
MOST_TOKENS = 2**22  # of a vocabulary; those of today have 2**18
TOKENIZER_FILE = "tokenizer.json"  # its name in every folder


class Tokenizer(abc.ABC):
    """What the rest of the library may ask of a tokenizer.

    Attributes:
      name: ``"bpe2048"`` or ``"byte"``.
      eot_id: the end-of-text token, which separates documents and stands for no text.
    """

    name: str
    eot_id: int
    _pieces: tuple[bytes, ...]  # the bytes of each token, b"" for end of text

    @abc.abstractmethod
    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, without end-of-text tokens; much faster than a loop over `encode`."""

    @abc.abstractmethod
    def to_json(self) -> str:
        """The content of a ``tokenizer.json``, which Hugging Face's libraries read too."""

    def encode(self, text: str) -> list[int]:
        """The token ids of one text, without an end-of-text token.

        Text that spells ``<|endoftext|>`` is text: it never becomes the special token.

        Raises:
          UserError: for a lone surrogate, which UTF-8 cannot hold.
        """
        return self.encode_documents([text])[0]

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """The text of some tokens. End-of-text tokens vanish; bytes that are not UTF-8 become U+FFFD.

        Args:
          ids: whole numbers in 0..V-1; a list or a NumPy or JAX array of one axis.

        Raises:
          UserError: for an id outside the vocabulary.
        """
        numbers = ids.tolist() if hasattr(ids, "tolist") else ids  # one copy from a device, not one an element
        return b"".join(self.token_bytes(int(token)) for token in numbers).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for, ``b""`` for the end of text.

        A token may end inside a character: bytes, not strings, are what tokens have.

        Raises:
          UserError: for an id outside the vocabulary.
        """
        if not 0 <= token < self.vocab_size:
            raise UserError(f"token id {token} is not in 0..{self.vocab_size - 1}; was it made by another tokenizer?")
        return self._pieces[token]

    @functools.cached_property
    def byte_lengths(self) -> Int[np.ndarray, "V"]:
        """Bytes of text per token, int32; 0 for the end of text."""
        return np.array([len(piece) for piece in self._pieces], np.int32)

    @property
    def vocab_size(self) -> int:
        """V, the end-of-text token included."""
        return len(self._pieces)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the vocabulary, id by id, to record with trained models: equal means that ids mean the same."""
        return hashlib.sha256(repr((self.eot_id, self._pieces)).encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a ``tokenizer.json`` that `load_tokenizer` reads; never leaves half a file."""
        try:
            Path(path).parent.stat()  # a mistyped folder is an error here, not a new folder
            write_atomically(path, self.to_json())
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding, done by the ``tokenizers`` library.

    Args:
      backend: a byte-level BPE with a ``<|endoftext|>`` token, such as one read from a ``tokenizer.json``. Other special
        tokens stand for no text either, and no text becomes one.

    Raises:
      UserError: if the token is missing, or if text does not come back as it went in (the tokenizer is not byte-level,
        or it normalises).

    Example:
      >>> tokenizer = load_tokenizer("bpe2048")
      >>> [tokenizer.token_bytes(token) for token in tokenizer.encode("To be, or not to be")]
      [b'To', b' be', b',', b' or', b' not', b' to', b' be']
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        # Documents are data. Without this, text that spells a special token would end the document.
        backend.encode_special_tokens = True
        self._backend = backend
        size = 1 + max(backend.get_vocab().values(), default=0)  # ids may have gaps
        if size > MOST_TOKENS:
            raise UserError(
                f"the tokenizer has the id {size - 1}, and at most {MOST_TOKENS - 1} is read; number it anew"
            )
        self.name = f"bpe{size}"
        added = backend.get_added_tokens_decoder()
        tokens = [backend.id_to_token(i) or "" for i in range(size)]
        try:
            pieces = tuple(_added_bytes(added[i]) if i in added else _to_bytes(token) for i, token in enumerate(tokens))
        except KeyError:
            raise UserError(f"the tokenizer is not byte-level BPE; choose one of {', '.join(NAMES)}") from None
        lacks = sorted({bytes([value]) for value in range(256)} - set(pieces))
        if lacks:  # text that needs one would vanish
            lost = f"the tokenizer is not byte-level BPE with all 256 bytes: no token is 0x{lacks[0].hex()}"
            raise UserError(f"{lost}; choose one of {', '.join(NAMES)}, or train one with minimoe.data.train_tokenizer")
        eot_id = backend.token_to_id(END_OF_TEXT)
        if eot_id is None:
            raise UserError(f"the tokenizer has no {END_OF_TEXT} token; train one with minimoe.data.train_tokenizer")
        self.eot_id = eot_id
        self._pieces = (*pieces[:eot_id], b"", *pieces[eot_id + 1 :])
        words = [token.content for token in added.values() if not token.special]
        text = f"A  b\tc\r\n\u00e9e\u0301 \U0001f600 12{END_OF_TEXT}" + "".join(f" {word}  {word}a" for word in words)
        for probe in (text, f" {text}"):  # some put a space before the first word
            if self.decode(self.encode(probe)) != probe:
                raise UserError(f"the tokenizer changes the text it encodes; choose one of {', '.join(NAMES)}")

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        _check_encodable(texts)
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def to_json(self) -> str:
        return self._backend.to_str(pretty=True)


class ByteTokenizer(Tokenizer):
    """One token a byte, 256 for the end of text: the tokenizer with nothing to learn, and a baseline for the other.

    Example:
      >>> ByteTokenizer().encode("né")
      [110, 195, 169]
    """

    name = "byte"
    eot_id = 256

    def __init__(self) -> None:
        self._pieces = (*(bytes([value]) for value in range(256)), b"")

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        _check_encodable(texts)
        return [list(text.encode()) for text in texts]

    def to_json(self) -> str:
        vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
        backend.add_special_tokens([END_OF_TEXT])
        return backend.to_str(pretty=True)


def check_vocabulary(
    tokenizer: Tokenizer | None, vocab_size: int, repair: str = "give the tokenizer that the model was trained with"
) -> None:
    """Refuses a tokenizer that has ids a model does not know; it may have fewer.

    Args:
      tokenizer: None passes. vocab_size: V of the model. repair: what to do about it.

    Raises:
      UserError: naming both sizes.

    Example:
      >>> check_vocabulary(ByteTokenizer(), 257)
      >>> check_vocabulary(ByteTokenizer(), 256, "raise vocab_size")
      Traceback (most recent call last):
      minimoe.errors.UserError: tokenizer 'byte' has 257 ids but the model knows 256; raise vocab_size
    """
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        many = f"tokenizer {tokenizer.name!r} has {tokenizer.vocab_size} ids"
        raise UserError(f"{many} but the model knows {vocab_size}; {repair}")


def load_tokenizer(name_or_path: str | os.PathLike[str] = "bpe2048", end: str | None = None) -> Tokenizer:
    """A tokenizer by name, ``"bpe2048"`` or ``"byte"``, or from a ``tokenizer.json`` or a folder that holds one.

    Args:
      end: the special token that ends a text in that file. It is called ``<|endoftext|>`` from then on, under the same id,
        unless there is one of that name.

    Raises:
      UserError: if there is no such name or file, or the file is broken or not byte-level BPE.

    Example:
      >>> load_tokenizer().vocab_size, load_tokenizer("byte").vocab_size
      (2048, 257)
    """
    if name_or_path == "byte":
        return ByteTokenizer()
    if name_or_path == "bpe2048":
        return _bundled()
    path = Path(name_or_path)
    path = path / TOKENIZER_FILE if os.path.isdir(path) else path
    if not os.path.isfile(path):
        choices = f"choose one of {', '.join(NAMES)}, or the path of a tokenizer.json"
        raise UserError(f"tokenizer {os.fspath(name_or_path)!r} is neither a known name nor a file; {choices}")
    try:
        content = path.read_bytes().decode()
        return _from_json(content if end is None else with_end(content, end))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: cannot be read as text; give a tokenizer.json") from None


@functools.cache
def _bundled() -> Tokenizer:
    return _from_json(resources.files("minimoe.data").joinpath(TOKENIZER_FILE).read_text(encoding="utf-8"))


def with_end(content: str, end: str) -> str:
    """A ``tokenizer.json`` in which the special token ``end`` is called ``<|endoftext|>``; as it is if it has no such token.

    What it puts around a text (its post-processor) goes: that names tokens, and nothing is put around a text here.
    """
    try:
        values = json.loads(content)
        vocabulary, added = values["model"]["vocab"], values["added_tokens"]
        found = [token for token in added if token["content"] == end and token["special"]]
        if not found or any(END_OF_TEXT in names for names in (vocabulary, [token["content"] for token in added])):
            return content
        found[0]["content"] = END_OF_TEXT
        if end in vocabulary:
            vocabulary[END_OF_TEXT] = vocabulary.pop(end)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return content  # whoever reads it says what is wrong
    return json.dumps(values | {"post_processor": None}, ensure_ascii=False)


def _from_json(content: str) -> Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the library raises bare Exception for anything it cannot read
        reason = str(error).splitlines()[0]
        raise UserError(f"not a tokenizer.json ({reason}); give a file that Tokenizer.save wrote") from None
    tokenizer = BPETokenizer(backend)
    is_bytes = backend.get_vocab_size() == 257 and json.loads(content)["model"].get("merges") == []
    return ByteTokenizer() if is_bytes and tokenizer.eot_id == 256 else tokenizer


def _check_encodable(texts: Sequence[str]) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = f"character {error.start} of the text is the lone surrogate {text[error.start]!r}"
            raise UserError(f"{found}, which UTF-8 cannot hold; remove it") from None


@functools.cache
def _byte_characters() -> tuple[str, ...]:
    """The printable character that byte-level BPE writes for each byte: itself if printable, else 256 and up."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return tuple(chr(byte) if byte in printable else chr(next(others)) for byte in range(256))


def _added_bytes(token: tokenizers.AddedToken) -> bytes:
    """What a token beside the vocabulary stands for; it is spelled in characters, not in bytes."""
    return b"" if token.special else token.content.encode()


def _to_bytes(token: str) -> bytes:
    values = _character_bytes()
    return bytes(values[character] for character in token)


@functools.cache
def _character_bytes() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(_byte_characters())}
