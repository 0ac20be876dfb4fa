"""The searches, each the plan of one problem: a generator that yields requests and is sent the continuations.

    plan = make_plan(rules)
    request = next(plan)
    request = plan.send(continuations)      # ... until StopIteration, whose value is the candidates

N = `n`, M = `width`. Nothing is batched or called here: that is eval.search.engine.

Beam search and DVTS follow huggingface/search-and-learn.
"""

from collections.abc import Generator, Sequence

from eval.search.rules import Candidate, Request, Rules

Plan = Generator[Request, list[Candidate], list[Candidate]]


def make_plan(rules: Rules) -> Plan:
    """Return the plan of one problem; it ends with the candidates to choose from."""
    if rules.method == "beam":
        return beam(rules)
    if rules.method == "dvts":
        return dvts(rules)
    return independent(rules)


def independent(rules: Rules) -> Plan:
    """N whole responses, drawn independently; of a token budget as many as surely fit, in several rounds."""
    found: list[Candidate] = []
    left = rules.token_budget
    while len(found) < rules.n:
        rows = rules.n - len(found)
        if left is not None:
            rows = min(rows, left // rules.max_new_tokens)
        if rows == 0:
            break
        new = yield Request([Candidate()] * rows, rules.max_new_tokens, to_end=True)
        found += new
        if left is not None:
            left -= sum(one.tokens for one in new)
    return found


def beam(rules: Rules) -> Plan:
    """N beams: each round adds a step to all, scores the whole prefixes and lets the best N / M go on.

    Finished beams leave the pool; it is over when N have finished, none is open, or the budget leaves no more
    than one response: then the best prefixes run to their ends.
    """
    keep = max(1, rules.n // rules.width)
    beams, finished = [Candidate()], []
    left = rules.token_budget
    for number in range(1, rules.max_rounds + 1):
        rows = [beams[k % len(beams)] for k in range(rules.n)]
        is_last = number == rules.max_rounds or _is_last(rules, left, len(rows))
        if is_last:
            rows = _affordable(rules, left, rows)
        new = yield _extend(rules, rows, to_end=is_last)
        if left is not None:
            left -= _spent(rows, new)
        finished += [one for one in new if one.state != "open"]
        beams = best(distinct(new) if rules.distinct else new, keep)
        if not beams or is_last or sum(one.state == "ended" for one in finished) >= rules.n:
            break
    return finished


def dvts(rules: Rules) -> Plan:
    """N / M trees that never meet: each expands M candidates and goes on from its best alone.

    A tree is over when its best candidate is; all candidates of its last expansion are returned.
    """
    width = min(rules.width, rules.n)
    trees = [Candidate()] * (rules.n // width)
    outputs: list[list[Candidate]] = [[] for _ in trees]
    active = list(range(len(trees)))
    left = rules.token_budget
    for number in range(1, rules.max_rounds + 1):
        rows = [trees[k] for k in active for _ in range(width)]
        is_last = number == rules.max_rounds or _is_last(rules, left, len(rows))
        each = width
        if is_last and left is not None:
            # One row a tree, the best trees first, as far as the budget goes.
            active.sort(key=lambda k: -trees[k].rank)
            rows = _affordable(rules, left, [trees[k] for k in active])
            active, each = active[: len(rows)], 1
        new = yield _extend(rules, rows, to_end=is_last)
        if left is not None:
            left -= _spent(rows, new)
        for place, tree in enumerate(active):
            outputs[tree] = new[place * each : (place + 1) * each]
            trees[tree] = max(outputs[tree], key=lambda one: one.rank)  # max keeps the first of equals
        active = [tree for tree in active if trees[tree].state == "open"]
        if not active or is_last:
            break
    return [one for group in outputs for one in group]


def best(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return the `count` open candidates of the highest scores, of equals the earlier."""
    return sorted((one for one in candidates if one.state == "open"), key=lambda one: -one.rank)[:count]


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the first candidate of each text."""
    first: dict[str, Candidate] = {}
    for one in candidates:
        first.setdefault(one.text, one)
    return list(first.values())


def _is_last(rules: Rules, left: int | None, rows: int) -> bool:
    """Whether after one more step of all rows the budget might no longer hold one whole response."""
    return left is not None and left - rows * rules.step_limit < rules.max_new_tokens


def _affordable(rules: Rules, left: int | None, rows: list[Candidate]) -> list[Candidate]:
    """As many rows as may surely run to their ends, at least one: rounds before left room for it."""
    return rows if left is None else rows[: max(1, left // rules.max_new_tokens)]


def _extend(rules: Rules, rows: list[Candidate], *, to_end: bool) -> Request:
    room = max(1, rules.max_new_tokens - max(row.tokens for row in rows))
    return Request(rows, room if to_end else min(rules.step_limit, room), to_end)


def _spent(rows: Sequence[Candidate], new: Sequence[Candidate]) -> int:
    return sum(one.tokens - row.tokens for row, one in zip(rows, new, strict=True))
