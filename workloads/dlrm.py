"""DLRM recommendation on Criteo Terabyte.

Architecture and names of the weights as in MLPerf's reference (facebookresearch/dlrm, ``--max-ind-range
40000000``, dot interaction), so that its checkpoint loads where its tables fit.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from workloads.precision import compute_dtype, refuse_data, to_device
from workloads.protocol import Size, WorkloadOptions
from workloads.weights import load_weights, seeded

DENSE, WIDTH = 13, 128
# fmt: off
ROWS = (
    39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10,
    2208, 11938, 155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36,
)
# fmt: on
"""Rows of the 26 tables of MLPerf's DLRM (v0.7 to v3.0)."""

BOTTOM: dict[Size, tuple[int, ...]] = {"full": (DENSE, 512, 256, WIDTH), "small": (DENSE, 128, 64, WIDTH)}
TOP: dict[Size, tuple[int, ...]] = {"full": (1024, 1024, 512, 256, 1), "small": (256, 256, 128, 64, 1)}

MEMORY_SHARE = 0.5
"""Of the slice's memory, what the tables may take."""

CPU_ROWS = 40_000
SMALL_ROWS = 4_000
"""Caps on a table's rows, so that a default run on a CPU needs little memory and starts at once."""

SAMPLES = 330_067
PAIRS: dict[int, float] = {100: 0.11, 200: 0.59, 300: 0.10, 400: 0.04, 500: 0.07, 600: 0.03, 700: 0.06}
"""User-item pairs of a sample → share of samples, in the 100 samples that MLPerf's reference prints to check
its trace against (tools/dist_trace_verification.txt); the mean is 270."""

MEAN_PAIRS = 270
POOL_PAIRS: dict[Size, int] = {"full": 1 << 18, "small": 1 << 15}
"""Pairs in memory; 156 bytes each."""


class Table(nn.Module):
    """One embedding table, a view of all tables' common memory."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(rows, requires_grad=False)


class Tables(nn.ModuleList):
    """26 tables in one tensor, so that a batch needs one look-up; filled uniformly in place."""

    def __init__(self, rows: Sequence[int], dtype: torch.dtype, device: torch.device, seed: int) -> None:
        together = torch.empty(sum(rows), WIDTH, dtype=dtype, device=device)
        if device.type != "meta":
            generator = torch.Generator(device).manual_seed(seed)
            together.uniform_(-(WIDTH**-0.5), WIDTH**-0.5, generator=generator)

        super().__init__([Table(part) for part in torch.split(together, list(rows))])
        self.together = together


class Network(nn.Module):
    """Dense float [pairs, 13] and rows of the common table [pairs, 26] → probabilities [pairs]."""

    def __init__(self, size: Size, tables: Tables) -> None:
        super().__init__()
        self.emb_l = tables
        self.bot_l = _mlp(BOTTOM[size], last=nn.ReLU())
        features = 1 + len(tables)
        interactions = features * (features - 1) // 2
        self.top_l = _mlp((WIDTH + interactions, *TOP[size]), last=nn.Sigmoid())
        below = torch.tril_indices(features, features, offset=-1)
        self.below: Tensor
        self.register_buffer("below", below[0] * features + below[1], persistent=False)

    def forward(self, dense: Tensor, rows: Tensor) -> Tensor:
        x: Tensor = self.bot_l(dense)
        found = self.emb_l.together.index_select(0, rows.flatten()).view(len(rows), -1, WIDTH)
        vectors = torch.cat((x[:, None], found.to(x.dtype)), dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        out: Tensor = self.top_l(torch.cat((x, products.index_select(1, self.below)), dim=1))
        return out[:, 0]


def _mlp(widths: Sequence[int], *, last: nn.Module) -> nn.Sequential:
    """Linear layers with ReLU between them, initialised as the reference does."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        linear = nn.Linear(inputs, outputs)
        nn.init.normal_(linear.weight, std=(2 / (inputs + outputs)) ** 0.5)
        nn.init.normal_(linear.bias, std=(1 / outputs) ** 0.5)
        layers += [linear, nn.ReLU()]

    return nn.Sequential(*layers[:-1], last)


def affordable_cap(memory_mib: int, dtype: torch.dtype) -> int:
    """The most rows a table may have so that all 26, cut at it, fit their share of the memory; at least 1."""
    afford = int(memory_mib * 2**20 * MEMORY_SHARE) // (WIDTH * dtype.itemsize)
    caps = range(1, max(ROWS) + 1)
    return max(1, bisect_right(caps, afford, key=lambda cap: sum(min(rows, cap) for rows in ROWS)))


def row_cap(options: WorkloadOptions) -> tuple[int, str]:
    """The cap on every table's rows, and why it is that."""
    caps = [
        (
            affordable_cap(options.memory_mib, compute_dtype(options)),
            f"{MEMORY_SHARE:.0%} of the slice's memory",
        )
    ]
    if options.device == "cpu":
        caps.append((CPU_ROWS, "the cap on a CPU, to start fast in little memory"))

    if options.size == "small":
        caps.append((SMALL_ROWS, "the cap of size small"))

    return min(caps)


def nominal_rows(size: Size) -> list[int]:
    """Rows of each table where memory caps nothing: MLPerf's for full."""
    return list(ROWS) if size == "full" else [min(rows, SMALL_ROWS) for rows in ROWS]


def build_meta(size: Size) -> Network:
    """The network at its nominal size, without memory behind it."""
    meta = torch.device("meta")
    with meta:
        return Network(size, Tables(nominal_rows(size), torch.float32, meta, seed=0)).eval()


def flops_per_sample(size: Size) -> int:
    """FLOPs of a sample of the mean 270 pairs; counted on the meta device."""
    network = build_meta(size)
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(MEAN_PAIRS, DENSE), torch.zeros(MEAN_PAIRS, len(ROWS), dtype=torch.int32))

    return int(counter.get_total_flops())


def sample_pairs(rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """User-item pairs of each sample."""
    return rng.choice(np.array(list(PAIRS)), size=SAMPLES, p=list(PAIRS.values()))


class Dlrm:
    """Answers: one float32 array of probabilities a sample, one for each of its pairs."""

    def __init__(self, name: str, options: WorkloadOptions) -> None:
        refuse_data(name, options)
        self._dtype = compute_dtype(options)
        self._options = options
        self.total_sample_count = SAMPLES
        self.notes: list[str] = []

    def load(self) -> None:
        """Build tables and MLPs on the device, and the pool of pairs that every sample is a run of."""
        options = self._options
        cap, reason = row_cap(options)
        rows = [min(count, cap) for count in ROWS]
        tables = Tables(rows, self._dtype, torch.device(options.device), options.seed)
        with seeded(options.seed):
            self._exact = Network(options.size, tables).eval()

        self._exact.to(options.device)
        if options.weights is not None:
            load_weights(self._exact, options.weights)

        self._network = self._exact
        if self._dtype is not torch.float32:
            # The tables are shared; the small MLPs are kept in fp32 as well, for the reference.
            self._network = Network(options.size, tables).eval().to(options.device)
            self._network.load_state_dict(self._exact.state_dict())
            self._network.to(self._dtype)

        self._make_samples(rows)
        self.notes = [
            f"weights: {options.weights}" if options.weights else f"weights: random, seed {options.seed}",
            self._tables_note(tables.together, cap, reason),
            f"inputs: synthetic, seed {options.seed}: {SAMPLES} samples of 100 to 700 user-item pairs, mean "
            f"{self._lengths.mean():.0f}; each is a run of one pool of {len(self._dense):,} pairs, whose rows "
            "are drawn uniformly (Criteo's are skewed, which favours caches). A batch starts in host memory",
        ]

    def _tables_note(self, table: Tensor, cap: int, reason: str) -> str:
        mib = table.numel() * table.itemsize / 2**20
        size = f"{len(table):,} of MLPerf's {sum(ROWS):,} embedding rows, {mib:,.0f} MiB"
        if cap >= max(ROWS):
            return f"tables: not capped, {size} of the slice's {self._options.memory_mib:,} MiB"

        return f"tables: capped at {cap:,} rows each ({reason}): {size}"

    def _make_samples(self, rows: Sequence[int]) -> None:
        pool = POOL_PAIRS[self._options.size]
        rng = np.random.default_rng(self._options.seed)
        self._lengths = sample_pairs(rng)
        self._starts = rng.integers(0, pool - max(PAIRS), SAMPLES)
        # Counts, log(1 + x) as MLPerf's preprocessing leaves them: not negative, mostly small.
        self._dense = torch.from_numpy(rng.standard_exponential((pool, DENSE), dtype=np.float32))
        first_rows = np.concatenate(([0], np.cumsum(rows)[:-1]))
        chosen = rng.random((pool, len(rows)), dtype=np.float32) * np.asarray(rows) + first_rows
        self._rows = torch.from_numpy(chosen.astype(np.int32))

    def load_samples(self, indices: Sequence[int]) -> None:
        """Nothing to do: the pool is in memory from ``load`` on."""

    def unload_samples(self, indices: Sequence[int]) -> None:
        """Nothing to do: the pool is kept."""

    def predict(self, indices: Sequence[int]) -> list[npt.NDArray[np.generic]]:
        """The probabilities of each sample, float32 [its pairs]; the batch's pairs go as one tensor."""
        return self._rate(self._network, indices)

    def reference(self, indices: Sequence[int]) -> list[npt.NDArray[np.generic]]:
        """The same, one sample at a time, in fp32 (from the same tables, whatever precision they are in)."""
        return [self._rate(self._exact, [index])[0] for index in indices]

    def _rate(self, network: Network, indices: Sequence[int]) -> list[npt.NDArray[np.generic]]:
        lengths = self._lengths[list(indices)]
        runs = [slice(self._starts[i], self._starts[i] + self._lengths[i]) for i in indices]
        dense = torch.cat([self._dense[run] for run in runs])
        rows = torch.cat([self._rows[run] for run in runs])
        dtype = next(network.bot_l.parameters()).dtype
        with torch.inference_mode():
            rated = network(to_device(dense.to(dtype), self._options), to_device(rows, self._options))
            return np.split(rated.float().cpu().numpy(), np.cumsum(lengths)[:-1])
