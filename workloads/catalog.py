"""The workloads by name: aliases, macros, scenarios, and where the code is. Imports no torch."""

from dataclasses import dataclass
from importlib import import_module

from workloads.protocol import Scenario, Size, Workload, WorkloadOptions

OFFLINE, SERVER, SINGLE, MULTI = (
    Scenario.OFFLINE,
    Scenario.SERVER,
    Scenario.SINGLE_STREAM,
    Scenario.MULTI_STREAM,
)
ALL_SCENARIOS = (OFFLINE, SERVER, SINGLE, MULTI)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One workload as the catalogue knows it."""

    name: str
    aliases: tuple[str, ...] = ()
    scenarios: tuple[Scenario, ...]
    """As main; every workload can be background, always Offline."""
    code: str
    """``module:class`` of the Workload, constructed as ``cls(name, options)``."""
    imports: tuple[str, ...] = ()
    """What takes its module long to import: imported once for all workers where several need it."""
    reads_data: str = ""
    """What kind of folder ``--data`` may name; empty where inputs are always synthetic."""
    task: str
    """What it computes, and on samples of which data set, in a few words."""
    sizes: dict[Size, str]
    """What ``full`` and ``small`` are; ``full`` is MLPerf's architecture."""
    parameters: dict[Size, int]
    flops_per_sample: dict[Size, int]
    """Two FLOPs a multiply-add, on a sample of mean length; counted with torch.utils.flop_counter."""
    batch_size: dict[tuple[str, Size], int]
    """Default by (device kind, size)."""


_ENTRIES = (
    Entry(
        name="resnet50",
        aliases=("resnet", "resnet-50", "resnet50-v1.5"),
        scenarios=ALL_SCENARIOS,
        code="workloads.resnet50:Resnet50",
        reads_data="a folder of JPEG or PNG images, in sub-folders or not",
        imports=("torch", "torchvision"),
        task="image classification, ImageNet",
        sizes={"full": "ResNet-50 v1.5, 3×224×224", "small": "ResNet-50 v1.5, 3×64×64"},
        parameters={"full": 25_557_032, "small": 25_557_032},
        flops_per_sample={"full": 8_178_368_512, "small": 671_383_552},
        batch_size={("cpu", "full"): 8, ("cpu", "small"): 16, ("cuda", "full"): 64, ("cuda", "small"): 64},
    ),
    Entry(
        name="ssd-resnet34",
        aliases=("ssd-large", "ssdresnet34", "ssd"),
        scenarios=ALL_SCENARIOS,
        code="workloads.ssd_resnet34:SsdResnet34",
        imports=("torch", "torchvision"),
        task="object detection, COCO",
        sizes={
            "full": "SSD-ResNet34, 3×1200×1200, 81 classes, 15130 boxes",
            "small": "SSD-ResNet34, 3×300×300, 81 classes, 8732 boxes",
        },
        parameters={"full": 19_972_534, "small": 19_972_534},
        flops_per_sample={"full": 432_831_863_808, "small": 31_724_157_440},
        batch_size={("cpu", "full"): 1, ("cpu", "small"): 1, ("cuda", "full"): 8, ("cuda", "small"): 16},
    ),
    Entry(
        name="ssd-mobilenet",
        aliases=("ssd-small", "ssdmobilenet"),
        scenarios=(OFFLINE, SINGLE, MULTI),
        code="workloads.ssd_mobilenet:SsdMobilenet",
        imports=("torch", "torchvision"),
        task="object detection, COCO",
        sizes={
            "full": "SSD-MobileNet v1, 3×300×300, 91 classes, 1917 boxes",
            "small": "SSD-MobileNet v1, 3×160×160, 91 classes, 540 boxes",
        },
        parameters={"full": 6_796_223, "small": 6_796_223},
        flops_per_sample={"full": 2_474_258_816, "small": 683_440_640},
        batch_size={("cpu", "full"): 4, ("cpu", "small"): 8, ("cuda", "full"): 64, ("cuda", "small"): 64},
    ),
    Entry(
        name="bert",
        aliases=("bert-99", "bert-99.9", "bert-large"),
        scenarios=(OFFLINE, SERVER, SINGLE),
        code="workloads.bert:Bert",
        imports=("torch", "transformers.models.bert.modeling_bert"),
        task="question answering, SQuAD v1.1",
        sizes={
            "full": "BERT-large: 24 layers × 1024, 16 heads, sequence 384",
            "small": "4 layers × 256, 4 heads, sequence 128",
        },
        parameters={"full": 334_094_338, "small": 11_105_282},
        flops_per_sample={"full": 109_984_911_360, "small": 385_514_496},
        batch_size={("cpu", "full"): 1, ("cpu", "small"): 8, ("cuda", "full"): 64, ("cuda", "small"): 64},
    ),
    Entry(
        name="dlrm",
        aliases=("dlrm-99", "dlrm-99.9", "dlrm-v1"),
        scenarios=(OFFLINE, SERVER),
        code="workloads.dlrm:Dlrm",
        imports=("torch",),
        task="recommendation, Criteo Terabyte",
        sizes={
            "full": "DLRM, 13 dense, 26 tables × 128, 188 M rows or what fits the slice",
            "small": "tables of 4000 rows at most, MLPs a quarter as wide",
        },
        parameters={"full": 24_036_595_969, "small": 8_583_617},
        flops_per_sample={"full": 1_327_587_840, "small": 183_893_760},
        batch_size={("cpu", "full"): 8, ("cpu", "small"): 8, ("cuda", "full"): 128, ("cuda", "small"): 128},
    ),
    Entry(
        name="3d-unet",
        aliases=("3dunet", "unet", "unet3d", "3d-unet-99", "3d-unet-99.9"),
        scenarios=(OFFLINE, SINGLE),
        code="workloads.unet3d:Unet3d",
        imports=("torch",),
        task="medical segmentation, KiTS19",
        sizes={
            "full": "3D U-Net, 128³ sliding windows, overlap 0.5, 64 windows a case",
            "small": "32³ windows, a quarter of the filters, a level fewer, 9 windows a case",
        },
        parameters={"full": 31_190_243, "small": 937_131},
        flops_per_sample={"full": 61_138_631_941_953, "small": 8_682_453_134},
        batch_size={("cpu", "full"): 1, ("cpu", "small"): 1, ("cuda", "full"): 1, ("cuda", "small"): 1},
    ),
    Entry(
        name="rnnt",
        aliases=("rnn-t",),
        scenarios=(OFFLINE, SERVER, SINGLE),
        code="workloads.rnnt:Rnnt",
        imports=("torch",),
        task="speech recognition, LibriSpeech",
        sizes={
            "full": "RNN-T, 1024-wide encoder, ≤ 15 s of 16 kHz audio",
            "small": "a quarter as wide, ≤ 15 s of 16 kHz audio",
        },
        parameters={"full": 45_323_037, "small": 3_030_237},
        flops_per_sample={"full": 12_564_424_704, "small": 863_033_856},
        batch_size={("cpu", "full"): 4, ("cpu", "small"): 8, ("cuda", "full"): 256, ("cuda", "small"): 256},
    ),
    Entry(
        name="null",
        scenarios=ALL_SCENARIOS,
        code="workloads.null:Null",
        task="answers at once: measures the harness alone",
        sizes={"full": "no work", "small": "no work"},
        parameters={"full": 0, "small": 0},
        flops_per_sample={"full": 0, "small": 0},
        batch_size={
            ("cpu", "full"): 1024,
            ("cpu", "small"): 1024,
            ("cuda", "full"): 1024,
            ("cuda", "small"): 1024,
        },
    ),
    Entry(
        name="fixed",
        scenarios=ALL_SCENARIOS,
        code="workloads.fixed:Fixed",
        task="a fixed service time a sample, asleep: a load that computes nothing",
        sizes={"full": "10 ms a sample", "small": "1 ms a sample"},
        parameters={"full": 0, "small": 0},
        flops_per_sample={"full": 0, "small": 0},
        batch_size={("cpu", "full"): 1, ("cpu", "small"): 1, ("cuda", "full"): 1, ("cuda", "small"): 1},
    ),
    Entry(
        name="matmul",
        scenarios=ALL_SCENARIOS,
        code="workloads.matmul:Matmul",
        imports=("torch",),
        task="fixed FLOPs: one square matrix product a sample",
        sizes={"full": "4096³", "small": "512³"},
        parameters={"full": 0, "small": 0},
        flops_per_sample={"full": 2 * 4096**3, "small": 2 * 512**3},
        batch_size={("cpu", "full"): 1, ("cpu", "small"): 1, ("cuda", "full"): 8, ("cuda", "small"): 8},
    ),
)

CATALOG: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}

MACROS: dict[str, tuple[str, ...]] = {
    "datacenter": ("3d-unet", "bert", "dlrm", "resnet50", "rnnt", "ssd-resnet34"),
    "edge": ("3d-unet", "bert", "resnet50", "rnnt", "ssd-mobilenet", "ssd-resnet34"),
    "all": ("3d-unet", "bert", "dlrm", "resnet50", "rnnt", "ssd-mobilenet", "ssd-resnet34"),
    "none": (),
}
"""As in MLPerf's HeteroMIG harness."""


def find(name: str) -> Entry | None:
    """The workload by its name or any alias, whatever the case; None if there is none."""
    wanted = name.strip().lower().replace("_", "-")
    for entry in CATALOG.values():
        if wanted == entry.name or wanted in entry.aliases:
            return entry

    return None


def build(name: str, options: WorkloadOptions) -> Workload:
    """Construct a workload of the catalogue (not loaded yet). Imports its module, and torch with it."""
    entry = CATALOG[name]
    module, class_name = entry.code.split(":")
    workload: Workload = getattr(import_module(module), class_name)(name, options)
    return workload
