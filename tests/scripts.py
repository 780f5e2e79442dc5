"""The programs in scripts/ that are Python, which have no suffix to be imported by."""

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from types import ModuleType

from tests.house import ROOT


def loaded(name: str) -> ModuleType:
    """One of them as a module; its ``main`` is not called."""
    loader = SourceFileLoader(name.replace("-", "_"), str(ROOT / "scripts" / name))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module
