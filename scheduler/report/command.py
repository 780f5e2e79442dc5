"""The command line that asks for a run again, from what its manifest keeps of it."""

import shlex
from collections.abc import Mapping
from decimal import Decimal
from typing import Any


def command_of(spec: Mapping[str, Any]) -> str:
    """``hetero-mig --main …``, ready for a shell, with every option that is not as it is by default.

    Args:
        spec: the manifest's ``spec``: a RunSpec as JSON.
    """
    from scheduler.spec import RunSpec

    words = ["hetero-mig"]
    for name, field in RunSpec.model_fields.items():
        value = spec.get(name)
        if name != "main" and (
            value is None or value == _plain(field.get_default(call_default_factory=True))
        ):
            continue

        words += _words("--" + name.replace("_", "-"), value)

    return shlex.join(words)


def _words(option: str, value: object) -> list[str]:
    if isinstance(value, Mapping):
        return [word for name, item in value.items() for word in (option, f"{name}={item}")]

    if isinstance(value, list | tuple):
        return [option, ",".join(map(str, value))]

    if isinstance(value, bool):
        return [option] if value else []

    if isinstance(value, float):
        return [option, _rate(value) if option == "--telemetry" else _decimal(value, option)]

    return [option, str(value)]


def _rate(hz: float) -> str:
    return f"{_digits(hz)}hz" if hz else "off"


def _decimal(value: float, option: str) -> str:
    """All options in seconds are durations, which want their unit; of the others in decimals there is one."""
    if option == "--target-qps":
        return str(value)

    whole_ms = round(value * 1000)
    return f"{whole_ms}ms" if value < 1 and whole_ms / 1000 == value else f"{_digits(value)}s"


def _digits(value: float) -> str:
    """All of them, and no exponent, which durations do not have."""
    return f"{Decimal(str(value)).normalize():f}"


def _plain(default: object) -> object:
    return list(default) if isinstance(default, tuple) else default
