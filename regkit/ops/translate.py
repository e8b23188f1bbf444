"""A formula's source, written anew in another language: one expression, one statement at a time."""

import ast
import builtins
import ctypes
import inspect
import math
import operator
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from regkit.errors import InputError
from regkit.ops.formula import VOCABULARY, Formula

ALLOWED = (
    "assignments to single names and one return at the end, of + - * /, comparisons (as the "
    "condition of where), numbers, float constants of the module and calls of "
    + ", ".join(sorted(VOCABULARY))
)
_OPERATIONS: dict[type[ast.operator], tuple[str, Callable[[float, float], float]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}
_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}


@dataclass(frozen=True)
class Dialect:
    """How a language writes what differs: calls, by the vocabulary's names, and numbers."""

    calls: Mapping[str, str]
    number: Callable[[float], str]


@dataclass(frozen=True)
class Body:
    """A translated body: parameters, (name, expression) of each assignment, what is returned.

    Names end in an underscore, so that none is a word of the language or of its library.
    """

    parameters: tuple[str, ...]
    assignments: tuple[tuple[str, str], ...]
    result: str


@dataclass(frozen=True)
class _Expression:
    """constant: its value, where it has one before the program runs."""

    text: str
    constant: float | None = None
    is_condition: bool = False


def translate(formula: Formula, dialect: Dialect) -> Body:
    """Write the body of a formula in another language.

    Raises: InputError for anything that formulas do not know, with its line.
    """
    return _Translator(formula, dialect).body()


class _Translator:
    def __init__(self, formula: Formula, dialect: Dialect) -> None:
        self._formula = formula
        self._dialect = dialect
        self._known = set(inspect.signature(formula.source).parameters)
        try:
            lines, self._first_line = inspect.getsourcelines(formula.source)
        except (OSError, TypeError) as error:
            raise InputError(
                f"formula {formula.__qualname__} has no source that can be read; write it in a "
                "file."
            ) from error
        tree = ast.parse(textwrap.dedent("".join(lines))).body[0]
        if not isinstance(tree, ast.FunctionDef):
            self._refuse(tree)
        self._function = tree

    def body(self) -> Body:
        parameters = tuple(
            f"{name}_" for name in inspect.signature(self._formula.source).parameters
        )
        *statements, last = self._statements()
        if not isinstance(last, ast.Return) or last.value is None:
            self._refuse(last)
        made = []
        for statement in statements:
            if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
                self._refuse(statement)
            (target,) = statement.targets
            if not isinstance(target, ast.Name):
                self._refuse(target)
            made.append((f"{target.id}_", self._number(statement.value).text))
            self._known.add(target.id)
        return Body(parameters, tuple(made), self._number(last.value).text)

    def _statements(self) -> list[ast.stmt]:
        first, *rest = self._function.body
        docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        return rest or [first] if docstring else [first, *rest]

    def _number(self, node: ast.expr) -> _Expression:
        """Translate what is a number, no condition."""
        found = self._expression(node)
        if found.is_condition:
            self._refuse(node)
        if found.constant is None:
            return found
        single = ctypes.c_float(found.constant).value
        lost = math.isinf(single) != math.isinf(found.constant) or (single == 0) != (
            found.constant == 0
        )
        if lost or math.isnan(single):
            self._refuse(node, f"{found.constant!r}, which is no number of float32,")
        return _Expression(self._dialect.number(found.constant), found.constant)

    def _expression(self, node: ast.expr) -> _Expression:
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return _Expression("", float(value))
            case ast.Name(id=name):
                return self._name(node, name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                inner = self._number(operand)
                constant = None if inner.constant is None else -inner.constant
                return _Expression(f"(-{inner.text})", constant)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
                sign, fold = _OPERATIONS[type(op)]
                a, b = self._number(left), self._number(right)
                return _Expression(f"({a.text} {sign} {b.text})", self._folded(node, fold, a, b))
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
                a, b = self._number(left), self._number(right)
                return _Expression(f"({a.text} {_COMPARISONS[type(op)]} {b.text})", None, True)
            case ast.Call(func=ast.Name(id=name), args=values, keywords=[]):
                return self._call(node, name, values)
        self._refuse(node)

    def _name(self, node: ast.expr, name: str) -> _Expression:
        if name in self._known:
            return _Expression(f"{name}_")
        value = self._global(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _Expression("", float(value))
        self._refuse(node)

    def _call(self, node: ast.expr, name: str, values: list[ast.expr]) -> _Expression:
        function = VOCABULARY.get(name)
        if function is None or name in self._known or self._global(name) is not function:
            self._refuse(node)
        if len(values) != len(inspect.signature(function).parameters):
            self._refuse(node, f"a call of {name} with {len(values)} arguments")
        if name == "where":
            condition = self._expression(values[0])
            if not condition.is_condition:
                self._refuse(values[0])
            made = [condition, *map(self._number, values[1:])]
            constant = None
        else:
            made = [self._number(value) for value in values]
            constant = self._folded(node, function, *made)
        arguments = ", ".join(expression.text for expression in made)
        return _Expression(f"{self._dialect.calls[name]}({arguments})", constant)

    def _folded(
        self, node: ast.expr, function: Callable[..., float], *values: _Expression
    ) -> float | None:
        """Return what a function of constants is."""
        constants = [value.constant for value in values]
        if None in constants:
            return None
        try:
            return float(function(*constants))
        except ArithmeticError:
            self._refuse(node)

    def _global(self, name: str) -> Any:
        names = getattr(self._formula.source, "__globals__", {})
        return names.get(name, getattr(builtins, name, None))

    def _refuse(self, node: ast.AST, what: str = "") -> NoReturn:
        source, line = self._formula.source, self._first_line + getattr(node, "lineno", 1) - 1
        raise InputError(
            f"formula {self._formula.__qualname__} has {what or repr(ast.unparse(node))} in line "
            f"{line} of {inspect.getsourcefile(source)}, which kernels do not know; a formula is "
            f"{ALLOWED}."
        )
