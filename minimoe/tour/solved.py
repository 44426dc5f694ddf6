"""The tour's problems: the shipped ``student`` and the ``nano`` it began from solve ten problems, on the screen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from minimoe.console import messages

if TYPE_CHECKING:
    from minimoe.data import Problem, Tokenizer
    from minimoe.model import MoETransformer

MODELS = ("nano", "student")
OF_EACH_LEVEL = 2
NEW_TOKENS = 96


def solved_rung(tokenizer: Tokenizer) -> dict[str, Any]:
    """Both models answer the same validation problems, greedily and with their steps.

    Returns:
      ``problems``: question, right answer, and what each model answered (None for no number); ``right``: how many each
      solved; ``seconds``: for all ten, compilation included; ``parameters`` of each model; ``student_text``: the first
      problem that the student solved, as it wrote it out (the first of all if it solved none).
    """
    from minimoe.cost import count_params
    from minimoe.data import check_answer, parse_answer
    from minimoe.hub import load_pretrained
    from minimoe.quant import dequantize_model

    asked, prompts = ask(tokenizer, OF_EACH_LEVEL)
    texts: dict[str, list[str]] = {}
    seconds, parameters = {}, {}
    for name in MODELS:
        model = dequantize_model(load_pretrained(name)[0])
        parameters[name] = count_params(model.config).total
        began = time.monotonic()
        texts[name] = written(model, asked, prompts, tokenizer)
        seconds[name] = round(time.monotonic() - began, 1)
    rows, right = [], dict.fromkeys(MODELS, 0)
    for index, one in enumerate(asked):
        answers = {name: parse_answer(texts[name][index]) for name in MODELS}
        row: dict[str, Any] = {"level": one.level, "question": one.question, "answer": one.answer, **answers}
        for name in MODELS:
            right[name] += check_answer(one, texts[name][index])
        rows.append(row)
        messages.print(f"{one.question}  answer {one.answer}; " + "; ".join(f"{n}: {a}" for n, a in answers.items()))
    messages.print(f"solved, of {len(asked)}: " + ", ".join(f"{name} {count}" for name, count in right.items()))
    best = next((i for i, one in enumerate(asked) if check_answer(one, texts[MODELS[1]][i])), 0)
    found = {"problems": rows, "right": right, "seconds": seconds, "parameters": parameters}
    return found | {"student_text": texts[MODELS[1]][best]}


def ask(tokenizer: Tokenizer, of_each_level: int) -> tuple[list[Problem], list[list[int]]]:
    """The first validation problems of each level, and their prompts as tokens."""
    from minimoe.data import LEVELS, problem

    asked = [problem(index, level, "val") for level in LEVELS for index in range(of_each_level)]
    return asked, [[tokenizer.eot_id, *tokenizer.encode(one.prompt())] for one in asked]


def written(model: MoETransformer, asked: list[Problem], prompts: list[list[int]], tokenizer: Tokenizer) -> list[str]:
    """Each problem as the model writes it out, greedily, all in one batch."""
    from minimoe.inference import continue_prompts

    room = min(NEW_TOKENS, model.config.context_length - max(map(len, prompts)))
    answers = continue_prompts(
        model, prompts, room, stop_token=tokenizer.eot_id, temperature=0, batch_size=len(prompts)
    )
    return [one.prompt() + tokenizer.decode(tokens) for one, tokens in zip(asked, answers, strict=True)]


def solved(model: MoETransformer, asked: list[Problem], prompts: list[list[int]], tokenizer: Tokenizer) -> int:
    """How many of the problems the model answers exactly right."""
    from minimoe.data import check_answer

    texts = written(model, asked, prompts, tokenizer)
    return sum(check_answer(one, text) for one, text in zip(asked, texts, strict=True))
