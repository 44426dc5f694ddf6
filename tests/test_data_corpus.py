"""The bundled text agrees with its manifest, and a user's text arrives whole or with a clear message."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minimoe.data
from minimoe.data import DOMAINS, Document, corpus, describe_data, documents, load_text, split_of, verify
from minimoe.data.user_text import MIN_PARTS, copies, cut_at_blank_lines
from minimoe.errors import UserError

FOLDER = Path(minimoe.data.__file__).parent / "corpus"


def test_every_byte_of_the_files_is_in_one_document_or_a_separator() -> None:
    for domain in DOMAINS:
        for split in ("train", "val"):
            raw = (FOLDER / domain / f"{split}.txt").read_bytes()
            joined = "\n".join(document.text for document in documents(domain, split))
            assert joined.encode() == raw.rstrip(b"\n") or joined.encode() == raw


def test_documents_agree_with_the_manifest() -> None:
    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    assert tuple(manifest["domains"]) == DOMAINS
    for domain, entry in manifest["domains"].items():
        for split in ("train", "val"):
            assert len(documents(domain, split)) == entry[split]["documents"]
    assert len(documents()) == sum(len(documents(domain)) for domain in DOMAINS)


def test_the_split_is_the_published_rule_and_parallel_chapters_stay_together() -> None:
    assert all(document.split == split_of(document.key) for document in documents())
    held_out = {domain: {d.key for d in documents(domain, "val")} for domain in ("bible_en", "bible_es")}
    assert held_out["bible_en"] == held_out["bible_es"]


def test_verify_accepts_the_files_and_names_a_changed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    verify()
    read = corpus._read_file
    monkeypatch.setattr(corpus, "_read_file", lambda name: read(name) + (b"!" if name == "math/val.txt" else b""))
    with pytest.raises(UserError, match=r"math/val\.txt has sha256 .* install minimoe again"):
        verify()


def test_a_missing_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    read = corpus._read_file
    monkeypatch.setattr(corpus, "_read_file", lambda name: read("gone" if name == "python/train.txt" else name))
    with pytest.raises(UserError, match=r"python/train\.txt is missing"):
        verify()


def test_corpus_hash_follows_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    before = corpus.corpus_hash()
    assert re.fullmatch("[0-9a-f]{64}", before)
    changed = dict(corpus._file_hashes(), **{"math/val.txt": "0" * 64})
    monkeypatch.setattr(corpus, "_file_hashes", lambda: changed)
    assert corpus.corpus_hash() != before


@pytest.mark.parametrize(
    ("arguments", "message"), [(("klingon",), "domain 'klingon'"), ((None, "test"), "split 'test'")]
)
def test_unknown_names_list_the_known(arguments: tuple[str | None, ...], message: str) -> None:
    with pytest.raises(UserError, match=message + ".*choose one of"):
        documents(*arguments)


def test_the_room_does_not_import_jax() -> None:
    code = "import sys, minimoe.data, minimoe.data.train_tokenizer; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# A user's own text


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@given(st.lists(st.text(alphabet="aé \n\t", max_size=300), max_size=60))
@settings(deadline=None)
def test_cutting_loses_nothing(parts: list[str]) -> None:
    text = "\n\n".join(parts)
    pieces = cut_at_blank_lines(text)
    assert "".join(pieces) == text
    assert all(pieces) or not text


def test_a_long_file_becomes_documents_of_about_4000_bytes(tmp_path: Path) -> None:
    text = "".join(f"Paragraph {i}. " + "word " * (i % 90) + "\n\n" for i in range(600))
    found = load_text(write(tmp_path / "book.txt", text))
    assert "".join(document.text for document in found) == text
    assert {document.domain for document in found} == {"book"}
    assert {document.split for document in found} == {"train", "val"}
    assert len({document.key for document in found}) == len(found)
    assert all(2000 <= document.num_bytes <= 6500 for document in found)
    assert found == load_text(tmp_path / "book.txt")


def test_few_paragraphs_are_one_document_cut_for_validation(tmp_path: Path) -> None:
    text = "line of words\n" * 40 + "\n" + "more\n" * 10
    train, val = load_text(write(tmp_path / "note.md", text))
    assert (train.split, val.split) == ("train", "val")
    assert train.text + val.text == text
    assert train.text.endswith("\n")
    assert 0.5 < train.num_bytes / len(text) <= 0.9


@given(st.text(min_size=2, max_size=60).filter(lambda text: "\0" not in text and "\r" not in text and text.strip()))
@settings(deadline=None)
def test_cutting_one_document_keeps_its_characters(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = write(tmp_path_factory.mktemp("text") / "a.txt", text)
    found = load_text(path)
    assert "".join(document.text for document in found) == text.removeprefix("\ufeff")
    assert all(document.text.strip() for document in found)
    assert load_text(path, split="val") == [Document("a", "val", "a.txt", text.removeprefix("\ufeff"))]


def test_a_folder_is_read_by_subfolder(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    for name in ("top.txt", "code/a.py", "code/deep/b.PY", "prose/c.md"):
        write(root / name, f"text of {name}")
    for name in ("prose/d.csv", ".git/e.txt", "code/__pycache__/f.txt", "code/.hidden.py"):
        write(root / name, "not text to read")
    write(root / "code/__init__.py", "")
    found = load_text(root)
    names = [(document.domain, document.key) for document in found]
    expected = [("code", "code/a.py"), ("code", "code/deep/b.PY"), ("mine", "top.txt"), ("prose", "prose/c.md")]
    assert sorted(names) == expected
    assert {document.split for document in found} == {"train", "val"}


@pytest.mark.parametrize("number", range(2, 9))
def test_both_splits_have_a_document(tmp_path: Path, number: int) -> None:
    for i in range(number):
        write(tmp_path / f"{i}.txt", f"text {i}")
    assert {document.split for document in load_text(tmp_path)} == {"train", "val"}


def test_line_ends_and_byte_order_mark_are_normalised(tmp_path: Path) -> None:
    path = write(tmp_path / "dos.txt", b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert load_text(path, split="train")[0].text == "one\ntwo\n"


def test_blank_lines_with_carriage_returns_cut_too(tmp_path: Path) -> None:
    text = ("x" * 400 + "\r\n\r\n") * (MIN_PARTS + 20)
    assert len(load_text(write(tmp_path / "dos.txt", text), split="val")) > 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty or blank"),
        (b" \n\t\r\n", "empty or blank"),
        (b"good \xff bad", r"byte 5 \(0xff\) is not UTF-8; save the file as UTF-8"),
        (b"\xef\xbb\xbfab\xe9", r"byte 5 \(0xe9\)"),
        (b"abc\0def", "byte 3 is NUL"),
        ("wide".encode("utf-16"), "NUL, so this is a binary file or UTF-16"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load_text(write(tmp_path / "bad.txt", content))
    assert "bad.txt" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_paths_and_folders_without_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder; check the path"):
        load_text(tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match="no such file or folder"):
        load_text("x" * 5000)
    with pytest.raises(UserError, match="the path '' is empty"):
        load_text("")
    write(tmp_path / "image.png", b"\x89PNG")
    write(tmp_path / "blank.txt", " \n")
    with pytest.raises(UserError, match=r"no text in any \.txt, \.md, \.py file"):
        load_text(tmp_path)
    write(tmp_path / "sub" / "bad.txt", b"\xff")
    with pytest.raises(UserError, match=r"bad\.txt: byte 0 "):
        load_text(tmp_path)
    with pytest.raises(UserError, match="split 'test' is not known"):
        load_text(tmp_path, split="test")


def test_user_text_is_split_by_the_rule_of_the_corpus() -> None:
    salted = hashlib.sha256(b"minimoe-corpus-v1.216/some/key.txt").digest()
    assert split_of("some/key.txt") == ("val" if int.from_bytes(salted[:8], "big") % 100 < 10 else "train")
    share = sum(split_of(f"{i}.txt") == "val" for i in range(4000)) / 4000
    assert 0.08 < share < 0.12


def splits_by_text(found: list[Document]) -> dict[str, set[str]]:
    splits: dict[str, set[str]] = {}
    for document in found:
        splits.setdefault(document.text, set()).add(document.split)
    return splits


@pytest.mark.parametrize("number", [2, 5, 40])
def test_equal_files_are_on_one_side(tmp_path: Path, number: int) -> None:
    """Otherwise the model would be scored on text that it was trained on."""
    for i in range(number):
        write(tmp_path / "copies" / f"{i}.txt", "the same words " * 9 + ("\r\n" if i % 2 else "\n"))
        write(tmp_path / "others" / f"{i}.txt", f"text {i}\n")
    found = load_text(tmp_path)
    assert len(found) == 2 * number
    assert all(len(splits) == 1 for splits in splits_by_text(found).values())
    assert {document.split for document in found} == {"train", "val"}
    assert copies(found) == [[f"copies/{i}.txt" for i in sorted(range(number), key=lambda i: f"{i}.txt")]]
    assert copies(load_text(tmp_path, split="val")) == copies(found)


def test_two_groups_of_equal_files_are_both_splits(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path / f"{i}.txt", f"text {i % 2}\n")
    found = load_text(tmp_path)
    assert {text: len(splits) for text, splits in splits_by_text(found).items()} == {"text 0\n": 1, "text 1\n": 1}
    assert {document.split for document in found} == {"train", "val"}


def test_files_that_are_all_equal_are_cut_at_one_place(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.txt", "one two three four five six seven eight nine ten")
    found = load_text(tmp_path)
    assert {text: len(splits) for text, splits in splits_by_text(found).items()} == {
        "one two three four five six seven eight ": 1,
        "nine ten": 1,
    }
    assert len(found) == 6


def test_names_that_are_not_utf8_are_read_and_described(tmp_path: Path) -> None:
    try:
        for name in (b"caf\xe9.txt", b"\xff/b.txt", b"\xff/c.txt"):
            write(tmp_path / os.fsdecode(name), f"text of {name!r}")
    except OSError:
        pytest.skip("the file system refuses the name")
    found = load_text(tmp_path)
    assert {(document.domain, document.key) for document in found} == {
        (tmp_path.name, r"caf\xe9.txt"),
        (r"\xff", r"\xff/b.txt"),
        (r"\xff", r"\xff/c.txt"),
    }
    alone = tmp_path / os.fsdecode(b"caf\xe9.txt")
    assert load_text(alone)[0].domain == r"caf\xe9"
    assert describe_data(alone, load_text(alone))["name"] == r"caf\xe9.txt"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_a_pipe_in_a_folder_is_no_text_and_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three four five six seven")
    os.mkfifo(tmp_path / "b.txt")  # who reads it would wait for ever
    assert {document.key.partition("#")[0] for document in load_text(tmp_path)} == {"a.txt"}
    (tmp_path / "c.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"c\.txt: cannot be read \(No such file or directory\)"):
        load_text(tmp_path)
