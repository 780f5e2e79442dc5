"""The tensors of a whole module that was pickled with ``torch.save(model)``, read without its code.

MLPerf publishes its two SSDs so (``resnet34-ssd1200.pytorch``, ``ssd_mobilenet_v1.pytorch``; mlcommons/
inference, vision/classification_and_detection/python/backend_pytorch_native.py, ``load``, unpickles them
with the classes of models/ at hand). Here every class that the pickle names, but those that make up a
tensor, is replaced by an empty one that runs nothing; what was put into the modules is then collected.
"""

import pickle
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

BUILT = {
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.nn.parameter", "Parameter"): nn.Parameter,
    ("torch", "Size"): torch.Size,
}
"""What is built as it says; storages, which torch's own reader looks up, besides."""


class Inert:
    """Stands for an object of any class: takes whatever it is made from and keeps what is set on it."""

    dump_patches = False
    """torch's reader asks it of the classes of modules, to write changes of source to files."""

    def __new__(cls, *args: object, **keys: object) -> "Inert":  # noqa: ARG004  taken, not used
        return super().__new__(cls)

    def __init__(self, *args: object, **keys: object) -> None:
        """Nothing is done with them."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)

    def __setitem__(self, key: object, value: object) -> None:
        """As a dict, a list or a set is filled while it is read: nothing is kept."""

    def append(self, item: object) -> None:
        """Nothing is kept."""

    def extend(self, items: object) -> None:
        """Nothing is kept."""

    def add(self, item: object) -> None:
        """Nothing is kept."""


class Unpickler(pickle.Unpickler):
    """The name under which torch.load looks for it in its ``pickle_module``."""

    def find_class(self, module: str, name: str) -> Any:
        known = BUILT.get((module, name))
        return known if known is not None else type(name, (Inert,), {})


def _tensors(module: Inert, prefix: str) -> Iterator[tuple[str, Tensor]]:
    parts = vars(module)
    passing = parts.get("_non_persistent_buffers_set")
    passing = passing if isinstance(passing, set) else set()
    for kind in ("_parameters", "_buffers"):
        for name, tensor in _members(parts, kind):
            if isinstance(tensor, Tensor) and not (kind == "_buffers" and name in passing):
                yield prefix + name, tensor.detach()

    for name, child in _members(parts, "_modules"):
        if isinstance(child, Inert):
            yield from _tensors(child, f"{prefix}{name}.")


def _members(parts: Mapping[str, Any], kind: str) -> list[tuple[str, Any]]:
    members = parts.get(kind)
    return [(str(name), one) for name, one in members.items()] if isinstance(members, dict) else []


def load(stream: Any, **keys: Any) -> Any:
    """What torch.load reads the parts before the module itself with."""
    return Unpickler(stream, **keys).load()


def read_module(path: Path) -> dict[str, Tensor] | None:
    """The state_dict of the module in ``path``, by the names that its own ``state_dict()`` would give; None
    if the file holds something else than a module.

    Raises:
        pickle.UnpicklingError, RuntimeError, OSError and others that torch.load ends in: the file is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the source of the stand-ins is not that of the classes
        loaded = torch.load(path, map_location="cpu", pickle_module=sys.modules[__name__], weights_only=False)

    if not isinstance(loaded, Inert) or not isinstance(vars(loaded).get("_modules"), Mapping):
        return None

    return dict(_tensors(loaded, ""))
