"""Models of the user's own on a real GPU: the documented example, and a transformers folder of each kind of input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.house import ROOT
from workloads import catalog
from workloads.protocol import Precision, WorkloadOptions

pytestmark = pytest.mark.gpu

TEXT = {
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 999,
}
IMAGES = {
    "model_type": "vit",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
}


def reference_of(kind: str, folder: Path) -> str:
    """How the model is asked for."""
    if kind == "example":
        return f"{ROOT / 'examples' / 'my_workload.py'}:MyWorkload"

    config: dict[str, Any] = TEXT if kind.startswith("Bert") else IMAGES
    (folder / "config.json").write_text(json.dumps({"architectures": [kind], **config}))
    return f"hf:{folder}"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", ["example", "BertForSequenceClassification", "ViTForImageClassification"])
def test_it_answers_on_the_gpu_as_its_reference_does(tmp_path: Path, kind: str, precision: Precision):
    entry = catalog.find(reference_of(kind, tmp_path))
    assert entry is not None
    options = WorkloadOptions(
        size="full", device="cuda", precision=precision, batch_size=8, seed=0, threads=2, memory_mib=8192
    )
    workload = catalog.build(entry.name, options)
    workload.load()
    workload.load_samples(range(8))
    answers, references = (np.asarray(ask(range(8))) for ask in (workload.predict, workload.reference))
    tolerance = 1e-3 if precision == "fp32" else 3e-2
    np.testing.assert_allclose(answers, references, rtol=tolerance, atol=tolerance)
