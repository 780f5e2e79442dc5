"""RNN-T's audio front end: waveforms to spliced, normalised log-mel features.

As MLPerf's reference (mlcommons/inference, retired_benchmarks/speech_recognition/rnnt/pytorch/parts/features.py,
``FilterbankFeatures``, with configs/rnnt.toml's ``input_eval``), for batches in which each utterance gets what
it would get alone.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from workloads.librispeech import RATE

WINDOW, HOP, BINS = 320, 160, 512
"""20 ms every 10 ms; the FFT's length."""

BANDS, SPLICE = 80, 3
PREEMPHASIS = 0.97
DITHER = 1e-5
"""Deterministic: its square is added to the power."""

LANES = 16
"""Utterances transformed at once: 15 s of 16 take about 100 MB."""


def mel_filters(bands: int = BANDS, rate: int = RATE, bins: int = BINS) -> npt.NDArray[np.float32]:
    """Triangles on Slaney's mel scale, each of unit area: [bands, bins / 2 + 1] (librosa.filters.mel).

    Linear to 1 kHz at 15 mel a kHz, above it logarithmic, 27 mel a factor of 6.4.
    """
    knee, per_hz, per_log = 1000.0, 3 / 200, 27 / np.log(6.4)
    top = per_hz * knee + per_log * np.log(rate / 2 / knee)
    mel = np.linspace(0.0, top, bands + 2)
    edges = np.where(mel < per_hz * knee, mel / per_hz, knee * np.exp((mel - per_hz * knee) / per_log))
    frequencies = np.linspace(0.0, rate / 2, bins // 2 + 1)
    slopes = frequencies - edges[:, None]
    widths = np.diff(edges)[:, None]
    rising, falling = slopes[:-2] / widths[:-1], -slopes[2:] / widths[1:]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)


def frames(samples: Tensor) -> Tensor:
    """Spliced frames of utterances of so many samples (``get_seq_len``)."""
    hops = (samples + HOP - 1) // HOP
    return (hops + SPLICE - 1) // SPLICE


class FrontEnd:
    """The transformation, on one device."""

    def __init__(self, device: torch.device) -> None:
        self._filters = torch.from_numpy(mel_filters()).to(device)
        self._window = torch.hann_window(WINDOW, periodic=False, device=device)

    def __call__(self, waves: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Int16 [batch, longest], zeros past each utterance's ``samples`` int64 [batch] → float32 features
        [frames, batch, 240], zeros past each end, and int64 frames [batch]. At least 257 samples each."""
        # Of the shape: looking at ``samples`` would wait for the GPU.
        longest = int(frames(torch.tensor(waves.shape[1])))
        parts = [
            self._transform(wave, count)
            for wave, count in zip(torch.split(waves, LANES), torch.split(samples, LANES), strict=True)
        ]
        return torch.cat(parts)[..., :longest].permute(2, 0, 1).contiguous(), frames(samples)

    def _transform(self, waves: Tensor, samples: Tensor) -> Tensor:
        """[lanes, 240, frames]"""
        x = waves.float() / 2**15
        x = torch.cat((x[:, :1], x[:, 1:] - PREEMPHASIS * x[:, :-1]), dim=1)
        power = self._spectrum(x, samples).abs().square() + DITHER**2
        mel = torch.log(self._filters @ power + 1e-20)
        mel = mel.masked_fill(_beyond(mel, 1 + samples // HOP), 0.0)
        mel = functional.pad(mel, (0, -mel.shape[-1] % SPLICE))
        spliced = mel.reshape(*mel.shape[:2], -1, SPLICE).permute(0, 3, 1, 2).flatten(1, 2)

        lengths = frames(samples)
        outside = _beyond(spliced, lengths)
        count = lengths[:, None, None]
        mean = spliced.masked_fill(outside, 0.0).sum(2, keepdim=True) / count
        away = (spliced - mean).masked_fill(outside, 0.0)
        deviation = (away.square().sum(2, keepdim=True) / (count - 1)).sqrt() + 1e-5
        return away / deviation

    def _spectrum(self, x: Tensor, samples: Tensor) -> Tensor:
        """Complex [lanes, 257, frames], each utterance mirrored at its own two ends, as torch.stft centres one."""
        margin = BINS // 2
        padded = functional.pad(x, (margin, margin))
        padded[:, :margin] = x[:, 1 : margin + 1].flip(1)
        behind = torch.arange(margin, device=x.device)
        mirrored = x.gather(1, samples[:, None] - 2 - behind)
        padded.scatter_(1, margin + samples[:, None] + behind, mirrored)
        spectrum: Tensor = torch.stft(
            padded, BINS, HOP, WINDOW, window=self._window, center=False, return_complex=True
        )
        return spectrum


def _beyond(x: Tensor, lengths: Tensor) -> Tensor:
    """True past each lane's length along the last axis: [lanes, 1, time]."""
    time = torch.arange(x.shape[-1], device=x.device)
    return (time >= lengths[:, None])[:, None]
