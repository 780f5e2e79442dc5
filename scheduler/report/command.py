"""The command line that asks for a run again, from what its manifest keeps of it."""

import shlex
from collections.abc import Mapping
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

    return [option, _duration(value) if isinstance(value, float) and _lasts(option) else str(value)]


def _lasts(option: str) -> bool:
    """All options in seconds are durations, which want their unit; of the others in decimals there is one."""
    return option != "--target-qps"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:g}s"
        if seconds * 1000 != round(seconds * 1000) or seconds >= 1
        else f"{round(seconds * 1000)}ms"
    )


def _plain(default: object) -> object:
    return list(default) if isinstance(default, tuple) else default
