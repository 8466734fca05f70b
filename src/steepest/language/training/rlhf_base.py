"""Shared by PPO, RLOO and GRPO over tokens: drawing responses, scoring them, and the passes over them.

The algorithms are in ``language.training.rlhf``: what they hold fixed while they learn, and their loss of a response.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from steepest.errors import UsageError, require
from steepest.language.data.batching import pad, responses
from steepest.language.data.datasets import fingerprint, load_prompts
from steepest.language.data.examples import Prompt
from steepest.language.data.tokens import check_tokens, last_steps
from steepest.language.models.fingerprints import rows_fingerprint
from steepest.language.models.language_model import LanguageModel, without_dropout
from steepest.language.parallel import processes
from steepest.language.scoring.generation import Response, Sampling, draw_uniforms, generate
from steepest.language.scoring.reference import Reference
from steepest.language.scoring.scoring import token_log_probs, token_log_probs_and_values
from steepest.language.training.config import sequence_limit
from steepest.language.training.configs.rlhf import RLHFConfig
from steepest.language.training.reward_model import RewardModel
from steepest.language.training.rewards import arguments_of, load_reward, make_scorer, template_difference
from steepest.language.training.rlhf_watch import WATCHED, alarms, response_figures
from steepest.language.training.trainer import Note, Sums, Trainer
from steepest.losses import k1_estimate, k3_estimate, proportional_kl_coef
from steepest.returns import scaled_token_rewards, token_rewards
from steepest.seeding import stream_seed
from steepest.types import TokenBatch

Figures = dict[str, Tensor]


class Steps(NamedTuple):
    """Outputs of policy and reference for B responses before the update, at each token. Detached."""

    valid: Tensor  # (B, L) bool: the token is of the response
    log_prob: Tensor  # (B, L) nats, 0 where not valid
    ref_log_prob: Tensor  # (B, L) nats, 0 where not valid
    value: Tensor | None  # (B, L) reward units: of the state in which the token is decided

    def rows(self, index: Tensor) -> Steps:
        """Some of the responses."""
        value = None if self.value is None else self.value[index]
        return Steps(self.valid[index], self.log_prob[index], self.ref_log_prob[index], value)


class Experience(NamedTuple):
    """Responses with all that their loss holds fixed."""

    batch: TokenBatch
    steps: Steps
    fixed: dict[str, Tensor]  # (B, ...) advantages, and for PPO the values' targets


class Drawn(NamedTuple):
    """Responses of the present policy, before anything is learned from them."""

    batch: TokenBatch
    score: Tensor  # (B,) reward units
    responses: list[Response]


C = TypeVar("C", bound=RLHFConfig)


class RLHF(Trainer[Experience], Generic[C]):
    """A policy that learns from scored responses; what PPO, RLOO and GRPO share.

    Dropout is off: with it, the ratio of a policy to itself would differ from 1.
    """

    Config = RLHFConfig
    load_rows = load_prompts
    prompt_of = attrgetter("tokens")
    terms = "responses"
    best_by = ("eval/objective", "highest")
    """Not the score: the highest one is reached by the model that went farthest from its reference for it."""
    takes_reward = True
    config: C
    data: list[Prompt]
    eval_data: list[Prompt]

    def __init__(
        self,
        lm: LanguageModel,
        config: C,
        data: Sequence[Prompt],
        reward: Any,
        *,
        eval_data: Sequence[Prompt] = (),
        reference: Reference | None = None,
        head: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        """``reward`` is what ``rewards.make_scorer`` takes; ``reference`` is by default the model as it is now."""
        together = config.group_size * processes.world_size()
        require(config.batch_size % together == 0, "batch_size", config.batch_size,
                f"a multiple of {together}, group_size times the number of processes: each draws and scores whole "
                "groups, as many as the others")  # fmt: skip
        super().__init__(lm, config, data, eval_data=eval_data, seed=seed, head=head)
        self.head = head
        self.lengths = [len(prompt.tokens) for prompt in self.data]
        self.batch_rows = config.batch_size // config.group_size
        self.groups_by_length = False
        self.reward = load_reward(reward)
        if not isinstance(self.reward, RewardModel) and self.data:  # refused now, and not after the first responses
            first = self.data[0]
            arguments_of(self.reward, [first.row.get("prompt")], [""], [first.row])
        self.evaluation_may_hang = bool(self.eval_data) and not isinstance(self.reward, RewardModel)
        self.score = make_scorer(self.lm, self.reward, micro_batch_size=config.micro_batch_size)
        self.reference = reference or Reference(self.lm, adapters_are_fresh=self.adapters_are_fresh)
        self.sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature)
        self.kl_coef = config.kl_coef
        self.first_length = 0.0  # tokens, mean over the updates of the first window
        self.recent: list[dict[str, float]] = []  # figures of the latest updates
        self.alarmed: set[str] = set()  # what was said already
        self.note: Note = lambda _: None

    @classmethod
    def from_data(
        cls, lm: LanguageModel, config: C, data: Any, *, eval_data: Any = None, seed: int = 0, note: Note, **more: Any
    ) -> Self:
        reward = config.reward if more.get("reward") is None else more["reward"]
        if reward is None:
            raise UsageError("reward is missing: the folder of a reward model, or FILE.py:FUNCTION; or from Python a "
                             "function of prompts and completions")  # fmt: skip
        limit = sequence_limit(lm, config)
        if limit <= config.max_new_tokens:
            raise UsageError(
                f"max_new_tokens is {config.max_new_tokens}, which leaves no room for a prompt in max_length or the "
                f"model's context ({limit} tokens)"
            )
        new_tokens = config.max_new_tokens
        prompts, held_out = cls.read(lm, config, data, eval_data, seed=seed, note=note, new_tokens=new_tokens)
        if len(prompts) * config.group_size < config.minibatches:
            raise UsageError(f"{len(prompts)} prompts do not fill {config.minibatches} minibatches")
        reward = load_reward(reward)
        if (difference := template_difference(lm, reward, prompts)) is not None:
            note(difference)
        return cls(lm, config, prompts, reward, eval_data=held_out, seed=seed)

    def prepare(self, note: Note) -> None:
        self.note = note

    # What an algorithm says of itself

    def targets(self, steps: Steps, score: Tensor) -> dict[str, Tensor]:
        """What the losses of a batch hold fixed: advantages, and for PPO the values' targets."""
        raise NotImplementedError

    def sequence_loss(
        self, log_prob: Tensor, value: Tensor | None, steps: Steps, fixed: dict[str, Tensor]
    ) -> tuple[Tensor, Figures]:
        """Return the loss of every response (B,), and metrics (B,) to watch."""
        raise NotImplementedError

    # Drawing responses

    @property
    def data_fingerprint(self) -> str:
        return fingerprint([prompt.tokens] for prompt in self.data)

    @property
    def rows_fingerprint(self) -> str:
        return rows_fingerprint(prompt.row for prompt in self.data)  # a reward may look at all of them

    @property
    def eval_fingerprint(self) -> str:
        return rows_fingerprint(prompt for prompt in self.eval_data)

    @property
    def epoch_steps(self) -> int:
        """What does not fill a batch waits for another epoch's order."""
        return max(1, len(self.data) // self.batch_rows)

    def collect(self, step: int) -> Drawn:
        """Draw and score the responses of an update: a function of the policy, the seed and the step."""
        asked = [self.data[i] for i in self.rows_of(step) for _ in range(self.config.group_size)]
        return self._draw(asked, f"responses {step}", self.config.group_size)

    def _draw(self, prompts: Sequence[Prompt], stream: str, group_size: int) -> Drawn:
        """Responses to all prompts, of uniform numbers for all of them; each process draws and scores some groups."""
        generator = torch.Generator().manual_seed(stream_seed(self.seed, stream))
        uniforms = draw_uniforms(len(prompts), self.sampling, generator)
        tokens = [prompt.tokens for prompt in prompts]
        mine = processes.share(len(prompts), group_size)
        with self.autocast():
            own = generate(
                self.lm,
                [tokens[i] for i in mine],
                self.sampling,
                uniforms[mine],
                micro_batch_size=self.config.generation_batch_size,
            )
        own_score = self.score([prompts[i] for i in mine], own) if mine else None
        drawn = processes.whole_list(own, mine)
        cut = torch.tensor([not response.ended for response in drawn])
        score = processes.whole_rows(own_score, mine, len(prompts)) - self.config.missing_eos_penalty * cut
        batch = pad(responses(tokens, [response.tokens for response in drawn]), self.lm.pad_token)
        return Drawn(batch.to(self.lm.device), score, drawn)

    def micro_batches(self, step: int) -> list[Experience]:
        """This process's share of freshly drawn responses, cut up in the order of their prompts."""
        drawn = self.collect(step)
        experience = self.experience(drawn.batch, drawn.score)
        return self._cut(experience, torch.arange(len(drawn.score), device=drawn.batch.tokens.device))

    def shown(self) -> list[TokenBatch]:
        return [self.collect(0).batch]

    # Learning from them

    def forward(self, batch: TokenBatch) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities (B, L) of the response's tokens, 0 elsewhere, and values (B, L) if there is a head."""
        with without_dropout(self.lm):
            if self.head is None:
                return token_log_probs(self.lm, batch, temperature=self.config.temperature), None
            return token_log_probs_and_values(self.lm, batch, self.head, temperature=self.config.temperature)

    @torch.no_grad()
    def steps(self, batch: TokenBatch) -> Steps:
        """One pass of policy and reference over a batch, of which each process does its share."""
        found: list[Tensor] = []
        count, device = len(batch.tokens), batch.tokens.device
        for part in self._parts(torch.arange(count, device=device)):
            rows = batch.rows(part)
            with self.autocast():
                log_prob, value = self.forward(rows)
                ref_log_prob = self.reference.log_probs(rows, self.config.temperature)
            found.append(torch.stack([log_prob, ref_log_prob] if value is None else [log_prob, ref_log_prob, value], 1))
        every = processes.whole_rows(torch.cat(found) if found else None, processes.share(count), count)
        log_prob, ref_log_prob, *value = every.to(device).unbind(1)
        return Steps(batch.response_mask, log_prob, ref_log_prob, value[0] if value else None)

    def _rewards(self, steps: Steps, score: Tensor, *, scaled: bool) -> Tensor:
        """(L, B): time first, as in returns."""
        last = last_steps(steps.valid)
        reward = token_rewards(score, steps.log_prob.T, steps.ref_log_prob.T, steps.valid.T, last.T, self.kl_coef)
        return scaled_token_rewards(reward) if scaled else reward

    def experience(self, batch: TokenBatch, score: Tensor) -> Experience:
        """Responses with their advantages.

        Raises:    UsageError for masks that cannot be meant, or a score of another shape or not finite
        """
        check_tokens(batch)
        if score.shape != batch.tokens.shape[:1]:
            raise UsageError(f"score has shape {tuple(score.shape)} for {len(batch.tokens)} responses; one each")
        if not bool(torch.isfinite(score).all()):
            raise UsageError(f"score has {int((~torch.isfinite(score)).sum())} entries that are not finite numbers")
        steps = self.steps(batch)
        return Experience(batch, steps, self.targets(steps, score.to(steps.log_prob)))

    def _parts(self, index: Tensor) -> list[Tensor]:
        """This process's share of some rows, in parts that fit memory."""
        mine = index[processes.share(len(index))]
        return [part for part in mine.split(self.config.micro_batch_size) if len(part)]

    def _cut(self, of: Experience, index: Tensor) -> list[Experience]:
        """This process's share of some of the responses, in parts that fit memory."""
        return [
            Experience(of.batch.rows(part), of.steps.rows(part), {k: x[part] for k, x in of.fixed.items()})
            for part in self._parts(index)
        ]

    def count(self, batch: Experience) -> int:
        return len(batch.batch.tokens)

    def loss(self, batch: Experience) -> tuple[Tensor, Sums]:
        log_prob, value = self.forward(batch.batch)
        loss, figures = self.sequence_loss(log_prob, value, batch.steps, batch.fixed)
        return loss.sum(), {name: x.sum() for name, x in figures.items()}

    def improve(self, batch: TokenBatch, score: Tensor) -> dict[str, float]:
        """Improve the policy on responses that it drew itself.

        Args:      batch: B responses of the present policy, as it was when they were drawn; score (B,) reward units
        Returns:   metrics of the batch before the update, and means over its gradient steps
        Raises:    UsageError for masks that cannot be meant, or a score of another shape or not finite
        Verified:  tests/exact/test_rlhf.py::test_sampled_updates_reach_the_optimum
        """
        if len(score) < self.config.minibatches:
            raise UsageError(f"{len(score)} responses do not fill {self.config.minibatches} minibatches")
        experience = self.experience(batch, score)
        generator = torch.Generator().manual_seed(stream_seed(self.seed, f"minibatches {self.step}"))
        history: list[dict[str, float]] = []
        for _ in range(self.config.update_epochs):
            order = torch.randperm(len(score), generator=generator).to(batch.tokens.device)
            for index in order.tensor_split(self.config.minibatches):
                history.append(self.descend(self._cut(experience, index))[0])
        steps = experience.steps
        before = {name: float(x) for name, x in self._figures(steps, score.to(steps.log_prob), self.kl_coef).items()}
        means = {name: sum(h[name] for h in history) / len(history) for name in history[0]}
        result = {**before, **means, "kl_coef": self.kl_coef}
        if self.config.target_kl is not None:
            horizon = max(self.config.kl_horizon, len(score))
            self.kl_coef = proportional_kl_coef(self.kl_coef, result["kl"], self.config.target_kl, len(score), horizon)
        return result

    def update(self) -> dict[str, float]:
        """Draw responses, score them, and improve the policy on them; return metrics by tag."""
        drawn = self.collect(self.step)
        figures = {**self.improve(drawn.batch, drawn.score), **response_figures(drawn.responses)}
        self.watch(figures)
        return self.advance(figures, len(drawn.responses))

    def watch(self, figures: dict[str, float]) -> None:
        """Say what is alarming about the responses of late, each kind of it once.

        Verified:  tests/unit/test_rlhf.py::test_alarms_are_said_once
        """
        window = -(-WATCHED // self.config.batch_size)
        if self.step < window:
            self.first_length += figures["response_length"] / window
        self.recent = [*self.recent, figures][-window:]
        if len(self.recent) < window:
            return
        means = {
            name: sum(x[name] for x in self.recent) / window for name in ("response_length", "ended", "repetition")
        }
        for kind, text in alarms(means, self.first_length, self.config.max_new_tokens).items():
            if kind not in self.alarmed:
                self.alarmed.add(kind)
                self.note(f"update {self.step + 1:,}: {text}")

    def _figures(self, steps: Steps, score: Tensor, kl_coef: float) -> Figures:
        """Means over responses of what the batch was like before the update."""
        k1 = k1_estimate(steps.log_prob, steps.ref_log_prob).sum(-1)
        return {
            "score": score.mean(),
            "kl": k1.mean(),
            "kl_k3": k3_estimate(steps.log_prob, steps.ref_log_prob).sum(-1).mean(),
            "objective": (score - kl_coef * k1).mean(),
            "entropy": -steps.log_prob.sum(-1).mean(),
            "response_length": steps.valid.sum(-1).to(score.dtype).mean(),
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the same metrics of responses to the held-out prompts, drawn with the same random numbers every time.

        The objective is that of the config's kl_coef, where ``target_kl`` has changed the coefficient too: evaluations
        of one run are compared with each other.

        Verified:  tests/unit/test_rlhf.py::test_evaluations_are_compared_at_one_price_of_the_kl
        """
        if not self.eval_data:
            return {}
        drawn = self._draw(self.eval_data, "evaluation", 1)
        steps = self.steps(drawn.batch)
        measured = self._figures(steps, drawn.score.to(steps.log_prob), self.config.kl_coef)
        figures = {name: float(x) for name, x in measured.items()}
        return {f"eval/{name}": x for name, x in {**figures, **response_figures(drawn.responses)}.items()}

    def tensors(self) -> dict[str, Tensor]:
        state = {"kl_coef": self.kl_coef, "first_length": self.first_length}
        saved = {f"state/{name}": torch.tensor(value, dtype=torch.float64) for name, value in state.items()}
        return {**super().tensors(), **saved}

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        rest = dict(tensors)
        self.kl_coef = float(rest.pop("state/kl_coef"))
        self.first_length = float(rest.pop("state/first_length", torch.nan))  # older checkpoints have none
        super().load_tensors(rest, step)
