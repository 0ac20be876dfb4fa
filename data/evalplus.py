"""How EvalPlus compares the values of single tasks, where equality with the reference's is not the rule.

Read in evalplus/eval/__init__.py and _special_oracle.py at commit 26d6d00; eval.sandbox.compare has the rules
themselves. Functions are told apart by their names, as there.
"""

import math
from collections.abc import Sequence
from typing import Any

MOST_ITEMS = 5_000_000
"""A longer value does not fit through the sandbox's channel."""

COMPARED = {
    "find_zero": "root",  # HumanEval/32
    # Any order of the items: Mbpp/2, 7, 111, 140, 232, 249, 579, 769
    **dict.fromkeys(
        ("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly"), "set"
    ),
    **dict.fromkeys(("larg_nnum", "intersection_array", "find_dissimilar", "Diff"), "set"),
    # A match object or any other sign of one: Mbpp/737, 787, 794
    **dict.fromkeys(("check_str", "text_match_three", "text_starta_endb"), "truth"),
    "are_equivalent": "any",  # Mbpp/164, in editions before the one of 378 tasks
}

OTHER_READINGS = {
    # Mbpp/581: the height is the pyramid's, not that of its faces
    "surface_Area": """
def surface_Area(edge, height):
    return round(edge**2 + 2 * edge * ((edge / 2) ** 2 + height**2) ** 0.5)
""",
    # Mbpp/558: the shorter number gets leading zeros
    "digit_distance_nums": """
def digit_distance_nums(a, b):
    width = max(len(str(a)), len(str(b)))
    return sum(abs(int(x) - int(y)) for x, y in zip(str(a).zfill(width), str(b).zfill(width)))
""",
    # Mbpp/295, in editions before the one of 378 tasks: no divisors count as sum 0
    "sum_div": """
def sum_div(number):
    return 0
""",
}
"""A second program whose values are right too, by function."""


def is_judgeable(entry_point: str, arguments: Sequence[Any]) -> bool:
    """Return whether the value of a call is of a length that the sandbox can hand over.

    Three inputs of Mbpp/255 are not: the multisets of 77 out of 4 and out of 5 colours.
    """
    if entry_point != "combinations_colors":
        return True
    colours, count = arguments
    return count * math.comb(len(colours) + count - 1, count) < MOST_ITEMS if colours else True
