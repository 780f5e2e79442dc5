"""DLRM's network in shapes for tensor cores computes what the plain one does."""

import numpy as np
import torch

from workloads.dlrm import Dlrm
from workloads.dlrm_gpu import VECTORS, FastNetwork
from workloads.protocol import WorkloadOptions

CPU = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=4, seed=4, threads=1, memory_mib=1024
)


def test_filled_up_shapes_change_nothing():
    dlrm = Dlrm("dlrm", CPU)
    dlrm.load()
    dense, chosen = dlrm._samples[7]
    rows = torch.zeros(len(chosen), VECTORS, dtype=torch.int32)
    rows[:, 1 : 1 + chosen.shape[1]] = chosen
    with torch.inference_mode():
        found = FastNetwork(dlrm._network).forward(dense, rows).numpy()

    assert np.allclose(found, dlrm.predict([7])[0], atol=1e-6)
