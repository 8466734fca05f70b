"""Rankings, ties, thumbs and rewards from clips: what the losses say, against what they stand for (notes 2.2)."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from steepest import losses
from steepest.exact import language as languages
from steepest.exact import optimal
from steepest.preferences import clips
from steepest.preferences.answers import Comparisons
from steepest.verification.random_problems import Preferences, Process, continuing, preferences
from steepest.verification.statement import F64, Rows, Sides, gradient, loss

rows = Rows()


# Rankings and ties

_RANKED = 4
_ORDERS = torch.tensor(list(itertools.permutations(range(_RANKED))))


@rows.equality("2.2.1", "Plackett-Luce: drawn one by one, sum 1", preferences, **loss("plackett_luce_loss"))
@rows.control("2.2.1", "the same, worst first", preferences, **loss("plackett_luce_loss"), backwards=True)
def plackett_luce(p: Preferences, name: str, backwards: bool = False) -> Sides:
    """All orders of four responses: the best drawn in proportion to exp(r), then the next among the rest.

    Negative control: the loss is given the worst one first.
    """
    score = p.score[:, :_RANKED][:, _ORDERS]  # (P, orders, 4)
    found = torch.exp(-getattr(losses, name)(score.flip(-1) if backwards else score))
    worth = score.exp()
    left = worth.sum(-1, keepdim=True) - worth.cumsum(-1) + worth
    return Sides(_with_sum(found), _with_sum((worth / left).prod(-1), whole=True))


def _with_sum(probability: Tensor, *, whole: bool = False) -> Tensor:
    total = probability.sum(-1, keepdim=True)
    return torch.cat([probability, torch.ones_like(total) if whole else total], -1)


@rows.equality("2.2.1", "Plackett-Luce of the first two = sum over the rest", preferences, **loss("plackett_luce_loss"))
def partial_ranking(p: Preferences, name: str) -> Sides:
    """A ranking of the first two places is as likely as all whole ones that begin with them."""
    score = p.score[:, :_RANKED][:, _ORDERS].unflatten(1, (-1, 2))  # orders of the last two lie side by side
    function = getattr(losses, name)
    return Sides(torch.exp(-function(score[:, :, 0], places=2)), torch.exp(-function(score)).sum(-1))


_TIE_WEIGHT = 0.6


@rows.equality("2.2.1", "Davidson: win, loss and tie by worths, sum 1", preferences, **loss("davidson_tie_loss"))
@rows.control("2.2.1", "the same, ties without the root", preferences, **loss("davidson_tie_loss"), root=1.0)
def davidson(p: Preferences, name: str, root: float = 0.5) -> Sides:
    """pi_1, pi_2 and nu sqrt(pi_1 pi_2), each over their sum, with worths pi = exp(r).

    Negative control: a tie in proportion to pi_1 pi_2.
    """
    first, second = p.score.unsqueeze(-1), p.score.unsqueeze(-2)
    found = torch.stack(
        [
            losses.davidson_preference_loss(first, second, _TIE_WEIGHT),
            losses.davidson_preference_loss(second, first, _TIE_WEIGHT),
            getattr(losses, name)(first, second, _TIE_WEIGHT),
        ],
        -1,
    )
    one, other = torch.broadcast_tensors(first.exp(), second.exp())
    parts = torch.stack([one, other, _TIE_WEIGHT * (one * other) ** root], -1)
    return Sides(_with_sum(torch.exp(-found)), _with_sum(parts / parts.sum(-1, keepdim=True), whole=True))


# Thumbs


@rows.equality("2.2.2", "KTO: its gradient over all responses", preferences, **loss("kto_loss"))
@rows.control("2.2.2", "the same, through the reference point", preferences, **loss("kto_loss"), through=True)
def kto(p: Preferences, name: str, through: bool = False) -> Sides:
    """-+ lambda beta s(1 - s) grad log pi, s = sigmoid(beta (r - z)), thumbs up where the score is above zero.

    Negative control: z = KL(pi || ref) is differentiated too.
    """
    up, weights = p.score > 0.0, (1.3, 0.8)

    def divergence(table: Tensor) -> Tensor:
        log_prob = languages.response_log_probs(p.language, table)
        return (log_prob.exp() * (log_prob - p.log_reference)).sum(-1, keepdim=True)

    def shipped(table: Tensor) -> Tensor:
        log_prob = languages.response_log_probs(p.language, table)
        return getattr(losses, name)(log_prob, p.log_reference, up, divergence(table), p.kl_coef, *weights).sum()

    value = torch.sigmoid(p.kl_coef * (p.log_policy - p.log_reference - divergence(p.logits)))
    factor = p.kl_coef * value * (1.0 - value) * torch.where(up, *torch.tensor([-weights[0], weights[1]], dtype=F64))

    def expected(table: Tensor) -> Tensor:
        gain = languages.response_log_probs(p.language, table)
        return (factor * (gain - divergence(table) if through else gain)).sum()

    return Sides(gradient(shipped, p.logits), gradient(expected, p.logits))


# Rewards from clips


def _learned(true: Tensor, *, exchanged: bool) -> Tensor:
    """(S, A) the reward of least loss over pairs of two-step clips, each pair labelled infinitely often.

    Every transition is possible, so that every two steps are a clip; each clip is compared with three others. Newton's
    method: its steps are made with the curvature of the equation, and it rests where the shipped loss has no slope.
    """
    number = true.numel()
    clip = torch.cartesian_prod(torch.arange(number), torch.arange(number))
    pairs = torch.cat([torch.stack([clip, clip.roll(k, 0)], 1) for k in (1, 7, 31)])  # (pairs, 2, steps)
    counts = torch.nn.functional.one_hot(pairs, number).sum(2).to(true.dtype)  # how often each step is in each clip
    contrast = counts[:, 0] - counts[:, 1]
    chance = torch.sigmoid(contrast @ true.flatten())
    chance = 1.0 - chance if exchanged else chance
    said = Comparisons(pairs[..., 0], torch.full((len(pairs),), 2), torch.zeros(len(pairs), dtype=torch.bool))

    def population_loss(reward: Tensor) -> Tensor:
        score = clips.clip_score(reward[pairs]).unsqueeze(0)
        won, lost = (clips.comparison_loss(x, said, 0.0)[0] for x in (score, score.flip(-1)))
        return (chance * won + (1.0 - chance) * lost).sum()

    reward = torch.zeros_like(true).flatten()
    for _ in range(30):
        likely = torch.sigmoid(contrast @ reward)
        curvature = contrast.mT @ ((likely * (1.0 - likely)).unsqueeze(-1) * contrast)
        step = torch.linalg.solve(curvature + 1.0, gradient(population_loss, reward))  # + 1: the free constant stays
        reward = reward - step
        if float(step.norm()) <= 1e-12 * float(reward.norm()):
            break
    return reward.view_as(true)


@rows.equality("2.2.1", "reward of all clips = r + constant", continuing, tested="preferences.clips.comparison_loss")
def reward_from_clips(c: Process) -> Sides:
    """Infinitely many labels of clips give the true reward, but for a constant in every step."""
    learned = _learned(c.mdp.reward, exchanged=False)
    return Sides(learned - learned.mean(), c.mdp.reward - c.mdp.reward.mean())


@rows.equality(
    "2.2.1", "reward of all clips: its optimal policy", continuing, tested="preferences.clips.comparison_loss"
)
@rows.control(
    "2.2.1",
    "the same, preferences exchanged",
    continuing,
    tested="preferences.clips.comparison_loss",
    exchanged=True,
)
def policy_from_clips(c: Process, exchanged: bool = False) -> Sides:
    """With infinitely many labels of clips, the learned reward's optimal policy is the true one's.

    Negative control: the worse of two clips is called the better one.
    """
    learned = _learned(c.mdp.reward, exchanged=exchanged)
    found, right = (optimal.policy_iteration(m).policy for m in (replace(c.mdp, reward=learned), c.mdp))
    return Sides(found, right)
