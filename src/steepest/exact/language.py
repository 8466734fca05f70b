"""A language so small that all its responses can be listed: RLHF and DPO solved exactly, in float64.

A response is a sequence of tokens that ends with EOS or, after ``max_length`` tokens, without it. Shapes: P prompts,
R responses, L = max_length, V tokens, S prefixes (the responses' beginnings that have not ended, the empty one first).

A tabular policy is a table of logits (P, S, V), so its gradients are those of real token-level decisions. A policy over
responses is its log-probabilities (P, R), which need not come from such a table: ``policy_logits`` finds the table.
``score`` (P, R) is the reward r(x, y) of a whole response. ``kl_coef`` is the beta of RLHF and of DPO.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from steepest.errors import UsageError
from steepest.exact.checks import check_tensor

MAX_CELLS = 2_000_000
"""Most entries that the list of all responses, (P, R, L), may have."""


@dataclass(frozen=True, eq=False)
class EnumerableLanguage:
    """Prompts, their distribution, and every response there can be.

    Args:      prompts: P different sequences of tokens in 0..vocab_size-1; prompt_probs: P positive numbers that sum to
               1; vocab_size >= 2; eos in 0..vocab_size-1; max_length >= 1
    Returns:   (made at construction) tokens (R, L) int64, filled up with EOS, so that only the mask tells padding from
               a real EOS; mask (R, L) bool; prefix (R, L) int64, the number of the prefix that each token follows;
               prefixes, S tuples of tokens; prompt_weight (P,)
    Raises:    UsageError on anything else, or if there are more than MAX_CELLS cells to list
    Verified:  tests/exact/test_language_exact.py::test_responses_are_all_there_are,
               tests/exact/test_language_exact.py::test_bad_languages_are_refused
    """

    prompts: tuple[tuple[int, ...], ...]
    prompt_probs: tuple[float, ...]
    vocab_size: int
    eos: int
    max_length: int
    tokens: Tensor = field(init=False, repr=False)
    mask: Tensor = field(init=False, repr=False)
    prefix: Tensor = field(init=False, repr=False)
    prefixes: tuple[tuple[int, ...], ...] = field(init=False, repr=False)
    prompt_weight: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._check()
        others = [token for token in range(self.vocab_size) if token != self.eos]
        prefixes = [p for k in range(self.max_length) for p in itertools.product(others, repeat=k)]
        number = {p: i for i, p in enumerate(prefixes)}
        responses = [(*p, self.eos) for p in prefixes] + list(itertools.product(others, repeat=self.max_length))
        tokens = torch.full((len(responses), self.max_length), self.eos)
        prefix = torch.zeros_like(tokens)
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        for i, response in enumerate(responses):
            for t, token in enumerate(response):
                tokens[i, t], prefix[i, t], mask[i, t] = token, number[response[:t]], True
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "mask", mask)
        object.__setattr__(self, "prefix", prefix)
        object.__setattr__(self, "prefixes", tuple(prefixes))
        object.__setattr__(self, "prompt_weight", torch.tensor(self.prompt_probs, dtype=torch.float64))

    def _check(self) -> None:
        if self.vocab_size < 2:
            raise UsageError(f"vocab_size is {self.vocab_size}; EOS and one other token are the least")
        if not 0 <= self.eos < self.vocab_size:
            raise UsageError(f"eos is {self.eos}; it must be a token: 0 to {self.vocab_size - 1}")
        if self.max_length < 1:
            raise UsageError(f"max_length is {self.max_length}; a response has at least one token")
        if not self.prompts or len(self.prompts) != len(self.prompt_probs):
            raise UsageError(
                f"{len(self.prompts)} prompts and {len(self.prompt_probs)} prompt_probs; give one or more of each, "
                "and as many of one as of the other"
            )
        if len(set(self.prompts)) != len(self.prompts):
            raise UsageError("a prompt occurs twice; merge the two and add their probabilities")
        for prompt in self.prompts:
            if not all(0 <= token < self.vocab_size for token in prompt):
                raise UsageError(f"prompt {prompt} has tokens outside 0 to {self.vocab_size - 1}")
        if not all(p > 0.0 for p in self.prompt_probs) or abs(sum(self.prompt_probs) - 1.0) > 1e-9:
            raise UsageError(f"prompt_probs are {self.prompt_probs}; they must be positive and sum to 1")
        ended = 0
        for k in range(self.max_length):
            ended += (self.vocab_size - 1) ** k
            unended = (self.vocab_size - 1) ** (k + 1)
            if len(self.prompts) * (ended + unended) * self.max_length > MAX_CELLS:
                raise UsageError(
                    f"{len(self.prompts)} prompts with responses of up to {self.max_length} tokens out of "
                    f"{self.vocab_size} are too many to list (at most {MAX_CELLS} cells); use a smaller vocabulary "
                    "or shorter responses"
                )

    @property
    def table_shape(self) -> tuple[int, int, int]:
        """(P, S, V): the shape of a tabular policy's logits."""
        return len(self.prompts), len(self.prefixes), self.vocab_size

    @property
    def response_shape(self) -> tuple[int, int]:
        """(P, R): the shape of scores and of responses' log-probabilities."""
        return len(self.prompts), len(self.tokens)

    def response(self, index: int) -> tuple[int, ...]:
        """The tokens of one response, EOS included where it has one."""
        return tuple(self.tokens[index, self.mask[index]].tolist())

    def index(self, response: Sequence[int]) -> int:
        """The number of a response; UsageError if the language has no such response."""
        ended = bool(response) and response[-1] == self.eos
        body = list(response[:-1] if ended else response)
        if not (ended or len(response) == self.max_length) or len(response) > self.max_length or self.eos in body:
            raise UsageError(
                f"{tuple(response)} is no response: it must end with its only EOS ({self.eos}), "
                f"or have {self.max_length} tokens"
            )
        target = torch.full((self.max_length,), self.eos)
        target[: len(response)] = torch.tensor(response)
        found = ((self.tokens == target).all(-1) & (self.mask.sum(-1) == len(response))).nonzero()
        if len(found) != 1:
            raise UsageError(f"{tuple(response)} has tokens outside 0 to {self.vocab_size - 1}")
        return int(found)


def token_log_probs(language: EnumerableLanguage, logits: Tensor) -> Tensor:
    """Log-probability of every token of every response, given what precedes it.

    Equation:  log pi(y_t | x, y_<t) = logits[x, y_<t, y_t] - logsumexp(logits[x, y_<t])
    Args:      logits (P, S, V) float64, carries gradient
    Returns:   (P, R, L) nats, zero where the mask is False
    Raises:    UsageError on a wrong shape, dtype or entries that are not finite
    Verified:  tests/exact/test_language_exact.py::test_response_log_probs_by_recursion
    """
    check_tensor("logits", logits, language.table_shape)
    log_prob = torch.log_softmax(logits, -1)[:, language.prefix, language.tokens]
    return torch.where(language.mask, log_prob, torch.zeros_like(log_prob))


def response_log_probs(language: EnumerableLanguage, logits: Tensor) -> Tensor:
    """Log-probability of every response.

    Equation:  log pi(y | x) = sum_t log pi(y_t | x, y_<t), over the tokens of y, EOS included
    Args:      as token_log_probs
    Returns:   (P, R) nats
    Raises:    UsageError as token_log_probs
    Verified:  tests/exact/test_language_exact.py::test_response_log_probs_by_recursion
    """
    return token_log_probs(language, logits).sum(-1)


def policy_logits(language: EnumerableLanguage, log_prob: Tensor) -> Tensor:
    """The tabular policy that has these response probabilities: any distribution over responses has one.

    Equation:  pi(v | x, prefix) = P(responses that begin with prefix + v) / P(responses that begin with prefix)
    Args:      log_prob (P, R) nats, normalised
    Returns:   (P, S, V) logits, normalised
    Raises:    UsageError on a wrong shape, or probabilities that do not sum to 1
    Verified:  tests/exact/test_language_exact.py::test_any_distribution_is_a_tabular_policy
    """
    _check_log_prob(language, "log_prob", log_prob)
    probability = torch.exp(log_prob.detach())
    prompts, prefixes, tokens = language.table_shape
    mass = torch.zeros((prompts, prefixes * tokens), dtype=torch.float64)
    for t in range(language.max_length):
        here = language.mask[:, t]
        cell = language.prefix[here, t] * tokens + language.tokens[here, t]
        mass.index_add_(1, cell, probability[:, here])  # responses that share a beginning add to the same cell
    mass = mass.reshape(language.table_shape)
    return torch.log(mass) - torch.log(mass.sum(-1, keepdim=True))


def kl_divergence(log_prob: Tensor, ref_log_prob: Tensor) -> Tensor:
    """Sequence-level KL of each prompt.

    Equation:  KL(pi || ref)(x) = sum_y pi(y|x) (log pi(y|x) - log ref(y|x))
    Source:    notes 2.2.1, Eq. 2.
    Args:      log_prob, ref_log_prob (P, R) nats, both carry gradient
    Returns:   (P,) nats
    Raises:    UsageError on shapes that differ
    Verified:  tests/exact/test_language_exact.py::test_kl_is_the_sum_of_token_kls
    """
    check_matrix("log_prob", log_prob)
    check_tensor("ref_log_prob", ref_log_prob, tuple(log_prob.shape))
    return (torch.exp(log_prob) * (log_prob - ref_log_prob)).sum(-1)


def token_kl_divergence(language: EnumerableLanguage, logits: Tensor, ref_logits: Tensor) -> Tensor:
    """The same KL, as the expected sum of the KLs between next-token distributions.

    Equation:  sum_prefix P_pi(prefix | x) KL(pi(.|x, prefix) || ref(.|x, prefix))
    Args:      logits, ref_logits (P, S, V), both carry gradient
    Returns:   (P,) nats
    Raises:    UsageError as token_log_probs
    Verified:  tests/exact/test_language_exact.py::test_kl_is_the_sum_of_token_kls
    """
    check_tensor("logits", logits, language.table_shape)
    check_tensor("ref_logits", ref_logits, language.table_shape)
    new, ref = torch.log_softmax(logits, -1), torch.log_softmax(ref_logits, -1)
    local = (torch.exp(new) * (new - ref)).sum(-1)
    number = {p: i for i, p in enumerate(language.prefixes)}
    reach: list[Tensor] = []
    for prefix in language.prefixes:  # shorter ones come first
        if prefix:
            parent = number[prefix[:-1]]
            reach.append(reach[parent] + new[:, parent, prefix[-1]])
        else:
            reach.append(torch.zeros_like(local[:, 0]))
    return (torch.exp(torch.stack(reach, -1)) * local).sum(-1)


def prompt_mean(language: EnumerableLanguage, values: Tensor) -> Tensor:
    """The mean over prompts of a quantity per prompt.

    Equation:  E_x[f(x)] = sum_x p(x) f(x)
    Args:      values (P,), carries gradient
    Returns:   0-d, in the units of values
    Raises:    UsageError on a wrong shape
    Verified:  tests/exact/test_language_exact.py::test_objective_by_listing
    """
    check_tensor("values", values, (len(language.prompts),))
    return (language.prompt_weight * values).sum()


def expected_score(log_prob: Tensor, score: Tensor) -> Tensor:
    """Expected score of each prompt.

    Equation:  E_{y ~ pi}[r(x, y)] = sum_y pi(y|x) r(x, y)
    Args:      log_prob (P, R) nats, carries gradient; score (P, R) reward units
    Returns:   (P,) reward units
    Raises:    UsageError on shapes that differ
    Verified:  tests/exact/test_language_exact.py::test_objective_by_listing
    """
    check_matrix("log_prob", log_prob)
    check_tensor("score", score, tuple(log_prob.shape))
    return (torch.exp(log_prob) * score).sum(-1)


def rlhf_objective(
    language: EnumerableLanguage, log_prob: Tensor, ref_log_prob: Tensor, score: Tensor, kl_coef: float
) -> Tensor:
    """What RLHF maximises.

    Equation:  J = E_x[E_{y ~ pi}[r(x, y)] - kl_coef KL(pi(.|x) || ref(.|x))]
    Source:    notes 2.2.1, Eq. 2.
    Args:      log_prob (P, R) nats, carries gradient; ref_log_prob (P, R) nats; score (P, R); kl_coef >= 0
    Returns:   0-d, reward units
    Raises:    UsageError on wrong shapes or a negative kl_coef
    Verified:  tests/exact/test_language_exact.py::test_objective_by_listing
    """
    check_kl_coef(kl_coef, positive=False)
    gain = expected_score(log_prob, score) - kl_coef * kl_divergence(log_prob, ref_log_prob)
    return prompt_mean(language, gain)


def rlhf_gradient(
    language: EnumerableLanguage, logits: Tensor, ref_logits: Tensor, score: Tensor, kl_coef: float
) -> Tensor:
    """The exact gradient of the RLHF objective, by differentiating the sum over all responses.

    Source:    notes 2.2.1: differentiable once the expectation is a sum; only the samples are not.
    Args:      logits, ref_logits (P, S, V); score (P, R); kl_coef >= 0
    Returns:   (P, S, V), detached
    Raises:    UsageError as rlhf_objective
    Verified:  tests/exact/test_language_exact.py::test_gradient_two_ways
    """
    leaf = logits.detach().clone().requires_grad_()
    ref_log_prob = response_log_probs(language, ref_logits.detach())
    value = rlhf_objective(language, response_log_probs(language, leaf), ref_log_prob, score, kl_coef)
    (slope,) = torch.autograd.grad(value, leaf)
    return slope


def rlhf_score_gradient(
    language: EnumerableLanguage, logits: Tensor, ref_logits: Tensor, score: Tensor, kl_coef: float
) -> Tensor:
    """The same gradient as the expectation that samples estimate, without autodiff.

    Equation:  E_x E_{y ~ pi}[(r(x, y) - kl_coef (log pi - log ref)) grad log pi(y|x)],
               grad log pi(y|x) = sum_t (onehot(y_t) - pi(.|x, y_<t)) in row y_<t of the table
    Source:    notes 2.2.1. The shaped reward is held fixed: the gradient of its own log pi has mean zero.
    Args:      as rlhf_gradient
    Returns:   (P, S, V), detached
    Raises:    UsageError as rlhf_objective
    Verified:  tests/exact/test_language_exact.py::test_gradient_two_ways
    """
    logits, ref_logits = logits.detach(), ref_logits.detach()
    shaped = shaped_token_rewards(language, logits, ref_logits, score, kl_coef).sum(-1)
    probability = torch.exp(response_log_probs(language, logits))
    weight = language.prompt_weight[:, None] * probability * shaped  # (P, R)
    policy = torch.softmax(logits, -1)
    gradient = torch.zeros_like(logits)
    for i in range(len(language.tokens)):
        for t in range(int(language.mask[i].sum())):
            row = int(language.prefix[i, t])
            gradient[:, row, language.tokens[i, t]] += weight[:, i]
            gradient[:, row] -= weight[:, i, None] * policy[:, row]
    return gradient


def shaped_token_rewards(
    language: EnumerableLanguage, logits: Tensor, ref_logits: Tensor, score: Tensor, kl_coef: float
) -> Tensor:
    """The reward of each token: the KL term on every one, the score on the last real one.

    Equation:  r_t = -kl_coef (log pi(y_t|x, y_<t) - log ref(y_t|x, y_<t)) + [t is last] r(x, y)
    Source:    notes 2.2.1: summed over t it is r - kl_coef (log pi - log ref). Last by mask, never by id.
    Args:      logits, ref_logits (P, S, V), both carry gradient; score (P, R); kl_coef >= 0
    Returns:   (P, R, L) reward units, zero where the mask is False
    Raises:    UsageError on wrong shapes or a negative kl_coef
    Verified:  tests/exact/test_language_exact.py::test_token_rewards_sum_to_the_printed_reward
    """
    check_kl_coef(kl_coef, positive=False)
    check_tensor("score", score, language.response_shape)
    new, ref = token_log_probs(language, logits), token_log_probs(language, ref_logits)
    last = functional.one_hot(language.mask.sum(-1) - 1, language.max_length)
    return -kl_coef * (new - ref) + last * score[..., None]


def log_partition(ref_log_prob: Tensor, score: Tensor, kl_coef: float) -> Tensor:
    """Log of the partition function of each prompt.

    Equation:  log Z(x) = log sum_y ref(y|x) exp(r(x, y) / kl_coef)
    Source:    notes 2.2.2.
    Args:      ref_log_prob (P, R) nats; score (P, R); kl_coef > 0
    Returns:   (P,) nats
    Raises:    UsageError on shapes that differ, or kl_coef <= 0
    Verified:  tests/exact/test_language_exact.py::test_optimum_and_its_value
    """
    check_kl_coef(kl_coef, positive=True)
    check_matrix("ref_log_prob", ref_log_prob)
    check_tensor("score", score, tuple(ref_log_prob.shape))
    return torch.logsumexp(ref_log_prob + score / kl_coef, -1)


def optimal_log_probs(ref_log_prob: Tensor, score: Tensor, kl_coef: float) -> Tensor:
    """The policy that maximises the RLHF objective.

    Equation:  pi*(y|x) = ref(y|x) exp(r(x, y) / kl_coef) / Z(x)
    Source:    notes 2.2.2, Lemma 7.
    Args:      as log_partition
    Returns:   (P, R) nats
    Raises:    UsageError as log_partition
    Verified:  tests/exact/test_language_exact.py::test_optimum_and_its_value
    """
    return ref_log_prob + score / kl_coef - log_partition(ref_log_prob, score, kl_coef)[:, None]


def optimal_value(language: EnumerableLanguage, ref_log_prob: Tensor, score: Tensor, kl_coef: float) -> Tensor:
    """The maximum of the RLHF objective.

    Equation:  max_pi J = kl_coef E_x[log Z(x)]
    Source:    notes 2.2.2, Lemma 7, whose chain of equalities keeps the argmin and not this value.
    Args:      as log_partition
    Returns:   0-d, reward units
    Raises:    UsageError as log_partition
    Verified:  tests/exact/test_language_exact.py::test_optimum_and_its_value
    """
    return kl_coef * prompt_mean(language, log_partition(ref_log_prob, score, kl_coef))


def best_of_n_log_probs(log_prob: Tensor, score: Tensor, n: int) -> Tensor:
    """The distribution of the highest-scored of n independent responses, the first drawn where several tie.

    Equation:  pi_n(y|x) = pi(y|x) (F(r)^n - F(r-)^n) / (F(r) - F(r-)),  F(s) = P(score <= s | x),  r = r(x, y)
    Source:    Beirami et al. 2024, "Theoretical guarantees on the best-of-n alignment policy".
    Args:      log_prob (P, R) nats, finite; score (P, R); n >= 1
    Returns:   (P, R) nats, detached
    Raises:    UsageError on shapes that differ, or n < 1
    Verified:  tests/exact/test_language_exact.py::test_best_of_n
    """
    _check_n(n)
    check_matrix("log_prob", log_prob)
    check_tensor("score", score, tuple(log_prob.shape))
    probability, score = torch.exp(log_prob.detach()), score.detach()
    result = torch.empty_like(probability)
    for x, y in itertools.product(*(range(k) for k in probability.shape)):
        tied = probability[x][score[x] == score[x, y]].sum()
        below = probability[x][score[x] < score[x, y]].sum()
        # F^n - F-^n = (F - F-) sum_k F^k F-^(n-1-k): positive terms only, so nothing cancels.
        k = torch.arange(n, dtype=torch.float64)
        result[x, y] = probability[x, y] * ((below + tied) ** k * below ** (n - 1 - k)).sum()
    return torch.log(result)


def best_of_n_kl_bound(n: int) -> float:
    """An upper bound on KL(best of n || policy), reached in the limit of no ties and no atoms.

    Equation:  KL <= log n - (n - 1) / n
    Source:    Beirami et al. 2024: the equality often printed is only a bound.
    Args:      n >= 1
    Returns:   nats
    Raises:    UsageError if n < 1
    Verified:  tests/exact/test_language_exact.py::test_best_of_n
    """
    _check_n(n)
    return math.log(n) - (n - 1) / n


def check_matrix(name: str, tensor: Tensor) -> None:
    """Raise UsageError unless the tensor is a float64 matrix (prompts, responses)."""
    if tensor.ndim != 2:
        raise UsageError(f"{name} has shape {tuple(tensor.shape)}; it must be (prompts, responses)")
    check_tensor(name, tensor, tuple(tensor.shape))


def _check_log_prob(language: EnumerableLanguage, name: str, log_prob: Tensor) -> None:
    check_tensor(name, log_prob, language.response_shape)
    total = torch.exp(log_prob.detach()).sum(-1)
    if float((total - 1.0).abs().max()) > 1e-9:
        raise UsageError(f"{name}: probabilities of a prompt's responses sum to {total.tolist()}; they must sum to 1")


def check_kl_coef(kl_coef: float, *, positive: bool) -> None:
    """Raise UsageError unless kl_coef is finite and >= 0, or > 0 where it has to be."""
    if not (math.isfinite(kl_coef) and kl_coef >= 0.0) or (positive and kl_coef == 0.0):
        raise UsageError(f"kl_coef is {kl_coef}; it must be a finite number {'> 0' if positive else '>= 0'}")


def _check_n(n: int) -> None:
    if n < 1:
        raise UsageError(f"n is {n}; the best of n needs at least one response")
