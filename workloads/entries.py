"""The catalogue's entries: what each workload is, and where its code is. Data; catalog.py looks things up."""

from dataclasses import dataclass

from workloads.protocol import Precision, Scenario, Size

OFFLINE, SERVER, SINGLE, MULTI = (
    Scenario.OFFLINE,
    Scenario.SERVER,
    Scenario.SINGLE_STREAM,
    Scenario.MULTI_STREAM,
)
ALL_SCENARIOS = (OFFLINE, SERVER, SINGLE, MULTI)

FLOATS: tuple[Precision, ...] = ("fp32", "tf32", "bf16", "fp16")
OF_LINEAR_LAYERS: tuple[Precision, ...] = (*FLOATS, "fp8", "int8")
"""Of networks that are mostly linear layers, which are what is quantised; of ViT and Swin those of the MLPs."""


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
    """Empty where it is not known: of the user's own models."""
    flops_per_sample: dict[Size, int]
    """Two FLOPs a multiply-add, on a sample of mean length; counted with torch.utils.flop_counter. Empty where it
    is not known."""
    batch_size: dict[tuple[str, Size], int]
    """Default by (device kind, size)."""
    precisions: tuple[Precision, ...] = FLOATS
    """What it may be asked to compute in; a device may have fewer of them."""
    trains: bool = False
    """Its answers are the losses of training steps, which no accuracy run can judge."""
    longest_sequence: int | None = None
    """Tokens a sample may have at most, where its length can be chosen; None where it cannot."""
    server_target_latency_ms: int | None = None
    """Of an own model that says so; the others' is the round's."""


ENTRIES = (
    Entry(
        name="resnet50",
        aliases=("resnet", "resnet-50", "resnet50-v1.5"),
        scenarios=ALL_SCENARIOS,
        code="workloads.resnet50:Resnet50",
        reads_data="a folder of ImageNet (val_map.txt, or a sub-folder a class), or of images without labels",
        imports=("torch", "torchvision"),
        task="image classification, ImageNet",
        sizes={"full": "ResNet-50 v1.5, 3×224×224", "small": "ResNet-50 v1.5, 3×64×64"},
        parameters={"full": 25_557_032, "small": 25_557_032},
        flops_per_sample={"full": 8_178_368_512, "small": 671_383_552},
        batch_size={("cpu", "full"): 8, ("cpu", "small"): 16, ("cuda", "full"): 256, ("cuda", "small"): 64},
    ),
    Entry(
        name="ssd-resnet34",
        aliases=("ssd-large", "ssdresnet34", "ssd"),
        scenarios=ALL_SCENARIOS,
        code="workloads.ssd_resnet34:SsdResnet34",
        reads_data="a folder of COCO 2017 (annotations and val2017), or of images without labels",
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
        reads_data="a folder of COCO 2017 (annotations and val2017), or of images without labels",
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
        precisions=OF_LINEAR_LAYERS,
        reads_data="a folder with SQuAD v1.1 (dev-v1.1.json) and vocab.txt",
        imports=("torch", "transformers.models.bert.modeling_bert"),
        task="question answering, SQuAD v1.1",
        sizes={
            "full": "BERT-large: 24 layers × 1024, 16 heads, sequence 384",
            "small": "4 layers × 256, 4 heads, sequence 128",
        },
        parameters={"full": 334_094_338, "small": 11_105_282},
        flops_per_sample={"full": 109_984_911_360, "small": 385_514_496},
        batch_size={("cpu", "full"): 1, ("cpu", "small"): 8, ("cuda", "full"): 256, ("cuda", "small"): 64},
    ),
    Entry(
        name="dlrm",
        aliases=("dlrm-99", "dlrm-99.9", "dlrm-v1"),
        scenarios=(OFFLINE, SERVER),
        code="workloads.dlrm:Dlrm",
        reads_data="a folder with Criteo Terabyte's day 23 as MLPerf preprocesses it",
        imports=("torch",),
        task="recommendation, Criteo Terabyte",
        sizes={
            "full": "DLRM, 13 dense, 26 tables × 128, 188 M rows or what fits the slice",
            "small": "tables of 4000 rows at most, MLPs a quarter as wide",
        },
        parameters={"full": 24_036_595_969, "small": 8_583_617},
        flops_per_sample={"full": 1_327_587_840, "small": 183_893_760},
        batch_size={("cpu", "full"): 8, ("cpu", "small"): 8, ("cuda", "full"): 2048, ("cuda", "small"): 128},
    ),
    Entry(
        name="3d-unet",
        aliases=("3dunet", "unet", "unet3d", "3d-unet-99", "3d-unet-99.9"),
        scenarios=(OFFLINE, SINGLE),
        code="workloads.unet3d:Unet3d",
        reads_data="a folder of KiTS19 as MLPerf preprocesses it",
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
        reads_data="a folder of LibriSpeech dev-clean",
        imports=("torch",),
        task="speech recognition, LibriSpeech",
        sizes={
            "full": "RNN-T, 1024-wide encoder, ≤ 15 s of 16 kHz audio",
            "small": "a quarter as wide, ≤ 15 s of 16 kHz audio",
        },
        parameters={"full": 45_323_037, "small": 3_030_237},
        flops_per_sample={"full": 12_564_424_704, "small": 863_033_856},
        batch_size={("cpu", "full"): 4, ("cpu", "small"): 8, ("cuda", "full"): 1024, ("cuda", "small"): 256},
    ),
    Entry(
        name="retinanet",
        scenarios=ALL_SCENARIOS,
        code="workloads.retinanet:RetinaNet",
        reads_data="a folder of images, without labels",
        imports=(
            "torch",
            "torchvision",
        ),
        task="object detection, OpenImages",
        sizes={
            "full": "RetinaNet, ResNeXt-50 32×4d, 3×800×800, 264 classes, 120087 boxes",
            "small": "the same network, 3×128×128, 3069 boxes",
        },
        parameters={"full": 37_128_876, "small": 37_128_876},
        flops_per_sample={"full": 402_416_789_504, "small": 10_289_248_256},
        batch_size={("cpu", "full"): 1, ("cpu", "small"): 2, ("cuda", "full"): 16, ("cuda", "small"): 32},
    ),
    Entry(
        name="vision-transformer",
        aliases=(
            "vit",
            "vit-b-16",
        ),
        scenarios=ALL_SCENARIOS,
        code="workloads.vision_transformer:VitB16",
        precisions=OF_LINEAR_LAYERS,
        reads_data="a folder of ImageNet (val_map.txt, or a sub-folder a class), or of images without labels",
        imports=(
            "torch",
            "torchvision",
        ),
        task="image classification, ImageNet",
        sizes={"full": "ViT-B/16, 3×224×224", "small": "4 layers × 256, 4 heads, 3×64×64"},
        parameters={"full": 86_567_656, "small": 3_618_024},
        flops_per_sample={"full": 35_127_656_448, "small": 114_941_952},
        batch_size={("cpu", "full"): 4, ("cpu", "small"): 16, ("cuda", "full"): 64, ("cuda", "small"): 64},
    ),
    Entry(
        name="swin-transformer",
        aliases=(
            "swin",
            "swin-b",
        ),
        scenarios=ALL_SCENARIOS,
        code="workloads.swin_transformer:SwinB",
        precisions=OF_LINEAR_LAYERS,
        reads_data="a folder of ImageNet (val_map.txt, or a sub-folder a class), or of images without labels",
        imports=(
            "torch",
            "torchvision",
        ),
        task="image classification, ImageNet",
        sizes={"full": "Swin-B, 3×224×224", "small": "2-2-2-2 layers from 48 wide, windows of 4, 3×64×64"},
        parameters={"full": 87_768_224, "small": 5_499_796},
        flops_per_sample={"full": 30_861_893_632, "small": 154_122_240},
        batch_size={("cpu", "full"): 2, ("cpu", "small"): 16, ("cuda", "full"): 64, ("cuda", "small"): 64},
    ),
    Entry(
        name="bert-base",
        scenarios=ALL_SCENARIOS,
        code="workloads.encoders:TextEncoder",
        precisions=OF_LINEAR_LAYERS,
        longest_sequence=512,
        imports=(
            "torch",
            "transformers.models.bert.modeling_bert",
        ),
        task="text classification",
        sizes={
            "full": "BERT-base: 12 layers × 768, 12 heads, sequence 128",
            "small": "4 layers × 256, 4 heads, sequence 32",
        },
        parameters={"full": 177_854_978, "small": 5_454_594},
        flops_per_sample={"full": 22_348_434_432, "small": 205_652_992},
        batch_size={("cpu", "full"): 8, ("cpu", "small"): 16, ("cuda", "full"): 64, ("cuda", "small"): 64},
    ),
    Entry(
        name="distilbert",
        aliases=("distil",),
        scenarios=ALL_SCENARIOS,
        code="workloads.encoders:TextEncoder",
        precisions=OF_LINEAR_LAYERS,
        longest_sequence=512,
        imports=(
            "torch",
            "transformers.models.bert.modeling_bert",
            "transformers.models.distilbert.modeling_distilbert",
        ),
        task="text classification",
        sizes={
            "full": "DistilBERT: 6 layers × 768, 12 heads, sequence 128",
            "small": "2 layers × 256, 4 heads, sequence 32",
        },
        parameters={"full": 135_326_210, "small": 3_874_562},
        flops_per_sample={"full": 11_174_808_576, "small": 102_892_544},
        batch_size={("cpu", "full"): 8, ("cpu", "small"): 16, ("cuda", "full"): 64, ("cuda", "small"): 64},
    ),
    Entry(
        name="minilm",
        aliases=("minilm-l12",),
        scenarios=ALL_SCENARIOS,
        code="workloads.encoders:TextEncoder",
        precisions=OF_LINEAR_LAYERS,
        longest_sequence=512,
        imports=(
            "torch",
            "transformers.models.bert.modeling_bert",
        ),
        task="sentence embeddings",
        sizes={
            "full": "MiniLM: 12 layers × 384, 12 heads, sequence 128",
            "small": "4 layers × 128, 4 heads, sequence 32",
        },
        parameters={"full": 117_505_920, "small": 1_907_712},
        flops_per_sample={"full": 5_737_807_872, "small": 52_428_800},
        batch_size={("cpu", "full"): 8, ("cpu", "small"): 16, ("cuda", "full"): 64, ("cuda", "small"): 64},
    ),
    Entry(
        name="mpnet",
        aliases=("mpnet-base",),
        scenarios=ALL_SCENARIOS,
        code="workloads.encoders:TextEncoder",
        precisions=OF_LINEAR_LAYERS,
        longest_sequence=512,
        imports=(
            "torch",
            "transformers.models.bert.modeling_bert",
            "transformers.models.mpnet.modeling_mpnet",
        ),
        task="sentence embeddings",
        sizes={
            "full": "MPNet: 12 layers × 768, 12 heads, sequence 128",
            "small": "4 layers × 256, 4 heads, sequence 32",
        },
        parameters={"full": 108_895_872, "small": 5_388_416},
        flops_per_sample={"full": 22_347_251_712, "small": 205_520_896},
        batch_size={("cpu", "full"): 8, ("cpu", "small"): 16, ("cuda", "full"): 64, ("cuda", "small"): 64},
    ),
    Entry(
        name="llama",
        aliases=(
            "llm",
            "llama3.2-1b",
            "llama-3.2-1b",
        ),
        scenarios=(OFFLINE, SERVER, SINGLE),
        code="workloads.llama:Llama",
        precisions=OF_LINEAR_LAYERS,
        imports=(
            "torch",
            "transformers.models.llama.modeling_llama",
        ),
        task="text generation",
        sizes={
            "full": "Llama-3.2-1B: 16 layers × 2048, prompts ≤ 512, 128 new tokens",
            "small": "2 layers × 128, prompts ≤ 32, 8 new tokens",
        },
        parameters={"full": 1_235_814_400, "small": 1_016_448},
        flops_per_sample={"full": 782_806_155_264, "small": 29_484_032},
        batch_size={("cpu", "full"): 1, ("cpu", "small"): 8, ("cuda", "full"): 256, ("cuda", "small"): 64},
    ),
    Entry(
        name="resnet50:train",
        scenarios=(OFFLINE,),
        code="workloads.training:Training",
        trains=True,
        imports=(
            "torch",
            "torchvision",
            "transformers.models.bert.modeling_bert",
        ),
        task="training: image classification, ImageNet",
        sizes={"full": "resnet50, SGD", "small": "resnet50 small, SGD"},
        parameters={"full": 25_557_032, "small": 25_557_032},
        flops_per_sample={"full": 24_299_077_632, "small": 1_994_883_072},
        batch_size={("cpu", "full"): 8, ("cpu", "small"): 16, ("cuda", "full"): 64, ("cuda", "small"): 64},
    ),
    Entry(
        name="vision-transformer:train",
        aliases=("vit:train",),
        scenarios=(OFFLINE,),
        code="workloads.training:Training",
        trains=True,
        imports=(
            "torch",
            "torchvision",
            "transformers.models.bert.modeling_bert",
        ),
        task="training: image classification, ImageNet",
        sizes={"full": "vision-transformer, AdamW", "small": "vision-transformer small, AdamW"},
        parameters={"full": 86_567_656, "small": 3_618_024},
        flops_per_sample={"full": 105_151_758_336, "small": 338_534_400},
        batch_size={("cpu", "full"): 4, ("cpu", "small"): 16, ("cuda", "full"): 32, ("cuda", "small"): 64},
    ),
    Entry(
        name="swin-transformer:train",
        aliases=("swin:train",),
        scenarios=(OFFLINE,),
        code="workloads.training:Training",
        trains=True,
        imports=(
            "torch",
            "torchvision",
            "transformers.models.bert.modeling_bert",
        ),
        task="training: image classification, ImageNet",
        sizes={"full": "swin-transformer, AdamW", "small": "swin-transformer small, AdamW"},
        parameters={"full": 87_768_224, "small": 5_499_796},
        flops_per_sample={"full": 92_547_145_728, "small": 461_187_072},
        batch_size={("cpu", "full"): 2, ("cpu", "small"): 16, ("cuda", "full"): 16, ("cuda", "small"): 64},
    ),
    Entry(
        name="bert:train",
        aliases=("bert-large:train",),
        scenarios=(OFFLINE,),
        code="workloads.training:Training",
        trains=True,
        imports=(
            "torch",
            "torchvision",
            "transformers.models.bert.modeling_bert",
        ),
        task="training: question answering, SQuAD v1.1",
        sizes={"full": "bert, AdamW", "small": "bert small, AdamW"},
        parameters={"full": 334_094_338, "small": 11_105_282},
        flops_per_sample={"full": 329_954_734_080, "small": 1_156_543_488},
        batch_size={("cpu", "full"): 1, ("cpu", "small"): 8, ("cuda", "full"): 8, ("cuda", "small"): 64},
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
        precisions=("fp32", "bf16", "fp16"),
        imports=("torch",),
        task="fixed FLOPs: one square matrix product a sample",
        sizes={"full": "4096³", "small": "512³"},
        parameters={"full": 0, "small": 0},
        flops_per_sample={"full": 2 * 4096**3, "small": 2 * 512**3},
        batch_size={("cpu", "full"): 1, ("cpu", "small"): 1, ("cuda", "full"): 8, ("cuda", "small"): 8},
    ),
)
