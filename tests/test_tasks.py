"""Reasoning problems: right answers, held-out combinations, text that a tokenizer cuts evenly, and strict graders."""

from __future__ import annotations

import hashlib
import itertools
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minimoe.data import (
    FAMILIES,
    FORMS,
    LEVELS,
    Problem,
    Step,
    check_answer,
    check_steps,
    is_held_out,
    load_tokenizer,
    parse_answer,
    problem,
    task_documents,
    training_data,
)
from minimoe.errors import UserError

NUM = 60  # problems of each kind


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    kinds = itertools.product(("train", "val"), LEVELS, FAMILIES, range(NUM))
    return [problem(i, level, split, family=family) for split, level, family, i in kinds]


def solve(question: str) -> int:
    """The answer from the words of the question alone."""
    if question.startswith("["):
        return solve_list(question)
    if question[0].isalpha():
        return solve_story(question)
    return eval(question.replace("/", "//"))


def solve_story(question: str) -> int:
    first, *told = question.removesuffix(" How many?").split(". ")
    value = int(re.search(r"\d+", first)[0])
    for sentence in told:
        number = int(re.search(r"\d+", sentence)[0])
        if re.search("finds|gets|buys", sentence):
            value += number
        elif re.search("loses|gives|sells", sentence):
            value -= number
        elif "times that" in sentence:
            value *= number
        else:
            assert "keeps one part in" in sentence
            value, left_over = divmod(value, number)
            assert left_over == 0
    return value


def solve_list(question: str) -> int:
    numbers = [int(n) for n in re.search(r"\[(.*)\]", question)[1].split(",")]
    wanted = question.partition(": ")[2]
    if wanted.startswith("sum"):
        limit = re.search(r"over (\d+)", wanted)
        tests = {"even": lambda n: n % 2 == 0, "odd": lambda n: n % 2 == 1}
        passes = (lambda n: n > int(limit[1])) if limit else tests[wanted.split()[-2]]
        return sum(n for n in numbers if passes(n))
    first, *after = wanted.split(", ")
    value = {
        "max": max(numbers),
        "min": min(numbers),
        "max minus min": max(numbers) - min(numbers),
        "max plus min": max(numbers) + min(numbers),
    }[first]
    for part in after:
        *op, number = part.split()
        value = {"plus": value + int(number), "minus": value - int(number), "times": value * int(number),
                 "divided by": value / int(number)}[" ".join(op)]  # fmt: skip
    assert value == int(value)
    return int(value)


def test_answers_are_right(problems):
    for made in problems:
        assert solve(made.question) == made.answer, made


def test_steps_are_as_many_as_the_level_and_depend_on_one_another(problems):
    for made in problems:
        assert len(made.steps) == made.level
        check = check_steps(made, made.text())
        assert (check.num_steps, check.num_valid, check.chained) == (made.level, made.level, True)
        numbers = [n for step in made.steps for n in (*step.operands, step.result)]
        assert min(numbers) >= 1
        assert max(numbers) <= 99
        for number, step in enumerate(made.steps[:-1]):
            assert any(step.result in later.operands for later in made.steps[number + 1 :])


def test_a_problem_is_a_function_of_its_arguments():
    first = problem(3, 2, "train", seed=1)
    assert first == problem(3, 2, "train", seed=1)
    others = [problem(4, 2, "train", seed=1), problem(3, 2, "val", seed=1), problem(3, 2, "train", seed=2)]
    assert len({made.question for made in (first, *others)}) == 4
    assert len({problem(i).family for i in range(20)}) == 3


def test_problems_are_many():
    """Even so, level 1 is small: some hundred sums that a model can learn by heart."""
    assert len({problem(i, 3).question for i in range(500)}) > 490
    assert len({problem(i, 1).question for i in range(500)}) > 350


# The split


def combinations(made: Problem) -> list[tuple[int, ...]]:
    return [tuple(sorted(step.operands)) for step in made.steps]


def held_out(combination) -> bool:
    digest = hashlib.sha256(f"reasoning/298/{list(combination)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < 10


def test_training_never_shows_a_held_out_combination(problems):
    """The rule, by an independent hash: none in training, at least one in validation; so no problem is in both."""
    seen: dict[str, set] = {"train": set(), "val": set()}
    for made in problems:
        found = [held_out(c) for c in combinations(made)]
        assert any(found) == (made.split == "val"), made
        seen[made.split] |= {
            c for c, out in zip(combinations(made), found, strict=True) if out or made.split == "train"
        }
    assert not seen["train"] & seen["val"]
    assert len(seen["val"]) > 100
    questions = {split: {made.question for made in problems if made.split == split} for split in seen}
    assert not questions["train"] & questions["val"]


def test_no_text_of_training_holds_a_held_out_sum():
    """Read from the text itself, whatever level, family, seed and form."""
    for seed in (0, 5):
        for document in task_documents(200, split="train", seed=seed, form="mixed"):
            for first, second in re.findall(r"\b(\d+)[-+*/](\d+)=", document.text):
                assert not held_out(sorted((int(first), int(second))))


@given(st.lists(st.integers(0, 99), min_size=2, max_size=4), st.randoms())
def test_order_does_not_matter_to_the_split(operands, random):
    shuffled = random.sample(operands, len(operands))
    assert is_held_out(tuple(operands)) == is_held_out(tuple(shuffled)) == held_out(sorted(operands))


def test_every_operation_gives_up_about_a_tenth():
    pairs = {
        "+": [(a, b) for a in range(1, 99) for b in range(1, 21) if a + b <= 99],
        "*": [(a, b) for a in range(1, 50) for b in range(2, 6) if a * b <= 99],
        "/": [(a, b) for a in range(1, 100) for b in range(2, 6) if a % b == 0],
    }
    for op, found in pairs.items():
        assert 0.09 < np.mean([is_held_out(pair) for pair in found]) < 0.11, op


# The text


def test_digits_are_never_merged():
    tokenizer = load_tokenizer()
    pieces = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    assert sorted(piece for piece in pieces if re.search(rb"\d", piece)) == [b"%d" % digit for digit in range(10)]


@pytest.mark.parametrize("form", FORMS)
def test_text_is_short_and_begins_with_the_tokens_of_its_prompt(form, problems):
    tokenizer = load_tokenizer()
    texts = tokenizer.encode_documents([made.text(form) for made in problems])
    prompts = tokenizer.encode_documents([made.prompt(form) for made in problems])
    for text, prompt in zip(texts, prompts, strict=True):
        assert text[: len(prompt)] == prompt
    assert max(map(len, texts)) <= 120
    deep = [problem(i, 5, family="words").text(form) for i in range(400)]
    assert max(map(len, tokenizer.encode_documents(deep))) <= 120


def test_the_two_forms():
    made = Problem("k", 2, "train", "arithmetic", "(17+5)*3", (Step("+", (17, 5), 22), Step("*", (22, 3), 66)))
    assert made.text() == "Q: (17+5)*3\nSteps: 17+5=22; 22*3=66\nA: 66\n"
    assert made.text("direct") == "Q: (17+5)*3\nA: 66\n"
    assert made.prompt() == "Q: (17+5)*3\nSteps:"
    assert made.prompt("direct") == "Q: (17+5)*3\nA:"


def test_documents():
    found = task_documents(24, levels=(1, 3), form="mixed")
    assert found[:10] == task_documents(10, levels=(1, 3), form="mixed")
    assert len({document.key for document in found}) == 24
    assert {document.domain for document in found} == {"reasoning"}
    assert [document.key.split("/")[2] for document in found[:4]] == ["1", "3", "1", "3"]
    assert [document.key.split("/")[-1] for document in found[:4]] == ["direct", "direct", "worked", "worked"]
    assert task_documents(0) == []
    assert training_data(found, load_tokenizer("byte")).domains == ("reasoning",)
    with pytest.raises(UserError, match="none of the 3 documents"):
        training_data(task_documents(3, split="val"), load_tokenizer("byte"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"level": 6}, "level=6 is not known; choose one of 1, 2"),
        ({"split": "test"}, "split='test' is not known"),
        ({"family": "logic"}, "family='logic' is not known; choose one of arithmetic"),
        ({"index": -1}, "index=-1 must be a whole number of at least 0"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(UserError, match=words):
        problem(**{"index": 0, **arguments})


def test_bad_document_arguments():
    with pytest.raises(UserError, match="form='poem' is not known; choose one of direct, worked, mixed"):
        task_documents(1, form="poem")
    with pytest.raises(UserError, match="at least one level"):
        task_documents(1, levels=())
    with pytest.raises(UserError, match="form='mixed' is not known"):
        problem(0).text("mixed")


# The graders


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("A: 42\n", 42),
        ("A:42", 42),
        ("  A :\t42  \r\n", 42),
        ("A: 042", 42),
        ("A: -5", -5),
        ("Q: 1+1\nSteps: 1+1=2\nA: 2\nQ: 2+2\nA: 4\n", 2),  # the first counts; what follows is invented
        ("A:\nA: 42", None),  # and so it does when it says nothing
        ("A: 42 or 43", None),
        ("A: 42.5", None),
        ("A: 4 2", None),
        ("A: about 42", None),
        ("A: " + "9" * 5000, None),
        ("A: \u0664\u0662", None),  # digits, but not ours
        ("Steps: 1+1=2 A: 2", None),
        ("The answer is 42", None),
        ("a: 42", None),
        ("", None),
        ("42", None),
    ],
)
def test_parse_answer(text, answer):
    assert parse_answer(text) == answer


def example_problem() -> Problem:
    way = (Step("+", (17, 5), 22), Step("*", (22, 3), 66), Step("-", (66, 6), 60))
    return Problem("k", 3, "train", "arithmetic", "((17+5)*3)-6", way)


@pytest.mark.parametrize(
    ("steps", "num_valid", "correct"),
    [
        ("17+5=22; 22*3=66; 66-6=60", 3, True),
        ("5+17=22;3 * 22 = 66 ; 66 - 6=60 ;", 3, True),  # operands swapped where that is the same, and spaces
        ("17+5=22; 22*3=66", 2, False),  # stops short
        ("17+5=22; 22*3=66; 66-6=61", 2, False),  # the last slip
        ("17+5=21; 21*3=63; 63-6=57", 2, False),  # a slip that is carried on
        ("17+5=21; 22*3=66; 66-6=60", 2, False),  # a slip that is not
        ("60-6=54; 54+6=60", 2, False),  # valid, from numbers that nobody gave
        ("17+5=22; 22*3=66; 66-6=60; 60+6=66; 66-6=60", 5, False),  # on past the answer
        ("17+5=22; 22+5=27; 27+17=44", 3, False),  # a number used twice, and another answer
        ("17*3=51; 51+5=56; 56+6=62", 3, False),  # another question
        ("66-6=60", 1, False),
        ("17+5=22; so 22*3=66; 66-6=60", 2, False),  # words are no step
        ("17+5=22; 22*3=66; 66-6", 2, False),
        ("17/0=0; 22*3=66; 66-6=60", 2, False),
        ("17/5=3; 22*3=66; 66-6=60", 2, False),  # 17/5 is not whole
        ("max(17,5)=17; 17+5=22; 22*3=66; 66-6=60", 4, False),  # there is no list
        ("", 0, False),
        (";;;", 0, False),
        ("9" * 10000 + "+1=2", 0, False),
    ],
)
def test_check_steps(steps, num_valid, correct):
    check = check_steps(example_problem(), f"Q: ((17+5)*3)-6\nSteps: {steps}\nA: 60\n")
    assert (check.num_valid, check.correct, bool(check)) == (num_valid, correct, correct)


@pytest.mark.parametrize(
    ("steps", "correct"),
    [
        ("max(4,17,3)=17; min(4,17,3)=3; 17-3=14", True),
        ("min(3, 4, 17)=3; max(17,4,3)=17; 17-3=14", True),
        ("max(4,17)=17; min(4,3)=3; 17-3=14", False),  # not the whole list
        ("max(4,17,3)=4; min(4,17,3)=3; 17-3=14", False),
        ("17-3=14", False),
        ("max(4,17,3)=17; min(4,17,3)=3; min(4,17,3)=3; 17-3=14", False),
        ("max(4,17,3)=17; max(4,17,3)=17; 17-3=14", False),
        ("max()=17; min(,)=3; 17-3=14", False),
    ],
)
def test_check_steps_of_a_list(steps, correct):
    way = (Step("max", (4, 17, 3), 17), Step("min", (4, 17, 3), 3), Step("-", (17, 3), 14))
    asked = Problem("k", 3, "train", "lists", "[4,17,3]: max minus min", way)
    assert check_steps(asked, f"Steps: {steps}").correct == correct


def test_sums_may_be_taken_in_another_order():
    asked = Problem("k", 2, "train", "lists", "...", (Step("+", (8, 9), 17), Step("+", (17, 6), 23)))
    assert check_steps(asked, "Steps: 9+6=15; 8+15=23")
    assert not check_steps(asked, "Steps: 8+9=17; 17+8=25")


def test_a_wrong_digit_anywhere_is_found(problems):
    """Each number of the solution raised by one, one at a time: the grader must refuse every such text."""
    for made in problems[:: NUM // 2]:
        text = made.text()
        start = len(made.prompt())
        for found in re.finditer(r"\d+", text[start:]):
            changed = text[: start + found.start()] + str(int(found[0]) + 1) + text[start + found.end() :]
            assert not (check_answer(made, changed) and check_steps(made, changed)), changed


def test_one_problem_does_not_answer_another():
    first, second = problem(0, 4), problem(1, 4)
    assert not check_steps(first, second.text())
    assert check_answer(first, second.text()) == (first.answer == second.answer)


ALPHABET = st.text(alphabet="QASteps: \n\t\r;0123456789+-*/=(),maxin\u0664\x00\x85\u2028", max_size=80)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=60), ALPHABET))
@example("Steps:")
@example("A:")
def test_garbage_is_graded_and_never_right_by_chance(text):
    made = example_problem()
    assert parse_answer(text) is None or isinstance(parse_answer(text), int)
    check = check_steps(made, text)
    assert 0 <= check.num_valid <= check.num_steps
    if check.correct:  # then it does hold the last step
        assert "=60" in re.sub(r"\s", "", text)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**12), st.sampled_from(LEVELS), st.sampled_from(("train", "val")), st.text(max_size=20))
def test_right_text_stays_right_whatever_follows(index, level, split, rest):
    made = problem(index, level, split)
    for form in FORMS:
        text = made.text(form) + rest
        assert check_answer(made, text)
    assert check_steps(made, text)
