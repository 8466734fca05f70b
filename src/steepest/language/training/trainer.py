"""What every language trainer shares: adapters, AdamW, accumulation over micro-batches, schedules, state.

Ordinary autograd and ``torch.optim``. One update takes one batch, however it is cut into micro-batches and shared among
processes: the loss is a sum over tokens (or pairs) divided by their number in the whole batch, so that the gradient is
the same for every cut.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from steepest.errors import RunError, UsageError
from steepest.files.space import require_space
from steepest.language.data.batching import epoch_order
from steepest.language.data.datasets import fingerprint
from steepest.language.data.examples import Report
from steepest.language.models.adapters import add_adapters
from steepest.language.models.language_model import LanguageModel, checkpoint_activations
from steepest.language.models.saving import save_model
from steepest.language.parallel import processes
from steepest.language.training.config import TrainingConfig, schedule_factor, sequence_limit
from steepest.learner.onednn import fast_products
from steepest.seeding import drawing_from, stream_seed
from steepest.types import TokenBatch

if TYPE_CHECKING:
    from steepest.language.parallel.sharding import Sharded

B = TypeVar("B")
T = TypeVar("T")
Sums = dict[str, Tensor]
Note = Callable[[str], None]


def with_adapters(lm: LanguageModel, config: TrainingConfig, seed: int) -> LanguageModel:
    """The model as it is to be trained: with fresh adapters where the config asks for them and it has none yet.

    Raises:    UsageError where it has other adapters than the config asks for, or nothing that can be trained
    Verified:  tests/unit/test_language_sft.py::test_other_adapters_than_there_are_is_an_error
    """
    if config.lora_rank and lm.has_adapters:
        for own in cast(Any, lm.model).peft_config.values():
            rank, alpha = getattr(own, "r", None), getattr(own, "lora_alpha", None)
            if (rank, alpha) != (config.lora_rank, config.lora_alpha):
                raise UsageError(
                    f"lora_rank is {config.lora_rank} and lora_alpha {config.lora_alpha:g}, for a model with adapters: "
                    f"it goes on with its adapters of rank {rank} and alpha {alpha}. Leave out lora_rank, or merge "
                    "them first (merge_adapters)"
                )
    elif config.lora_rank:
        lm = add_adapters(
            lm,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            seed=stream_seed(seed, "adapters"),
        )
    if not lm.parameters():
        raise UsageError(
            "all weights are frozen; 4-bit weights are trained through adapters: set lora_rank, such as 16"
        )
    if any(p.dtype not in (torch.float32, torch.float64) for p in lm.parameters().values()):
        raise UsageError(
            "weights to be trained are not float32, and would lose small updates. Load them with dtype='float32', and "
            "use precision='bfloat16' for speed; or train adapters (lora_rank)"
        )
    return lm


def hold_out(
    rows: list[T], prompt: Callable[[T], Sequence[int]], fraction: float, *, seed: int, note: Note
) -> tuple[list[T], list[T]]:
    """Rows to train on, and rows held out for evaluation, never of the same prompt: a function of the seed.

    Args:      prompt: the tokens of a row's prompt, empty where it has none: it then stands for itself; fraction: of
               the prompts
    Raises:    UsageError where none is left to train on
    Verified:  tests/unit/test_language_sft.py::test_no_prompt_is_held_out_and_trained_on
    """
    if not fraction:
        return rows, []
    groups: dict[Any, list[T]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(tuple(prompt(row)) or place, []).append(row)
    every = list(groups.values())
    order = np.random.default_rng(stream_seed(seed, "held out")).permutation(len(every))
    size = max(1, round(fraction * len(every)))
    repeated = len(every) < len(rows)
    if size >= len(every):
        of = f" of {len(every)} prompts" if repeated else ""
        raise UsageError(f"eval_fraction {fraction} of {len(rows)} rows{of} leaves none to train on")
    kept, held = ([row for i in part for row in every[i]] for part in (order[size:], order[:size]))
    note(f"evaluation data: {len(held):,} rows{f' of {size:,} prompts' if repeated else ''} held out")
    return kept, held


def trained_bytes(weights: Iterable[Tensor]) -> int:
    """Return the bytes of weights."""
    return sum(weight.numel() * weight.element_size() for weight in weights)


class Trainer(ABC, Generic[B]):
    """A language model in training: makes one update at a time, evaluates, gives and takes its state.

    Files are not its business. ``B`` is the type of its micro-batches.
    """

    algorithm: ClassVar[str]
    Config: ClassVar[type[TrainingConfig]]
    load_rows: ClassVar[Callable[..., tuple[list[Any], Report]]]
    """Reads its data, such as ``datasets.load_sft``."""
    prompt_of: ClassVar[Callable[[Any], Sequence[int]]]
    """The tokens of a row's prompt, empty where it has none."""
    terms: ClassVar[str] = "tokens"
    """What the loss is a mean over."""
    best_by: ClassVar[tuple[str, Literal["lowest", "highest"]]] = ("eval/loss", "lowest")
    """By which figure of ``evaluate`` the best model of a run is kept."""
    takes_reward: ClassVar[bool] = False
    """Whether ``from_data`` takes a reward."""
    can_be_sharded: ClassVar[bool] = False
    """Whether it can train with its model spread over processes."""
    evaluation_may_hang: bool = False
    """Whether ``evaluate`` calls what others wrote."""

    def __init__(
        self,
        lm: LanguageModel,
        config: TrainingConfig,
        data: Sequence[Any],
        *,
        eval_data: Sequence[Any] = (),
        seed: int = 0,
        head: nn.Module | None = None,
    ) -> None:
        """``head`` is trained with the model, and reads its hidden states."""
        self.adapters_are_fresh = config.lora_rank > 0 and not lm.has_adapters
        self.lm = with_adapters(lm, config, seed)
        self.config = config
        self.data: list[Any] = list(data)
        self.eval_data: list[Any] = list(eval_data)
        self.lengths: list[int] = []  # tokens of each row
        self.batch_rows = config.batch_size
        self.groups_by_length = True
        self._epoch: tuple[int, list[list[int]]] = (-1, [])
        self.seed = seed
        self.step = 0
        self.named = self.lm.parameters()
        if head is not None:
            self.named |= {f"head.{name}": p for name, p in head.named_parameters()}
        self.sharded: Sharded | None = None
        if self.lm.device.type == "cpu" and processes.world_size() == 1:  # else a GPU takes them, or each a part
            require_space(
                3 * trained_bytes(self.named.values()),
                "training (gradients and AdamW's two moments)",
                "train adapters (a small lora_rank), or a smaller model",
            )
        self.optimizer = self._adamw()
        if config.gradient_checkpointing:
            checkpoint_activations(self.lm)

    def _adamw(self) -> torch.optim.AdamW:
        matrices = [p for p in self.named.values() if p.ndim >= 2]
        vectors = [p for p in self.named.values() if p.ndim < 2]
        decay = self.config.weight_decay
        return torch.optim.AdamW(
            [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=0.0,  # set at every update
            betas=(0.9, self.config.adam_beta2),
            fused=self.sharded is None,  # one pass over the weights instead of a dozen
        )

    def shard(self, device: torch.device, note: Note) -> None:
        """Spread the model over the processes' devices (FSDP2), before the first update; ``note`` hears what changes.

        From then on all processes have to call ``update``, ``evaluate``, ``tensors``, ``weights`` together.

        Raises:    UsageError where the trainer or the model does not allow it
        Verified:  tests/integration/test_distributed.py::test_two_processes_train_as_one
        """
        if not self.can_be_sharded:
            raise UsageError(f"{self.algorithm} cannot be trained with fsdp; sft and dpo can")
        if self.lm.has_adapters:
            raise UsageError(
                "fsdp is for training all of a model; adapters are small, and their model can be held in 4 bits "
                "(quantization). Leave out fsdp: every process then has all of it"
            )
        from steepest.language.parallel.sharding import Sharded

        self.sharded = Sharded(self.lm, device)
        self.named = self.lm.parameters()
        self.optimizer = self._adamw()

    @classmethod
    def from_data(
        cls, lm: LanguageModel, config: Any, data: Any, *, eval_data: Any = None, seed: int = 0, note: Note, **more: Any
    ) -> Self:
        """A trainer on data as users have it: read, tokenised, and reported through ``note``."""
        rows, held_out = cls.read(lm, config, data, eval_data, seed=seed, note=note)
        return cls(lm, config, rows, eval_data=held_out, seed=seed, **more)

    @classmethod
    def read(
        cls, lm: LanguageModel, config: TrainingConfig, data: Any, eval_data: Any, *, seed: int, note: Note, **more: Any
    ) -> tuple[list[Any], list[Any]]:
        """Rows to train on and to evaluate on; ``more`` goes to ``load_rows``."""

        def load(source: Any, name: str) -> list[Any]:
            limit = sequence_limit(lm, config)
            options = {"max_length": limit, "drop_bad_rows": config.drop_bad_rows, "columns": config.columns}
            rows, report = cls.load_rows(lm, source, **options, **more)
            for line in report.lines(name):
                note(line)
            return rows

        rows = load(data, "data")
        if eval_data is None:
            return hold_out(rows, cls.prompt_of, config.eval_fraction, seed=seed, note=note)
        return rows, load(eval_data, "evaluation data")

    def prepare(self, note: Note) -> None:
        """Find out what has to be tried on the model as it starts, and where it is trained; ``note`` hears of it.

        A run calls it once, before it loads a checkpoint: one that is resumed finds the same.
        """

    # What each trainer says of itself

    @property
    def data_fingerprint(self) -> str:
        """A hash of the tokenised data."""
        return fingerprint(self.data)

    @property
    def eval_fingerprint(self) -> str:
        """A hash of the held-out data."""
        return fingerprint(self.eval_data)

    @property
    def rows_fingerprint(self) -> str | None:
        """A hash of the data's rows, where more of them is read than their tokens."""
        return None

    @property
    def epoch_steps(self) -> int:
        """Updates in a pass over the data."""
        return max(1, -(-len(self.lengths) // self.batch_rows))

    @abstractmethod
    def micro_batches(self, step: int) -> Sequence[B]:
        """This process's share of the batch of an update, cut up; a function of the step and the seed."""

    @abstractmethod
    def count(self, batch: B) -> int:
        """How many terms (tokens, pairs) the loss of a micro-batch is a sum of."""

    @abstractmethod
    def loss(self, batch: B) -> tuple[Tensor, Sums]:
        """Sum of the loss over a micro-batch's terms, with gradient; and sums of metrics to report."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Figures on held-out data; empty where there is none."""

    def shown(self) -> Sequence[TokenBatch]:
        """The sequences of the first batch, for a reader."""
        return cast(Sequence[TokenBatch], self.micro_batches(0))

    def spare(self) -> B:
        """Some micro-batch, for a trainer that can be sharded."""
        raise NotImplementedError

    def save(self, folder: Path, *, merge: bool, weights: dict[str, Tensor] | None = None) -> Path:
        """Save what was trained as a folder that loads by itself; ``weights`` as of ``weights()``."""
        return save_model(self.lm, folder, merge=merge, weights=weights)

    # What they share

    def rows_of(self, step: int) -> list[int]:
        """Numbers of the rows that an update takes: a function of the step and the seed."""
        epoch, place = divmod(step, self.epoch_steps)
        if self._epoch[0] != epoch:
            seed, group = stream_seed(self.seed, "order"), self.groups_by_length
            self._epoch = (epoch, epoch_order(self.lengths, self.batch_rows, seed=seed, epoch=epoch, group=group))
        return self._epoch[1][place]

    def parts(self, rows: Sequence[int], length: Callable[[int], Any]) -> list[list[int]]:
        """This process's share of rows, by their number, in parts that fit memory and are of similar length."""
        rows, size = sorted(rows, key=length), self.config.micro_batch_size
        rows = [rows[i] for i in processes.share(len(rows))]
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    @property
    def total_steps(self) -> int:
        steps = self.config.epochs * self.epoch_steps
        return steps if self.config.max_steps is None else min(steps, self.config.max_steps)

    @property
    def done(self) -> bool:
        return self.step >= self.total_steps

    def learning_rate(self) -> float:
        """The step size of the next update."""
        base = self.config.learning_rate
        if base is None:
            base = self.config.learning_rates[self.lm.has_adapters]
        warmup = round(self.config.warmup * self.total_steps)
        return base * schedule_factor(self.config.schedule, self.step, self.total_steps, warmup)

    @contextmanager
    def autocast(self) -> Generator[None]:
        """The arithmetic that the config asks for."""
        half = self.config.precision == "bfloat16"
        with fast_products(), torch.autocast(self.lm.device.type, dtype=torch.bfloat16, enabled=half):
            yield

    def gradient(self, micro_batches: Sequence[B]) -> tuple[dict[str, float], int]:
        """Leave the gradient of the mean loss of a whole batch in the parameters; means of its figures, and the count.

        Equation:  g = sum over micro-batches of grad(sum of losses) / number of terms in the whole batch,
                   those of all processes
        Verified:  tests/unit/test_language_sft.py::test_micro_batches_do_not_change_the_gradient,
                   tests/integration/test_distributed.py::test_two_processes_train_as_one
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = int(processes.total(sum(self.count(batch) for batch in micro_batches)))
        sums: dict[str, float] = {}
        # Whatever draws within the model (dropout) does so from the run's seed and the step, and leaves no trace.
        devices = [self.lm.device] if self.lm.device.type == "cuda" else []
        stream = f"dropout {self.step}" + (f" of process {processes.rank()}" if processes.rank() else "")
        with drawing_from(stream_seed(self.seed, stream), devices):
            for batch, counts in self.in_step(micro_batches, self.spare):
                with self.autocast():
                    loss, figures = self.through(self.loss, batch)
                if not counts:
                    (0.0 * loss).backward()
                    continue
                (loss / total).backward()
                for name, value in {"loss": loss, **figures}.items():
                    sums[name] = sums.get(name, 0.0) + float(value.detach())
        if self.sharded is None:
            processes.sum_gradients(list(self.named.values()))
        return {name: value / total for name, value in processes.totals(sums).items()}, total

    def through(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call what runs the model, where the model is whole."""
        return function(*arguments) if self.sharded is None else self.sharded(function, *arguments)

    def in_step(self, batches: Sequence[T], spare: Callable[[], T]) -> Iterator[tuple[T, bool]]:
        """Batches, which count; and, of a model in parts, spare ones, which do not, until every process had as many.

        All processes have to take part in each pass, or the others could not put the model together.
        """
        most = len(batches) if self.sharded is None else max(processes.gather(len(batches)))
        yield from ((batch, True) for batch in batches)
        for _ in range(most - len(batches)):
            yield spare(), False

    def descend(self, micro_batches: Sequence[B]) -> tuple[dict[str, float], int]:
        """One step of AdamW on a whole batch, its gradient limited by its norm; figures, with that norm, and the count.

        Raises:    RunError where loss or gradient is not finite; the parameters are then as they were
        Verified:  tests/exact/test_dpo.py::test_updates_descend_the_population_loss
        """
        figures, count = self.gradient(micro_batches)
        norm = nn.utils.clip_grad_norm_(self.named.values(), self.config.max_gradient_norm)
        norm = float(norm if self.sharded is None else self.sharded.whole(norm))
        bad = [name for name, value in {**figures, "gradient norm": norm}.items() if not math.isfinite(value)]
        if bad:
            raise RunError(
                f"training stopped at step {self.step}: {', '.join(bad)} became non-finite. A smaller learning_rate, "
                "or a longer warmup, usually helps."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        return {**figures, "gradient_norm": norm}, count

    def update(self) -> dict[str, float]:
        """Take one step of AdamW on a batch; return metrics by tag."""
        figures, count = self.descend(self.micro_batches(self.step))
        return self.advance(figures, count)

    def advance(self, figures: dict[str, float], count: int) -> dict[str, float]:
        """Count an update that is done; return its metrics by tag."""
        rate, norm = self.learning_rate(), figures.pop("gradient_norm")
        self.step += 1
        return {
            **{f"train/{name}": value for name, value in figures.items()},
            "train/epoch": self.step / self.epoch_steps,
            "health/gradient_norm": norm,
            "health/learning_rate": rate,
            f"train/{self.terms}": float(count),
        }

    def weights(self) -> dict[str, Tensor] | None:
        """A sharded model's weights put together, in the main process; None where the model holds them itself."""
        return None if self.sharded is None else self.sharded.weights()

    def tensors(self) -> dict[str, Tensor]:
        """All that changes in training: parameters, and AdamW's moments and step. Sharded, in the main process only."""
        out: dict[str, Tensor] = {}
        for name, p in self.named.items():
            out[f"params/{name}"] = p.detach()
            state = self.optimizer.state.get(p, {})
            for moment in ("exp_avg", "exp_avg_sq", "step"):
                if moment in state:
                    out[f"{moment}/{name}"] = state[moment]
        return out if self.sharded is None else self.sharded.gathered(out)

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        """Go on from ``tensors()``.

        Raises:    KeyError or ValueError where they are of another model
        """
        extra = [name for name in tensors if name.split("/", 1)[1] not in self.named]
        if extra:
            raise ValueError(f"there is no {extra[0]} in this model")
        with torch.no_grad():
            for name, p in self.named.items():
                saved = tensors[f"params/{name}"]
                if saved.shape != p.shape:
                    raise ValueError(f"{name} is {tuple(saved.shape)}, here {tuple(p.shape)}")
                p.copy_(self._placed(saved, p))
                moments = {m: tensors[f"{m}/{name}"] for m in ("exp_avg", "exp_avg_sq") if f"{m}/{name}" in tensors}
                if moments:
                    placed = {m: self._placed(value, p) for m, value in moments.items()}
                    self.optimizer.state[p] = {"step": tensors[f"step/{name}"], **placed}
        self.step = step

    def _placed(self, tensor: Tensor, parameter: nn.Parameter) -> Tensor:
        """A saved tensor where, and in the parts in which, a parameter is."""
        if self.sharded is None:
            return tensor.to(parameter.device, parameter.dtype)
        return self.sharded.like(tensor, parameter)
