"""What an engine was made for: the facts that its key in the cache is made of."""

import ast
import platform
from dataclasses import asdict
from hashlib import sha256
from importlib import metadata
from pathlib import Path

from workloads import own
from workloads.protocol import WorkloadOptions

NO_PART_OF_IT = ("device", "seed", "threads", "memory_mib", "weights", "data")
"""Options that change what is computed with, or are told in other words."""
HERE = Path(__file__).parent
CPU_INFO = Path("/proc/cpuinfo")


def facts_of(workload: str, code: str, shape: str, options: WorkloadOptions) -> dict[str, str | int]:
    """The facts of one workload's engine on the device that this process stands on; asks torch for it.

    Args:
        workload: its name.
        code: as catalog.construct takes it.
        shape: what its size is, in words: sequence length, image size, layers.
    """
    import torch

    return {
        "workload": workload,
        "shape": shape,
        **{
            name: value if isinstance(value, int) else str(value)
            for name, value in asdict(options).items()
            if name not in NO_PART_OF_IT
        },
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
        "transformers": metadata.version("transformers"),
        "code": code_digest(code),
        **(_gpu() if options.device == "cuda" else _cpu(options.threads)),
    }


def code_digest(code: str) -> str:
    """First digits of the SHA-256 over the workload's own file and all of ``workloads/`` that it imports, at once or
    late.

    Args:
        code: as catalog.construct takes it.
    """
    kind, _, rest = code.partition(":")
    started, also = f"{kind}.py", list[Path]()
    if kind in (own.FILE, own.ENTRY_POINT):
        started, source = "workloads.guest.py", rest.rpartition(":")[0]
        also = [Path(source)] if kind == own.FILE else _origin(source)
    elif kind == own.HF:
        started, also = "workloads.hf.py", [Path(rest) / "config.json"]

    digest = sha256()
    for path in [*_imported(HERE / started.removeprefix("workloads.")), *also]:
        digest.update(f"{path.name}\0".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")

    return digest.hexdigest()[:16]


def _imported(start: Path) -> list[Path]:
    """The file and those of its folder that it imports, and they in turn, by name."""
    found, todo = set[Path](), [start]
    while todo:
        path = todo.pop()
        if path in found or not path.is_file():
            continue

        found.add(path)
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]

            within = (name.split(".") for name in names if name.startswith("workloads."))
            todo += [HERE / f"{parts[1]}.py" for parts in within]

    return sorted(found)


def _origin(module: str) -> list[Path]:
    found = own.module_spec(module)
    return [Path(found.origin)] if found is not None and found.origin else []


def _gpu() -> dict[str, str | int]:
    import torch

    found = torch.cuda.get_device_properties(0)
    return {
        "device": f"sm_{found.major}{found.minor}",
        "sms": found.multi_processor_count,
        "cuda": str(torch.version.cuda),
    }


def _cpu(threads: int) -> dict[str, str | int]:
    """Compiled for this very processor, and for so many threads."""
    import torch

    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    told = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))
    }
    flags = sha256(told.get("flags", told.get("Features", "")).encode()).hexdigest()[:8]
    return {
        "device": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} flags {flags}",
        "threads": threads,
    }
