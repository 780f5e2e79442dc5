"""Data: run presets, LoadGen settings by MLPerf round, published results, GPU tables, MIG layouts."""

from importlib.resources import files
from typing import Any


def read_yaml(path: str) -> Any:
    """The parsed content of one of the package's YAML files, ``path`` relative to this folder."""
    import yaml

    return yaml.safe_load(files(__name__).joinpath(path).read_text(encoding="utf-8"))
