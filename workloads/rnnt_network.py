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


class Decoding:
    """Greedy decoding of up to ``batch`` utterances of up to ``steps`` time steps, in buffers that stay in place.

    All utterances advance together. A blank, or the 30th symbol of a time step, moves an utterance on to its next
    time step.
    """

    def __init__(self, network: Network, steps: int, batch: int) -> None:
        self._prediction, self._first = network.prediction, network.joint.first
        last = network.joint.last
        self._last = last.weight.float(), last.bias.float()
        weight = self._first.weight
        lstm = network.prediction.dec_rnn.lstm
        self._width = weight.shape[1] - lstm.hidden_size
        self._lane = torch.arange(batch, device=weight.device)
        self._end, self._time, self._run, self.counts, self._symbol = (
            torch.zeros(batch, dtype=torch.int64, device=weight.device) for _ in range(5)
        )
        self._from_encoder = weight.new_zeros(steps, batch, weight.shape[0])
        self._state = weight.new_zeros(lstm.num_layers, 2, batch, lstm.hidden_size)
        most = MAX_SYMBOLS_PER_STEP * steps + 1  # what comes after the last symbol is written, not counted
        self.symbols = torch.zeros(batch, most, dtype=torch.int64, device=weight.device)

    def begin(self, encoded: Tensor, lengths: Tensor) -> None:
        """``encoded`` [time, n, width], ``lengths`` int64 [n]; what was there before is gone."""
        count = encoded.shape[1]
        joined = functional.linear(encoded, self._first.weight[:, : self._width], self._first.bias)
        self._from_encoder[: len(encoded), :count] = joined
        self._end.fill_(-1)  # other lanes are at their end
        self._end[:count] = lengths - 1
        for each in (self._time, self._run, self.counts, self._state):
            each.zero_()

        self._symbol.fill_(-1)

    def advance(self, count: int) -> Tensor:
        """`STEPS_BETWEEN_LOOKS` steps of the first ``count`` utterances; bool [1], whether all are at their end.

        Nothing in it waits for the device, so it can be captured.
        """
        end, time, run, counts, symbol = (
            each[:count] for each in (self._end, self._time, self._run, self.counts, self._symbol)
        )
        state, symbols, lane = self._state[:, :, :count], self.symbols[:count], self._lane[:count]
        from_prediction = self._first.weight[:, self._width :]
        for _ in range(STEPS_BETWEEN_LOOKS):
            after = self._prediction.step(symbol, state)
            joined = self._from_encoder[time.minimum(end).clamp_(min=0), lane]
            joined = joined.float() + functional.linear(after[-1, 0], from_prediction)
            # In fp32 whatever the network's precision: the best of 29 logits is often near the second.
            best = functional.linear(joined.relu(), *self._last).argmax(-1)
            emits = (best != BLANK) & (time <= end)
            symbols.scatter_(1, counts[:, None], best[:, None])
            counts += emits
            symbol.copy_(torch.where(emits, best, symbol))
            state.copy_(torch.where(emits[:, None], after, state))
            run.add_(1).mul_(emits)
            moves = ~emits | (run == MAX_SYMBOLS_PER_STEP)
            run *= ~moves
            time += moves

        over: Tensor = (time > end).all()
        return over[None]


@torch.inference_mode()
def greedy_decode(network: Network, encoded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest symbol at each step, all utterances of a batch advancing together.

    ``encoded`` [time, batch, width], ``lengths`` int64 [batch] → symbols int64 [batch, …], counts int64
    [batch].
    """
    decoding = Decoding(network, *encoded.shape[:2])
    decoding.begin(encoded, lengths)
    while not bool(decoding.advance(encoded.shape[1])):
        pass

    return decoding.symbols, decoding.counts
