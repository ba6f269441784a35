"""Read nested options (plain values, as YAML has them) into dataclasses of settings."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from headwatch.errors import UserError

Settings = TypeVar("Settings")

_TYPE_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Sequence: "a list of names",
}


def read_settings(kind: type[Settings], options: Any, prefix: str) -> Settings:
    """An instance of a dataclass from its options; a field that is a dataclass itself takes a mapping.

    Args:
        kind: the dataclass. The messages of its own UserErrors start with the field's name.
        options: field -> value; fields that are left out have their defaults.
        prefix: precedes every option's name in messages: "headwatch.every=0 must be ...".

    Raises:
        UserError: an unknown option (with the nearest one), a value of the wrong type, or one that `kind` refuses.
    """
    if not isinstance(options, Mapping):
        raise UserError(f"{prefix}={options!r}: write options as `name: value` below it")
    hints, values = get_type_hints(kind), {}
    for name, value in options.items():
        full = f"{prefix}.{name}"
        if name not in hints:
            raise UserError(f"{full}: no such option; the nearest is {nearest_option(full, kind, prefix)}")
        if _is_group(hints[name]):
            values[name] = read_settings(hints[name], {} if value is None else value, full)
        else:
            values[name] = _typed(value, hints[name], getattr(kind, name, None), full)
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{prefix}.{error}") from error


def as_settings(kind: type[Settings], given: Any, name: str) -> Settings:
    """`given` as an instance of the dataclass `kind`: an instance, a mapping of fields, or None for the defaults."""
    if given is None:
        return kind()
    if isinstance(given, kind):
        return given
    if isinstance(given, Mapping):
        return read_settings(kind, given, name)
    raise UserError(f"{name}={given!r}: give {kind.__name__}(...) or a mapping of its fields")


def option_names(kind: type[Any], prefix: str) -> Iterator[str]:
    """The full name of every option of a dataclass, such as headwatch.evidence.q."""
    for name, hint in get_type_hints(kind).items():
        if _is_group(hint):
            yield from option_names(hint, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}"


def nearest_option(full: str, kind: type[Any], prefix: str) -> str:
    """The known option nearest to a full name: one whose last part is the same, else the most similar one."""
    known = list(option_names(kind, prefix))
    last = full.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last]
    return same[0] if same else get_close_matches(full, known, n=1, cutoff=0.0)[0]


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)


def _typed(value: Any, hint: Any, default: Any, name: str) -> Any:
    """The value if it has the field's type; what YAML reads as another type (1e-3, off) is converted."""
    types = {get_origin(t) or t for t in (get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,))}
    if value is None and NoneType in types:
        return None
    if isinstance(value, bool):
        if bool in types:
            return value
        if str in types and not value:  # a bare `off` or `no`
            return "off"
    elif isinstance(value, int | float):
        if float in types or (int in types and isinstance(value, int)):
            return value
    elif isinstance(value, str):
        if str in types:
            return value
        with suppress(ValueError):
            if float in types:  # 1e-3 is text in YAML
                return float(value)
    elif isinstance(value, list | tuple):
        if Sequence in types and all(isinstance(item, str) for item in value):
            return tuple(value) if isinstance(default, tuple) else value
    elif isinstance(value, tuple(types - {Sequence})):  # from Python: a path, a ProbeSet, a callable
        return value
    expected = " or ".join(text for kind, text in _TYPE_NAMES.items() if kind in types)
    has_example = isinstance(default, int | float | str) and not isinstance(default, bool)
    raise UserError(f"{name}={value!r} must be {expected}{f', such as {default}' if has_example else ''}")
