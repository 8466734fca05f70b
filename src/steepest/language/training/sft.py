"""Supervised fine-tuning: maximum likelihood of demonstrated responses.

Source: notes 2.2.1, the supervised stage; Ouyang et al. 2022, section 3.5.

    repeat
      1. take a batch of demonstrations (x, y)                                          batching.epoch_order
      2. log pi(y_t | x, y_<t) of every response token                                  scoring.token_log_probs
      3. one step of AdamW on  -1/N sum_t log pi(y_t | x, y_<t)                         losses.score_function_loss

A token is an action, and a demonstrated action has advantage 1: the loss is that of REINFORCE. N is the number of
response tokens in the whole batch, not in a micro-batch, so accumulation does not change what is computed: means of
micro-batches of unequal lengths, averaged, would weigh tokens of short responses more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from steepest.language.data.batching import check_isolation, pack, pack_rows, pad
from steepest.language.data.datasets import load_sft
from steepest.language.data.examples import Example
from steepest.language.models.language_model import LanguageModel, without_dropout
from steepest.language.parallel import processes
from steepest.language.scoring.scoring import token_log_probs
from steepest.language.training.config import sequence_limit
from steepest.language.training.configs.sft import SFTConfig
from steepest.language.training.trainer import Sums, Trainer
from steepest.losses import score_function_loss
from steepest.types import TokenBatch


def first_prompt(example: Example) -> tuple[int, ...]:
    """The tokens before the first that is learned; empty for a text, of which everything is but the very first."""
    start = example.response.index(True)
    return example.tokens[:start] if start > 1 else ()


class SFT(Trainer[TokenBatch]):
    """Supervised fine-tuning of a language model; dropout is on wherever the model has any."""

    algorithm = "sft"
    can_be_sharded = True
    Config = SFTConfig
    load_rows = load_sft
    prompt_of = first_prompt
    config: SFTConfig
    data: list[Example]
    eval_data: list[Example]

    def __init__(
        self,
        lm: LanguageModel,
        config: SFTConfig,
        data: Sequence[Example],
        *,
        eval_data: Sequence[Example] = (),
        seed: int = 0,
    ) -> None:
        super().__init__(lm, config, data, eval_data=eval_data, seed=seed)
        lengths = [len(e.tokens) for e in self.data]
        if config.packing:
            check_isolation(self.lm)
            self.capacity = max(sequence_limit(lm, config), *lengths)
            self.rows = pack_rows(lengths, self.capacity)
        else:
            self.rows = [[i] for i in range(len(self.data))]
        self.lengths = [sum(lengths[i] for i in row) for row in self.rows]
        self.groups_by_length = config.group_by_length and not config.packing

    def micro_batches(self, step: int) -> list[TokenBatch]:
        """This process's share of the batch of an update, cut up into rows of similar length."""
        parts = self.parts(self.rows_of(step), lambda row: (self.lengths[row], row))
        return [self._batch(part) for part in parts]

    def _batch(self, rows: Sequence[int]) -> TokenBatch:
        examples = [[self.data[i] for i in self.rows[row]] for row in rows]
        if self.config.packing:
            return pack(examples, self.lm.pad_token, self.capacity).to(self.lm.device)
        return pad([example for (example,) in examples], self.lm.pad_token).to(self.lm.device)

    def spare(self) -> TokenBatch:
        return self._batch([0])

    def count(self, batch: TokenBatch) -> int:
        return int(batch.response_mask.sum())

    def loss(self, batch: TokenBatch) -> tuple[Tensor, Sums]:
        """Sum of -log pi over the response tokens of a micro-batch."""
        self.lm.model.train()
        log_prob = token_log_probs(self.lm, batch)
        per_token = score_function_loss(log_prob, torch.ones_like(log_prob))
        return (per_token * batch.response_mask).sum(), {}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Mean loss per response token of the held-out data, and the perplexity that it means."""
        if not self.eval_data:
            return {}
        parts = self.parts(range(len(self.eval_data)), lambda i: len(self.eval_data[i].tokens))
        batches = [pad([self.eval_data[i] for i in part], self.lm.pad_token) for part in parts]
        total, count = 0.0, 0
        with without_dropout(self.lm), self.autocast():
            for batch, counts in self.in_step(batches, self.spare):
                log_prob = self.through(token_log_probs, self.lm, batch.to(self.lm.device))
                if counts:
                    total -= float(log_prob.double().sum())
                    count += self.count(batch)
        loss = processes.total(total) / processes.total(count)
        return {"eval/loss": loss, "eval/perplexity": math.exp(min(loss, 700.0))}
