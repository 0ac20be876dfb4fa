r"""Judge a final answer: correct, wrong or unjudged, within a bounded time, whatever the text holds.

    grade(r"\frac{1}{2}", r"... so the answer is \boxed{0.5}").status      # "correct"
    grade("(1,2)", "[1,2]").status                                         # "wrong": other brackets

The cascade: plain numbers -> normalise -> equal text -> exact rationals -> structures, element by element ->
expressions and relations in a hundred digits (eval.identity) -> math-verify in a process of its own. Nearly
every answer stops long before the last. docs/grading.md has the rules and the figures.
"""

import re
import time
from fractions import Fraction

from data.schema import Verdict
from eval.answer_forms import are_choices, choice_of, same_ratio, without_gloss
from eval.answers import extract_answer
from eval.expressions import (
    Unreadable,
    names_in,
    operators_in,
    read_expression,
    read_relation,
    with_decimal_logarithms,
)
from eval.identity import same_relation, same_value, value_of
from eval.normalise import (
    are_words,
    is_prose,
    is_word,
    names_agree,
    strip_name,
    tidy,
    without_approximation,
)
from eval.quantities import Quantity, read_quantity, same_quantity, split_unit, units_agree
from eval.relations import as_interval, relations_in
from eval.structures import Structure, read_structure
from eval.sympy_client import WORKER, Outcome, Status, sympy_hazard

LONGEST_ANSWER = 4000
"""Characters of the longest final answer that is looked into; beyond, only equal text is judged."""

# Spaces carry no meaning, but "1 2" is not 12.
_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
_PLAIN = re.compile(r"\s*\$?(-?(?:\d{1,15}|[1-9]\d{0,2}(?:,\d{3})+)(?:\.\d{1,15})?)\s*\.?\s*")
_WORDS_IN_SUM = re.compile(r"(?=.*[-+*/=])[^\\]*?[A-Za-z]{3,}[^\\]*?[A-Za-z]{3,}")
# "1,5" is rather two numbers, and "1,234" a thousand.
_DECIMAL_COMMA = re.compile(r"-?(?:0,\d+|\d+,(?:\d{2}|\d{4,}))")

MAX_ELEMENTS = 64
MAX_DEPTH = 6


def grade(
    gold: str, prediction: str, *, timeout_s: float = 2.0, tolerance: Fraction | None = None
) -> Verdict:
    """Return the verdict on `prediction`, a bare answer or a whole response, against `gold`.

    `unjudged` means that equality could not be decided. `tolerance` is how far a number may lie from the
    gold number and be right (None: equality), for benchmarks whose answers are rounded. Never raises, for any
    two strings. Takes at most `timeout_s` and a little, besides the wait for other threads' comparisons.
    """
    start = time.monotonic()
    plain = _PLAIN.fullmatch(prediction)
    answer = plain[1] if plain else find_answer(prediction)
    status: Status
    if answer is None or not answer.strip():
        status, reason = "wrong", "no answer"
    else:
        expected = gold
        if "\\" in gold or "#" in gold or "nswer" in gold:
            expected = extract_answer(gold, "marked") or gold
        status, reason = _judge(expected, answer, start + timeout_s)
        if tolerance and status != "correct" and _within(expected, answer, tolerance, start + timeout_s):
            status, reason = "correct", "within the tolerance"
    return Verdict(status, reason, time.monotonic() - start)


def find_answer(text: str) -> str | None:
    """Return the final answer of a response; a bare answer is returned as it is."""
    marked = extract_answer(text, "marked")
    if marked is not None:
        return marked
    if not is_prose(text):
        return text
    found = extract_answer(text, "math")
    return text if found is None and is_word(tidy(text[:LONGEST_ANSWER])) else found


def _judge(gold: str, prediction: str, deadline: float) -> Outcome:
    if gold.strip() == prediction.strip():
        return "correct", "same text"
    plain = _PLAIN.fullmatch(gold), _PLAIN.fullmatch(prediction)
    if plain[0] and plain[1]:
        values = [Fraction(match[1].replace(",", "")) for match in plain if match]
        return ("correct", "equal numbers") if values[0] == values[1] else ("wrong", "different numbers")
    if len(gold) > LONGEST_ANSWER or len(prediction) > LONGEST_ANSWER:
        return "unjudged", f"longer than {LONGEST_ANSWER} characters"
    return _compare(tidy(gold), tidy(prediction), deadline, 0)


def _within(gold: str, prediction: str, tolerance: Fraction, deadline: float) -> bool:
    """Whether both are numbers, at most `tolerance` apart."""
    if max(len(gold), len(prediction)) > LONGEST_ANSWER:
        return False
    values = []
    for text in (gold, prediction):
        text = split_unit(strip_name(tidy(text)))[0]
        quantity = read_quantity(text)
        try:
            values.append(quantity.value if quantity else value_of(read_expression(text), deadline=deadline))
        except Unreadable:
            return False
    gold_value, value = values
    return gold_value is not None and value is not None and abs(gold_value - value) <= tolerance


def _compare(gold: str, prediction: str, deadline: float, depth: int) -> Outcome:
    """Compare two tidied answers."""
    gold, prediction = without_approximation(gold), without_gloss(without_approximation(prediction))
    if not names_agree(gold, prediction):
        same = _same_relation(gold, prediction, deadline)  # y = x is x = y
        return ("correct", "the same relation") if same else ("wrong", "another variable")
    values = strip_name(gold), strip_name(prediction)
    if "=" not in "".join(values):  # else one is an equation, which "y =" may belong to
        gold, prediction = values
    if _SPACE.sub("", gold) == _SPACE.sub("", prediction):
        return "correct", "same text after normalising"
    if not prediction:
        return "wrong", "no answer"
    numbers = read_quantity(gold), read_quantity(prediction)
    if numbers[0] and numbers[1]:
        return _compare_quantities(numbers[0], numbers[1])
    if numbers[0] and _WORDS_IN_SUM.match(prediction):
        return "wrong", "words"
    if _decimal_comma(gold, prediction):
        return "correct", "equal numbers"
    choices = choice_of(gold), choice_of(prediction)
    if all(choices) and (gold in choices or prediction in choices):  # one side is the letter alone
        return ("correct", "the same choice") if choices[0] == choices[1] else ("wrong", "another choice")
    same = same_ratio(gold, prediction)
    if same is not None:
        return ("correct", "the same ratio") if same else ("wrong", "another ratio")
    if are_words(gold, prediction) and not are_choices(prediction):
        if depth == 0 and not is_word(gold):
            return "wrong", "no answer"
        same = gold.casefold().split() == prediction.casefold().split()
        return ("correct", "same words") if same else ("wrong", "other words")
    structures = read_structure(gold), read_structure(prediction)
    if relations_in(gold) or relations_in(prediction) or "mathbb" in gold + prediction:
        found = _compare_relations(gold, prediction, structures, deadline, depth)
        if found:
            return found
    if (structures[0] or structures[1]) and depth < MAX_DEPTH:
        found = _compare_structures(*structures, (gold, prediction), deadline, depth)
        if found:
            return found
    return _compare_expressions(gold, prediction, deadline)


def _decimal_comma(gold: str, prediction: str) -> bool:
    """Whether one number is written with a decimal comma and the other with a point: 2,74 and 2.74."""
    for comma, point in ((gold, prediction), (prediction, gold)):
        if _DECIMAL_COMMA.fullmatch(comma) and "." in point:
            value, other = read_quantity(comma.replace(",", ".")), read_quantity(point)
            return bool(value and other and value.value == other.value)
    return False


def _compare_relations(
    gold: str,
    prediction: str,
    structures: tuple[Structure | None, Structure | None],
    deadline: float,
    depth: int,
) -> Outcome | None:
    """Compare where one side at least is an equation or an inequality; None where that stays open."""
    intervals = as_interval(gold), as_interval(prediction)
    if any(intervals) and depth < MAX_DEPTH:
        names = [interval[0] for interval in intervals if interval and interval[0]]
        if len(set(names)) > 1:
            return "wrong", "another variable"
        sets = [
            interval[1] if interval else text
            for interval, text, structure in zip(intervals, (gold, prediction), structures, strict=True)
            if interval or (structure and structure.kind in ("brackets", "union"))
        ]
        if len(sets) == 2:
            return _compare(sets[0], sets[1], deadline, depth + 1)
    signs = relations_in(gold), relations_in(prediction)
    if signs[0] and signs[1]:
        return ("correct", "the same relation") if _same_relation(gold, prediction, deadline) else None
    if signs[0] == ["="] and not any(structures):
        return "wrong", "a value against an equation"
    if not signs[0] and signs[1] == ["="] and not any(structures) and _is_unsolved(prediction):
        return "wrong", "an equation against a value"
    last = [side.rsplit("=", 1)[-1].strip() for side in (gold, prediction)]
    chains = [set(of) == {"="} and len(of) > 1 for of in signs]  # "x = 5 + 6 = 11" against 11
    if any(chains) and not all(signs) and all(last) and not any(structures) and depth < MAX_DEPTH:
        return _compare(last[0], last[1], deadline, depth + 1)
    return None


def _same_relation(gold: str, prediction: str, deadline: float) -> bool | None:
    try:
        return same_relation(read_relation(gold), read_relation(prediction), deadline=deadline)
    except Unreadable:
        return None


def _is_unsolved(text: str) -> bool:
    """Whether an equation leaves its one unknown to be found: x^2 = 4, but not f(2) = 4 or x + y = 4."""
    try:
        left, right = read_relation(text).sides
    except Unreadable:
        return False
    polynomial = operators_in(left) <= {"name", "number", "+", "-", "*", "/", "^", "neg"}
    return polynomial and left[0] != "name" and len(names_in(left)) == 1 and not names_in(right)


def _compare_expressions(gold: str, prediction: str, deadline: float) -> Outcome:
    (gold, unit), (prediction, other) = split_unit(gold), split_unit(prediction)
    if not units_agree(unit, other):
        return "wrong", "another unit"
    try:
        trees = read_expression(gold), read_expression(prediction)
    except Unreadable:
        return _ask_sympy(gold, prediction, deadline)
    same = same_value(*trees, deadline=deadline)
    if same is False and "log" in operators_in(trees[0]) | operators_in(trees[1]):
        decimal = [with_decimal_logarithms(tree) for tree in trees]
        same = bool(same_value(*decimal, deadline=deadline))
    if same is None:
        return _ask_sympy(gold, prediction, deadline)
    return ("correct", "equal values") if same else ("wrong", "different values")


def _compare_quantities(gold: Quantity, prediction: Quantity) -> Outcome:
    return ("correct", "equal numbers") if same_quantity(gold, prediction) else ("wrong", "different numbers")


def _compare_structures(
    gold: Structure | None, prediction: Structure | None, texts: tuple[str, str], deadline: float, depth: int
) -> Outcome | None:
    """Compare element by element; None where the kinds do not settle it."""
    if gold is None or prediction is None:
        return _one_against_several(gold, prediction, texts, deadline, depth)
    if "matrix" in (gold.kind, prediction.kind) and gold.kind != prediction.kind:
        return None
    if not gold.matches_kind(prediction):
        return "wrong", f"{gold.describe()} against {prediction.describe()}"
    if max(len(gold.items), len(prediction.items)) > MAX_ELEMENTS:
        return "unjudged", f"more than {MAX_ELEMENTS} elements"
    ordered = gold.ordered or prediction.ordered
    sets = gold.kind == prediction.kind and (gold.kind == "set" or _solutions(gold, prediction))
    if not sets and (len(gold.items) != len(prediction.items) or gold.shape != prediction.shape):
        return "wrong", "another number of elements"
    if ordered:
        outcomes = [
            _compare(g, p, deadline, depth + 1) for g, p in zip(gold.items, prediction.items, strict=True)
        ]
        return _all_of(outcomes)
    if sets:
        outcomes = [_any_of(g, prediction.items, deadline, depth) for g in gold.items]
        outcomes += [_any_of(p, gold.items, deadline, depth) for p in prediction.items]
        return _all_of(outcomes)
    return _match_multiset(gold.items, prediction.items, deadline, depth)


def _one_against_several(
    gold: Structure | None, prediction: Structure | None, texts: tuple[str, str], deadline: float, depth: int
) -> Outcome | None:
    """A list is no single value, unless it is that value in several forms: 15 39/40, or 639/40."""
    if prediction and prediction.kind == "list" and len(prediction.items) <= 4:
        outcomes = [_compare(texts[0], item, deadline, depth + 1) for item in prediction.items]
        return _all_of(outcomes) if _all_of(outcomes)[0] == "correct" else ("wrong", "several values")
    one = gold or prediction
    return ("wrong", "one value against several") if one and one.kind == "list" else None


def _solutions(gold: Structure, prediction: Structure) -> bool:
    """Whether both are bare lists of tuples, (1,2),(2,1): solutions of a system, where none counts twice."""
    return gold.kind == "list" and all(
        item.startswith("(") and item.endswith(")") for item in gold.items + prediction.items
    )


def _match_multiset(
    golds: tuple[str, ...], predictions: tuple[str, ...], deadline: float, depth: int
) -> Outcome:
    """Pair the elements off. Greedy is enough: equality is transitive."""
    left = list(predictions)
    outcomes: list[Outcome] = []
    for gold in golds:
        results = []
        for index, prediction in enumerate(left):
            results.append(_compare(gold, prediction, deadline, depth + 1))
            if results[-1][0] == "correct":
                del left[index]
                break
        outcomes.append(_best(results))
    return _all_of(outcomes)


def _any_of(element: str, others: tuple[str, ...], deadline: float, depth: int) -> Outcome:
    results = []
    for other in others:
        results.append(_compare(element, other, deadline, depth + 1))
        if results[-1][0] == "correct":
            break
    return _best(results)


def _best(results: list[Outcome]) -> Outcome:
    order: tuple[Status, ...] = ("correct", "unjudged", "wrong")
    return min(results, key=lambda result: order.index(result[0]), default=("wrong", "an element is missing"))


def _all_of(outcomes: list[Outcome]) -> Outcome:
    """Wrong if one element is, else unjudged if one is, else correct."""
    for status in ("wrong", "unjudged"):
        for outcome in outcomes:
            if outcome[0] == status:
                return status, f"an element: {outcome[1]}"
    return "correct", "equal elements"


def _ask_sympy(gold: str, prediction: str, deadline: float) -> Outcome:
    for side in (gold, prediction):
        if hazard := sympy_hazard(side):
            return "unjudged", hazard
    return WORKER.compare(gold, prediction, deadline - time.monotonic())
