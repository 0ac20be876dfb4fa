"""What ends a run with a sentence instead of a traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the user's input. The text says what, where and how to mend it, in one or two lines.

    The command line prints it and exits with code 2.
    """


class Stopped(Exception):
    """A run was told to stop and saved first; the command line prints its text and exits with code 143."""


def nearest(name: str, known: Iterable[str], count: int = 2) -> list[str]:
    """Return the known names that are most like `name`: the best, and what is nearly as good."""
    near = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    likeness = [difflib.SequenceMatcher(None, name, other).ratio() for other in near]
    return [other for other, value in zip(near, likeness, strict=True) if value > likeness[0] - 0.1]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x' or 'y'?" with the nearest known names, or the list of all of them."""
    known = list(known)
    near = nearest(name, known)
    if near:
        return "; did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "; known: " + ", ".join(sorted(known))
