"""Schemas of the files that are read: a value is checked where it enters, and refused with one line."""

from typing import Any

from pydantic import TypeAdapter, ValidationError


def problem(schema: TypeAdapter[Any], value: Any) -> str | None:
    """What is wrong with a value, in one line such as "model.n_layers: Input should be a valid integer"; None if valid.

    Args:
        schema: what the value must be. Types are not converted: "8" is not an integer.
        value: as json.loads returned it.
    """
    try:
        schema.validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        text = " ".join(str(first["msg"]).split())
        return f"{where}: {text}" if where else text
    except RecursionError:
        return "nested too deeply"
    return None
