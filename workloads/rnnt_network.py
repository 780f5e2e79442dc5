"""RNN-T: encoder, time stacking, prediction network, joint, greedy decoding.

Architecture and names of the weights as in MLPerf's reference (mlcommons/inference,
speech_recognition/rnnt/pytorch), so that its checkpoint loads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from workloads.protocol import Size

FEATURES = 240
"""80 log-mel bands of 10 ms frames, three frames spliced."""

FRAMES_PER_S = 1 / 0.03
STACK = 2
SYMBOLS = 28
"""Space, apostrophe and the letters; the blank comes after them."""

BLANK = SYMBOLS
MAX_SYMBOLS_PER_STEP = 30


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths of the network's parts."""

    encoder: int
    prediction: int
    joint: int


SHAPE: dict[Size, Shape] = {"full": Shape(1024, 320, 512), "small": Shape(256, 80, 128)}
PRE_LAYERS, POST_LAYERS, PREDICTION_LAYERS = 2, 3, 2

STEPS_BETWEEN_LOOKS = 8
"""Decoding steps between two looks at whether all are done: on a GPU each look waits for it."""


class Lstm(nn.Module):
    """LSTM layers, [time, batch, in] → [time, batch, width]."""

    def __init__(self, inputs: int, width: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, width, layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lstm(x)[0]
        return out


class Encoder(nn.Module):
    """[time, batch, 240] → [⌈time / 2⌉, batch, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pre_rnn = Lstm(FEATURES, width, PRE_LAYERS)
        self.post_rnn = Lstm(STACK * width, width, POST_LAYERS)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        x = self.pre_rnn(features)
        # Past an utterance's end must be zeros, as if it were alone: its last frame may be stacked with one.
        time = torch.arange(len(x), device=x.device)
        x = x.masked_fill((time[:, None] >= lengths)[..., None], 0.0)
        if len(x) % STACK:
            x = functional.pad(x, (0, 0, 0, 0, 0, STACK - len(x) % STACK))

        stacked = x.unflatten(0, (-1, STACK)).transpose(1, 2).flatten(2)
        out: Tensor = self.post_rnn(stacked)
        return out


class Prediction(nn.Module):
    """The network over the symbols so far, one symbol at a time; before the first one it sees zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, width)
        self.dec_rnn = Lstm(width, width, PREDICTION_LAYERS)

    def step(self, symbols: Tensor, state: Tensor) -> Tensor:
        """``symbols`` int64 [batch], -1 for none yet; ``state`` [layers, 2, batch, width] → the next state."""
        x = self.embed(symbols.clamp(min=0)) * (symbols >= 0)[:, None]
        lstm, after = self.dec_rnn.lstm, []
        for layer, (hidden, cell) in enumerate(state):
            weights = [
                getattr(lstm, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ]
            x, cell = torch.lstm_cell(x, (hidden, cell), *weights)
            after.append(torch.stack((x, cell)))

        return torch.stack(after)


class Joint(nn.Module):
    """Two linear layers over encoder and prediction outputs side by side → logits of 28 symbols and blank."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        first = nn.Linear(shape.encoder + shape.prediction, shape.joint)
        last = nn.Linear(shape.joint, SYMBOLS + 1)
        # The identity stands where the reference has its dropout: it keeps the last layer's name, net.3.
        self.net = nn.Sequential(first, nn.ReLU(), nn.Identity(), last)

    @property
    def first(self) -> nn.Linear:
        """Encoder and prediction outputs → hidden."""
        layer = self.net[0]
        assert isinstance(layer, nn.Linear)
        return layer

    @property
    def last(self) -> nn.Linear:
        """Hidden → logits."""
        layer = self.net[3]
        assert isinstance(layer, nn.Linear)
        return layer


class Network(nn.Module):
    """The three parts."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.encoder = Encoder(shape.encoder)
        self.prediction = Prediction(shape.prediction)
        self.joint = Joint(shape)


def build(size: Size) -> Network:
    """The network, initialised at random (torch's own ways)."""
    return Network(SHAPE[size]).eval()


@torch.inference_mode()
def greedy_decode(network: Network, encoded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest symbol at each step, all utterances of a batch advancing together.

    ``encoded`` [time, batch, width], ``lengths`` int64 [batch] → symbols int64 [batch, …], counts int64
    [batch]. A blank, or the 30th symbol of a time step, moves that utterance on to the next one.
    """
    first, last = network.joint.first, network.joint.last
    width = encoded.shape[-1]
    from_encoder = functional.linear(encoded, first.weight[:, :width], first.bias)
    from_prediction = first.weight[:, width:]

    batch, device = encoded.shape[1], encoded.device
    lane = torch.arange(batch, device=device)
    end = lengths - 1
    time, run, counts = (torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(3))
    symbol = torch.full_like(time, -1)
    layers, hidden = network.prediction.dec_rnn.lstm.num_layers, network.prediction.dec_rnn.lstm.hidden_size
    state = torch.zeros(layers, 2, batch, hidden, dtype=encoded.dtype, device=device)
    most = MAX_SYMBOLS_PER_STEP * len(encoded) + 1  # what comes after the last symbol is written, not counted
    symbols = torch.empty(batch, most, dtype=torch.int64, device=device)

    steps = 0
    while steps % STEPS_BETWEEN_LOOKS or not bool((time > end).all()):
        after = network.prediction.step(symbol, state)
        joined = from_encoder[time.minimum(end), lane] + functional.linear(after[-1, 0], from_prediction)
        best = last(joined.relu()).argmax(-1)
        emits = (best != BLANK) & (time <= end)
        symbols.scatter_(1, counts[:, None], best[:, None])
        counts += emits
        symbol = torch.where(emits, best, symbol)
        state = torch.where(emits[:, None], after, state)
        run = (run + 1) * emits
        moves = ~emits | (run == MAX_SYMBOLS_PER_STEP)
        run *= ~moves
        time += moves
        steps += 1

    return symbols, counts
