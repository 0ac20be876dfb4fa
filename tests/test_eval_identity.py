"""Expression trees and their values: against sympy's, by hand, and where nothing may be said."""

import time
from fractions import Fraction

import pytest
import sympy

from eval.expressions import Unreadable, names_in, read_expression, read_relation
from eval.identity import same_relation, same_value, value_of

# LaTeX, and the same in sympy's notation.
READ = [
    ("2x^2-3x+1", "2*x**2-3*x+1"),
    (r"-\frac{x+1}{2}", "-(x+1)/2"),
    ("-x^2", "-(x**2)"),
    ("2^{-1}x", "x/2"),
    ("2(x+1)(x-1)", "2*(x+1)*(x-1)"),
    (r"1\frac{2}{3}", "Rational(5,3)"),
    (r"2\frac{\sqrt{3}}{3}", "2*sqrt(3)/3"),
    (r"\sqrt[3]{x^2+5}", "(x**2+5)**Rational(1,3)"),
    (r"\sin 2x", "sin(2*x)"),
    (r"2 \sin b \cos a", "2*sin(b)*cos(a)"),
    (r"\sin^2 x", "sin(x)**2"),
    (r"\sin^{-1}\frac{1}{3}", "asin(Rational(1,3))"),
    (r"\log_2 (x^2+1)", "log(x**2+1)/log(2)"),
    (r"\ln|x|", "log(Abs(x))"),
    (r"|x-1|+|x+2|", "Abs(x-1)+Abs(x+2)"),
    (r"e^{2x}", "exp(2*x)"),
    (r"\frac{3-i}{2}", "(3-I)/2"),
    ("5!/3!", "20"),
    (r"\binom{7}{3}", "35"),
    (r"\lfloor \frac{7}{2} \rfloor + \lceil \pi \rceil", "7"),
    ("x_1 + x_{12}", "x1 + x12"),
    ("3x / 4", "3*x/4"),
    ("a:b", None),
    ("1/2x", None),
    ("f(2)", None),
    ("the", None),
    ("2 3", None),
    (r"\int_0^1 x dx", None),
    ("(1,2)", None),
    ("(x", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "meaning"), READ)
def test_expressions_are_read_as_sympy_has_them(text, meaning):
    if meaning is None:
        with pytest.raises(Unreadable):
            read_expression(text)
        return
    tree = read_expression(text)
    names = sorted(names_in(tree))
    point = {name: Fraction(7 + 3 * k, 3) for k, name in enumerate(names)}
    symbols = {name.replace("_", ""): sympy.Symbol(name.replace("_", "")) for name in names}
    value = sympy.sympify(meaning, locals=symbols)
    at = {symbols[n.replace("_", "")]: sympy.Rational(v.numerator, v.denominator) for n, v in point.items()}
    expected = sympy.N(value.subs(at), 40)
    from eval.identity import _values

    (found,) = _values((tree,), point, time.monotonic() + 9)
    real, imaginary = (sympy.Float(str(part), 40) for part in (complex_parts(found)))
    assert abs(sympy.re(expected) - real) < 1e-25 and abs(sympy.im(expected) - imaginary) < 1e-25


def complex_parts(value):
    if isinstance(value, Fraction):
        return sympy.N(sympy.Rational(value.numerator, value.denominator), 40), 0
    return value.real, value.imag


EQUAL = [
    (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}"),
    (r"\sqrt{2}+\sqrt{3}-\sqrt{5+2\sqrt{6}}", "0"),
    (r"\tan^2 y+1", r"\sec^2 y"),
    (r"\sin(a+b)-\sin(a-b)", r"2 \sin b \cos a"),
    (r"\binom{2n}{n}", r"\frac{(2n)!}{(n!)^2}"),
    ("(-1)^n", r"\cos(n\pi)"),
    (r"\lfloor n/2\rfloor+\lceil n/2\rceil", "n"),
    (r"\ln(xy)", r"\ln x+\ln y"),
    (r"\sqrt[3]{-8}", "-2"),
    (r"\sqrt{x^2}", "|x|"),
    (r"e^{i\pi}", "-1"),
    (r"\frac{10^{40}\sqrt2+1-10^{40}\sqrt2}{1}", "1"),  # nothing but rounding is left in a hundred digits
    ("2^{999}+1", "1+2^{999}"),
]

UNEQUAL = [
    (r"e^{\pi\sqrt{163}}", "262537412640768744"),  # 30 digits agree
    ("x^2", "x^2+10^{-12}"),
    ("x^2", "x^2+10^{-200}"),
    ("2^{999}", "2^{999}+1"),
    (r"2^{999}\sqrt2", r"2^{999}\sqrt2+1"),
    ("e^{-200}", "e^{-201}"),
    (r"\sqrt{x^2}", "x"),
    (r"\frac{1}{x}", r"\frac{1}{|x|}"),
    ("n!", "n^2"),
    ("(-1)^n", "1"),
    (r"\sin x", r"\cos x"),
    (r"1-\frac{1}{e}", r"1+\frac{1}{e}"),
    ("x", "y"),
    (r"\lfloor n/2\rfloor", r"\frac{n}{2}"),
]

OPEN = [
    ("9^{9^9}", "5"),
    (r"\frac{1}{0}", "5"),
    (r"\ln 0", "5"),
    ("(10^9)!", "5"),
    ("e^{e^{e^9}}", "5"),
    ("x!", "y!z^{9999999}"),
]


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [(*p, True) for p in EQUAL] + [(*p, False) for p in UNEQUAL] + [(*p, None) for p in OPEN],
)
def test_values_are_equal_different_or_open(left, right, same):
    started = time.process_time()
    assert same_value(read_expression(left), read_expression(right)) is same
    assert same_value(read_expression(right), read_expression(left)) is same
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("5x-7y+4=0", "5x-7y=-4", True),
        ("5x-7y+4=0", "14y=10x+8", True),
        ("x<1", "-x>-1", True),
        ("x<1", "x>-1", None),
        ("x<1", r"x\le 1", None),
        ("x<1", "1<x", None),
        ("0<x<y", "y>x>0", True),
        ("x^2/4+y^2/3=1", "x^2/16+y^2/12=1/4", True),
        ("x=y", "y=x", True),
        ("x+y=2", "x+2y=2", None),
        ("x=1", "y=1", None),
    ],
)
def test_relations_are_multiples_of_each_other(left, right, same):
    assert same_relation(read_relation(left), read_relation(right)) is same


def test_a_comparison_stops_at_its_deadline():
    tree = read_expression("+".join(f"(x+{k})^{{99}}" for k in range(60)))
    started = time.monotonic()
    assert same_value(tree, tree, deadline=started) is None
    assert time.monotonic() - started < 0.5


def test_value_of_a_constant_is_a_fraction():
    assert value_of(read_expression(r"\frac{3}{4}+2^{-2}")) == 1
    assert abs(value_of(read_expression(r"\sqrt{2}")) ** 2 - 2) < Fraction(1, 10**90)
    assert value_of(read_expression("-e")) < Fraction(-271828, 100000)
    assert value_of(read_expression("x")) is None
    assert value_of(read_expression("i")) is None


def test_hostile_expressions_are_refused():
    for text in ("(" * 5000, "1+" * 5000 + "1", "\\frac" * 900, "\ud800", "x^" * 300, "|" * 99):
        with pytest.raises(Unreadable):
            read_expression(text)
