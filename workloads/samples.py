"""Samples of a fixed shape: made, held in host memory, gathered into batches on the device."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random

import torch
from torch import Tensor
from torch.nn.functional import interpolate


class SampleStore:
    """Loaded samples by index; rows of one shape and dtype, on the host (pinned if the device is a GPU).

    ``fill(index, row)`` writes one sample into its row on the CPU; it is called from up to ``threads``
    threads at once. ``gather`` never allocates: it fills one buffer of ``batch_size`` rows on
    the device again and again, so a batch lives until the next one is gathered.
    """

    def __init__(
        self,
        fill: Callable[[int, Tensor], object],
        *,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        batch_size: int,
        threads: int = 1,
    ) -> None:
        self._fill = fill
        self._shape = tuple(shape)
        self._threads = threads
        self._rows: dict[int, Tensor] = {}
        self._batch = torch.zeros((batch_size, *self._shape), dtype=dtype, device=device)
        self._arrivals = _Arrivals(self._batch) if device.type == "cuda" else None

    def __len__(self) -> int:
        """Samples loaded now."""
        return len(self._rows)

    def batch(self, count: int) -> Tensor:
        """The first ``count`` rows of the buffer that ``gather`` fills, always in the same place."""
        return self._batch[:count]

    def load(self, indices: Sequence[int]) -> None:
        """Make these samples, those already there excepted."""
        new = [index for index in dict.fromkeys(indices) if index not in self._rows]
        if not new:
            return

        # One block a call: pinning is dear. Its memory is free again once its last row is unloaded.
        pinned = self._arrivals is not None
        block = torch.empty((len(new), *self._shape), dtype=self._batch.dtype, pin_memory=pinned)
        rows = block.unbind()
        with ThreadPoolExecutor(self._threads) as pool:
            for _ in pool.map(self._fill, new, rows):  # read to the end, so that an error comes out
                pass

        self._rows.update(zip(new, rows, strict=True))

    def unload(self, indices: Sequence[int]) -> None:
        """Let go of these samples; those not loaded are passed over."""
        for index in indices:
            self._rows.pop(index, None)

    def gather(self, indices: Sequence[int]) -> Tensor:
        """The samples as one tensor on the device, ``[len(indices), *shape]``; valid until the next call.

        On a GPU the copies are only queued when this returns, and what is queued next on the current stream
        waits for them. They run beside what was queued before: the GPU still computes one batch while the next
        one arrives.

        Raises:
            KeyError: a sample that is not loaded.
        """
        batch = self.batch(len(indices))
        rows = [self._rows[index] for index in indices]
        if self._arrivals is not None:
            self._arrivals.bring(rows, batch)
        else:
            torch.stack(rows, out=batch)

        return batch


class _Arrivals:
    """Where batches arrive on the GPU, on a stream of their own, before they take the place of the last one."""

    def __init__(self, batch: Tensor) -> None:
        self._staged = torch.empty_like(batch)
        self._staged_rows = self._staged.unbind()
        self._copying = torch.cuda.Stream(batch.device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._arrived, self._taken = torch.cuda.Event(), torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def bring(self, rows: list[Tensor], batch: Tensor) -> None:
        """Copy ``rows`` (pinned) to ``batch``; queued, in order with the current stream."""
        with torch.cuda.stream(self._copying):
            self._copying.wait_event(self._taken)
            # One call for all rows: a call each costs the host as long again (H200: 64 rows 0.3 ms).
            torch._foreach_copy_(self._staged_rows[: len(rows)], rows, non_blocking=True)
            self._arrived.record(self._copying)

        current = torch.cuda.current_stream(batch.device)
        current.wait_event(self._arrived)
        batch.copy_(self._staged[: len(rows)])
        self._taken.record(current)


class SyntheticImages:
    """Images that no two indices share, as a network sees them: normalised, mean about 0, deviation about 1.

    A small pool of seeded pictures (coarse colour patches under fine noise), and for each index one of
    them, shifted, with a contrast and a tint of its own: one pass over the pixels, so that a thousand
    samples of 224×224 take about a second on one core, and the answers still differ.
    """

    SHIFT = 64
    POOL_PIXELS = 8 * 224 * 224

    def __init__(self, *, seed: int, side: int) -> None:
        self._seed = seed
        self._side = side
        padded = side + self.SHIFT
        pictures = max(2, min(8, self.POOL_PIXELS // side**2))
        generator = torch.Generator().manual_seed(seed)
        patches = torch.randn(pictures, 3, padded // 16 + 1, padded // 16 + 1, generator=generator)
        coarse = interpolate(patches, size=(padded, padded), mode="bilinear")
        fine = torch.randn(pictures, 3, padded, padded, generator=generator)
        self._pool = (coarse + fine.mul_(0.5)).permute(0, 2, 3, 1).contiguous()

    def fill(self, index: int, row: Tensor) -> None:
        """Write sample ``index`` into ``row``, ``[side, side, 3]`` of any float dtype."""
        draw = Random(self._seed << 32 | index)
        picture = self._pool[draw.randrange(len(self._pool))]
        top, left = draw.randrange(self.SHIFT), draw.randrange(self.SHIFT)
        window = picture[top : top + self._side, left : left + self._side]
        tint = torch.tensor([draw.gauss(0.0, 0.5) for _ in range(3)])
        torch.add(tint, window, alpha=draw.uniform(0.5, 1.0), out=row)
