r"""LaTeX of school and contest mathematics -> a small tree. A parser by hand, for expressions only.

    read_expression(r"\frac{x}{2} + 1")    # ("+", ("/", ("name", "x"), ("number", 2)), ("number", 1))
    read_relation(r"2 < x \le 5")         # the expressions 2, x, 5 and the operators "<", "<="

Not LaTeX in general: what it does not know for certain raises Unreadable, and sympy is asked instead. The
texts have been through eval.normalise.tidy. Nothing here evaluates: that is eval.identity.
"""

import re
from fractions import Fraction
from typing import Any, NamedTuple

Tree = tuple[Any, ...]
"""("number", Fraction), ("name", str), ("constant", "pi" | "e" | "i"), (operator, tree, ...)."""

MOST_TOKENS = 600
DEEPEST = 60

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<command>\\[A-Za-z]+|\\[{}|])"
    r"|(?P<letters>[A-Za-z]+)|(?P<sign>\*\*|<=|>=|!=|[-+*/^_!|()\[\]{}<>=']))"
)
_FUNCTIONS = {
    name: name
    for name in (
        *("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth"),
        *("arcsin", "arccos", "arctan", "exp", "ln", "log"),
    )
} | {"lg": "log", "asin": "arcsin", "acos": "arccos", "atan": "arctan"}
_INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_GREEK = {
    *("alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota"),
    *("kappa", "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "phi", "varphi", "chi", "psi", "omega"),
    *("Gamma", "Delta", "Theta", "Lambda", "Sigma", "Phi", "Psi", "Omega", "ell"),
}
_RELATIONS = {
    "=": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "\\le": "<=", "\\ge": ">=",
    "\\ne": "!=", "\\lt": "<", "\\gt": ">",
}  # fmt: skip
_SAME = {"**": "^", "\\cdot": "*", "\\times": "*", "\\div": "/"}
_CLOSING = {"(": ")", "[": "]", "{": "}", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
# A run of three letters is a product only of letters that products are made of: "abc", but not "the".
_PRODUCT = re.compile(r"[A-Za-z]{1,2}|[abcdkmnpqrstuvwxyz]{3}")
_NOT_PRODUCTS = {"mod", "gcd", "lcm", "max", "min", "or", "is", "to", "if", "in", "of", "at", "no", "and"}
# f(2) is a value of f; x(x+1) is a product.
_CALLED = set("fghFGHPQ")


class Unreadable(ValueError):
    """The text is no expression that this parser knows for certain."""


class Relation(NamedTuple):
    """sides[0] operators[0] sides[1] ..., as in 2 < x <= 5."""

    sides: tuple[Tree, ...]
    operators: tuple[str, ...]


def read_expression(text: str) -> Tree:
    """Return the tree of one expression. Raises Unreadable."""
    parser = _Parser(text)
    tree = parser.sum()
    parser.expect_end()
    return tree


def read_relation(text: str) -> Relation:
    """Return two or more expressions with =, <, >, <=, >= or != between them. Raises Unreadable."""
    parser = _Parser(text)
    sides, operators = [parser.sum()], []
    while parser.peek() in _RELATIONS:
        operators.append(_RELATIONS[parser.take()])
        sides.append(parser.sum())
    parser.expect_end()
    if not operators:
        raise Unreadable("no relation")
    return Relation(tuple(sides), tuple(operators))


def names_in(tree: Tree) -> set[str]:
    """Return the names of the variables in a tree."""
    if tree[0] == "name":
        return {tree[1]}
    return {name for part in tree[1:] if isinstance(part, tuple) for name in names_in(part)}


def operators_in(tree: Tree) -> set[str]:
    """Return the operators and functions in a tree."""
    found = {tree[0]}
    for part in tree[1:]:
        if isinstance(part, tuple):
            found |= operators_in(part)
    return found


def with_decimal_logarithms(tree: Tree) -> Tree:
    """Return the tree with every log without a base as the one to base 10."""
    parts = tuple(with_decimal_logarithms(part) if isinstance(part, tuple) else part for part in tree)
    if tree[0] != "log":
        return parts
    return ("/", ("ln", parts[1]), ("ln", ("number", Fraction(10))))


class _Parser:
    """Recursive descent, one method a level of precedence."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        position = 0
        text = text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None or len(self.tokens) > MOST_TOKENS:
                raise Unreadable(text[position : position + 20])
            self._add(match.group(match.lastgroup or 0))
            position = match.end()
        self.at = 0
        self.depth = 0

    def _add(self, token: str) -> None:
        """A run of letters is a function, a constant or a product of letters."""
        if not token[0].isalpha():
            self.tokens.append(_SAME.get(token, token))
        elif token in _FUNCTIONS or token in ("sqrt", "pi"):
            self.tokens.append("\\" + token)
        elif _PRODUCT.fullmatch(token) and token.lower() not in _NOT_PRODUCTS:
            self.tokens += token
        else:
            raise Unreadable(token)

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise Unreadable(f"expected {token}")

    def expect_end(self) -> None:
        if self.peek():
            raise Unreadable(self.peek())

    def sum(self) -> Tree:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable("nested too deep")
        tree = self.product()
        while self.peek() in ("+", "-"):
            operator = self.take()
            tree = (operator, tree, self.product())
        self.depth -= 1
        return tree

    def product(self) -> Tree:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        tree = self.power()
        divided = False
        while True:
            token = self.peek()
            if token in ("*", "/"):
                self.take()
                divided = token == "/"
                sign = self.take() if self.peek() in ("+", "-") else ""
                right = self.power()
                tree = (token, tree, ("neg", right) if sign == "-" else right)
            elif self.starts_factor():
                if divided:  # 1/2x: both readings are in use
                    raise Unreadable("a product after a slash")
                tree = self.juxtaposed(tree)
            else:
                return ("neg", tree) if negative else tree

    def juxtaposed(self, tree: Tree) -> Tree:
        """A factor without an operator before it. 1\\frac{2}{3} is a mixed number, 1 2 is nothing."""
        token = self.peek()
        right = self.power()
        if token[0].isdigit() or token[0] == ".":
            raise Unreadable("a number after a factor")
        if token == "\\frac" and tree[0] == "number" and right[0] == "/":
            is_plain = all(part[0] == "number" for part in right[1:])
            if is_plain and tree[1].denominator == 1:
                if not right[1][1] < right[2][1]:
                    raise Unreadable("a number before an improper fraction")
                return ("+", tree, right)
        return ("*", tree, right)

    def starts_factor(self) -> bool:
        token = self.peek()
        if not token or token in _RELATIONS or token in ("\\}", "\\rfloor", "\\rceil"):
            return False
        if token in ("|", "\\|"):
            return not self.in_bars
        return token[0].isalnum() or token[0] in ".([{\\"

    in_bars = False

    def power(self) -> Tree:
        tree = self.atom()
        while self.peek() in ("!", "^"):
            if self.take() == "!":
                if self.peek() == "!":
                    raise Unreadable("a double factorial")
                tree = ("factorial", tree)
            else:
                tree = ("^", tree, self.exponent())
                if self.peek() == "^":
                    raise Unreadable("a double superscript")
        return tree

    def exponent(self) -> Tree:
        """LaTeX takes one token after ^, but 2^10 in plain text is meant as it looks."""
        if self.peek() == "-":
            self.take()
            return ("neg", self.atom())
        return self.atom()

    def atom(self) -> Tree:
        token = self.take()
        if not token:
            raise Unreadable("the text ends too early")
        if token[0].isdigit() or token[0] == ".":
            if self.peek() == "_":
                raise Unreadable("a number with a base")
            return ("number", Fraction(token))
        if token.isalpha():
            return self.letter(token)
        if token in _CLOSING:
            return self.bracketed(token)
        if token == "|":
            if self.in_bars:
                raise Unreadable("nested bars")
            self.in_bars = True
            tree = self.sum()
            self.expect("|")
            self.in_bars = False
            return ("abs", tree)
        if token.startswith("\\"):
            return self.command(token[1:])
        raise Unreadable(token)

    def bracketed(self, opening: str) -> Tree:
        outer, self.in_bars = self.in_bars, False
        tree = self.sum()
        self.expect(_CLOSING[opening])
        self.in_bars = outer
        return {"\\lfloor": ("floor", tree), "\\lceil": ("ceil", tree)}.get(opening, tree)

    def letter(self, token: str) -> Tree:
        if self.peek() == "(" and token in _CALLED:
            raise Unreadable("a value of a function")
        name = token + self.subscript()
        return ("constant", name) if name in ("e", "i") else ("name", name)

    def subscript(self) -> str:
        """A name's subscript, letters and digits only."""
        found = ""
        while self.peek() == "'":
            found += self.take()
        if self.peek() != "_":
            return found
        self.take()
        braced = self.peek() == "{"
        parts = [self.take()] if not braced else []
        if braced:
            self.take()
            while self.peek() not in ("}", ""):
                parts.append(self.take())
            self.expect("}")
        if not parts or not all(part.isalnum() for part in parts):
            raise Unreadable("a subscript")
        return f"{found}_{''.join(parts)}"

    def command(self, name: str) -> Tree:
        if name == "frac":
            return ("/", self.argument(), self.argument())
        if name in ("binom", "dbinom", "tbinom"):
            return ("binomial", self.argument(), self.argument())
        if name == "sqrt":
            return self.root()
        if name == "pi":
            return ("constant", "pi")
        if name in _FUNCTIONS:
            return self.function(_FUNCTIONS[name])
        if name in _GREEK:
            return ("name", name + self.subscript())
        raise Unreadable(f"\\{name}")

    def root(self) -> Tree:
        degree: Tree = ("number", Fraction(2))
        if self.peek() == "[":
            self.take()
            degree = self.sum()
            self.expect("]")
        return ("root", self.argument(), degree)

    def argument(self) -> Tree:
        """{...}, (...) or, as in \\frac12, a single digit or letter."""
        token = self.take()
        if token in ("{", "("):
            return self.bracketed(token)
        if token.isdigit() and len(token) == 1:
            return ("number", Fraction(token))
        if token.isalpha() and len(token) == 1:
            return self.letter(token)
        raise Unreadable("an argument")

    def function(self, name: str) -> Tree:
        base = exponent = None
        if self.peek() == "_":
            if name != "log":
                raise Unreadable("a subscript of a function")
            self.take()
            base = self.argument_of_base()
        if self.peek() == "^":
            self.take()
            exponent = self.exponent()
        if exponent == ("neg", ("number", Fraction(1))):
            if name not in _INVERSES:
                raise Unreadable("an inverse function")
            name, exponent = _INVERSES[name], None
        inner = self.function_argument()
        tree: Tree = (name, inner) if base is None else ("/", ("ln", inner), ("ln", base))
        return tree if exponent is None else ("^", tree, exponent)

    def argument_of_base(self) -> Tree:
        token = self.take()
        if token == "{":
            return self.bracketed(token)
        if token.isdigit():
            return ("number", Fraction(token))
        if token.isalpha():
            return self.letter(token)
        raise Unreadable("a base")

    def function_argument(self) -> Tree:
        """sin(x) y is a product; sin 2x y takes all factors up to the next function, sign or operator."""
        if self.peek() in ("(", "{", "["):
            return self.power()
        if self.peek()[1:] in _FUNCTIONS:
            return self.power()
        tree = self.power()
        while self.starts_factor() and self.peek()[1:] not in _FUNCTIONS and self.peek() != "(":
            tree = self.juxtaposed(tree)
        if self.peek() in ("/", "("):  # sin x/2, sin x (x+1)
            raise Unreadable("where the argument ends")
        return tree
