"""Which tests of a problem its statement shows: what a solver may try programs on before handing one in.

    cases = shown_cases(statement, [("1\\n", "2\\n"), ("5\\n", "10\\n")])

A case is shown when its input stands in the statement after "Input" and its output after "Output" behind it,
white space aside. Of a statement in another form nothing is found, which is an empty list.
"""

import re
from collections.abc import Sequence

_MOST_CHARS = 20_000
"""Longer inputs stand in no statement."""


def shown_cases(statement: str, cases: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the cases (input, output) that a statement of APPS or CodeContests gives as examples."""
    text = " ".join(statement.split()) + " "
    shown = []
    for given, wanted in cases:
        inputs, outputs = (" ".join(part.split()) for part in (given, wanted))
        if len(inputs) + len(outputs) > _MOST_CHARS or inputs not in text or outputs not in text:
            continue
        # "Input 3 Output 4", "-----Sample Input----- 3 -----Sample Output----- 4", "Sample Input 1: 3 ..."
        pattern = (
            rf"\binput(?: \d)?[-:]* {re.escape(inputs)} (?:\S*sample )?\W*\boutput(?: \d)?[-:]* "
            rf"{re.escape(outputs)} "
        )
        if inputs and outputs and re.search(pattern, text, re.IGNORECASE):
            shown.append((given, wanted))
    return shown
