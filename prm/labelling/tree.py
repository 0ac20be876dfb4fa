"""OmegaPRM: a tree over the prefixes of a problem, grown where an error is most worth finding.

A state is a prefix with its value MC, the share of its K continuations that are right. Wrong continuations of
states with 0 < MC < 1 wait in a pool. Each search takes the one of largest Q + U and halves it; every prefix
that it visits becomes a state, whose own wrong continuations join the pool:

    Q = alpha^(1 - MC(s)) * beta^(len(r) / L)        nearly right states, short continuations
    U = c_puct * sqrt(sum of all visits) / (1 + visits of s)

(arXiv:2406.06592, section 3; lengths in tokens.)
"""

import math
from dataclasses import dataclass, field

from prm.labelling.completer import Continuation, Estimate, Prefix, Search
from prm.labelling.prefixes import PrefixValues, find_first_error


@dataclass(frozen=True, slots=True)
class TreeSettings:
    """The paper's values but for the number of searches, which is 100 there."""

    searches: int = 20
    """Most binary searches in one problem's tree."""
    alpha: float = 0.5
    beta: float = 0.9
    length_scale: float = 500.0
    """L, in tokens: about the longest response."""
    c_puct: float = 0.125


@dataclass
class State:
    """A prefix that was estimated."""

    prefix: Prefix
    estimate: Estimate
    visits: int = 0

    @property
    def value(self) -> float:
        """Share of right continuations in [0, 1]; 0 where none could be judged."""
        return self.estimate.value or 0.0


@dataclass
class Tree:
    """All states of a problem, and what the searches found."""

    states: dict[Prefix, State] = field(default_factory=dict)
    pool: list[tuple[State, Continuation]] = field(default_factory=list)
    found: list[PrefixValues] = field(default_factory=list)
    """One a search: prefix and continuation as a solution, with the values on its way."""
    searches: int = 0

    def add(self, prefix: Prefix, estimate: Estimate) -> State:
        """Make a prefix a state, once, and pool its wrong continuations if it is worth searching."""
        if prefix not in self.states:
            state = self.states[prefix] = State(prefix, estimate)
            if 0 < state.value < 1:
                wrong = [c for c in estimate.continuations if c.is_correct is False and c.steps]
                self.pool += [(state, c) for c in dict.fromkeys(wrong)]
        return self.states[prefix]


def grow_tree(settings: TreeSettings) -> Search:
    """Search that grows one problem's tree from the empty prefix; returns the Tree.

    It ends after `searches`, or when nothing is left to search: a problem whose first continuations are all
    right or all wrong has a tree of one state.
    """
    tree = Tree()
    (estimate,) = yield [()]
    tree.add((), estimate)
    while tree.pool and tree.searches < settings.searches:
        state, continuation = tree.pool.pop(select(tree, settings))
        state.visits += 1
        tree.searches += 1
        found = yield from _search(tree, state, continuation)
        tree.found.append(found)
    return tree


def select(tree: Tree, settings: TreeSettings) -> int:
    """Return the index in the pool of the continuation to search next; the earliest of equals."""
    total = sum(state.visits for state in tree.states.values())

    def worth(item: tuple[State, Continuation]) -> float:
        state, continuation = item
        quality = settings.alpha ** (1 - state.value)
        quality *= settings.beta ** (continuation.tokens / settings.length_scale)
        return quality + settings.c_puct * math.sqrt(total) / (1 + state.visits)

    return max(range(len(tree.pool)), key=lambda index: worth(tree.pool[index]))


def _search(tree: Tree, state: State, continuation: Continuation) -> Search:
    """Halve one wrong continuation; states met before answer for themselves."""
    search = find_first_error(continuation.steps, answer_correct=False)
    evaluations = 0
    answer: list[Estimate] | None = None
    while True:
        try:
            (rest,) = next(search) if answer is None else search.send(answer)
        except StopIteration as stop:
            found: PrefixValues = stop.value
            break
        prefix = (*state.prefix, *rest)
        if prefix not in tree.states:
            (estimate,) = yield [prefix]
            evaluations += 1
            tree.add(prefix, estimate)
        answer = [tree.states[prefix].estimate]
    known = [tree.states.get(state.prefix[:k]) for k in range(1, len(state.prefix) + 1)]
    shift = len(state.prefix)
    return PrefixValues(
        steps=(*state.prefix, *found.steps),
        values=(*[s.estimate.value if s else None for s in known], *found.values),
        first_error=None if found.first_error is None else found.first_error + shift,
        evaluations=evaluations,
        answer_correct=False,
    )


def right_solutions(tree: Tree, most: int) -> list[PrefixValues]:
    """Return up to `most` distinct solutions with a right answer among the tree's continuations, those of
    early states first: without them a PRM would see no right answer."""
    seen: dict[Prefix, PrefixValues] = {}
    for state in tree.states.values():
        for continuation in state.estimate.continuations:
            steps = (*state.prefix, *continuation.steps)
            if len(seen) < most and continuation.is_correct and continuation.steps and steps not in seen:
                known = [tree.states.get(steps[:k]) for k in range(1, len(steps))]
                values = (*[s.estimate.value if s else None for s in known], 1.0)
                seen[steps] = PrefixValues(steps, values, -1, 0, True)
    return list(seen.values())
