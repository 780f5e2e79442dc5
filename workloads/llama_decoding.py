"""Greedy decoding of one batch of texts: a step's buffers stay where they are, so that a CUDA graph can hold it.

A step of Llama-3.2-1B is some hundreds of kernels, a text 127 steps: launched one by one they cost the host more than
a small batch costs the GPU.
"""

from dataclasses import replace

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, StaticCache

from workloads.engine import Eager, Graphs, engine_for
from workloads.protocol import WorkloadOptions

READ_MULTIPLE = 128
"""A step reads the cache as far as the batch's texts will reach, rounded up to this: a graph each."""


class Decoding:
    """Texts of ``batch`` samples: prompts of up to ``longest`` tokens, and ``new`` that follow.

    Used under ``torch.inference_mode``.
    """

    def __init__(self, network: LlamaForCausalLM, batch: int, longest: int, new: int) -> None:
        device, room = network.device, longest + new
        self.batch = batch
        self._network = network
        self._cache = StaticCache(network.config, max_cache_len=room)
        self._columns = torch.arange(room, device=device)
        self._token = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self._position = torch.zeros(batch, dtype=torch.int64, device=device)
        self._visible = torch.zeros(batch, 1, 1, room, dtype=torch.bool, device=device)
        self._column = torch.zeros(1, dtype=torch.int64, device=device)
        """Where the cache puts the next token, of every row."""
        self._room, self._new = room, new
        self._read = room
        """So many columns of the cache are looked at."""
        self._engines: dict[int, Eager | Graphs] = {}
        """By ``_read``; none: launched one by one."""

    def begin(self, prompts: Tensor, lengths: Tensor) -> Tensor:
        """Prefill: ``prompts`` int64 [batch, width], zeros behind each; ``lengths`` int64 [batch]. The first tokens,
        [batch, 1]; overwritten by ``step``."""
        self._cache.reset()
        width = prompts.shape[1]
        self._read = self._reach(width)
        hidden = self._network.model(
            input_ids=prompts,
            position_ids=self._columns[None, :width],
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        last = hidden[torch.arange(self.batch, device=prompts.device), lengths - 1]
        self._token.copy_(self._network.lm_head(last).argmax(dim=-1, keepdim=True))
        self._position.copy_(lengths)
        self._visible.copy_((self._columns < lengths[:, None])[:, None, None, :])
        self._column.fill_(width)
        return self._token

    def step(self, _batch: int) -> Tensor:
        """The tokens after those before, [batch, 1]. Shapes and addresses are the same in each step."""
        self._visible.index_fill_(3, self._column, True)
        hidden = self._network.model(
            input_ids=self._token,
            position_ids=self._position[:, None],
            attention_mask=self._visible[..., : self._read],
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        self._token.copy_(self._network.lm_head(hidden[:, -1]).argmax(dim=-1, keepdim=True))
        self._position.add_(1)
        self._column.add_(1)
        return self._token

    def next(self) -> Tensor:
        """A step, by the engine."""
        engine = self._engines.get(self._read)
        token: Tensor = self.step(self.batch) if engine is None else engine.run(self.batch)
        return token

    def capture(self, options: WorkloadOptions, notes: list[str]) -> None:
        """Have the engine that is asked for, from the next ``begin`` on; says in ``notes`` which it became. On a GPU,
        after a first ``begin``: the cache gets its memory there.

        Raises:
            WorkloadError: it was asked for, and a step cannot be captured.
        """
        if options.engine == "compile":
            notes.append("engine: graph for compile: a step of transformers' cache is captured as it is")
            options = replace(options, engine="graph")

        for reach in sorted({self._reach(width) for width in range(1, self._room - self._new + 1)}):
            self._read = reach
            self._cache.reset()  # a capture's warm-ups are steps too: each has room from the first column on
            self._column.zero_()
            said = list[str]()
            self._engines[reach] = engine_for(self.step, replace(options, batch_size=self.batch), said)

        notes += said

    def _reach(self, width: int) -> int:
        """Columns of the cache that texts with prompts of ``width`` tokens fill, rounded up."""
        return min(-(-(width + self._new) // READ_MULTIPLE) * READ_MULTIPLE, self._room)
