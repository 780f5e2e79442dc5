"""Data: run presets, LoadGen settings by MLPerf round, published results, GPU tables, MIG layouts."""

from importlib.resources import files
from typing import Any


def read_yaml(path: str) -> Any:
    """The parsed content of one of the package's YAML files, ``path`` relative to this folder."""
    import yaml

    return yaml.safe_load(text_of(path))


def text_of(path: str) -> str:
    """One of the package's files as it is, ``path`` relative to this folder."""
    return files(__name__).joinpath(path).read_text(encoding="utf-8")


def yaml_names(folder: str) -> tuple[str, ...]:
    """The names, without ``.yaml``, of the YAML files in one of this package's folders; in order."""
    place = files(__name__).joinpath(folder)
    if not place.is_dir():
        return ()

    return tuple(
        sorted(each.name.removesuffix(".yaml") for each in place.iterdir() if each.name.endswith(".yaml"))
    )
