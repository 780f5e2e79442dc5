"""DLRM recommendation on Criteo Terabyte.

Architecture and names of the weights as in MLPerf's reference (facebookresearch/dlrm, ``--max-ind-range
40000000``, dot interaction), so that its checkpoint loads where its tables fit.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from workloads import criteo
from workloads.dlrm_gpu import DEPTH, Coalesced, Split
from workloads.engine import AtHand, chosen
from workloads.fidelity import rank_auc
from workloads.labelled import Labelled
from workloads.pipeline import Pending
from workloads.precision import compute_dtype, to_device
from workloads.protocol import Size, WorkloadError, WorkloadOptions
from workloads.weights import WrongShape, load_weights, seeded, told_weights

DENSE, WIDTH = 13, 128
ROWS = criteo.TABLE_ROWS
"""Rows of the 26 tables of MLPerf's DLRM (v0.7 to v3.0)."""

BOTTOM: dict[Size, tuple[int, ...]] = {"full": (DENSE, 512, 256, WIDTH), "small": (DENSE, 128, 64, WIDTH)}
TOP: dict[Size, tuple[int, ...]] = {"full": (1024, 1024, 512, 256, 1), "small": (256, 256, 128, 64, 1)}

MEMORY_SHARE = 0.5
"""Of the slice's memory, what the tables may take."""

CPU_ROWS = 40_000
SMALL_ROWS = 4_000
"""Caps on a table's rows, so that a default run on a CPU needs little memory and starts at once."""

LOADED_TOGETHER = 256
"""Samples read in one go; their memory is free again once the last of them is unloaded."""

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


def _load(network: Network, path: Path, cap: int, reason: str) -> None:
    try:
        load_weights(network, path)
    except WrongShape as error:
        if cap >= max(ROWS):
            raise

        raise WorkloadError(
            f"{error}. The tables here are capped at {cap:,} rows ({reason}): MLPerf's weights need them whole"
        ) from error


Pairs = tuple[Tensor, Tensor]
"""A sample: dense float32 [pairs, 13], and rows of the common table, int32 [pairs, 26]."""


class SyntheticPairs:
    """Samples with the reference's lengths, each a run of one seeded pool of pairs."""

    def __init__(self, options: WorkloadOptions, rows: Sequence[int]) -> None:
        pool = POOL_PAIRS[options.size]
        rng = np.random.default_rng(options.seed)
        self._lengths = sample_pairs(rng)
        self.most_pairs = max(PAIRS)
        self._starts = rng.integers(0, pool - max(PAIRS), SAMPLES)
        # Counts, log(1 + x) as MLPerf's preprocessing leaves them: not negative, mostly small.
        self.dense = torch.from_numpy(rng.standard_exponential((pool, DENSE), dtype=np.float32))
        chosen = rng.random((pool, len(rows)), dtype=np.float32) * np.asarray(rows) + first_rows(rows)
        self.rows = torch.from_numpy(chosen.astype(np.int32))
        self.note = (
            f"inputs: synthetic, seed {options.seed}: {SAMPLES} samples of 100 to 700 user-item pairs, mean "
            f"{self._lengths.mean():.0f}; each is a run of one pool of {pool:,} pairs, whose rows "
            "are drawn uniformly (Criteo's are skewed, which favours caches)"
        )

    @property
    def pool(self) -> Pairs:
        """All pairs that samples are runs of."""
        return self.dense, self.rows

    def runs(self, indices: Sequence[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where each sample begins in the pool, and its pairs."""
        asked = np.asarray(indices)
        return self._starts[asked], self._lengths[asked]

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Pairs:
        run = slice(self._starts[index], self._starts[index] + self._lengths[index])
        return self.dense[run], self.rows[run]

    def load(self, indices: Sequence[int]) -> None:
        """Nothing to do: the pool is in memory."""

    def unload(self, indices: Sequence[int]) -> None:
        """Nothing to do: the pool is kept."""


class RecordedPairs:
    """Samples of Criteo Terabyte, read when they are loaded: 156 bytes a pair."""

    def __init__(self, folder: Path, rows: Sequence[int], cap: int) -> None:
        self._data = criteo.inspect(folder)
        self._table = criteo.open_pairs(self._data.file)
        self._first_rows, self._cap = first_rows(rows).astype(np.int32), cap
        self._loaded: dict[int, Pairs] = {}
        self.labels = criteo.CriteoLabels(self._data, self._table)
        counts = np.diff(self._data.bounds)
        self.most_pairs = int(counts.max())
        drawn = f"as {self._data.partition}" if self._data.partition else "drawn as the reference draws them"
        self.note = (
            f"inputs: {self._data.file}, labelled: {counts.sum():,} of its {self._data.pairs:,} user-item pairs as "
            f"{len(self)} samples of {counts.min()} to {counts.max()}, mean {counts.mean():.0f}, {drawn}; "
            "a loaded sample takes 156 bytes a pair of host memory"
        )
        if len(self) != SAMPLES:
            self.note += f". MLPerf's data set makes {SAMPLES} samples: this is not it, or not all of it"

        if cap < max(ROWS):
            self.note += f". Categories beyond the cap are folded onto it (modulo {cap:,}): not MLPerf's AUC"

    def __len__(self) -> int:
        return self._data.samples

    def __getitem__(self, index: int) -> Pairs:
        return self._loaded[index]

    def load(self, indices: Sequence[int]) -> None:
        """Read and transform (data_loader_terabyte.py, ``_transform_features``): log(count + 1), and categories
        modulo the cap, which is what ``--max-ind-range`` does."""
        new = [index for index in dict.fromkeys(indices) if index not in self._loaded]
        for at in range(0, len(new), LOADED_TOGETHER):
            self._load(new[at : at + LOADED_TOGETHER])

    def _load(self, indices: Sequence[int]) -> None:
        runs = [range(*self._data.bounds[index : index + 2]) for index in indices]
        pairs = np.concatenate([self._table[run.start : run.stop] for run in runs])
        criteo.check_rows(pairs, self._data.file, np.concatenate(runs))
        dense = torch.log(torch.from_numpy(pairs[:, criteo.COUNTS].astype(np.float32)) + 1)
        chosen = pairs[:, criteo.CATEGORIES]
        if self._cap < max(ROWS):
            chosen = chosen % np.int32(self._cap)

        rows = torch.from_numpy(chosen + self._first_rows)
        lengths = [len(run) for run in runs]
        self._loaded.update(
            zip(
                indices,
                zip(torch.split(dense, lengths), torch.split(rows, lengths), strict=True),
                strict=True,
            )
        )

    def unload(self, indices: Sequence[int]) -> None:
        for index in indices:
            self._loaded.pop(index, None)


def first_rows(rows: Sequence[int]) -> npt.NDArray[np.int64]:
    """Where each table begins in the common one."""
    return np.concatenate(([0], np.cumsum(rows)[:-1])).astype(np.int64)


class Dlrm:
    """Answers: one float32 array of probabilities a sample, one for each of its pairs."""

    fidelity = staticmethod(rank_auc)

    def __init__(self, name: str, options: WorkloadOptions) -> None:  # noqa: ARG002  the catalogue's
        self._dtype = compute_dtype(options)
        self._options = options
        self.total_sample_count = SAMPLES
        self.labelled: Labelled | None = None
        """Criteo's clicks; None with synthetic samples. Complete once ``load`` has returned."""
        self.notes: list[str] = []
        self._coalesced: Coalesced | None = None
        self._coalesces = options.device == "cuda" and self._dtype is not torch.float32
        self.depth = DEPTH if self._coalesces else 1
        """Batches in flight (pipeline.py)."""

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
            _load(self._exact, options.weights, cap, reason)

        self._network = self._exact
        if self._dtype is not torch.float32:
            # The tables are shared; the small MLPs are kept in fp32 as well, for the reference.
            self._network = Network(options.size, tables).eval().to(options.device)
            self._network.load_state_dict(self._exact.state_dict())
            self._network.to(self._dtype)

        if options.data is None:
            self._samples: SyntheticPairs | RecordedPairs = SyntheticPairs(options, rows)
        else:
            recorded = RecordedPairs(options.data, rows, cap)
            self._samples = recorded
            self.labelled = recorded.labels

        self.total_sample_count = len(self._samples)
        self.notes = [
            told_weights(options),
            self._tables_note(tables.together, cap, reason),
            f"{self._samples.note}. A batch starts in host memory",
        ]
        if self._coalesces:
            most = options.batch_size * self._samples.most_pairs
            pool = self._samples.pool if isinstance(self._samples, SyntheticPairs) else None
            self._coalesced = Coalesced(self._network, most, options.batch_size, pool)
            self.notes.append(
                f"engine: eager, whatever was asked, in shapes for tensor cores; {self._coalesced.note}"
            )
        else:
            chosen(options)  # on a CPU, says why there are no graphs
            self.notes.append("engine: eager")

    def _tables_note(self, table: Tensor, cap: int, reason: str) -> str:
        mib = table.numel() * table.itemsize / 2**20
        size = f"{len(table):,} of MLPerf's {sum(ROWS):,} embedding rows, {mib:,.0f} MiB"
        if cap >= max(ROWS):
            return f"tables: not capped, {size} of the slice's {self._options.memory_mib:,} MiB"

        return f"tables: capped at {cap:,} rows each ({reason}): {size}"

    def load_samples(self, indices: Sequence[int]) -> None:
        """Read these samples; synthetic ones are in memory from ``load`` on.

        Raises:
            WorkloadError: a value in the file cannot be.
        """
        self._samples.load(indices)

    def unload_samples(self, indices: Sequence[int]) -> None:
        """Let go of them; synthetic ones are kept."""
        self._samples.unload(indices)

    def predict(self, indices: Sequence[int]) -> list[npt.NDArray[np.generic]]:
        """The probabilities of each sample, float32 [its pairs]; the batch's pairs go as one tensor."""
        if self._coalesced is not None:
            return [rated.copy() for rated in self._begin_coalesced(self._coalesced, indices).result()]

        return self._rate(self._network, indices)

    def begin(self, indices: Sequence[int]) -> Pending:
        """Begin a batch (pipeline.py)."""
        if self._coalesced is None:
            return AtHand(self.predict(indices))

        return self._begin_coalesced(self._coalesced, indices)

    def _begin_coalesced(self, coalesced: Coalesced, indices: Sequence[int]) -> Split:
        if isinstance(self._samples, SyntheticPairs):
            return coalesced.begin_runs(*self._samples.runs(indices))

        return coalesced.begin([self._samples[index] for index in indices])

    def bare(self, indices: Sequence[int]) -> Callable[[], object]:
        """What computes a batch of these samples that stays on the device, for speed measurements."""
        self.predict(indices)
        return partial(self.predict, indices) if self._coalesced is None else self._coalesced.bare

    def reference(self, indices: Sequence[int]) -> list[npt.NDArray[np.generic]]:
        """The same, one sample at a time, in fp32 (from the same tables, whatever precision they are in)."""
        return [self._rate(self._exact, [index])[0] for index in indices]

    def _rate(self, network: Network, indices: Sequence[int]) -> list[npt.NDArray[np.generic]]:
        pairs = [self._samples[index] for index in indices]
        lengths = [len(counts) for counts, _ in pairs]
        dense = torch.cat([counts for counts, _ in pairs])
        rows = torch.cat([chosen for _, chosen in pairs])
        dtype = next(network.bot_l.parameters()).dtype
        with torch.inference_mode():
            rated = network(to_device(dense.to(dtype), self._options), to_device(rows, self._options))
            return np.split(rated.float().cpu().numpy(), np.cumsum(lengths)[:-1])
