"""Modules pickled as a whole, as MLPerf publishes its SSDs: their tensors come out, their code stays in."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from workloads import ssd_mobilenet, ssd_resnet34
from workloads.catalog import build
from workloads.pickled_module import read_module
from workloads.protocol import WorkloadError, WorkloadOptions
from workloads.vision import ImageWorkload
from workloads.weights import read_state_dict, seeded

CPU = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=1, seed=7, threads=1, memory_mib=1024
)
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "of 2019"])


@contextmanager
def known_as(module: str, name: str, network: nn.Module) -> Iterator[None]:
    """Within it, the network is of a class that exists nowhere else."""
    kind = type(network)
    stranger = type(name, (kind,), {"__module__": module})
    package = module.split(".")[0]
    sys.modules |= {package: ModuleType(package), module: ModuleType(module)}
    setattr(sys.modules[module], name, stranger)
    network.__class__ = stranger
    try:
        yield
    finally:
        network.__class__ = kind
        del sys.modules[module], sys.modules[package]


def save(content: object, path: Path, *, zipped: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wants the source of every class in the old format
        torch.save(content, path, _use_new_zipfile_serialization=zipped)


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in got.items())


@FORMATS
@pytest.mark.parametrize("parallel", [False, True])
def test_its_state_dict_comes_out(parallel: bool, zipped: bool, tmp_path: Path) -> None:
    network: nn.Module = resnet18()
    network.register_buffer("passing", torch.ones(3), persistent=False)
    network.anything = {"else": [1, {2, 3}, torch.float16, Path("x")]}
    save(nn.DataParallel(network) if parallel else network, tmp_path / "x.pytorch", zipped=zipped)
    assert_equal(read_state_dict(tmp_path / "x.pytorch"), network.state_dict())


@FORMATS
@pytest.mark.parametrize(
    ("name", "module", "kind"),
    [("ssd-resnet34", "models.ssd_r34", "SSD_R34"), ("ssd-mobilenet", "models.ssd_mobilenet_v1", "SSD")],
)
def test_mlperfs_ssds_fit(name: str, module: str, kind: str, zipped: bool, tmp_path: Path) -> None:
    """Of classes of MLPerf's own, which are not to be found when they are read."""
    with seeded(3):
        is_resnet = name == "ssd-resnet34"
        network = ssd_resnet34.network(ssd_resnet34.GRID_1200) if is_resnet else ssd_mobilenet.network()

    path = tmp_path / "model.pytorch"
    with known_as(module, kind, network):
        save(network, path, zipped=zipped)

    assert module not in sys.modules
    workload = build(name, replace(CPU, weights=path))
    assert isinstance(workload, ImageWorkload)
    workload.load()
    assert workload._network is not None
    assert_equal(workload._network.state_dict(), network.state_dict())


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    network = ssd_mobilenet.network()
    network.predictors[0].classification = nn.Conv2d(512, 3 * 21, 1)
    del network.extras[3]
    save(network, tmp_path / "model.pytorch", zipped=True)
    with pytest.raises(WorkloadError) as caught:
        build("ssd-mobilenet", replace(CPU, weights=tmp_path / "model.pytorch")).load()

    message = str(caught.value)
    assert "model.pytorch do not fit SsdMobilenetNetwork" in message
    assert "missing 4 (extras.3.0.weight" in message
    assert "predictors.0.classification.weight is [63, 512, 1, 1], the model has [273, 512, 1, 1]" in message


class Runs:
    """Pickled, it asks for a command to be run."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (self.command,)


@FORMATS
def test_no_code_runs(zipped: bool, tmp_path: Path) -> None:
    network: nn.Module = resnet18()
    network.trap = Runs(f"touch {tmp_path}/was_run")
    save(network, tmp_path / "x.pytorch", zipped=zipped)
    assert_equal(read_state_dict(tmp_path / "x.pytorch"), network.state_dict())

    save({"weight": torch.ones(1), "trap": network.trap}, tmp_path / "x.pytorch", zipped=zipped)
    assert read_module(tmp_path / "x.pytorch") is None
    with pytest.raises(WorkloadError, match=r"x\.pytorch is no plain state_dict"):
        read_state_dict(tmp_path / "x.pytorch")

    assert not (tmp_path / "was_run").exists()


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:'torch.load' received a zip file")
def test_a_torchscript_archive_is_called_by_its_name(tmp_path: Path) -> None:
    """3dunet_kits19_pytorch.ptc is one."""
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "x.ptc")
    with pytest.raises(WorkloadError, match=r"x\.ptc are a TorchScript archive.*take the checkpoint"):
        read_state_dict(tmp_path / "x.ptc")


@FORMATS
def test_a_truncated_file_is_named(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pytorch"
    save(resnet18(), path, zipped=zipped)
    whole = path.read_bytes()
    for length in (0, 100, 3000, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:length])
        with pytest.raises(WorkloadError, match=r"x\.pytorch (is no plain state_dict|cannot be read)"):
            read_state_dict(path)
