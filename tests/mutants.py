"""Wrong answers made by a machine: the oracle of an exercise with one thing changed.

Every operator, constant, axis, slice bound, comparison, call, condition and statement of an oracle, and of the helper
functions that it calls, is changed in turn. Beside that, whole answers are wrapped: squeezed, rounded, sorted, blind to one
argument. A mutant that no case of its exercise tells from the right answer is a survivor: the exercise needs another case,
or the mutant computes the same for every valid input, and `EQUIVALENT` says why.

    python tests/mutants.py                    the table: mutants, killed, equivalent, survivors
    python tests/mutants.py balance.bias_update   one exercise, with its survivors in full
"""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import inspect
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minimoe.exercises.limits import Raised, TimeLimitExceeded, run_limited
from minimoe.exercises.numeric import as_outputs, widen
from minimoe.exercises.record import Exercise
from minimoe.exercises.registry import CATALOGUE
from minimoe.exercises.values import alike, expected_outputs, tolerance

OPERATORS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult, ast.FloorDiv),
    ast.FloorDiv: (ast.Div, ast.Mult),
    ast.Mod: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.MatMult: (ast.Mult,),
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
}
NAMES: dict[str, tuple[str, ...]] = {
    "sum": ("mean", "max", "prod"),
    "mean": ("sum", "max"),
    "max": ("min", "sum"),
    "min": ("max",),
    "maximum": ("minimum",),
    "minimum": ("maximum",),
    "floor": ("ceil", "trunc", "rint"),
    "ceil": ("floor",),
    "rint": ("floor", "trunc"),
    "round": ("floor", "trunc"),
    "trunc": ("floor",),
    "exp": ("exp2",),
    "exp2": ("exp",),
    "log": ("log2",),
    "log2": ("log",),
    "log1p": ("log",),
    "abs": ("square",),
    "sqrt": ("abs",),
    "argmax": ("argmin",),
    "argmin": ("argmax",),
    "any": ("all",),
    "all": ("any",),
    "zeros": ("ones",),
    "ones": ("zeros",),
    "argsort": ("flip",),
}
TIME_LIMIT = 0.5  # seconds a call, which takes milliseconds: a changed condition may never come true
CONVERSIONS = {"np.array", "np.asarray", "np.float64", "float", "int", "list", "tuple", "range"}


SCALAR = (" squeezed$", "the output is a scalar")
POSITIVE = (r"^\w+ (absolute value|not below 0)$", "the output is never negative")
# By exercise: a pattern of the mutant's name, and why it computes the same for every valid input.
EQUIVALENT: dict[str, tuple[tuple[str, str], ...]] = {
    "sparse.params": (SCALAR, POSITIVE),
    "sparse.dense_width": (SCALAR, POSITIVE),
    "routing.topk": (
        (
            "^ranked, line .*(best_first|ties_up|'-?1'|tie)",
            "they decide for options that the right answer does not use",
        ),
        ("^(experts|weights) (absolute value|not below 0)$", "ids and weights are never negative"),
        ("^affinities as its absolute value$", "affinities are not negative"),
        ("^bias one more$", "the same number added to every bias changes no choice"),
    ),
    "routing.sqrtsoftplus": (POSITIVE,),
    "routing.group_limited": (
        ("^experts (absolute value|not below 0)$", "ids are never negative"),
        ("^scores one more$", "the same number added to every score changes no choice"),
    ),
    "balance.switch_loss": (
        SCALAR,
        POSITIVE,
        ("astype", "the oracle is given float64 already"),
        ("^probs as its absolute value$", "affinities are not negative"),
        ("in the other order$", "the loss does not depend on the order of tokens, and probs and experts enter apart"),
    ),
    "balance.sequence_loss": (SCALAR, POSITIVE, ("^probs as its absolute value$", "affinities are not negative")),
    "balance.bias_update": (
        (r"\* 1.0': (Mult|left)", "a boolean times or over 1.0 is that boolean"),
        ("^bias one more$", "the result is centred"),
        (
            "^load (one more|as its absolute value|rounded to whole numbers)$",
            "loads are counts, compared with their mean",
        ),
        ("^rate as its absolute value$", "the rate is positive"),
    ),
    "quant.absmax_int8": (
        ("^scale (absolute value|not below 0)$", "scales are positive"),
        ("^scale sorted$", "the last axis of the scales has length 1"),
    ),
    "quant.mxfp4_scale": (
        ("^scale (absolute value|not below 0)$", "scales are positive"),
        ("6( \\* scale)?'", "a scale doubled too often is halved again by the second loop"),
    ),
    "quant.straight_through": (("^scale as its absolute value$", "scales are positive"),),
    "distillation.kd": (
        SCALAR,
        POSITIVE,
        ("^log_softmax, .*(axis|keepdims|'1': 1 -> 0)", "the oracle gives it one row"),
        ("^(student|teacher) one more$", "a softmax does not see a number added to all logits"),
        ("^mask as a mask$", "the mask is one"),
        ("^(temperature|alpha) as its absolute value$", "both are positive"),
    ),
    "distillation.topk": (
        SCALAR,
        POSITIVE,
        ("^student one more$", "a softmax does not see a number added to all logits"),
    ),
    "distillation.on_policy": (
        SCALAR,
        POSITIVE,
        ("^(student|teacher) one more$", "a softmax does not see a number added to all logits"),
        ("^tokens ", "the divergence over all words does not look at which one was written"),
    ),
    "cache.bytes": (SCALAR, POSITIVE),
    "cache.visible": (("^mask (absolute value|not below 0)$", "a mask is never negative"),),
    "cache.compress": (("^(gates|bias) one more$", "a softmax does not see a number added to all logits"),),
    "weights.tensor": (
        (
            "^tensor_oracle, line .*'8': 8 -> 7$",
            "a header is below 2**56 bytes; an end in the last pair still reads that pair",
        ),
        ("^tensor_oracle, line .*'0': 0 -> -1$", "one pair of bytes is one value: the first is the last"),
    ),
    "weights.blocks": (
        ("^blocks_oracle, line .*zeros -> ones$", "every number is written over"),
        ("^scale_inv as its absolute value$", "scales are positive"),
    ),
    "weights.shards": (
        ("^shards_oracle, line .*'1': 1 -> 0$", "after the first tensor no file is empty"),
        ("^numbers (absolute value|not below 0|sorted)$", "numbers begin at 0 and never fall"),
    ),
    "hardware.roofline": (
        ("^roofline_oracle, line .*zeros -> ones$", "every number is written over"),
        ("^(seconds|rate|waits) (absolute value|not below 0)$", "times and rates are positive"),
        ("as its absolute value$", "work, bytes and what a chip can do are positive"),
    ),
    "hardware.step_bytes": (SCALAR, POSITIVE, ("as its absolute value$", "sizes are positive")),
    "hardware.rows_sent": (("^rows (absolute value|not below 0)$", "counts are never negative"),),
    "ledger.shown": (
        SCALAR,
        ("argument alone$", "a scalar either way"),
        ("^spread (absolute value|not below 0)$", "a range is never negative"),
        ("^(ours|others) as its absolute value$", "scores are positive"),
    ),
    "ledger.frontier": (
        ("argument alone$", "a truth value either way"),
        ("^kept (absolute value|not below 0)$", "a truth value is never negative"),
        ("^(costs|losses) (as its absolute value|one more)$", "both are positive, and only compared among themselves"),
    ),
    "ledger.price": (SCALAR, POSITIVE, ("as its absolute value$", "times, prices and shares are positive")),
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A wrong answer and what was changed."""

    name: str
    function: Callable[..., Any]


def variants(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """A node with one thing changed, and what."""
    if isinstance(node, ast.BinOp | ast.AugAssign):
        for other in OPERATORS.get(type(node.op), ()):
            yield f"{type(node.op).__name__} -> {other.__name__}", _with(node, op=other())
    if isinstance(node, ast.BinOp):
        yield "left operand alone", node.left
        yield "right operand alone", node.right
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            yield f"only {ast.unparse(value)}", value
        for other in OPERATORS.get(type(node.op), ()):
            yield f"{type(node.op).__name__} -> {other.__name__}", _with(node, op=other())
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for other in OPERATORS.get(type(node.ops[0]), ()):
            yield f"{type(node.ops[0]).__name__} -> {other.__name__}", _with(node, ops=[other()])
    if isinstance(node, ast.UnaryOp):
        yield f"without {type(node.op).__name__}", node.operand
    if isinstance(node, ast.IfExp):
        yield "always", node.body
        yield "never", node.orelse
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        others = {node.value + 1, node.value - 1, 0} if isinstance(node.value, int) else {2 * node.value, 0.0}
        for value in sorted(others - {node.value}):
            yield f"{node.value} -> {value}", ast.Constant(value)
    if isinstance(node, ast.Attribute) and node.attr in NAMES:
        for other in NAMES[node.attr]:
            yield f"{node.attr} -> {other}", _with(node, attr=other)
    if isinstance(node, ast.Call):
        if node.keywords:
            for index, keyword in enumerate(node.keywords):
                if keyword.arg != "strict":  # of zip: a check of the oracle itself
                    yield (
                        f"without {keyword.arg}=",
                        _with(node, keywords=node.keywords[:index] + node.keywords[index + 1 :]),
                    )
        converts = ast.unparse(node.func) in CONVERSIONS
        if len(node.args) == 1 and not converts and not isinstance(node.args[0], ast.Starred | ast.GeneratorExp):
            yield "argument alone", node.args[0]
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice) and isinstance(node.ctx, ast.Load):
        yield "without the slice", node.value
    if isinstance(node, ast.comprehension) and node.ifs:
        yield "without the condition", _with(node, ifs=node.ifs[1:])


def _with(node: ast.AST, **changes: Any) -> ast.AST:
    fields = dict(ast.iter_fields(node)) | changes
    return type(node)(**fields)


def _mutated_trees(tree: ast.FunctionDef) -> Iterator[tuple[str, ast.FunctionDef]]:
    """``tree`` changed in one place after the other; statements are also left out one at a time. Use one before the next."""
    places = [(parent, name, index) for parent in ast.walk(tree) for name, index in _places(parent, tree)]
    for number in range(len(places)):
        parent, name, index = places[number]
        value = getattr(parent, name)
        node = value if index is None else value[index]
        replacements = list(variants(node))
        if isinstance(node, ast.Assign | ast.AugAssign | ast.Expr) and not _is_docstring(node):
            replacements.append(("left out", ast.Pass()))
        if isinstance(node, ast.If):
            replacements += [("always", ast.If(ast.Constant(True), node.body, node.orelse))]
            replacements += [("never", ast.If(ast.Constant(False), node.body, node.orelse))]
        for what, new in replacements:
            name_of_it = f"line {getattr(node, 'lineno', 0)}, {ast.unparse(node)[:50]!r}: {what}"
            with _put(parent, name, index, copy.deepcopy(new)):
                yield name_of_it, ast.fix_missing_locations(tree)


@contextlib.contextmanager
def _put(parent: ast.AST, name: str, index: int | None, new: ast.AST) -> Iterator[None]:
    """``new`` in the place of a node; the node comes back in the end. (Copying the whole tree takes much longer.)"""
    owner, place = (vars(parent), name) if index is None else (getattr(parent, name), index)
    old, owner[place] = owner[place], new
    try:
        yield
    finally:
        owner[place] = old


def _places(parent: ast.AST, tree: ast.FunctionDef) -> Iterator[tuple[str, int | None]]:
    for name, value in ast.iter_fields(parent):
        if name in ("annotation", "returns", "decorator_list", "args") and not isinstance(parent, ast.Call):
            continue
        if isinstance(value, list):
            yield from ((name, index) for index, item in enumerate(value) if isinstance(item, ast.AST))
        elif isinstance(value, ast.AST):
            yield name, None


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def source_mutants(exercise: Exercise) -> Iterator[Mutant]:
    """The oracle, or a function of its file that it calls, changed in one place."""
    module = sys.modules[exercise.oracle.__module__]
    tree = ast.parse(inspect.getsource(module))
    functions = {node.name: _plain(node) for node in tree.body if isinstance(node, ast.FunctionDef)}
    called = _called(exercise.oracle.__name__, functions)
    right = {name: _code(functions[name]) for name in called}
    for name in called:
        for what, changed in _mutated_trees(functions[name]):
            try:
                wrong = _code(changed)
            except (SyntaxError, TypeError, ValueError):
                continue
            space = dict(vars(module))
            for other in reversed(called):  # so that all see the changed one
                exec(wrong if other == name else right[other], space)
            yield Mutant(f"{name}, {what}", space[exercise.oracle.__name__])


def _plain(function: ast.FunctionDef) -> ast.FunctionDef:
    """Without decorators and annotations, which a mutant needs no more."""
    function.decorator_list, function.returns = [], None
    for argument in function.args.args + function.args.kwonlyargs:
        argument.annotation = None
    return function


def _code(function: ast.FunctionDef) -> types.CodeType:
    return compile(ast.Module([function], []), "mutant", "exec")


def _called(name: str, functions: dict[str, ast.FunctionDef]) -> list[str]:
    found, waiting = [], [name]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found.append(current)
        used = [node for node in ast.walk(functions[current]) if isinstance(node, ast.Name)]
        names = {node.id for node in used} - {node.id for node in used if isinstance(node.ctx, ast.Store)}
        waiting += sorted(names & set(functions) - set(found))
    return found


def whole_mutants(exercise: Exercise) -> Iterator[Mutant]:
    """The right answer with something done to what comes in or goes out."""

    def after(change: Callable[[np.ndarray], Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
        for index, output in enumerate(exercise.outputs):

            def function(*arguments: Any, index: int = index) -> tuple[np.ndarray, ...]:
                outputs = list(as_outputs(exercise.oracle(*arguments)))
                outputs[index] = np.asarray(change(outputs[index]))
                return tuple(outputs)

            yield output.name, function

    changes: dict[str, Callable[[np.ndarray], Any]] = {
        "squeezed": np.squeeze,
        "absolute value": np.abs,
        "not below 0": lambda x: np.maximum(x, 0),
        "rounded to float16": lambda x: x.astype(np.float16) if x.dtype.kind == "f" else x + 1,
        "first row for all": lambda x: np.broadcast_to(x[:1], x.shape) if x.ndim else x + 1,
        "sorted": lambda x: np.sort(x, axis=-1) if x.ndim else x + 1,
    }
    for what, change in changes.items():
        for name, function in after(change):
            yield Mutant(f"{name} {what}", function)
    for index, name in enumerate(exercise.parameters):
        yield from _blind(exercise, index, name)


def _blind(exercise: Exercise, index: int, name: str) -> Iterator[Mutant]:
    def changed(change: Callable[[Any], Any]) -> Callable[..., Any]:
        def function(*arguments: Any) -> Any:
            values = list(arguments)
            values[index] = change(values[index])
            return exercise.oracle(*values)

        return function

    changes: dict[str, Callable[[Any], Any]] = {
        "as its absolute value": lambda x: np.abs(x) if _is_real(x) else None,
        "of the first row alone": lambda x: np.broadcast_to(x[:1], x.shape),
        "of its first element alone": lambda x: np.full_like(x, x.flat[0]),
        "as a mask": lambda x: (x != 0).astype(x.dtype),
        "one more": lambda x: x + 1 if _is_real(x) else None,
        "in the other order": lambda x: x[::-1],
        "rounded to whole numbers": lambda x: np.round(x) if _is_real(x) else None,
    }
    for what, change in changes.items():
        yield Mutant(f"{name} {what}", changed(change))


def _is_real(value: Any) -> bool:
    return np.asarray(value).dtype.kind == "f"


def told_apart(exercise: Exercise, mutant: Mutant) -> bool:
    """Whether some case shows the mutant to be wrong: in structure, shape, value or by raising."""
    for case in exercise.cases:
        if case.dtype:  # traced, not computed
            continue
        given = tuple(value.copy() if isinstance(value, np.ndarray) else value for value in case.arguments)
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                got = run_limited(lambda: as_outputs(mutant.function(*map(widen, given))), TIME_LIMIT)  # noqa: B023
        except (Raised, TimeLimitExceeded):
            return True
        expected = expected_outputs(exercise, case)
        if len(got) != len(expected):
            return True
        if not all(_same(right, answer, tolerance(case)) for right, answer in zip(expected, got, strict=True)):
            return True
    return False


def _same(right: np.ndarray, answer: np.ndarray, allowed: Any) -> bool:
    if answer.dtype.kind not in "iufb":
        return False
    if right.dtype.kind in "iub" and answer.dtype.kind == "f" and not np.array_equal(answer, np.round(answer)):
        return False
    return alike(right, answer, allowed)


@dataclasses.dataclass
class Tally:
    """What became of the mutants of one exercise."""

    mutants: int
    equivalent: dict[str, str]
    survivors: list[str]


def tally(exercise: Exercise) -> Tally:
    """Tries every mutant of an exercise on all its cases."""
    mutants = [*source_mutants(exercise), *whole_mutants(exercise)]
    alive = [mutant.name for mutant in mutants if not told_apart(exercise, mutant)]
    equivalent = {name: reason for name in alive if (reason := why_equivalent(exercise.id, name))}
    return Tally(len(mutants), equivalent, [name for name in alive if name not in equivalent])


def why_equivalent(id: str, name: str) -> str | None:
    """The reason why a mutant computes the same for every valid input, if one is written down."""
    return next((reason for pattern, reason in EQUIVALENT.get(id, ()) if re.search(pattern, name)), None)


def main(ids: list[str]) -> None:
    total = 0
    print(f"{'exercise':28} {'made':>4} {'killed':>6} {'equivalent':>10} {'survivors':>9}")
    for id in ids or list(CATALOGUE):
        found = tally(CATALOGUE[id])
        total += found.mutants
        killed = found.mutants - len(found.equivalent) - len(found.survivors)
        print(f"{id:28} {found.mutants:4} {killed:6} {len(found.equivalent):10} {len(found.survivors):9}")
        for name in found.survivors:
            print(f"      {name}")
    print(total, "mutants")


if __name__ == "__main__":
    main(sys.argv[1:])
