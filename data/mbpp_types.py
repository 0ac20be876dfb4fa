"""The Python types of MBPP+ arguments, which its file stores as JSON and therefore as lists.

A shape per parameter: "_" as it stands, T a tuple, L(T) a list of tuples, T(T) a tuple of tuples, D(T) a dict
of tuples, S a list of sets, * every list a tuple, at any depth, F and C a float and a complex number. One
shape before "..." holds for every parameter. The tasks are those that EvalPlus converts.
"""

from typing import Any

_TASKS = {
    "T...": (2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630)
    + (726, 740, 744, 809),
    "L(T)...": (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780),
    "T(T)...": (259, 278, 401, 445),
    "L(T)": (75, 413, 444, 753),
    "_ T": (106, 750),
    "T": (250, 307, 405, 446, 617, 720, 763, 808),
    "D(T)": (722,),
    "S": (115,),
    "F C": (124,),
    "C": (252,),
    "*...": (580, 615, 791),
}
_SHAPES = {task: shape for shape, tasks in _TASKS.items() for task in tasks}


def python_arguments(task: int, arguments: list[Any]) -> list[Any]:
    """Return the arguments of one call of MBPP task number `task`, with the types its function expects."""
    shape = _SHAPES.get(task)
    if shape is None:
        return arguments
    if shape.endswith("..."):
        return [_shaped(shape[:-3], value) for value in arguments]
    shapes = shape.split()
    return [_shaped(s, v) for s, v in zip(shapes, arguments, strict=False)] + arguments[len(shapes) :]


def _shaped(shape: str, value: Any) -> Any:
    match shape:
        case "T":
            return tuple(value) if isinstance(value, list) else value
        case "L(T)":
            return [_shaped("T", item) for item in value]
        case "T(T)":
            return tuple(_shaped("T", item) for item in value)
        case "D(T)":
            return {key: _shaped("T", item) for key, item in value.items()}
        case "S":
            # The reference takes an empty dict where an empty set would be meant.
            return [set(item) if isinstance(item, list) and item else {} for item in value]
        case "*":
            return tuple(_shaped("*", item) for item in value) if isinstance(value, list) else value
        case "F":
            return float(value)
        case "C":
            return complex(value)
    return value
