"""Where the names come from that a test uses and does not define, found without running anything."""

import ast
import builtins
import symtable
import sys
import types

TRUSTED_MODULES = frozenset(
    ("bisect", "collections", "copy", "datetime", "functools", "heapq", "itertools", "json", "math")
    + ("operator", "random", "re", "string", "sys", "typing")
)
"""Modules that a test may use without importing them."""
assert set(sys.stdlib_module_names) >= TRUSTED_MODULES


_USUAL = frozenset(("METADATA", "check", "candidate"))


def uses_only_its_own(code: types.CodeType) -> bool:
    """Return whether compiled code needs no name besides builtins, METADATA and check: true of most tests,
    and sooner found than `free_names`. False may also mean that it reads an attribute."""
    if not builtins.__dict__.keys() >= set(code.co_names) - _USUAL:
        return False
    return all(uses_only_its_own(part) for part in code.co_consts if isinstance(part, types.CodeType))


def free_names(source: str) -> set[str]:
    """Return the global names that a text reads and nowhere binds, builtins aside. Raises SyntaxError."""
    used: set[str] = set()
    bound: set[str] = set()

    def visit(table: symtable.SymbolTable) -> None:
        for symbol in table.get_symbols():
            is_global = table.get_type() == "module" or symbol.is_global()
            if not is_global:
                continue
            if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace():
                bound.add(symbol.get_name())
            if symbol.is_referenced():
                used.add(symbol.get_name())
        for child in table.get_children():
            visit(child)

    visit(symtable.symtable(source, "<test>", "exec"))
    return used - bound - set(dir(builtins))


def part_before(program: str, entry_point: str) -> tuple[str, set[str]]:
    """Return the text before the first definition of the entry point, and the functions defined in it.

    Of a HumanEval prompt that is what its test may use besides the candidate. Both are empty when the program
    does not parse or has no such definition.
    """
    try:
        body = ast.parse(program).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "", set()
    functions: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef):
            if node.name == entry_point:
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                return "".join(program.splitlines(keepends=True)[: first - 1]), functions
            functions.add(node.name)
    return "", set()
