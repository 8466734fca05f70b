"""RLHF and DPO on a language whose responses are listed: each formula against plain Python over plain sequences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from steepest.errors import UsageError
from steepest.exact.language import (
    EnumerableLanguage,
    best_of_n_kl_bound,
    best_of_n_log_probs,
    expected_score,
    kl_divergence,
    log_partition,
    optimal_log_probs,
    optimal_value,
    policy_logits,
    prompt_mean,
    response_log_probs,
    rlhf_gradient,
    rlhf_objective,
    rlhf_score_gradient,
    shaped_token_rewards,
    token_kl_divergence,
    token_log_probs,
)
from steepest.exact.preferences import dpo_loss, implied_reward, pair_weights, preference_loss, preference_probs

F64 = torch.float64
KL_COEF = 0.7
LANGUAGES = [
    EnumerableLanguage(((1,), (2, 0)), (0.3, 0.7), vocab_size=3, eos=0, max_length=3),
    EnumerableLanguage(((0, 1), (2,), ()), (0.2, 0.5, 0.3), vocab_size=4, eos=3, max_length=2),
    EnumerableLanguage(((),), (1.0,), vocab_size=2, eos=1, max_length=1),
]
each_language = pytest.mark.parametrize("language", LANGUAGES, ids=["three", "four", "two"])
larger_languages = pytest.mark.parametrize("language", LANGUAGES[:2], ids=["three", "four"])


def close(found: Tensor | float, expected: Tensor | float, atol: float = 1e-12) -> None:
    found, expected = torch.as_tensor(found, dtype=F64), torch.as_tensor(expected, dtype=F64)
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-10, atol=atol)


def differ(found: Tensor | float, expected: Tensor | float, by: float = 1e-3) -> None:
    """Visibly not equal: the negative controls."""
    found, expected = torch.as_tensor(found).detach(), torch.as_tensor(expected).detach()
    assert float((found - expected).abs().max()) > by * float(expected.abs().max())


def normal(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def problem(language: EnumerableLanguage, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, reference logits and scores."""
    return (
        normal(seed, language.table_shape),
        normal(seed + 100, language.table_shape),
        normal(seed + 200, language.response_shape),
    )


def walk(language: EnumerableLanguage, logits: Tensor, x: int) -> Iterator[tuple[tuple[int, ...], list[float]]]:
    """Every response of one prompt with the probability of each of its tokens, grown token by token."""
    waiting: list[tuple[tuple[int, ...], list[float]]] = [((), [])]
    while waiting:
        prefix, probs = waiting.pop()
        row = logits[x, language.prefixes.index(prefix)].tolist()
        total = sum(math.exp(z) for z in row)
        for token in range(language.vocab_size):
            grown = ((*prefix, token), [*probs, math.exp(row[token]) / total])
            if token == language.eos or len(grown[0]) == language.max_length:
                yield grown
            else:
                waiting.append(grown)


@each_language
def test_responses_are_all_there_are(language: EnumerableLanguage) -> None:
    """All sequences are tried; those whose only EOS is last, or that have none and full length, are the responses."""
    expected = {
        y
        for k in range(1, language.max_length + 1)
        for y in product(range(language.vocab_size), repeat=k)
        if language.eos not in y[:-1] and (y[-1] == language.eos or k == language.max_length)
    }
    found = [language.response(i) for i in range(language.response_shape[1])]
    assert len(found) == len(set(found))
    assert set(found) == expected
    for i, y in enumerate(found):
        assert language.index(y) == i
        assert [language.prefixes[int(s)] for s in language.prefix[i, : len(y)]] == [y[:t] for t in range(len(y))]
        assert language.tokens[i, len(y) :].eq(language.eos).all()
        assert language.mask[i].sum() == len(y)
    for bad in (
        (),
        (language.eos, language.eos),
        (language.eos,) * (language.max_length + 1),
        (99,) * language.max_length,
    ):
        with pytest.raises(UsageError):
            language.index(bad)


@each_language
def test_response_log_probs_by_recursion(language: EnumerableLanguage) -> None:
    logits, _, _ = problem(language)
    tokens, whole = token_log_probs(language, logits), response_log_probs(language, logits)
    for x in range(len(language.prompts)):
        seen = 0
        for y, probs in walk(language, logits, x):
            i = language.index(y)
            close(tokens[x, i, : len(y)], torch.tensor(probs, dtype=F64).log())
            assert not tokens[x, i, len(y) :].any()
            close(whole[x, i], math.log(math.prod(probs)))
            seen += 1
        assert seen == language.response_shape[1]
    close(whole.exp().sum(-1), torch.ones(len(language.prompts)))
    # Padding is EOS here, as in many tokenizers: a mask made from ids loses the real EOS, and the sum is not 1.
    by_id = torch.where(language.tokens != language.eos, tokens, torch.zeros_like(tokens)).sum(-1)
    differ(by_id.exp().sum(-1), whole.exp().sum(-1), by=0.1)


@each_language
def test_any_distribution_is_a_tabular_policy(language: EnumerableLanguage) -> None:
    log_prob = torch.log_softmax(normal(5, language.response_shape), -1)
    table = policy_logits(language, log_prob)
    close(response_log_probs(language, table), log_prob)
    close(table.exp().sum(-1), torch.ones(language.table_shape[:2]))
    logits, _, _ = problem(language)
    close(policy_logits(language, response_log_probs(language, logits)), torch.log_softmax(logits, -1))


@larger_languages
def test_kl_is_the_sum_of_token_kls(language: EnumerableLanguage) -> None:
    logits, ref_logits, _ = problem(language)
    listed = [
        sum(
            math.prod(p) * (math.log(math.prod(p)) - math.log(math.prod(q)))
            for (_, p), (_, q) in zip(walk(language, logits, x), walk(language, ref_logits, x), strict=True)
        )
        for x in range(len(language.prompts))
    ]
    new, ref = response_log_probs(language, logits), response_log_probs(language, ref_logits)
    close(kl_divergence(new, ref), torch.tensor(listed, dtype=F64))
    close(token_kl_divergence(language, logits, ref_logits), torch.tensor(listed, dtype=F64))
    close(kl_divergence(new, new), torch.zeros(len(listed)))
    differ(kl_divergence(ref, new), kl_divergence(new, ref))  # the direction matters
    ratio = token_log_probs(language, logits) - token_log_probs(language, ref_logits)
    per_token = (new.exp() * ratio.sum(-1) / language.mask.sum(-1)).sum(-1)
    differ(per_token, kl_divergence(new, ref))  # a sum over tokens, not a mean

    leaf = logits.clone().requires_grad_()
    (by_token,) = torch.autograd.grad(token_kl_divergence(language, leaf, ref_logits).sum(), leaf)
    (by_response,) = torch.autograd.grad(kl_divergence(response_log_probs(language, leaf), ref).sum(), leaf)
    close(by_token, by_response)


@each_language
def test_objective_by_listing(language: EnumerableLanguage) -> None:
    logits, ref_logits, score = problem(language)
    total, mean = 0.0, 0.0
    for x, chance in enumerate(language.prompt_probs):
        for (y, p), (_, q) in zip(walk(language, logits, x), walk(language, ref_logits, x), strict=True):
            r = float(score[x, language.index(y)])
            mean += chance * math.prod(p) * r
            total += chance * math.prod(p) * (r - KL_COEF * math.log(math.prod(p) / math.prod(q)))
    new, ref = response_log_probs(language, logits), response_log_probs(language, ref_logits)
    close(rlhf_objective(language, new, ref, score, KL_COEF), total)
    close(rlhf_objective(language, new, ref, score, 0.0), mean)
    close(prompt_mean(language, expected_score(new, score)), mean)


def weighted_score(language: EnumerableLanguage, logits: Tensor, credit: Tensor) -> Tensor:
    """Gradient of E_x E_y sum_t credit[x, y, t] log pi(y_t), with the credit and the sampling held fixed."""
    leaf = logits.clone().requires_grad_()
    log_prob = token_log_probs(language, leaf)
    chance = language.prompt_weight[:, None] * log_prob.sum(-1).exp().detach()
    (slope,) = torch.autograd.grad((chance[..., None] * credit.detach() * log_prob).sum(), leaf)
    return slope


@each_language
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kl_coef", [0.0, KL_COEF])
def test_gradient_two_ways(language: EnumerableLanguage, seed: int, kl_coef: float) -> None:
    """Autodiff through the listing, the expected score function, reward-to-go per token, and central differences."""
    logits, ref_logits, score = problem(language, seed)
    exact = rlhf_gradient(language, logits, ref_logits, score, kl_coef)
    close(rlhf_score_gradient(language, logits, ref_logits, score, kl_coef), exact)
    rewards = shaped_token_rewards(language, logits, ref_logits, score, kl_coef)
    to_go = rewards.flip(-1).cumsum(-1).flip(-1)
    close(weighted_score(language, logits, to_go), exact)
    close(weighted_score(language, logits, rewards.sum(-1, keepdim=True).expand_as(rewards)), exact)

    ref, step = response_log_probs(language, ref_logits), 1e-4
    direction = normal(seed + 7, language.table_shape)
    ahead, behind = (
        rlhf_objective(language, response_log_probs(language, logits + t * direction), ref, score, kl_coef)
        for t in (step, -step)
    )
    # Central differences: their own error is of order step^2.
    close((ahead - behind) / (2 * step), (exact * direction).sum(), atol=1e-6)


@larger_languages
def test_wrong_gradients_are_wrong(language: EnumerableLanguage) -> None:
    logits, ref_logits, score = problem(language)
    exact = rlhf_gradient(language, logits, ref_logits, score, KL_COEF)

    # "Not differentiable" means through the samples: with them held fixed the derivative of r - kl_coef (log pi -
    # log ref) is minus kl_coef times that of log pi, whose mean is zero. Hence the shaped reward is detached.
    leaf = logits.clone().requires_grad_()
    shaped = shaped_token_rewards(language, leaf, ref_logits, score, KL_COEF).sum(-1)
    chance = language.prompt_weight[:, None] * response_log_probs(language, logits).exp()
    (through_reward,) = torch.autograd.grad((chance * shaped).sum(), leaf)
    close(through_reward, torch.zeros_like(exact))

    last = torch.nn.functional.one_hot(language.mask.sum(-1) - 1, language.max_length)
    log_ratio = token_log_probs(language, logits) - token_log_probs(language, ref_logits)

    def gradient(rewards: Tensor) -> Tensor:
        return weighted_score(language, logits, rewards.flip(-1).cumsum(-1).flip(-1))

    close(gradient(-KL_COEF * log_ratio + last * score[..., None]), exact)
    # The score on every token, or on the slot after the last token, where the mask is False.
    differ(gradient(-KL_COEF * log_ratio + language.mask * score[..., None]), exact)
    after = torch.roll(last, 1, -1) * (last.argmax(-1) + 1 < language.max_length)[:, None]
    assert not (after.bool() & language.mask).any()
    differ(gradient(language.mask * (-KL_COEF * log_ratio + after * score[..., None])), exact)
    # The KL term on the last token only, instead of on all.
    differ(gradient(last * (score[..., None] - KL_COEF * log_ratio)), exact)
    # Credit for what came before instead of what comes after.
    rewards = shaped_token_rewards(language, logits, ref_logits, score, KL_COEF)
    differ(weighted_score(language, logits, rewards.cumsum(-1)), exact)


@each_language
def test_token_rewards_sum_to_the_printed_reward(language: EnumerableLanguage) -> None:
    logits, ref_logits, score = problem(language)
    rewards = shaped_token_rewards(language, logits, ref_logits, score, KL_COEF)
    for x in range(len(language.prompts)):
        for (y, p), (_, q) in zip(walk(language, logits, x), walk(language, ref_logits, x), strict=True):
            i = language.index(y)
            terms = [-KL_COEF * math.log(a / b) for a, b in zip(p, q, strict=True)]
            terms[-1] += float(score[x, i])
            close(rewards[x, i, : len(y)], torch.tensor(terms, dtype=F64))
            assert not rewards[x, i, len(y) :].any()
    new, ref = response_log_probs(language, logits), response_log_probs(language, ref_logits)
    printed = score - KL_COEF * (new - ref)
    close(rewards.sum(-1), printed)
    # A mask made from ids forgets the EOS, and with it the score.
    differ((rewards * (language.tokens != language.eos)).sum(-1), printed)


@each_language
@pytest.mark.parametrize("kl_coef", [0.2, KL_COEF, 3.0])
def test_optimum_and_its_value(language: EnumerableLanguage, kl_coef: float) -> None:
    logits, ref_logits, score = problem(language)
    new, ref = response_log_probs(language, logits), response_log_probs(language, ref_logits)
    z = [
        sum(
            math.prod(q) * math.exp(float(score[x, language.index(y)]) / kl_coef)
            for y, q in walk(language, ref_logits, x)
        )
        for x in range(len(language.prompts))
    ]
    close(log_partition(ref, score, kl_coef).exp(), torch.tensor(z, dtype=F64))
    best = optimal_log_probs(ref, score, kl_coef)
    close(best.exp(), ref.exp() * (score / kl_coef).exp() / torch.tensor(z, dtype=F64)[:, None])
    close(best.exp().sum(-1), torch.ones(len(z)))

    maximum = optimal_value(language, ref, score, kl_coef)
    close(maximum, kl_coef * sum(p * math.log(t) for p, t in zip(language.prompt_probs, z, strict=True)))
    close(rlhf_objective(language, best, ref, score, kl_coef), maximum)
    slope = rlhf_gradient(language, policy_logits(language, best), ref_logits, score, kl_coef)
    close(slope, torch.zeros_like(slope))

    # The proof's identity: any policy falls short by kl_coef KL(pi || pi*), so the optimum is unique.
    short = kl_coef * prompt_mean(language, kl_divergence(new, best))
    close(rlhf_objective(language, new, ref, score, kl_coef), maximum - short)
    assert float(short) > 0.0
    # The chain is printed with equal signs, but its lines have other values than the maximum it begins with.
    fourth_line = prompt_mean(language, kl_divergence(best, ref) - expected_score(best, score) / kl_coef)
    last_line = prompt_mean(language, kl_divergence(best, best))
    differ(fourth_line, maximum)
    differ(last_line, maximum)
    close(-kl_coef * fourth_line, maximum)


@larger_languages
def test_implied_reward(language: EnumerableLanguage) -> None:
    """r = kl_coef log pi*/ref + kl_coef log Z holds for pi*, not for any policy, and r + f(x) has the same pi*."""
    logits, ref_logits, score = problem(language)
    new, ref = response_log_probs(language, logits), response_log_probs(language, ref_logits)
    best = optimal_log_probs(ref, score, KL_COEF)
    constant = KL_COEF * log_partition(ref, score, KL_COEF)[:, None]
    close(implied_reward(best, ref, KL_COEF) + constant, score)
    differ(implied_reward(new, ref, KL_COEF) + constant, score)
    shift = 2.0 * normal(9, (len(language.prompts), 1))
    close(optimal_log_probs(ref, score + shift, KL_COEF), best)
    close(preference_probs(score + shift), preference_probs(score))
    close(preference_probs(implied_reward(best, ref, KL_COEF)), preference_probs(score))
    within = normal(9, language.response_shape)  # of the response too: no longer invariant
    differ(optimal_log_probs(ref, score + within, KL_COEF), best)
    # Whatever the policy, it is the optimum of its own implied reward.
    close(optimal_log_probs(ref, implied_reward(new, ref, KL_COEF), KL_COEF), new)


@larger_languages
def test_bradley_terry(language: EnumerableLanguage) -> None:
    _, _, score = problem(language)
    found = preference_probs(score)
    for x in range(len(language.prompts)):
        for i, j in product(range(language.response_shape[1]), repeat=2):
            a, b = math.exp(float(score[x, i])), math.exp(float(score[x, j]))
            close(found[x, i, j], a / (a + b))
    close(found + found.mT, torch.ones_like(found))
    # Conditioned on the prompt: what is preferred on average is not Bradley-Terry in the average score.
    weight = language.prompt_weight[:, None, None]
    pooled = preference_probs((language.prompt_weight[:, None] * score).sum(0, keepdim=True))
    differ(pooled[0], (weight * found).sum(0))


@larger_languages
def test_population_losses_by_listing(language: EnumerableLanguage) -> None:
    """Every pair and both outcomes of every comparison, one by one: winner and loser as in the notes' L_R and L_DPO."""
    logits, ref_logits, score = problem(language)
    new, ref = response_log_probs(language, logits), response_log_probs(language, ref_logits)
    model, preference = normal(3, language.response_shape), preference_probs(score)
    reward_loss, direct_loss = 0.0, 0.0
    for x, chance in enumerate(language.prompt_probs):
        for i, j in product(range(language.response_shape[1]), repeat=2):
            drawn = chance * math.exp(float(ref[x, i] + ref[x, j]))
            for winner, loser, p in ((i, j, preference[x, i, j]), (j, i, 1.0 - preference[x, i, j])):
                margin = float(model[x, winner] - model[x, loser])
                reward_loss += drawn * float(p) * math.log1p(math.exp(-margin))
                ratio = float(new[x, winner] - ref[x, winner] - new[x, loser] + ref[x, loser])
                direct_loss += drawn * float(p) * math.log1p(math.exp(-KL_COEF * ratio))
    close(preference_loss(language, model, preference, pair_weights(ref)), reward_loss)
    close(dpo_loss(language, new, ref, preference, KL_COEF), direct_loss)
    close(dpo_loss(language, ref, ref, preference, KL_COEF), math.log(2.0))
    close(pair_weights(ref).sum((-2, -1)), torch.ones(len(language.prompts)))


@larger_languages
def test_reward_model_optimum(language: EnumerableLanguage) -> None:
    """The true score, up to f(x), minimises the population loss; its value is the entropy of the preferences."""
    _, ref_logits, score = problem(language)
    preference, weight = preference_probs(score), pair_weights(response_log_probs(language, ref_logits))
    leaf = score.clone().requires_grad_()
    loss = preference_loss(language, leaf, preference, weight)
    (slope,) = torch.autograd.grad(loss, leaf)
    loss = loss.detach()
    close(slope, torch.zeros_like(slope))
    entropy = torch.special.entr(preference) + torch.special.entr(1.0 - preference)
    close(loss, prompt_mean(language, (weight * entropy).sum((-2, -1))))
    shifted = score + normal(4, (len(language.prompts), 1))
    close(preference_loss(language, shifted, preference, weight), loss)
    for seed in range(5):
        other = score + 0.1 * normal(seed, language.response_shape)
        assert float(preference_loss(language, other, preference, weight)) > float(loss) + 1e-6


@larger_languages
def test_dpo_optimum_is_the_rlhf_optimum(language: EnumerableLanguage) -> None:
    logits, ref_logits, score = problem(language)
    ref, preference = response_log_probs(language, ref_logits), preference_probs(score)
    best = optimal_log_probs(ref, score, KL_COEF)

    def loss(table: Tensor, kl_coef: float = KL_COEF) -> Tensor:
        return dpo_loss(language, response_log_probs(language, table), ref, preference, kl_coef)

    def slope(table: Tensor, kl_coef: float = KL_COEF) -> Tensor:
        leaf = table.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf, kl_coef), leaf)[0]

    table = policy_logits(language, best)
    close(slope(table), torch.zeros_like(table))
    scale = float(slope(logits).abs().max())
    assert float(slope(table, 0.5 * KL_COEF).abs().max()) > 0.01 * scale  # another kl_coef has another optimum
    for seed in range(5):
        assert float(loss(table + 0.1 * normal(seed, table.shape))) > float(loss(table)) + 1e-6

    # Minimised from the reference, through logits of tokens, the policy found is pi*.
    leaf = ref_logits.clone().requires_grad_()
    search = torch.optim.LBFGS(
        [leaf], max_iter=2000, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        value = loss(leaf)
        value.backward()
        return value

    search.step(closure)
    # The line search stops where the loss, flat at its minimum, no longer changes in float64.
    close(response_log_probs(language, leaf).exp(), best.exp(), atol=1e-6)


def kl_of(log_prob: Tensor, ref: Tensor) -> float:
    return float(kl_divergence(log_prob, ref).squeeze())


@larger_languages
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("ties", [False, True])
def test_best_of_n(language: EnumerableLanguage, n: int, ties: bool) -> None:
    """Against all n-tuples of responses; the KL stays below log n - (n - 1)/n, which is no equality."""
    logits, _, score = problem(language)
    if ties:
        score = score.round()
        assert len(score[0].unique()) < score.shape[1]
    log_prob = response_log_probs(language, logits)
    expected = torch.zeros_like(log_prob)
    for x in range(len(language.prompts)):
        probability, value = log_prob[x].exp().tolist(), score[x].tolist()
        for drawn in product(range(len(value)), repeat=n):
            best = max(drawn, key=lambda y: value[y])  # the first of equals
            expected[x, best] += math.prod(probability[y] for y in drawn)
    found = best_of_n_log_probs(log_prob, score, n)
    close(found.exp(), expected)
    kl = kl_divergence(found, log_prob)
    bound = best_of_n_kl_bound(n)
    if n == 1:
        assert bound == 0.0
        close(kl, torch.zeros(len(kl)))
    else:
        assert float(kl.max()) < bound - 1e-3


@pytest.mark.parametrize("n", [2, 4, 16])
def test_best_of_n_bound_is_reached_without_atoms(n: int) -> None:
    gaps: list[float] = []
    for atoms in (100, 400):
        uniform = torch.full((1, atoms), -math.log(atoms), dtype=F64)
        best = best_of_n_log_probs(uniform, torch.arange(atoms, dtype=F64)[None], n)
        gaps.append(best_of_n_kl_bound(n) - kl_of(best, uniform))
    assert 0.0 < gaps[1] < gaps[0] < 0.05
    # n far beyond the number of responses: the best response alone, and a KL that no longer grows.
    few = torch.full((1, 3), -math.log(3), dtype=F64)
    best = best_of_n_log_probs(few, torch.arange(3, dtype=F64)[None], 64)
    assert kl_of(best, few) == pytest.approx(math.log(3), abs=1e-6)


GOOD = {"prompts": ((0,), (1,)), "prompt_probs": (0.5, 0.5), "vocab_size": 3, "eos": 0, "max_length": 2}
BAD = [
    ({"vocab_size": 1}, "vocab_size is 1"),
    ({"eos": 3}, "eos is 3"),
    ({"eos": -1}, "eos is -1"),
    ({"max_length": 0}, "max_length is 0"),
    ({"prompts": ((0,),)}, "1 prompts and 2 prompt_probs"),
    ({"prompts": (), "prompt_probs": ()}, "0 prompts"),
    ({"prompts": ((0,), (0,))}, "occurs twice"),
    ({"prompts": ((0,), (3,))}, "tokens outside"),
    ({"prompt_probs": (0.5, 0.6)}, "sum to 1"),
    ({"prompt_probs": (1.0, 0.0)}, "positive"),
    ({"vocab_size": 50_000, "max_length": 10**6}, "too many to list"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_languages_are_refused(change: dict[str, object], message: str) -> None:
    EnumerableLanguage(**GOOD)
    with pytest.raises(UsageError, match=message):
        EnumerableLanguage(**{**GOOD, **change})


CALLS: list[tuple[Callable[[EnumerableLanguage, Tensor, Tensor, Tensor], object], str]] = [
    (lambda g, z, p, r: token_log_probs(g, z[:, :1]), "logits has shape"),
    (lambda g, z, p, r: token_log_probs(g, z.float()), "float32"),
    (lambda g, z, p, r: token_log_probs(g, z / 0.0), "not finite"),
    (lambda g, z, p, r: token_kl_divergence(g, z, z[..., :1]), "ref_logits has shape"),
    (lambda g, z, p, r: policy_logits(g, p - 1.0), "must sum to 1"),
    (lambda g, z, p, r: kl_divergence(p, p[:, :1]), "ref_log_prob has shape"),
    (lambda g, z, p, r: kl_divergence(p[0], p[0]), "log_prob has shape"),
    (lambda g, z, p, r: expected_score(p, r[:1]), "score has shape"),
    (lambda g, z, p, r: prompt_mean(g, r), "values has shape"),
    (lambda g, z, p, r: rlhf_objective(g, p, p, r, -1.0), "kl_coef is -1.0"),
    (lambda g, z, p, r: rlhf_score_gradient(g, z, z, r, math.nan), "kl_coef is nan"),
    (lambda g, z, p, r: log_partition(p, r, 0.0), "kl_coef is 0.0"),
    (lambda g, z, p, r: implied_reward(p, p, 0.0), "kl_coef is 0.0"),
    (lambda g, z, p, r: preference_probs(r[0]), "score has shape"),
    (lambda g, z, p, r: preference_loss(g, r, r, pair_weights(p)), "preference has shape"),
    (lambda g, z, p, r: preference_loss(g, r, 2.0 + preference_probs(r), pair_weights(p)), r"outside \[0, 1\]"),
    (lambda g, z, p, r: dpo_loss(g, p, p, preference_probs(r), -0.1), "kl_coef is -0.1"),
    (lambda g, z, p, r: best_of_n_log_probs(p, r, 0), "n is 0"),
    (lambda g, z, p, r: best_of_n_kl_bound(0), "n is 0"),
]


@pytest.mark.parametrize(("call", "message"), CALLS)
def test_bad_arguments_are_refused(call: Callable[..., object], message: str) -> None:
    language = LANGUAGES[0]
    logits, _, score = problem(language)
    with pytest.raises(UsageError, match=message):
        call(language, logits, response_log_probs(language, logits), score)
