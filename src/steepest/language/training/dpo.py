"""Direct preference optimisation: a policy from pairs of responses, without a reward model and without sampling.

Source: notes 2.2.2; Rafailov et al. 2023.

    once:  log ref(y_w|x), log ref(y_l|x) of every pair                                    reference.Reference
    repeat, for every batch of pairs (x, y_w preferred to y_l)
      1. log pi(y_w|x), log pi(y_l|x), summed over the response's tokens                   pairs.pair_log_probs
      2. one step of AdamW on the mean of -log sigmoid(beta h)                             losses.dpo_loss
         h = (log pi(y_w|x) - log ref(y_w|x)) - (log pi(y_l|x) - log ref(y_l|x))

Differences from the paper: AdamW instead of RMSprop. Beyond it: the losses of IPO, SLiC-HF, label smoothing, robust DPO
and length-normalised DPO, each a function of its own in losses.preference; and sft_coef, which adds the mean loss per
token of y_w (Liu et al. 2024, RPO).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from steepest.errors import UsageError
from steepest.language.data.batching import pad_pairs
from steepest.language.data.datasets import fingerprint, load_preferences
from steepest.language.data.examples import Pair
from steepest.language.models.language_model import LanguageModel, without_dropout
from steepest.language.parallel import processes
from steepest.language.scoring.pairs import pair_log_probs, why_not_shared
from steepest.language.scoring.reference import Reference, load_cached, reference_key, save_cached
from steepest.language.training.configs.dpo import DPOConfig
from steepest.language.training.trainer import Note, Sums, Trainer
from steepest.losses import (
    dpo_loss,
    hinge_dpo_loss,
    ipo_loss,
    length_normalized_dpo_loss,
    preference_metrics,
    robust_dpo_loss,
    score_function_loss,
    smoothed_dpo_loss,
)
from steepest.types import PreferenceBatch, TokenBatch


class ScoredPairs(NamedTuple):
    """Pairs, and the log-probabilities of their whole responses under the reference; None: to be computed."""

    pairs: PreferenceBatch
    ref_log_prob: tuple[Tensor, Tensor] | None  # (B,) chosen and (B,) rejected, nats


class PairLogProbs(NamedTuple):
    """Arguments of a preference loss, for B pairs: log-probabilities of whole responses, and their lengths."""

    chosen: Tensor  # (B,) nats, carries gradient
    rejected: Tensor  # (B,) nats, carries gradient
    ref_chosen: Tensor  # (B,) nats
    ref_rejected: Tensor  # (B,) nats
    chosen_length: Tensor  # (B,) tokens
    rejected_length: Tensor  # (B,) tokens


def pair_losses(config: DPOConfig, of: PairLogProbs) -> tuple[Tensor, Sums]:
    """The loss of every pair (B,) that the config names, and metrics (B,) to watch.

    ``kl`` is log ref - log pi: on average KL(ref || pi), where the responses were drawn from the reference.
    """
    four = (of.chosen, of.rejected, of.ref_chosen, of.ref_rejected)
    beta, eps = config.kl_coef, config.flip_probability
    match config.loss:
        case "dpo":
            loss = dpo_loss(*four, beta)
        case "ipo":
            loss = ipo_loss(*four, beta)
        case "hinge":
            loss = hinge_dpo_loss(*four, beta)
        case "smoothed":
            loss = smoothed_dpo_loss(*four, beta, eps)
        case "robust":
            loss = robust_dpo_loss(*four, beta, eps)
        case "length_normalized":
            loss = length_normalized_dpo_loss(*four, of.chosen_length, of.rejected_length, beta)
    figures = preference_metrics(*four, beta)
    figures["kl"] = 0.5 * (of.ref_chosen - of.chosen + of.ref_rejected - of.rejected).detach()
    if config.sft_coef:
        per_token = score_function_loss(of.chosen, torch.ones_like(of.chosen)) / of.chosen_length
        figures |= {"preference_loss": loss.detach(), "sft_loss": per_token.detach()}
        loss = loss + config.sft_coef * per_token
    return loss, figures


class DPO(Trainer[ScoredPairs]):
    """A policy that learns from pairs. Dropout is off: with it, the margin of a policy to itself would not be 0."""

    algorithm = "dpo"
    can_be_sharded = True
    Config = DPOConfig
    load_rows = load_preferences
    prompt_of = attrgetter("prompt")
    terms = "pairs"
    config: DPOConfig
    data: list[Pair]
    eval_data: list[Pair]

    def __init__(
        self,
        lm: LanguageModel,
        config: DPOConfig,
        data: Sequence[Pair],
        *,
        eval_data: Sequence[Pair] = (),
        reference: Reference | None = None,
        seed: int = 0,
    ) -> None:
        """``reference`` is by default the model as it is now."""
        super().__init__(lm, config, data, eval_data=eval_data, seed=seed)
        self.lengths = [pair.length for pair in self.data]
        self.reference = reference
        if reference is None and config.reference == "on_the_fly":
            self.reference = Reference(self.lm, adapters_are_fresh=self.adapters_are_fresh)
        self.ref_log_probs: Tensor | None = None  # (data and then eval_data, 2) nats

    def prepare(self, note: Note) -> None:
        if self.why_not_shared is not None:
            note(f"each prompt is computed for both of its responses: {self.why_not_shared}")

    @cached_property
    def why_not_shared(self) -> str | None:
        """Why each prompt is computed for both of its responses; None where it is computed once.

        Policy and reference do alike, or a policy equal to its reference would differ from it by rounding. Tried on the
        longest pair, and on that of the shortest prompt, which is padded most.
        """
        pairs = self.data
        tried = [max(pairs, key=attrgetter("length")), min(pairs, key=lambda p: len(p.prompt))] if pairs else []
        models = [self.lm, *([] if self.reference is None or self.reference.switches else [self.reference.lm])]
        return next((why for lm in models if (why := why_not_shared(lm, tried)) is not None), None)

    def micro_batches(self, step: int) -> list[ScoredPairs]:
        return self._cut(self.rows_of(step))

    def _cut(self, rows: Sequence[int]) -> list[ScoredPairs]:
        """This process's share of pairs, by their number among all, in parts that fit memory, of similar length."""
        everything = self.data + self.eval_data
        if self.config.reference == "precomputed":
            self._precomputed()  # by all processes, be their share empty or not
        parts = self.parts(rows, lambda i: (everything[i].length, i))
        return [self._batch([everything[i] for i in part], part) for part in parts]

    def _batch(self, pairs: Sequence[Pair], rows: Sequence[int]) -> ScoredPairs:
        batch = pad_pairs(pairs, self.lm.pad_token).to(self.lm.device)
        if self.config.reference == "on_the_fly":
            return ScoredPairs(batch, None)
        ref = self._precomputed()[list(rows)].to(self.lm.device)
        return ScoredPairs(batch, (ref[:, 0], ref[:, 1]))

    def spare(self) -> ScoredPairs:
        return self._batch(self.data[:1], [0])

    def shown(self) -> list[TokenBatch]:
        return list(pad_pairs([self.data[i] for i in self.rows_of(0)], self.lm.pad_token))

    # The reference

    def _precomputed(self) -> Tensor:
        """Log-probabilities of all pairs under the reference, computed before the first update or read from the cache.

        They are part of every checkpoint, so that a resumed run has the very same.
        """
        if self.ref_log_probs is None:
            everything = self.data + self.eval_data
            folder = None if self.config.reference_cache is None else Path(self.config.reference_cache).expanduser()
            found = None
            if folder is not None:
                lm, weights = self.lm if self.reference is None else self.reference.lm, self.weights()
                key = reference_key(
                    lm,
                    fingerprint(everything),
                    precision=self.config.precision,
                    share_prompts=self.why_not_shared is None,
                    adapters_are_fresh=self.adapters_are_fresh if self.reference is None else self.reference.switches,
                    weights=weights,
                )
                found = processes.decided(load_cached(folder, key, [(len(everything), 2)]))
                if found is None:
                    found = [self._score_all(everything)]
                    if processes.is_main():
                        save_cached(folder, key, found)
            self.ref_log_probs = self._score_all(everything) if found is None else found[0]
        return self.ref_log_probs

    @torch.no_grad()
    def _score_all(self, pairs: Sequence[Pair]) -> Tensor:
        parts = self.parts(range(len(pairs)), lambda i: (pairs[i].length, i))
        order = [i for part in parts for i in part]
        found: list[Tensor] = []
        for rows, counts in self.in_step(parts, lambda: [0]):
            batch = pad_pairs([pairs[i] for i in rows], self.lm.pad_token).to(self.lm.device)
            ref = torch.stack(self.through(self.reference_log_probs, batch), -1)
            if counts:
                found.append(ref)
        return processes.whole_rows(torch.cat(found) if found else None, order, len(pairs))

    @torch.no_grad()
    def reference_log_probs(self, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the chosen and the rejected responses (B,) under the reference."""
        with self.autocast():
            if self.reference is not None:
                return self.reference.pair_log_probs(batch, share_prompts=self.why_not_shared is None)
            if self.step:
                raise RuntimeError("the policy is no longer its reference: precompute before the first update")
            return self.policy_log_probs(batch)

    # The loss

    def policy_log_probs(self, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the chosen and the rejected responses (B,)."""
        with without_dropout(self.lm):
            return pair_log_probs(self.lm, batch, share_prompts=self.why_not_shared is None)

    def count(self, batch: ScoredPairs) -> int:
        return len(batch.pairs.chosen.tokens)

    def losses(self, batch: ScoredPairs) -> tuple[Tensor, Sums]:
        """Return the loss of every pair (B,), and metrics (B,)."""
        ref = batch.ref_log_prob or self.reference_log_probs(batch.pairs)
        chosen, rejected = self.policy_log_probs(batch.pairs)
        lengths = [side.response_mask.sum(-1).to(chosen.dtype) for side in batch.pairs]
        return pair_losses(self.config, PairLogProbs(chosen, rejected, *ref, *lengths))

    def loss(self, batch: ScoredPairs) -> tuple[Tensor, Sums]:
        loss, figures = self.losses(batch)
        return loss.sum(), {name: value.sum() for name, value in figures.items()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the metrics of training on the held-out pairs."""
        if not self.eval_data:
            return {}
        totals: dict[str, float] = {}
        batches = self._cut(range(len(self.data), len(self.data) + len(self.eval_data)))
        for batch, counts in self.in_step(batches, self.spare):
            with self.autocast():
                loss, figures = self.through(self.loss, batch)
            if counts:
                for name, value in {"loss": loss, **figures}.items():
                    totals[name] = totals.get(name, 0.0) + float(value)
        return {f"eval/{name}": value / len(self.eval_data) for name, value in processes.totals(totals).items()}

    def shard(self, device: torch.device, note: Note) -> None:
        if self.reference is not None:
            raise UsageError('with fsdp, the reference has to be "precomputed": scored before training')
        super().shard(device, note)
        # Whether sharing pays depends on the rows, and processes with other rows could then wait for each other.
        self.why_not_shared = "all processes pass through a model in parts alike"

    def tensors(self) -> dict[str, Tensor]:
        ref = {} if self.ref_log_probs is None else {"reference/log_probs": self.ref_log_probs}
        return {**super().tensors(), **ref}

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        rest = dict(tensors)
        self.ref_log_probs = rest.pop("reference/log_probs", None)
        super().load_tensors(rest, step)
