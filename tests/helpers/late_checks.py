"""Type checks of the tests (`--jaxtyping-packages` in pyproject.toml), made when a function is first called.

jaxtyping makes two checkers of each function while its module is imported, of thousands that a process never calls; and
each call binds its arguments, and checks them twice. Here a function's checker is made at its first call, and is
jaxtyping's where annotations have shapes, else beartype's own.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import beartype
import jaxtyping

CheckerMaker = Callable[..., Any]

_shapes_checked = jaxtyping.jaxtyped
# The same error as jaxtyping's, which is a TypeError.
_types_checked = beartype.beartype(conf=beartype.BeartypeConf(violation_type=jaxtyping.TypeCheckError))


def install() -> None:
    """Has all modules that jaxtyping's hook imports from now on checked late."""
    jaxtyping.jaxtyped = _late  # type: ignore[assignment]  # by this name the hook's modules find it


def _late(target: Any = None, *, typechecker: CheckerMaker) -> Any:
    """The decorator that the hook writes on every function, innermost, and on every class, outermost."""
    if target is None:
        return functools.partial(_late, typechecker=typechecker)
    if not inspect.isclass(target):
        return _checked_late(target, typechecker)
    init = vars(target).get("__init__")
    # A written __init__ has the decorator already; one that `dataclass` has generated has not.
    if dataclasses.is_dataclass(target) and init is not None and not hasattr(init, "__wrapped__"):
        target.__init__ = _checked_late(init, typechecker)  # type: ignore[misc]
    return target


def _checked_late(function: Callable[..., Any], typechecker: CheckerMaker) -> Callable[..., Any]:
    checked: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        nonlocal checked
        if checked is None:
            checked = _make_checked(function, typechecker)
        return function(*args, **kwargs) if jaxtyping.config.jaxtyping_disable else checked(*args, **kwargs)

    return call


def _make_checked(function: Callable[..., Any], typechecker: CheckerMaker) -> Callable[..., Any]:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:  # a name of an enclosing function, or one for type checkers only: jaxtyping leaves that hint out
        return _shapes_checked(function, typechecker=typechecker)
    if any(_has_shape(hint) for hint in hints.values()):
        return _shapes_checked(function, typechecker=typechecker)
    return _types_checked(function)


def _has_shape(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    parts = hint if isinstance(hint, list) else typing.get_args(hint)  # a list: the arguments of a Callable
    return any(_has_shape(part) for part in parts)
