"""The tour's problems: the shipped ``student`` and the ``nano`` it began from solve ten problems, on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minimoe.console import messages

if TYPE_CHECKING:
    from minimoe.data import Tokenizer

MODELS = ("nano", "student")
OF_EACH_LEVEL = 2
NEW_TOKENS = 96


def solved_rung(tokenizer: Tokenizer) -> dict[str, Any]:
    """Both models answer the same validation problems, greedily and with their steps.

    Returns:
      ``problems``: question, right answer, and what each model answered (None for no number); ``right``: how many each
      solved; ``student_text``: the first problem as the student wrote it out.
    """
    from minimoe.data import LEVELS, check_answer, parse_answer, problem
    from minimoe.hub import load_pretrained
    from minimoe.inference import continue_prompts
    from minimoe.quant import dequantize_model

    asked = [problem(index, level, "val") for level in LEVELS for index in range(OF_EACH_LEVEL)]
    prompts = [[tokenizer.eot_id, *tokenizer.encode(one.prompt())] for one in asked]
    longest = max(map(len, prompts))
    texts: dict[str, list[str]] = {}
    for name in MODELS:
        model = dequantize_model(load_pretrained(name)[0])
        room = min(NEW_TOKENS, model.config.context_length - longest)
        written = continue_prompts(
            model, prompts, room, stop_token=tokenizer.eot_id, temperature=0, batch_size=len(prompts)
        )
        texts[name] = [one.prompt() + tokenizer.decode(tokens) for one, tokens in zip(asked, written, strict=True)]
    rows, right = [], dict.fromkeys(MODELS, 0)
    for index, one in enumerate(asked):
        answers = {name: parse_answer(texts[name][index]) for name in MODELS}
        row: dict[str, Any] = {"level": one.level, "question": one.question, "answer": one.answer, **answers}
        for name in MODELS:
            right[name] += check_answer(one, texts[name][index])
        rows.append(row)
        messages.print(f"{one.question}  answer {one.answer}; " + "; ".join(f"{n}: {a}" for n, a in answers.items()))
    messages.print(f"solved, of {len(asked)}: " + ", ".join(f"{name} {count}" for name, count in right.items()))
    return {"problems": rows, "right": right, "student_text": texts[MODELS[1]][0]}
