"""Laws of tokenizers: nothing is lost, every byte is counted once, special tokens never come from text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

import minimoe.data
from minimoe.data import BPETokenizer, ByteTokenizer, Document, Tokenizer, documents, load_tokenizer
from minimoe.data.train_tokenizer import bytes_per_token, main, train
from minimoe.errors import UserError

BOTH = [load_tokenizer("bpe2048"), load_tokenizer("byte")]
SHIPPED = Path(minimoe.data.__file__).parent / "tokenizer.json"
TEXTS = st.text() | st.text(alphabet=" \n\r\t'sdl09().:<|>endoftxé\u0301\U0001f600", max_size=60)

each_tokenizer = pytest.mark.parametrize("tokenizer", BOTH, ids=lambda tokenizer: tokenizer.name)


@each_tokenizer
@given(text=TEXTS)
@example(text="")
@example(text="a<|endoftext|>b <|endoftext|>")
@example(text="    if x:\r\n\r\n        return 1234\n\n\n   ")
@example(text="e\u0301 \ufeff \ufffd \u2028 \x00")
@settings(deadline=None)
def test_decoding_inverts_encoding_and_lengths_add_up(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert sum(tokenizer.byte_lengths[ids]) == len(text.encode())
    assert b"".join(tokenizer.token_bytes(token) for token in ids) == text.encode()
    assert tokenizer.eot_id not in ids


@each_tokenizer
@given(texts=st.lists(TEXTS, max_size=5))
@settings(deadline=None)
def test_documents_are_encoded_one_by_one(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert tokenizer.encode_documents(texts) == [tokenizer.encode(text) for text in texts]


@each_tokenizer
@given(data=st.data())
@settings(deadline=None)
def test_any_ids_decode_to_their_bytes(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    raw = b"".join(tokenizer.token_bytes(token) for token in ids)
    assert tokenizer.decode(np.array(ids, np.int32)) == raw.decode("utf-8", errors="replace")


@each_tokenizer
def test_vocabulary(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    assert {bytes([value]) for value in range(256)} <= set(pieces)
    assert len(set(pieces)) == tokenizer.vocab_size
    assert tokenizer.byte_lengths.tolist() == [len(piece) for piece in pieces]
    assert [i for i, piece in enumerate(pieces) if not piece] == [tokenizer.eot_id]
    assert tokenizer.decode([tokenizer.eot_id]) == ""


def test_sizes_and_names() -> None:
    bpe, byte = BOTH
    assert (bpe.name, bpe.vocab_size, bpe.eot_id) == ("bpe2048", 2048, 0)
    assert (byte.name, byte.vocab_size, byte.eot_id) == ("byte", 257, 256)
    assert byte.encode("né") == list("né".encode())


def test_digits_stand_alone_and_no_token_crosses_a_word() -> None:
    bpe = BOTH[0]
    assert [bpe.token_bytes(token) for token in bpe.encode("2048+16")] == [b"2", b"0", b"4", b"8", b"+", b"1", b"6"]
    for token in range(bpe.vocab_size):
        text = bpe.token_bytes(token).decode(errors="replace")
        assert len(text) == 1 or not any(character.isdigit() for character in text)
        assert " " not in text.strip()


def test_the_library_agrees_on_plain_text() -> None:
    reference = tokenizers.Tokenizer.from_file(str(SHIPPED))
    for document in documents(split="val")[::20]:
        ids = reference.encode(document.text, add_special_tokens=False).ids
        assert BOTH[0].encode(document.text) == ids
        assert reference.decode(ids) == document.text


def test_training_again_gives_the_shipped_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--vocab-size", "2048", "--out", str(tmp_path / "tokenizer.json")]) == 0
    made, shipped = (json.loads(p.read_text(encoding="utf-8")) for p in (tmp_path / "tokenizer.json", SHIPPED))
    assert made["model"]["vocab"] == shipped["model"]["vocab"]
    assert made["model"]["merges"] == shipped["model"]["merges"]
    assert made["pre_tokenizer"]["pretokenizers"][0] == shipped["pre_tokenizer"]["pretokenizers"][0]
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    printed = capsys.readouterr().out
    assert all(f"  {domain}" in printed for domain in minimoe.data.DOMAINS)


def test_training_twice_gives_the_same_bytes() -> None:
    text = [document.text for document in documents("math", "val")]
    assert train(text, 400).to_json() == train(text, 400).to_json()


def test_training_sees_the_training_split_alone(tmp_path: Path) -> None:
    text = "\n\n".join(f"secret{i} " + "filler " * 80 for i in range(200))
    (tmp_path / "mine.txt").write_text(text)
    assert main(["--vocab-size", "300", "--text", str(tmp_path / "mine.txt"), "--out", str(tmp_path / "t.json")]) == 0
    kept = [d.text for d in minimoe.data.load_text(tmp_path / "mine.txt") if d.split == "train"]
    assert load_tokenizer(tmp_path / "t.json").fingerprint == train(kept, 300).fingerprint


@pytest.mark.parametrize("run", ["ab", "é", " ", "\r\n", "=-"])
def test_a_megabyte_without_a_break_is_learnt_in_parts(run: str) -> None:
    """In one piece it would take half a day: the trainer's time grows with the square of a piece."""
    part = run * (1000 // len(run))
    assert train([part * 1000 + "."], 300).fingerprint == train([part] * 1000 + ["."], 300).fingerprint
    assert (
        train([f"a {part[:999]} b"], 300).fingerprint
        != train([f"a {part[:500]}", f"{part[500:999]} b"], 300).fingerprint
    )


def test_training_errors_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "mine.txt"
    source.write_text("a few words")
    assert main(["--text", str(source), "--vocab-size", "100", "--out", str(tmp_path / "t.json")]) == 2
    assert "vocab_size=100 has no room for 256 bytes" in capsys.readouterr().err
    assert main(["--text", str(source), "--vocab-size", "257", "--out", str(tmp_path / "no" / "t.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main(["--text", str(tmp_path / "gone"), "--out", str(tmp_path / "t.json")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


def test_bytes_per_token_by_hand() -> None:
    text = [Document("a", "val", "1", "banana"), Document("b", "val", "2", "x"), Document("a", "val", "3", "an")]
    assert bytes_per_token(train(["banana banana"], 258), text) == {"a": 8 / 5, "b": 1.0}


@each_tokenizer
def test_saving_and_loading(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    text = documents("python", "val")[0].text + "<|endoftext|>é"
    for place in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        loaded = load_tokenizer(place)
        assert type(loaded) is type(tokenizer)
        assert loaded.encode(text) == tokenizer.encode(text)
        assert (loaded.fingerprint, loaded.name) == (tokenizer.fingerprint, tokenizer.name)
    assert BOTH[0].fingerprint != BOTH[1].fingerprint


def test_the_saved_byte_tokenizer_means_the_same_to_the_library() -> None:
    reference = tokenizers.Tokenizer.from_str(BOTH[1].to_json())
    assert reference.encode("né 1").ids == BOTH[1].encode("né 1")
    assert reference.encode("<|endoftext|>").ids == [256]


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
END = json.loads(SHIPPED.read_text(encoding="utf-8"))["added_tokens"][0]


def without_a_byte() -> dict:
    """A vocabulary in which the bell, a byte of many texts, has no token, as after training on text that never rings it."""
    model = json.loads(SHIPPED.read_text(encoding="utf-8"))["model"]
    bell = "\u0107"
    model["vocab"]["never"] = model["vocab"].pop(bell)
    return model


def test_tokens_added_to_a_vocabulary_keep_the_laws() -> None:
    """Special ones stand for no text and text never becomes one; the others are words, in characters."""
    added = [END, *(END | {"id": 2061 + i, "content": content} for i, content in enumerate(("<｜x▁y｜>", "<s>")))]
    word = END | {"id": 2063, "content": "Straße ", "special": False}
    tokenizer = minimoe.data.tokenizer._from_json(edited(model=moved_to(2060), added_tokens=[*added, word]))
    special = [tokenizer._backend.token_to_id(name) for name in ("<｜x▁y｜>", "<s>")]
    number = tokenizer._backend.token_to_id("Straße ")
    assert tokenizer.vocab_size == 2061
    assert tokenizer.token_bytes(number) == "Straße ".encode()
    assert tokenizer.decode(special) == ""
    text = "die Straße <｜x▁y｜> <s> ieldción"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert number in tokenizer.encode(text)
    assert not {*special} & set(tokenizer.encode(text))
    assert tokenizer.byte_lengths[tokenizer.encode(text)].sum() == len(text.encode())


def moved_to(number: int) -> dict:
    """The model with its last token under another id: ids may have gaps."""
    model = json.loads(SHIPPED.read_text(encoding="utf-8"))["model"]
    model["vocab"][max(model["vocab"], key=model["vocab"].get)] = number
    return model


def edited(**changes: object) -> str:
    return json.dumps(dict(json.loads(SHIPPED.read_text(encoding="utf-8")), **changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a tokenizer.json"),
        (
            edited(model={"type": "WordLevel", "vocab": {"<|endoftext|>": 0, "日": 1}, "unk_token": "日"}),
            "not byte-level",
        ),
        (edited(normalizer={"type": "Lowercase"}), "changes the text it encodes"),
        (edited(pre_tokenizer=BYTES | {"add_prefix_space": True}), "changes the text it encodes"),
        (edited(model=without_a_byte()), "not byte-level BPE with all 256 bytes: no token is 0x07"),
        (
            edited(added_tokens=[END, END | {"id": 2048, "content": "x", "special": False, "lstrip": True}]),
            "changes the",
        ),
        (edited(model=moved_to(2**31)), "has the id 2147483648"),
        (ByteTokenizer().to_json().replace("<|endoftext|>", "<s>"), r"has no <\|endoftext\|> token"),
    ],
)
def test_broken_tokenizers_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as raised:
        load_tokenizer(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_unknown_names_ids_and_characters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'gpt9' is neither a known name nor a file; choose one of bpe2048, byte"):
        load_tokenizer("gpt9")
    with pytest.raises(UserError, match="neither a known name nor a file"):
        load_tokenizer("x" * 5000)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read as text"):
        load_tokenizer(tmp_path / "binary")
    for tokenizer in BOTH:
        with pytest.raises(UserError, match=f"token id {tokenizer.vocab_size} is not in 0..{tokenizer.vocab_size - 1}"):
            tokenizer.decode([tokenizer.vocab_size])
        with pytest.raises(UserError, match="token id -1"):
            tokenizer.token_bytes(-1)
        with pytest.raises(UserError, match=r"character 1 .* lone surrogate"):
            tokenizer.encode("a\ud800")


def test_a_tokenizer_without_end_of_text_is_refused() -> None:
    with pytest.raises(UserError, match="train one with minimoe"):
        BPETokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()))
