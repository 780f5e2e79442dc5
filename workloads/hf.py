"""``hf:FOLDER``: a local transformers model of one of five tasks, on samples of its own shape (hf_inputs.py)."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from workloads.engine import AtHand, HostCopies, compiled, engine_for
from workloads.fidelity import Compare, Fidelity, Pair, by_kind, span_f1
from workloads.hf_config import Task, read_config
from workloads.hf_inputs import SAMPLES, make_tokens, padding_of, pictures, read_tokens
from workloads.pipeline import Pending
from workloads.precision import compute_dtype, is_exact
from workloads.protocol import WorkloadError, WorkloadOptions
from workloads.quantised import form_of, quantise, told
from workloads.samples import SampleStore
from workloads.weights import FOLDER_FILES, check_finite, load_weights, read_state_dict, seeded

if TYPE_CHECKING:
    from workloads.protocol import Outputs

AUTO = {
    "sequence classification": transformers.AutoModelForSequenceClassification,
    "question answering": transformers.AutoModelForQuestionAnswering,
    "masked language modelling": transformers.AutoModelForMaskedLM,
    "causal language modelling": transformers.AutoModelForCausalLM,
    "image classification": transformers.AutoModelForImageClassification,
}

ANSWERS: dict[Task, str] = {
    "sequence classification": "the logits of the labels",
    "question answering": "the start and end logits of each position",
    "masked language modelling": "the likeliest token at each masked position",
    "causal language modelling": "the likeliest next token, after the prefill alone",
    "image classification": "the logits of the labels",
}


BLAMED = (
    *(RuntimeError, ValueError, TypeError, AttributeError, LookupError),
    *(ArithmeticError, AssertionError, OSError, ImportError),
)
"""What a network raises for inputs, or a configuration, that it was not made for."""

OF_THE_DEVICE = ("out of memory", "CUDA", "cuDNN", "CUBLAS", "NVML")
"""In errors that torch raises as plain RuntimeErrors, and for which no model is to blame."""


class HfModel:
    """Answers by task (``b`` samples, ``n`` tokens each):

    sequence and image classification: float32 [b, labels]; question answering: float32 [b, n, 2], start and end;
    masked language modelling: int64 [b, masked positions]; causal language modelling: int64 [b, 1].
    """

    def __init__(self, name: str, options: WorkloadOptions, folder: Path) -> None:  # noqa: ARG002  the catalogue's
        self._dtype = compute_dtype(options)
        self._options = options
        self._config = read_config(folder)
        self.total_sample_count = SAMPLES
        self.notes: list[str] = []
        self.depth = 2 if options.device == "cuda" else 1
        """Batches in flight (pipeline.py)."""
        self._copies = HostCopies(self.depth)
        self.fidelity: Compare = FIDELITY.get(self._config.task, by_kind)
        """How an accuracy run compares the answers with the reference's."""

    def load(self) -> None:
        """Load the model, with the folder's weights or ``--weights``, and make the samples.

        Raises:
            WorkloadError: transformers knows no such model, or the weights do not fit it; names folder and keys.
        """
        config, options = self._config, self._options
        plain, weights = self._build(self._dtype)
        self._exact = plain if is_exact(options) else None
        quantised = self._quantise(plain)
        self._network = compiled(plain, options)
        self._more = self._prefill(plain) if config.task == "causal language modelling" else {}
        self._samples, inputs = self._image_samples() if config.side else self._token_samples()
        self.notes = [
            f"hf: {config.architecture}, {config.task}; an answer is {ANSWERS[config.task]}",
            f"weights: {weights}",
            f"inputs: {inputs}; each batch starts in host memory",
            *quantised,
        ]

        with self._at_fault():
            self._engine = engine_for(self._forward, options, self.notes)

    def _image_samples(self) -> tuple[SampleStore, str]:
        """Rows [side, side, 3], and what they are."""
        side = self._config.side
        self.total_sample_count, fill, said = pictures(self._config, self._options)
        return self._store(fill, (side, side, 3), self._dtype), f"{said}, 3×{side}×{side}"

    def _token_samples(self) -> tuple[SampleStore, str]:
        """Rows of a sample's token ids, then the positions of its masks; and what they are."""
        config, options = self._config, self._options
        if options.data is None:
            tokens, masked = make_tokens(config, options)
            of = f"synthetic samples, seed {options.seed}:"
        else:
            tokens, masked = read_tokens(config, options, options.data)
            of = f"samples of {options.data}:"

        self.total_sample_count, self._count = tokens.shape
        rows = torch.from_numpy(np.concatenate((tokens, masked), axis=1))
        store = self._store(lambda index, row: row.copy_(rows[index]), rows.shape[1:], torch.int64)
        return store, f"{len(rows)} {of} {self._count} token ids each, none of them padding"

    def _store(
        self, fill: Callable[[int, Tensor], object], shape: Sequence[int], dtype: torch.dtype
    ) -> SampleStore:
        options = self._options
        return SampleStore(
            fill,
            shape=shape,
            dtype=dtype,
            device=torch.device(options.device),
            batch_size=options.batch_size,
            threads=options.threads,
        )

    def load_samples(self, indices: Sequence[int]) -> None:
        """Have these in (pinned) host memory."""
        self._samples.load(indices)

    def unload_samples(self, indices: Sequence[int]) -> None:
        """Let go of them."""
        self._samples.unload(indices)

    @torch.inference_mode()
    def predict(self, indices: Sequence[int]) -> "Outputs":
        """One batch; shapes as the class says."""
        self._samples.gather(indices)
        with self._at_fault():
            answers: Outputs = self._engine.run(len(indices)).cpu().numpy()

        return answers

    @torch.inference_mode()
    def begin(self, indices: Sequence[int]) -> Pending:
        """Begin a batch (pipeline.py)."""
        if self.depth == 1:
            return AtHand(self.predict(indices))

        self._samples.gather(indices)
        with self._at_fault():
            queued = self._engine.run(len(indices))

        return self._copies.fetch(queued, self._options.batch_size)

    @torch.inference_mode()
    def reference(self, indices: Sequence[int]) -> "Outputs":
        """The same, one sample at a time in fp32."""
        if self._exact is None:
            self._exact, _ = self._build(torch.float32)

        with self._at_fault():
            answers = [self._answer(self._exact, self._samples.gather([index])) for index in indices]
            return torch.cat(answers).cpu().numpy()

    # ------------------------------------------------------------------ the model

    def _build(self, dtype: torch.dtype) -> tuple[nn.Module, str]:
        """The network on the device, and where its weights are from."""
        folder, options = self._config.folder, self._options
        in_folder = any((folder / name).exists() for name in FOLDER_FILES)
        source = options.weights if options.weights is not None and options.weights.is_dir() else folder
        try:
            if in_folder if options.weights is None else options.weights.is_dir():
                network, said = self._pretrained(source), str(source)
            else:
                network, said = self._random(), f"random, seed {options.seed}; the answers mean nothing"
                if options.weights is not None:
                    load_weights(network, options.weights)
                    said = str(options.weights)
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            ImportError,
        ) as error:
            raise WorkloadError(f"transformers cannot load {source}: {_first_line(error)}") from error
        except RuntimeError as error:
            if "out of memory" in str(error):
                raise

            raise WorkloadError(f"transformers cannot load {source}: {_first_line(error)}") from error

        return network.to(device=options.device, dtype=dtype).eval().requires_grad_(False), said

    def _quantise(self, network: nn.Module) -> list[str]:
        """Have linear layers compute in 8 bits if that is asked for, those of the head not; says so.

        Raises:
            WorkloadError: there are none.
        """
        form = form_of(self._options)
        if form is None:
            return []

        body: Any = getattr(network, "base_model", network)
        count = quantise(body, form)
        if not count:
            raise WorkloadError(
                f"{self._config.folder}: precision {form}: {self._config.architecture} has no linear layer (of sizes "
                "that are multiples of 16) that could compute so; ask for fp16 or fp32"
            )

        return [told(count, form)]

    def _pretrained(self, source: Path) -> nn.Module:
        auto: Any = AUTO[self._config.task]
        config = self._shape()
        tensors = read_state_dict(source)  # transformers' own reader names no file where one is damaged
        check_finite(source, tensors)
        # The bar's lock is a semaphore, which a worker's end would leave behind.
        transformers.utils.logging.disable_progress_bar()
        with torch.device("meta"):
            made_of: Any = type(auto.from_config(config))

        network, info = made_of.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        lacking = sorted(map(str, info["missing_keys"]))
        lacking += [
            f"{key} is {list(found)}, the model has {list(wanted)}"
            for key, found, wanted in sorted(info["mismatched_keys"])
        ]
        if lacking:
            more = ", …" if len(lacking) > 3 else ""
            raise WorkloadError(
                f"weights {source} lack {len(lacking)} of the keys of {self._config.architecture} or have them in "
                f"another shape ({', '.join(lacking[:3])}{more}); is this the checkpoint of another task?"
            )

        made: nn.Module = network
        return made

    def _random(self) -> nn.Module:
        auto: Any = AUTO[self._config.task]
        with seeded(self._options.seed):
            network: nn.Module = auto.from_config(self._shape())

        return network

    def _shape(self) -> Any:
        """transformers' own configuration, with a token that pads: classifiers made of decoders look for the last one
        that is none, and refuse batches without."""
        config = transformers.AutoConfig.from_pretrained(self._config.folder, local_files_only=True)
        if not self._config.side and getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = padding_of(self._config)

        return config

    # ------------------------------------------------------------------ a batch

    def _forward(self, count: int) -> Tensor:
        """What the engine runs: the first ``count`` rows of the gathered batch through the network."""
        return self._answer(self._network, self._samples.batch(count))

    def _answer(self, network: nn.Module, rows: Tensor) -> Tensor:
        """Rows of samples as they are stored, to answers on the device."""
        if self._config.side:
            exact = rows.float() if network is self._exact else rows
            return self._of(network(pixel_values=exact.permute(0, 3, 1, 2)), "logits").float()

        tokens, masked = rows[:, : self._count], rows[:, self._count :]
        given = network(input_ids=tokens, **self._more)
        match self._config.task:
            case "question answering":
                logits = self._of(given, "start_logits"), self._of(given, "end_logits")
                return torch.stack(logits, dim=-1).float()
            case "masked language modelling":
                return self._of(given, "logits").argmax(dim=-1).gather(1, masked)
            case "causal language modelling":
                return self._of(given, "logits")[:, -1:].argmax(dim=-1)
            case _:
                return self._of(given, "logits").float()

    @contextmanager
    def _at_fault(self) -> Iterator[None]:
        """Within it, what the network raises is the model's fault; what memory and device do is not.

        Raises:
            WorkloadError: in place of any other error; names folder and model.
        """
        try:
            yield
        except (WorkloadError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except BLAMED as error:
            if any(word in str(error) for word in OF_THE_DEVICE):
                raise

            config = self._config
            raise WorkloadError(
                f"{config.folder}: transformers' {config.architecture} failed on a batch: {_first_line(error)}; where "
                "it wants other inputs, wrap it in a class of your own (docs/own-model.md)"
            ) from error

    @staticmethod
    def _prefill(network: nn.Module) -> dict[str, Any]:
        """As the first step of generation: the cache is filled, and only the last position's logits are computed."""
        asked = {"use_cache": True, "logits_to_keep": 1}
        taken = inspect.signature(network.forward).parameters
        return {name: value for name, value in asked.items() if name in taken}

    def _of(self, given: Any, name: str) -> Tensor:
        found = getattr(given, name, None)
        if not isinstance(found, Tensor):
            raise WorkloadError(
                f"{self._config.folder}: {self._config.architecture} gives no {name}, which {self._config.task} needs; "
                "wrap the model in a class of your own (docs/own-model.md)"
            )

        return found


def token_agreement(pairs: Iterable[Pair]) -> Fidelity:
    """The share of masked positions that are given the reference's token; an answer is int64 tokens."""
    same = tokens = samples = 0
    for answer, reference in pairs:
        given = np.frombuffer(answer, dtype=np.int64)
        if given.shape != reference.shape:
            raise WorkloadError(
                f"answer {samples} has {len(given)} tokens, and the reference {len(reference)}"
            )

        same, tokens, samples = same + int((given == reference).sum()), tokens + len(given), samples + 1

    value = 100 * same / tokens if tokens else 0.0
    return Fidelity(metric="token agreement", value=value, samples=samples, details={"tokens": float(tokens)})


FIDELITY: dict[Task, Compare] = {
    "question answering": span_f1,
    "masked language modelling": token_agreement,
}
"""Where comparing by the kind of the numbers alone would say less than the task does."""


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no reason given'}"
