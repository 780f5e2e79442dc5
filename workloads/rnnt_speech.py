"""Random weights for RNN-T under which it decodes as many symbols as people speak."""

import torch
from torch import Tensor, nn

from workloads.rnnt_network import BLANK, FEATURES, FRAMES_PER_S, STACK, SYMBOLS, Network, greedy_decode

SYMBOLS_PER_S = 14.5
"""Of read English: 2.8 words a second (dev-clean: 54 402 words in 5.4 h), 5.2 characters a word."""

OUTPUT_SPREAD = 0.3
"""Roughly by how much an LSTM's outputs vary when its inputs weigh in with unit variance."""

OPEN, SHUT, FADING = 6.0, -6.0, 1.4
"""Gate biases: a gate always open, always shut, and a cell that keeps sigmoid(1.4) = 0.8 a symbol."""

INHIBITION = 8.0
ENCODER_GAIN = 1.5
CLIPS, CLIP_FRAMES, BISECTIONS, BIAS_RANGE = 4, 160, 8, (0.0, 4.0)


def speak(network: Network) -> None:
    """Set fp32 weights on the CPU so that decoding noise gives about 14.5 symbols a second of audio.

    With torch's own initialisation the signal dies out over seven LSTM layers, and a random decoder emits
    either nothing or 30 symbols a step: nothing tells it that it has just written the symbol it sees. So
    the inputs of every layer get unit variance; 28 units of the prediction network remember the latest
    symbols and inhibit them in the joint; and the blank's bias follows by bisection on some noise.
    """
    with torch.inference_mode():
        _scale_inputs(network)
        _remember_symbols(network)
        _balance_blank(network)


def _scale_inputs(network: Network) -> None:
    encoder, prediction = network.encoder, network.prediction
    for lstm in (encoder.pre_rnn.lstm, encoder.post_rnn.lstm, prediction.dec_rnn.lstm):
        for layer in range(lstm.num_layers):
            weight = getattr(lstm, f"weight_ih_l{layer}")
            unit_inputs = layer == 0 and lstm is not encoder.post_rnn.lstm
            _spread(weight, 1.0 if unit_inputs else OUTPUT_SPREAD)

    _spread(network.joint.first.weight, OUTPUT_SPREAD / ENCODER_GAIN)
    nn.init.normal_(network.joint.last.weight, std=0.05 / network.joint.last.in_features**0.5)


def _spread(weight: Tensor, input_spread: float) -> None:
    nn.init.normal_(weight, std=1 / (input_spread * weight.shape[1] ** 0.5))


def _remember_symbols(network: Network) -> None:
    prediction, joint = network.prediction, network.joint
    lstm, units = prediction.dec_rnn.lstm, torch.arange(SYMBOLS)
    prediction.embed.weight[:, :SYMBOLS] = torch.eye(SYMBOLS)
    for layer, forget in enumerate((FADING, SHUT)):
        for gate, bias in enumerate((OPEN, forget, 0.0, OPEN)):  # torch's order: input, forget, cell, output
            rows = gate * lstm.hidden_size + units
            for name in ("weight_ih", "weight_hh", "bias_hh"):
                getattr(lstm, f"{name}_l{layer}")[rows] = 0.0

            getattr(lstm, f"bias_ih_l{layer}")[rows] = bias

        getattr(lstm, f"weight_ih_l{layer}")[2 * lstm.hidden_size + units, units] = 3.0

    width = network.encoder.post_rnn.lstm.hidden_size
    joint.first.bias[:SYMBOLS] = 0.0
    joint.first.weight[:SYMBOLS, width:] = 0.0
    joint.first.weight[units, width + units] = -INHIBITION
    joint.last.weight[:, :SYMBOLS] = torch.eye(SYMBOLS + 1, SYMBOLS)
    joint.last.bias.zero_()


def _balance_blank(network: Network) -> None:
    features = torch.randn(CLIP_FRAMES, CLIPS, FEATURES)
    encoded = network.encoder(features, torch.full((CLIPS,), CLIP_FRAMES))
    lengths = torch.full((CLIPS,), CLIP_FRAMES // STACK)
    wanted = SYMBOLS_PER_S * CLIPS * CLIP_FRAMES / FRAMES_PER_S
    network.joint.last.weight[BLANK] = 0.0
    low, high = BIAS_RANGE
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        network.joint.last.bias[BLANK] = middle
        _, counts = greedy_decode(network, encoded, lengths)
        low, high = (middle, high) if counts.sum() > wanted else (low, middle)
