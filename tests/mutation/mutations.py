"""Do the tests notice a mistake? Each mutation is one that a person could make; the exact and unit tests must fail.

    python tests/mutation/mutations.py                     all of them (minutes), exit code 1 below 95 %
    python tests/mutation/mutations.py --only returns      those whose file or name contains the text
    python tests/mutation/mutations.py --json found.json   what caught each, kept as it goes: it resumes,
                                                           and only mistakes in changed files are tried again
    python tests/mutation/mutations.py --part 2/3          every third one, from the second: to share the list

A mutation replaces a text that occurs exactly once in a copy of the sources; the working tree is never touched. One
that no longer applies, or that does not even import, is an error: mend the list when the code changes, and never drop
an entry because nothing catches it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import dataset_mistakes as dm
import evaluation_mistakes as em
import language_mistakes as lm
import off_policy_mistakes as replay
import offline_mistakes as offline
import people_mistakes as people
import pytest
import ranking_mistakes as ranking

CONTEXT = multiprocessing.get_context("fork")
"""Every run of the tests is a fork of this process, which has the heavy packages loaded but nothing of this one."""

HEAVY = (
    *("torch", "torch.func", "torch.distributions", "gymnasium", "sympy", "beartype", "jaxtyping"),
    *("accelerate", "transformers", "transformers.models.llama.modeling_llama", "tokenizers"),
)

ROOT = Path(__file__).resolve().parents[2]
THRESHOLD = 0.95
SECONDS = 180
"""A run of a file's own tests that takes more processor time than this hangs, and the mistake is noticed."""
TIMES = 3
"""So many times what all tests take without a mistake, and a run of all tests hangs."""

Mistakes = dict[str, tuple[str, str]]
"""What went wrong -> (the text as it is, the text with the mistake)."""

RETURNS: Mistakes = {
    "no discount in the TD error": ("reward + gamma * torch.where(", "reward + torch.where("),
    "bootstraps through termination": (
        "torch.where(terminated, torch.zeros_like(next_value), next_value) - value",
        "next_value - value",
    ),
    "adds the value that it should subtract": ("next_value), next_value) - value", "next_value), next_value) + value"),
    "no bootstrap at truncation": (
        "done = terminated | truncated\n    delta = td_error(reward, value[:-1], value[1:], terminated, gamma)",
        "done = terminated | truncated\n    delta = td_error(reward, value[:-1], value[1:], done, gamma)",
    ),
    "truncated for terminated in the TD error": (
        "done = terminated | truncated\n    delta = td_error(reward, value[:-1], value[1:], terminated, gamma)",
        "done = terminated | truncated\n    delta = td_error(reward, value[:-1], value[1:], truncated, gamma)",
    ),
    "values a row late": (
        "done = terminated | truncated\n    delta = td_error(reward, value[:-1], value[1:], terminated, gamma)",
        "done = terminated | truncated\n    delta = td_error(reward, value[1:], value[1:], terminated, gamma)",
    ),
    "recursion runs on across truncation": ("done = terminated | truncated", "done = terminated"),
    "recursion runs on across termination": ("done = terminated | truncated", "done = truncated"),
    "no gamma in the recursion": ("(gamma * gae_lambda) * (~done)", "gae_lambda * (~done)"),
    "no lambda in the recursion": ("(gamma * gae_lambda) * (~done)", "gamma * (~done)"),
    "an undecided row counts as a step": ("torch.where(valid, keep, torch.ones_like(keep))", "keep"),
    "an undecided row ends the episode": ("torch.where(valid, keep, torch.ones_like(keep))", "keep * weight"),
    "an undecided row's error counts": ("reverse_recurrence(delta * weight,", "reverse_recurrence(delta,"),
    "the lambda-return adds the next value": ("return advantage + value[:-1]", "return advantage + value[1:]"),
    "reward-to-go discounted twice": (
        "return lambda_return(reward, value, terminated, truncated, valid, gamma, 1.0)",
        "return lambda_return(reward, value, terminated, truncated, valid, gamma, gamma)",
    ),
    "flags exchanged in the reward-to-go": (
        "lambda_return(reward, value, terminated, truncated, valid, gamma, 1.0)",
        "lambda_return(reward, value, truncated, terminated, valid, gamma, 1.0)",
    ),
    "steps counted across truncation": (
        "going_on = (~(valid & (terminated | truncated))).to(dtype)",
        "going_on = (~(valid & terminated)).to(dtype)",
    ),
    "undecided rows counted as steps": ("valid.to(dtype), going_on)", "torch.ones_like(going_on), going_on)"),
    "the past undiscounted": (
        "past = _sum_before(power * reward * valid.to(reward.dtype), going_on)",
        "past = _sum_before(reward * valid.to(reward.dtype), going_on)",
    ),
    "the past runs on across truncation": (
        "going_on = (~(valid & (terminated | truncated))).to(reward.dtype)",
        "going_on = (~(valid & terminated)).to(reward.dtype)",
    ),
    "the past counts undecided rows": ("power * reward * valid.to(reward.dtype)", "power * reward"),
    "the past counts the step itself": ("torch.cat([none, (x * going_on)[:-1]])", "x * going_on"),
    "the past crosses an end": ("torch.cat([none, going_on[:-1]])", "torch.ones_like(going_on)"),
    "the future as the episode's first step does not see it": ("past + power * reward_to_go", "past + reward_to_go"),
    "a time limit is no end": ("end = (valid & (terminated | truncated))", "end = (valid & terminated)"),
    "an end counts for what follows it": ("end.flip(0).cumsum(0).flip(0)", "end.cumsum(0)"),
    "n steps run on across truncation": (
        "carry = gamma * (~(terminated | truncated))",
        "carry = gamma * (~terminated)",
    ),
    "n steps run on across termination": (
        "carry = gamma * (~(terminated | truncated))",
        "carry = gamma * (~truncated)",
    ),
    "no discount over n steps": ("carry = gamma * (~(", "carry = (~("),
    "one step too many": ("return _sum_of_steps(x, c, n).gather", "return _sum_of_steps(x, c, n + 1).gather"),
    "an undecided row is one of the n steps": (
        "place = torch.where(valid, count, count[-1:] + (~valid).long().cumsum(0)) - 1",
        "place = torch.ones_like(count).cumsum(0) - 1",
    ),
    "an undecided row's error among the n steps": ("torch.where(valid, delta, torch.zeros_like(delta))", "delta"),
    "all steps whatever n": ("if n >= reward.shape[0]:", "if n >= 1:"),
    "the next terms of the sum undiscounted": ("total + product * ahead(x, summed)", "total + ahead(x, summed)"),
    "n steps plus the next value": (
        "truncated, valid, gamma, n) + value[:-1]",
        "truncated, valid, gamma, n) + value[1:]",
    ),
    "the gain added": ("return reward - gain + next_value", "return reward + gain + next_value"),
    "no next differential value": ("return reward - gain + next_value - value", "return reward - gain - value"),
    "differential advantages cross truncation": (
        "factor = gae_lambda * (~truncated).to(delta.dtype)",
        "factor = gae_lambda * torch.ones_like(delta)",
    ),
    "an undecided row counts as a differential step": ("torch.where(valid, factor, torch.ones_like(factor))", "factor"),
}

VTRACE: Mistakes = {
    "ratio upside down": ("ratio = torch.exp(log_ratio)", "ratio = torch.exp(-log_ratio)"),
    "rho not clipped": ("rho = ratio.clamp(max=rho_bar)", "rho = ratio"),
    "rho clipped by the bar of c": ("rho = ratio.clamp(max=rho_bar)", "rho = ratio.clamp(max=c_bar)"),
    "c not clipped": ("ratio.clamp(max=c_bar) * going_on", "ratio * going_on"),
    "c clipped by the bar of rho": ("ratio.clamp(max=c_bar) * going_on", "ratio.clamp(max=rho_bar) * going_on"),
    "c without lambda": ("shrink = (gamma * trace_decay) * ratio", "shrink = gamma * ratio"),
    "c without gamma": ("shrink = (gamma * trace_decay) * ratio", "shrink = trace_decay * ratio"),
    "TD errors not weighted by rho": ("torch.where(valid, rho * delta,", "torch.where(valid, delta,"),
    "recursion without the ratio": ("ratio.clamp(max=c_bar) * going_on", "going_on"),
    "V-trace runs on across an end": (
        "ratio.clamp(max=c_bar) * going_on",
        "ratio.clamp(max=c_bar)",
    ),
    "q runs on across an end": ("trace_decay) * going_on * next", "trace_decay) * next"),
    "V-trace runs on across truncation": (
        "going_on = (~(terminated | truncated)).to(reward.dtype)",
        "going_on = (~terminated).to(reward.dtype)",
    ),
    "V-trace: an undecided row counts as a step": (
        "reverse_recurrence(weighted, torch.where(valid, shrink, torch.ones_like(shrink)))",
        "reverse_recurrence(weighted, shrink)",
    ),
    "V-trace: an undecided row's error counts": (
        "weighted = torch.where(valid, rho * delta, torch.zeros_like(delta))",
        "weighted = rho * delta",
    ),
    "q from this step's target, not the next one's": (
        "torch.cat([correction[1:], torch.zeros_like(correction[:1])])",
        "correction",
    ),
    "the target without the value": ("VTrace(here + correction,", "VTrace(correction,"),
    "q without the value": ("here + advantage, rho * advantage)", "advantage, rho * advantage)"),
    "policy gradient's advantage without rho": ("here + advantage, rho * advantage)", "here + advantage, advantage)"),
}

TOKEN_REWARDS: Mistakes = {
    "the penalty of the other sign": ("penalty = -kl_coef *", "penalty = kl_coef *"),
    "the score on every token": ("torch.where(last, score.detach()", "torch.where(valid, score.detach()"),
    "penalty where no token is decided": (
        "return torch.where(valid, reward, torch.zeros_like(reward))",
        "return reward",
    ),
    "gradient through the penalty": ("(log_prob - ref_log_prob).detach()", "(log_prob - ref_log_prob)"),
    "rewards centred": (
        "scaled = reward / (total.var(correction=0).sqrt() + epsilon)",
        "scaled = (reward - reward.mean()) / (total.var(correction=0).sqrt() + epsilon)",
    ),
    "rewards scaled by a token's deviation": ("total.var(correction=0)", "reward.var(correction=0)"),
    "equal rewards scaled by their rounding": ("are_equal(total.amin(), total.amax())", "total.amin() > total.amax()"),
    "a sample in its own baseline": (" * (k / (k - 1))", ""),
    "the group's mean not subtracted": (
        "centred = reward - reward.mean(-1, keepdim=True)",
        "centred = reward",
    ),
    "variance for deviation": ("mean(-1, keepdim=True).sqrt() + epsilon)", "mean(-1, keepdim=True) + epsilon)"),
    "rounding taken for a difference": (
        "return torch.where(equal, torch.zeros_like(reward), scaled)",
        "return scaled",
    ),
}

POLICY_GRADIENT: Mistakes = {
    "score-function loss of the other sign": ("return -log_prob * advantage", "return log_prob * advantage"),
    "gradient through the advantage": ("advantage.detach()", "advantage"),
    "no gradient through the log-probability": ("return -log_prob * ", "return -log_prob.detach() * "),
}

TRUST_REGION: Mistakes = {
    "surrogate of the other sign": ("return -torch.minimum(ratio", "return torch.minimum(ratio"),
    "the optimistic surrogate": ("return -torch.minimum(ratio", "return -torch.maximum(ratio"),
    "clipped whatever the sign of the advantage": (
        "return -torch.minimum(ratio * advantage, clipped * advantage)",
        "return -clipped * advantage",
    ),
    "ratio upside down": (
        "return torch.exp(log_prob - old_log_prob.detach())",
        "return torch.exp(old_log_prob.detach() - log_prob)",
    ),
    "gradient through the old policy": (
        "return torch.exp(log_prob - old_log_prob.detach())",
        "return torch.exp(log_prob - old_log_prob)",
    ),
    "no gradient through the ratio": (
        "return torch.exp(log_prob - old",
        "return torch.exp(log_prob.detach() - old",
    ),
    "gradient through the surrogate's advantage": ("    advantage = advantage.detach()\n", ""),
    "clipped from above only": ("torch.maximum(ratio, 1.0 - epsilon)", "ratio"),
    "clipped from below only": (
        "torch.minimum(torch.maximum(ratio, 1.0 - epsilon), 1.0 + epsilon)",
        "torch.maximum(ratio, 1.0 - epsilon)",
    ),
    "penalised surrogate of the other sign": (
        "return -ratio * advantage.detach() +",
        "return ratio * advantage.detach() +",
    ),
    "the penalty as a reward": ("advantage.detach() + kl_coef * kl", "advantage.detach() - kl_coef * kl"),
    "penalty without its coefficient": ("advantage.detach() + kl_coef * kl", "advantage.detach() + kl"),
    "no gradient through the penalty": ("kl_coef * kl\n", "kl_coef * kl.detach()\n"),
    "gradient through the penalised surrogate's advantage": ("-ratio * advantage.detach()", "-ratio * advantage"),
    "thresholds exchanged": (
        "halved = torch.where(kl < target / 1.5, 0.5 * kl_coef, kl_coef)\n    return torch.where(kl > 1.5 * target,",
        "halved = torch.where(kl > target / 1.5, 0.5 * kl_coef, kl_coef)\n    return torch.where(kl < 1.5 * target,",
    ),
    "doubled where it should be halved": ("0.5 * kl_coef, kl_coef)", "2.0 * kl_coef, kl_coef)"),
    "never doubled": ("torch.where(kl > 1.5 * target, 2.0 * kl_coef, halved)", "halved"),
    "upper threshold at the target": ("kl > 1.5 * target", "kl > target"),
    "lower threshold at the target": ("kl < target / 1.5", "kl < target"),
    "coefficient may become zero": (".clamp(min=1e-8, max=1e8)", ".clamp(max=1e8)"),
    "KL estimate of the exchanged policies": (
        "x = log_prob - old_log_prob\n    return",
        "x = old_log_prob - log_prob\n    return",
    ),
    "KL estimate k1": ("return torch.expm1(x) - x", "return -x"),
    "KL estimate k2": ("return torch.expm1(x) - x", "return 0.5 * x.square()"),
}

VALUE: Mistakes = {
    "no half in the value loss": ("return 0.5 * (value", "return (value"),
    "gradient through the target": ("(value - target.detach()).square()", "(value - target).square()"),
    "gradient through Huber's target": ("(value - target.detach()).abs()", "(value - target).abs()"),
    "Huber's line too high": ("error - 0.5 * squared", "error"),
    "Huber's slopes unlimited": ("torch.minimum(error, ", "torch.maximum(error, "),
    "gradient through the old value": ("old_value = old_value.detach()", "old_value = old_value"),
    "the optimistic clipped value loss": ("torch.maximum(value_loss", "torch.minimum(value_loss"),
    "value clipped from above only": ("torch.maximum(value - old_value, -c)", "value - old_value"),
    "difference clipped, old value forgotten": ("clipped = old_value + ", "clipped = "),
}

DISTRIBUTIONS: Mistakes = {
    "mask forgotten before the softmax": (
        "    if mask is not None:\n        logits = masked_logits(logits, mask)\n",
        "",
    ),
    "floor lifts illegal actions": ("return masked_logits(mixed, mask)", "return mixed"),
    "floor shared with illegal actions": ("(1.0 - legal * floor)", "(1.0 - k * floor)"),
    "floor added without making room": ("floor + (1.0 - k * floor) * log_probs.exp()", "floor + log_probs.exp()"),
    "floor of the deviation, not of the variance": ("2.0 * math.log(min_std)", "math.log(min_std)"),
    "noise added to probabilities": ("(self.log_probs + noise)", "(self.log_probs.exp() + noise)"),
    "noise subtracted": ("(self.log_probs + noise)", "(self.log_probs - noise)"),
    "entropy of the other sign": ("return -(self.log_probs.exp()", "return (self.log_probs.exp()"),
    "KL under the other distribution": (
        "(self.log_probs.exp() * (self.log_probs - other.log_probs))",
        "(other.log_probs.exp() * (self.log_probs - other.log_probs))",
    ),
    "mean entropy of the components, not the sum": (
        "entropy().sum(-1)\n\n    def kl(self, other: Factored)",
        "entropy().mean(-1)\n\n    def kl(self, other: Factored)",
    ),
    "log-deviation as the deviation": ("self.mean + self.log_std.exp() * noise", "self.mean + self.log_std * noise"),
    "variance for deviation in the density": (
        "(action - self.mean) * torch.exp(-self.log_std)",
        "(action - self.mean) * torch.exp(-2.0 * self.log_std)",
    ),
    "density not normalised by the deviation": ("z.square() - self.log_std - 0.5", "z.square() - 0.5"),
    "log 2 pi not halved": ("- self.log_std - 0.5 * LOG_2PI)", "- self.log_std - LOG_2PI)"),
    "Gaussian entropy without its 1": (
        "self.log_std.expand_as(self.mean) + 0.5 * (1.0 + LOG_2PI)",
        "self.log_std.expand_as(self.mean) + 0.5 * LOG_2PI",
    ),
    "KL scaled by the wrong deviation": ("torch.exp(-other.log_std)\n", "torch.exp(-self.log_std)\n"),
    "KL's log-ratio of the other sign": ("- 1.0) - log_ratio).sum", "- 1.0) + log_ratio).sum"),
    "covariance transposed in the draw": ("(self.scale_tril @ noise", "(self.scale_tril.mT @ noise"),
    "no determinant in the density": ("sum(-1) - self._log_det() - 0.5 * d", "sum(-1) - 0.5 * d"),
    "KL's determinants exchanged": (
        "other._log_det() - self._log_det()",
        "self._log_det() - other._log_det()",
    ),
    "no change of variables under tanh": (
        "return self.base.log_prob(action) - log_tanh_derivative(action).sum(-1)",
        "return self.base.log_prob(action)",
    ),
    "change of variables of the other sign": ("(action) - log_tanh_derivative", "(action) + log_tanh_derivative"),
    "entropy before the squashing": (
        "return self.base.entropy() + expected_log_tanh_derivative(self.mean, self.log_std.exp()).sum(-1)",
        "return self.base.entropy()",
    ),
    "the squashing of the mirrored half forgotten": (" + (-0.5 * ((x + m) / s).square()).exp()", ""),
    "nodes over the whole line, not over what counts": (
        "width = ((mean.abs() + 7.0 * std).clamp(max=16.0) - low).clamp(min=0.0)",
        "width = mean.abs() + 7.0 * std - low",
    ),
    "E|u| of a Gaussian around zero": ("mean * torch.erf(z / math.sqrt(2.0)) + std", "std"),
    "epsilon of the best action alone": ("(1.0 - share) * greedy + share * legal", "(1.0 - share) * greedy + legal"),
    "exploration among illegal actions": (
        "legal = torch.ones_like(q_value) if mask is None else mask.to(q_value.dtype)",
        "legal = torch.ones_like(q_value)",
    ),
    "no greedy action while all are tried alike": (".clamp(max=1.0 - 1e-6)", ""),
    "softplus of the other sign": ("F.softplus(-2.0 * u)", "F.softplus(2.0 * u)"),
    "minus Gumbel noise": ("return -torch.empty(shape", "return torch.empty(shape"),
}

NUMERICS: Mistakes = {
    "fresh noise unscaled": ("math.sqrt(1.0 - correlation**2) * fresh", "fresh"),
    "fresh noise scaled by its variance": ("math.sqrt(1.0 - correlation**2) * fresh", "(1.0 - correlation**2) * fresh"),
    "what stays and what goes exchanged": ("else correlation * previous +", "else (1.0 - correlation) * previous +"),
    "the first noise scaled": (
        "previous = fresh if previous is None",
        "previous = math.sqrt(1.0 - correlation**2) * fresh if previous is None",
    ),
    "noise forgets what was": ("rows.append(previous)", "rows.append(fresh)"),
    "mean over the undecided rows too": (
        "weight.sum().clamp(min=1.0)\n\n\ndef weighted_var",
        "weight.numel()\n\n\ndef weighted_var",
    ),
    "no guard for a mean of nothing": (
        "(x * weight).sum() / weight.sum().clamp(min=1.0)",
        "(x * weight).sum() / weight.sum()",
    ),
    "weight forgotten in the mean": ("(x * weight).sum()", "x.sum()"),
    "variance around the unweighted mean": ("(x - weighted_mean(x, weight)).square()", "(x - x.mean()).square()"),
    "divided by the variance": ("weighted_variance(x, weight).sqrt()", "weighted_variance(x, weight)"),
    "scaled but not centred": ("scaled = (x - weighted_mean(x, weight)) / (", "scaled = x / ("),
    "equal numbers divided by their rounding": (
        "return torch.where(are_equal(*weighted_range(x, weight)), torch.zeros_like(x), scaled)",
        "return scaled",
    ),
    "equal only where no digit differs": ("<= 4.0 * torch.finfo", "<= 0.0 * torch.finfo"),
    "numbers without weight in the range": ("counts = weight > 0.0", "counts = weight > -1.0"),
    "moments in the rows' precision": (
        "x, weight = x.to(mean.dtype), weight.to(mean.dtype)",
        "mean, variance, count = mean.to(x.dtype), variance.to(x.dtype), count.to(x.dtype)",
    ),
    "merged variance without the means' distance": (" + delta.square() * (count * n / total)) / total", ") / total"),
    "merged mean weighted the wrong way": ("delta * (n / total)", "delta * (count / total)"),
    "batch variance around the running mean": ("(x - batch_mean).square()", "(x - mean).square()"),
    "nothing seen forgets the variance": ("torch.where(seen, new_variance, variance)", "new_variance"),
    "recurrence's coefficient a row late": ("c[:-shift] * x[shift:]", "c[shift:] * x[shift:]"),
    "recurrence's coefficients not composed": ("c = torch.cat([c[:-shift] * c[shift:], c[-shift:]])\n        ", ""),
    "recurrence stops one doubling early": ("while shift < steps:", "while shift < steps // 2:"),
    "initial value not discounted": ("x[0] + c[0] * initial", "x[0] + initial"),
}

ON_POLICY: Mistakes = {
    "running return crosses truncation": (
        "done = rollout.terminated | rollout.truncated\n    alive",
        "done = rollout.terminated\n    alive",
    ),
    "running return cut at the end itself, not after it": (
        "torch.cat([torch.ones_like(done[:1]), ~done[:-1]])",
        "(~done)",
    ),
    "running return discounted in undecided rows": (
        "torch.where(rollout.valid, gamma, torch.ones_like(gamma)) * alive",
        "gamma * alive",
    ),
    "running return carried over an end": ("returns[-1] * (~done[-1]).to(returns.dtype)", "returns[-1]"),
    "running return not carried": ('discount, state["return_carry"])', 'discount, 0.0 * state["return_carry"])'),
    "rewards divided by the variance": (
        'torch.rsqrt(state["return_variance"] + 1e-8)',
        'torch.reciprocal(state["return_variance"] + 1e-8)',
    ),
    "rewards centred": (
        "return rollout.reward * torch",
        'return (rollout.reward - state["return_mean"]) * torch',
    ),
    "undecided rows in the return's statistics": (
        "weight = rollout.valid.to(rollout.reward.dtype)",
        "weight = torch.ones_like(rollout.reward)",
    ),
    "statistics of the observations that follow": ("rollout.obs[name][:-1]", "rollout.obs[name][1:]"),
    "undecided rows in the observations' statistics": (
        "rollout.valid.to(torch.float32).flatten()",
        "torch.ones_like(rollout.valid, dtype=torch.float32).flatten()",
    ),
    "actions scored by the next row's policy": (
        "(*(x[:steps] for x in output.distribution))",
        "(*(x[-steps:] for x in output.distribution))",
    ),
    "every sequence starts from the first one's memory": ("rollout.memory[first // length]", "rollout.memory[0]"),
    "last value from a sequence's starting memory": (
        "torch.ones_like(rollout.valid[-1:]), memory))",
        "torch.ones_like(rollout.valid[-1:]), rollout.memory[-1]))",
    ),
    "memory forgotten a step late": ("rollout.episode_step[rows] == 0", "rollout.episode_step[rows] == 1"),
    "old values a row late": ('"value": value[:-1],', '"value": value[1:],'),
    "undecided rows weigh as much": ("rollout.valid.to(value.dtype)", "torch.ones_like(advantage)"),
    "action masks a row late": ("rollout.action_mask[:-1]", "rollout.action_mask[1:]"),
    "episode starts a row late": ("rollout.episode_step[:-1] == 0", "rollout.episode_step[1:] == 0"),
    "observations a row late": (
        "to_sequences(x[:-1], length) for k, x in obs",
        "to_sequences(x[1:], length) for k, x in obs",
    ),
    "explained variance without its 1": ("explained = 1.0 - weighted_variance", "explained = weighted_variance"),
    "rewards of undecided rows in the running return": (
        "forward_recurrence(rollout.reward * weight,",
        "forward_recurrence(rollout.reward,",
    ),
    "single steps standardised": ("if standardizes and num_envs", "if False and num_envs"),
    "environments mixed within a sequence": (
        ".transpose(1, 2).flatten(0, 1)",
        ".reshape(-1, length, *x.shape[2:])",
    ),
    "the same order in every epoch": (
        "[torch.randperm(sequences, generator=generator) for _ in range(epochs)]",
        "[torch.randperm(sequences, generator=generator)] * epochs",
    ),
    "every step on the first minibatch": ("gather(batch, index)", "gather(batch, indices[0])"),
    "figures of the last minibatch only": ("{k: totals.get(k, 0.0) + v for", "{k: 0.0 * totals.get(k, 0.0) + v for"),
    "sequences put back in the order of environments": (
        "rows.movedim(2, 1).flatten(0, 1)",
        "rows.flatten(0, 1).view(-1, envs, *x.shape[2:])",
    ),
    "V-trace with the ratio upside down": (
        "log_ratio = log_prob - from_sequences(old_log_prob, length, rollout.reward.shape[1])",
        "log_ratio = from_sequences(old_log_prob, length, rollout.reward.shape[1]) - log_prob",
    ),
    "V-trace of the unscaled rewards": (
        "reward, gamma = scaled_rewards(state, rollout),",
        "reward, gamma = rollout.reward,",
    ),
    "rho counted twice": (
        "advantage, target = estimate.q_value - value[:-1],",
        "advantage, target = estimate.advantage,",
    ),
    "V-trace's q as its target": ("value[:-1], estimate.target", "value[:-1], estimate.q_value"),
    "memory transposed like the steps": ('x if k == "memory" else x.transpose(0, 1)', "x.transpose(0, 1)"),
    "the gain of undecided rows too": (
        "weighted_mean(rollout.reward, rollout.valid.to(rollout.reward.dtype))",
        "rollout.reward.mean()",
    ),
    "the gain never a plain mean": ("torch.maximum(gain_rate, 1.0 / count)", "gain_rate"),
    "the gain moves away": ('(mean - state["gain"])', '(mean + state["gain"])'),
    "the gain left out": (
        "target = gae_and_target(state, rollout, value, hyper)",
        'target = gae_and_target({k: x for k, x in state.items() if k != "gain"}, rollout, value, hyper)',
    ),
    "the gain of the rollout before": (
        'return new, rollout.reward - new["gain"],',
        'return new, rollout.reward - state["gain"],',
    ),
    "a discount beside the gain": (
        'rollout.reward - new["gain"], torch.ones_like(hyper["gamma"])',
        'rollout.reward - new["gain"], hyper["gamma"]',
    ),
    "V-trace without the gain": (
        'reward, gamma = rollout.reward - state["gain"], torch.ones_like(hyper["gamma"])',
        'reward, gamma = rollout.reward, torch.ones_like(hyper["gamma"])',
    ),
    "V-trace discounts beside the gain": (
        'reward, gamma = rollout.reward - state["gain"], torch.ones_like(hyper["gamma"])',
        'reward, gamma = rollout.reward - state["gain"], hyper["gamma"]',
    ),
    "V-trace's differential values not pinned": (
        'estimate.target\n    if "gain" in state:',
        "estimate.target\n    if False:",
    ),
    "differential values not pinned": (
        'advantage + value[:-1]\n    if "gain" in state:',
        "advantage + value[:-1]\n    if False:",
    ),
    "target without the value": ("target = advantage + value[:-1]", "target = advantage"),
    "target with the next value": ("target = advantage + value[:-1]", "target = advantage + value[1:]"),
    "GAE: terminated and truncated exchanged": (
        "flags = (rollout.terminated, rollout.truncated, rollout.valid)\n    advantage",
        "flags = (rollout.truncated, rollout.terminated, rollout.valid)\n    advantage",
    ),
    "GAE: gamma and lambda exchanged": (
        'advantage = generalized_advantage(reward, value, *flags, gamma, hyper["gae_lambda"])',
        'advantage = generalized_advantage(reward, value, *flags, hyper["gae_lambda"], gamma)',
    ),
    "GAE of the rewards as they came": ("generalized_advantage(reward,", "generalized_advantage(rollout.reward,"),
    "V-trace corrects the first pass only": ("number > 0:", "number == 0:"),
    "V-trace never corrects": ("number > 0:", "number < 0:"),
    "an epoch's last call forgotten": (
        "for chunk in indices.split(steps_per_call(indices.shape[1], indices.shape[0]), dim=1):",
        "for chunk in indices.split(steps_per_call(indices.shape[1], indices.shape[0]), dim=1)[:-1]:",
    ),
    "targets pushed from mean zero": ("return target - VALUE_PIN", "return target + VALUE_PIN"),
    "truncation refused": ("rollout.terminated.sum()", "rollout.truncated.sum()"),
    "states weighted a step late": (
        "return gamma ** step.to(gamma.dtype)",
        "return gamma ** (step + 1).to(gamma.dtype)",
    ),
    "entropy penalised": ('- hyper["entropy_coef"] * entropy', '+ hyper["entropy_coef"] * entropy'),
    "value weight forgotten": ('hyper["value_coef"] * regression', "regression"),
    "mean over the undecided rows": (
        "return weighted_mean(per_step, weight), metrics",
        "return per_step.mean(), metrics",
    ),
    "states never weighted": ('policy_loss = batch["state_weight"] * policy_loss', "policy_loss = policy_loss"),
    "values regressed on advantages": (
        'value_loss(value_of(output), batch["target"])',
        'value_loss(value_of(output), batch["advantage"])',
    ),
    "observation statistics never merged": (
        'state = self.over_members["merge"](state, rollout, hyper)',
        "state = {**state}",
    ),
    "the average of episodes that end": ("            refuse_termination(rollout)\n", "            pass\n"),
    "V-trace with the policy from before the update": (
        'self.over_members["correct"](state, rollout',
        'self.over_members["correct"](self.state, rollout',
    ),
    "the pin left out": (
        "training_batch(rollout, self.sequence_length, log_prob, value, advantage, target)",
        "training_batch(rollout, self.sequence_length, log_prob, value, advantage, advantage + value[:-1])",
    ),
}

SCHEDULES: Mistakes = {
    "schedule forgotten": ("value * (1.0 - progress) if linear else value", "value"),
    "clip range on the learning rate's schedule": (
        'of = "clip_schedule" if name == "clip_epsilon" else "learning_rate_schedule"',
        'of = "learning_rate_schedule"',
    ),
    "only Adam's own rate follows": ('name.endswith("learning_rate")', 'name == "learning_rate"'),
}

PPO: Mistakes = {
    "undecided rows in the standardisation": (
        "standardize(advantage, weight)",
        "standardize(advantage, weight.new_ones(weight.shape))",
    ),
    "old and new log-probability exchanged": (
        "clipped_surrogate_loss(log_prob, old_log_prob,",
        "clipped_surrogate_loss(old_log_prob, log_prob,",
    ),
    "value clipped around the target": (
        'clipped_value_loss(value, batch["value"], batch["target"],',
        'clipped_value_loss(value, batch["target"], batch["value"],',
    ),
    "health figure: KL the wrong way round": (
        "kl_estimate(log_prob, old_log_prob)",
        "kl_estimate(old_log_prob, log_prob)",
    ),
    "health figure: clip fraction counts one side": ("(ratio - 1.0).abs() >", "(ratio - 1.0) >"),
    "target KL stops while it is kept": ('metrics["approx_kl"] <= 1.5', 'metrics["approx_kl"] > 1.5'),
    "a stopped rollout starts again": ('active = state["active"] * (metrics', "active = (metrics"),
    "moments move on after the stop": (
        '_MOVED = ("params", "adam_mean", "adam_square", "adam_count")',
        '_MOVED = ("params",)',
    ),
    "target KL without its factor": ('1.5 * hyper["target_kl"]', 'hyper["target_kl"]'),
}

PPO_KL: Mistakes = {
    "the other direction": ('self.config.kl_direction == "old_new"', 'self.config.kl_direction != "old_new"'),
    "one direction whatever is asked for": ("else new.kl(old)", "else old.kl(new)"),
    "undecided rows in the standardisation": (
        "standardize(advantage, weight)",
        "standardize(advantage, weight.new_ones(weight.shape))",
    ),
    "old and new log-probability exchanged": (
        "penalised_surrogate_loss(log_prob, old_log_prob,",
        "penalised_surrogate_loss(old_log_prob, log_prob,",
    ),
    "the coefficient as it was at the start": (
        'advantage, kl, state["kl_coef"])',
        "advantage, kl, self.config.kl_coef)",
    ),
    "undecided rows in the distance": (
        'weighted_mean(self.divergence(policy, whole), whole["weight"])',
        "self.divergence(policy, whole).mean()",
    ),
    "distance of the policy before the update": (
        'self.over_members["adapt"](state, batch, hyper)',
        'self.over_members["adapt"](self.state, batch, hyper)',
    ),
    "adapted by the distance on the way": (
        'self.over_members["adapt"](state, batch, hyper)',
        'self.over_members["adapt"]({**state, "params": 0.5 * (state["params"] + self.state["params"])}, batch, hyper)',
    ),
    "the adapted coefficient forgotten": ("return {**state, **adapted}, {", "return state, {"),
}

ENVIRONMENTS: Mistakes = {
    "the halves of a step that is more than they": (
        "type(venv).step is AsyncVectorEnv.step",
        "isinstance(venv, AsyncVectorEnv)",
    ),
    "no step begun early": ("type(venv).step is AsyncVectorEnv.step", "False"),
}

ROLLOUT: Mistakes = {
    "a step left under way": (
        "                            env.step_wait()\n                        raise",
        "                            pass\n                        raise",
    ),
    "what failed first not heard of": ("with suppress(Exception):", "with suppress():"),
}

POPULATION: Mistakes = {
    "only the first member's value": (
        "return tuple(scheduled(config, name, progress) for config in self.configs)",
        "return scheduled(self.configs[0], name, progress)",
    ),
    "no schedule for what differs": (
        "return tuple(scheduled(config, name, progress) for",
        "return tuple(scheduled(config, name, 0.0) for",
    ),
    "configs in reverse": ("for i in range(members)", "for i in reversed(range(members))"),
    "too few values accepted": ("if len(values) != members:", "if len(values) > members:"),
    "off for one accepted": ("is None or None in values", "is None"),
}

LIFTING: Mistakes = {
    "one value for all members in vmap": (
        "tree_map(lambda x: 0 if x.ndim else None, args[-1])",
        "tree_map(lambda x: None, args[-1])",
    ),
    "the first member's value in the loop": ("_of_member(args[-1], m)", "_of_member(args[-1], 0)"),
}

TRPO: Mistakes = {
    "least improvement ignored": (
        "bounds = (0.0, self.population.value",
        "bounds = (-math.inf, self.population.value",
    ),
    "the limit of the divergence ignored": (
        'bounds = (0.0, self.population.value("max_kl", progress)) if',
        "bounds = (0.0, math.inf) if",
    ),
    "a natural step checked all the same": ("checked = self.config.line_search_steps > 0", "checked = True"),
    "restoring forgotten": ('"params": search.point}', '"params": state["params"] + step}'),
    "the root forgotten": (
        'torch.sqrt(2.0 * hyper["max_kl"] / curvature.clamp(min=1e-30))',
        '(2.0 * hyper["max_kl"] / curvature.clamp(min=1e-30))',
    ),
    "the quadratic model without its half": ('2.0 * hyper["max_kl"]', 'hyper["max_kl"]'),
    "damping forgotten in the step's length": (
        "(slope - system.residual)).sum()",
        '(slope - system.residual - hyper["cg_damping"] * system.solution)).sum()',
    ),
    "no damping": (" + damping * v", ""),
    "the length by what is left over": ("(slope - system.residual)).sum()", "system.residual).sum()"),
    "the last iterations left out": (" + ([rest] if rest else [])", ""),
    "the last iterations as many as the others": ("([rest] if rest", "([most] if rest"),
    "undecided rows in the standardisation": (
        'standardize(batch["advantage"], batch["weight"])',
        'standardize(batch["advantage"], torch.ones_like(batch["weight"]))',
    ),
    "undecided rows in the Fisher matrix": (
        "share = weight / weight.sum().clamp(min=1.0)",
        "share = torch.ones_like(weight) / weight.numel()",
    ),
    "undecided rows in the surrogate": ("weighted_mean(objective, weight), {", "objective.mean(), {"),
    "undecided rows in the divergence": ("weighted_mean(divergence, weight)", "divergence.mean()"),
    "the improvement of the undecided too": (
        'weighted_mean(objective - batch["advantage"], weight)',
        '(objective - batch["advantage"]).mean()',
    ),
    "improvement upon nothing": (
        'weighted_mean(objective - batch["advantage"], weight)',
        "weighted_mean(objective, weight)",
    ),
    "the divergence the wrong way round": (
        'cast(Any, batch_distribution("old_policy", batch, type(new))).kl(new)',
        'cast(Any, new).kl(batch_distribution("old_policy", batch, type(new)))',
    ),
    "Fisher matrix never thinned": ("[:, ::every]", ""),
    "everything thinned": (
        'system, metrics = self.over_members["policy_gradient"](state, batch, hyper)',
        "batch = natural_step.every_nth_step(batch, self.config.rollout_steps, self.config.fisher_subsample)\n"
        '        system, metrics = self.over_members["policy_gradient"](state, batch, hyper)',
    ),
    "values fitted on the undecided rows": (
        'weighted_mean(value_loss(value, batch["target"]), batch["weight"])',
        'value_loss(value, batch["target"]).mean()',
    ),
    "values fitted to the old ones": ('value_loss(value, batch["target"])', 'value_loss(value, batch["value"])'),
}

REINFORCE: Mistakes = {
    "no baseline": ('psi = psi - hyper["gamma"] ** since * value[:-1]', "psi = psi"),
    "baseline of the next state": ("** since * value[:-1]", "** since * value[1:]"),
    "baseline added": ('psi = psi - hyper["gamma"]', 'psi = psi + hyper["gamma"]'),
    "cut episodes count": (
        "counted, following = rollout._replace(valid=end_recorded(*flags)),",
        "counted, following = rollout,",
    ),
    "cut episodes continued": ("torch.zeros_like(value)\n", "value\n"),
    "moments go on where nothing counts": ("torch.where(counts, x, state[k])", "x"),
    "R(tau) discounted twice": (
        "state_weights(rollout.episode_step[:-1] - since,",
        "state_weights(rollout.episode_step[:-1],",
    ),
    "normalising takes off a baseline": (
        "advantage / (weighted_mean(advantage.square(), weight).sqrt() + 1e-8)",
        "standardize(advantage, weight)",
    ),
    "average return added": ("psi = psi - weighted_mean", "psi = psi + weighted_mean"),
    "reward-to-go for the full return": ("psi = full_return(reward,", "psi = reward_to_go(reward, "),
    "terminated and truncated exchanged": (
        "flags = (rollout.terminated, rollout.truncated, rollout.valid)",
        "flags = (rollout.truncated, rollout.terminated, rollout.valid)",
    ),
    "returns of the unscaled rewards": (
        "target = psi = reward_to_go(reward,",
        "target = psi = reward_to_go(rollout.reward,",
    ),
    "undecided rows in the standardisation": (
        "standardize(advantage, weight)",
        "standardize(advantage, weight.new_ones(weight.shape))",
    ),
}

ACTOR_CRITIC: Mistakes = {
    "terminated and truncated exchanged": (
        "flags = (rollout.terminated, rollout.truncated, rollout.valid)",
        "flags = (rollout.truncated, rollout.terminated, rollout.valid)",
    ),
    "advantages of the unscaled rewards": ("generalized_advantage(reward,", "generalized_advantage(rollout.reward,"),
    "gamma for lambda": ('*flags, gamma, hyper["gae_lambda"])', "*flags, gamma, gamma)"),
    "target without the value": ("target = advantage + value[:-1]", "target = advantage"),
    "one critic for both": ("target = reward_to_go(reward, value, *flags, gamma)", "target = target"),
    "differential values not pinned": ("pinned_target(target, value[:-1], rollout.valid)", "target"),
    "statistics forgotten": ("{**state, **statistics}, all_sequences", "{**statistics, **state}, all_sequences"),
    "observation statistics never merged": ("return update_observations(state, rollout, hyper), {", "return state, {"),
}

Q_LEARNING: Mistakes = {
    "the value of another action": ("q_value.gather(-1, action", "q_value.flip(-1).gather(-1, action"),
    "the least of the next values": (".amax(-1)", ".amin(-1)"),
    "the mean of the next values": (".amax(-1)", ".mean(-1)"),
    "illegal next actions are the best": ("_legal(next_q_value, action_mask).amax", "next_q_value.amax"),
    "illegal next actions are picked": ("_legal(online_next_q_value, action_mask)", "online_next_q_value"),
    "the target network picks for itself": ("_legal(online_next_q_value, ", "_legal(next_q_value, "),
    "the learning network values its own choice": (
        "chosen_q_value(next_q_value, greedy)",
        "chosen_q_value(online_next_q_value, greedy)",
    ),
    "DQN goes on past the end": (
        "amax(-1), terminated, gamma)",
        "amax(-1), terminated & ~terminated, gamma)",
    ),
    "double DQN goes on past the end": (
        "greedy), terminated, gamma)",
        "greedy), terminated & ~terminated, gamma)",
    ),
}

DQN: Mistakes = {
    "double and single exchanged": ("if self.settings.double:", "if not self.settings.double:"),
    "the target from the learning network": (
        'q = self.q(state["target/params"], state, obs)',
        'q = self.q(state["params"], state, obs)',
    ),
    "the next action picked by the target network": (
        'q, self.q(state["params"], state, obs), *ends',
        'q, self.q(state["target/params"], state, obs), *ends',
    ),
    "bootstraps from the observation itself": ('batch_obs(batch, "next_obs/")', 'batch_obs(batch, "obs/")'),
    "the mask of the observation itself": ('batch.get("next_action_mask")', 'batch.get("action_mask")'),
    "importance weights forgotten": ("sample_weight(batch) * huber_loss", "huber_loss"),
    "signed errors as priorities": ("(q - target).abs()", "(q - target)"),
    "the target a step late": ('age >= hyper["target_update_every"]', 'age > hyper["target_update_every"]'),
    "the target follows only once": ("torch.where(due, 0, age)", "age"),
    "the target stays where it was": ('torch.where(due, hyper["target_update_rate"], 0.0)', "0.0 * hyper['epsilon']"),
    "exploration never falls": ("+ fallen * (", "+ 0.0 * fallen * ("),
    "exploration falls for the whole run": ("progress / config.exploration_fraction)", "progress)"),
    "exploration stays as it began": ('+ hyper["epsilon"].to(epsilon.dtype)', "+ epsilon"),
}

GRADIENT_TD: Mistakes = {
    "the ratio covers this step alone": (
        "ratio.unsqueeze(-1) * (feature + gamma * trace_decay * carried)",
        "ratio.unsqueeze(-1) * feature + gamma * trace_decay * carried",
    ),
    "no gamma in the trace": ("gamma * trace_decay * carried", "trace_decay * carried"),
    "no lambda in the trace": ("gamma * trace_decay * carried", "gamma * carried"),
    "traces run on across episodes": (
        "carried = torch.where(start.unsqueeze(-1), torch.zeros_like(trace), trace)",
        "carried = trace",
    ),
    "traces are cut everywhere but at the start": (
        "torch.where(start.unsqueeze(-1), torch.zeros_like(trace), trace)",
        "torch.where(start.unsqueeze(-1), trace, torch.zeros_like(trace))",
    ),
    "the correction goes on past the end": ("gamma * (1.0 - ended) * remaining", "gamma * remaining"),
    "the correction keeps lambda where recordings end": ("(~truncated).to(trace.dtype)", "1.0"),
    "the correction weighs lambda, not what is left of it": (
        "remaining = 1.0 - trace_decay * (~truncated)",
        "remaining = trace_decay * (~truncated)",
    ),
    "the correction is added": (
        "* trace - correction.unsqueeze(-1) * next_feature",
        "* trace + correction.unsqueeze(-1) * next_feature",
    ),
    "GTD2 without gamma": (
        "discount = gamma * (1.0 - terminated.to(trace.dtype))",
        "discount = 1.0 - terminated.to(trace.dtype)",
    ),
    "GTD2 past the end": (
        "discount = gamma * (1.0 - terminated.to(trace.dtype))",
        "discount = gamma * torch.ones_like(terminated, dtype=trace.dtype)",
    ),
    "the auxiliary regression has no features": (
        "- (feature @ auxiliary).unsqueeze(-1) * feature",
        "- (feature @ auxiliary).unsqueeze(-1) * trace",
    ),
    "curvature of the other sign": (
        "projection.unsqueeze(-1) * curvature - delta",
        "projection.unsqueeze(-1) * curvature + delta",
    ),
    "curvature without its trace": ("delta.unsqueeze(-1) * curvature_trace", "delta.unsqueeze(-1) * curvature"),
    "no gamma in the follow-on trace": ("return gamma * previous_ratio * carried", "return previous_ratio * carried"),
    "no ratio in the follow-on trace": ("return gamma * previous_ratio * carried", "return gamma * carried"),
    "the follow-on trace runs on across episodes": (
        "carried = torch.where(start, torch.zeros_like(trace), trace)",
        "carried = trace",
    ),
    "lambda_a the other way round": (
        "(1.0 - emphasis_decay) * interest + emphasis_decay * followon",
        "emphasis_decay * interest + (1.0 - emphasis_decay) * followon",
    ),
}

COMPATIBLE: Mistakes = {
    "features of the action itself": (
        "((action - mean).unsqueeze(-1) * jacobian)",
        "(action.unsqueeze(-1) * jacobian)",
    ),
    "features of the other sign": ("((action - mean)", "((mean - action)"),
    "the slope of the other sign": ("return jacobian @ weight", "return -jacobian @ weight"),
    "the policy descends": (
        "return (action_gradient.unsqueeze(-1) * jacobian).sum(-2)",
        "return -(action_gradient.unsqueeze(-1) * jacobian).sum(-2)",
    ),
}

OFF_PAC: Mistakes = {
    "states never discounted": ('if self.config.state_weighting == "discounted":', "if False:"),
    "ratios without a bound": ('.exp().clamp(max=hyper["max_ratio"])', ".exp()"),
    "the ratio upside down": (
        '(log_prob - step["behaviour_log_prob"]).exp()',
        '(step["behaviour_log_prob"] - log_prob).exp()',
    ),
    "the emphasis is left out": ("weight.unsqueeze(-1) * score", "score"),
    "undecided rows count": ('counts = step["valid"].to(delta.dtype)', "counts = torch.ones_like(delta)"),
    "the follow-on trace takes this step's ratio": (
        "followon_trace(state[FOLLOWON], state[RATIO],",
        "followon_trace(state[FOLLOWON], ratio,",
    ),
    "the auxiliary weights stay at rest": ('w + hyper["auxiliary_learning_rate"] * auxiliary', "w"),
    "the value function takes the policy's step size": (
        'hyper["value_learning_rate"] * critic',
        'hyper["policy_learning_rate"] * critic',
    ),
    "values of the next state alone": (
        "(value, next_value) = features.chunk(2), values.chunk(2)",
        "(next_value, value) = features.chunk(2), values.chunk(2)",
    ),
    "another behaviour is scored than acts": (
        "softened(policy, self.config.behaviour_epsilon).log_prob(rollout.action)",
        "policy.log_prob(rollout.action)",
    ),
}

DPG: Mistakes = {
    "SARSA follows the policy": ('if self.config.critic == "sarsa":', "if False:"),
    "SARSA takes actions that only restarted": (
        "torch.cat([rollout.valid[1:], torch.zeros_like(rollout.valid[-1:])])",
        "torch.cat([torch.ones_like(rollout.valid[1:]), torch.zeros_like(rollout.valid[-1:])])",
    ),
    "SARSA takes an action from beyond the rollout": (
        "torch.zeros_like(rollout.valid[-1:])",
        "torch.ones_like(rollout.valid[-1:])",
    ),
    "SARSA takes its own action again": (
        "torch.cat([rollout.action[1:], rollout.action[-1:]])",
        "rollout.action",
    ),
    "no correction": ('if self.config.critic == "gradient_q":', "if False:"),
    "the correction reaches the advantage": (
        "torch.cat([torch.zeros_like(feature), next_slope], dim=-1)",
        "torch.cat([feature, next_slope], dim=-1)",
    ),
    "the critic without its advantage": ("q = feature @ w + value", "q = value"),
    "the policy moves by the value's step": (
        'hyper["policy_learning_rate"] * shortened(actor, limit)',
        'hyper["value_learning_rate"] * shortened(actor, limit)',
    ),
}

LOGGED: Mistakes = {
    "no row behind an end": ("np.concatenate([[0], np.cumsum(done)[:-1]])", "np.zeros(len(done), dtype=np.int64)"),
    "the last observation of an episode is lost": ("obs[place[done] + 1] = next_obs[done]", "pass"),
    "steps are counted through episodes": ("steps[i] + 1 if counts else 0", "steps[i] + 1"),
}

ADAM: Mistakes = {
    "climbs instead of descending": (
        'state["params"] - learning_rate * step',
        'state["params"] + learning_rate * step',
    ),
    "no bias correction of the mean": ("(mean / correction1)", "mean"),
    "step counted after it is used": (
        'count = state["adam_count"] + 1.0',
        'count = state["adam_count"] + 2.0',
    ),
    "short gradients stretched to the limit": (
        "torch.clamp(max_gradient_norm / (norm + 1e-12), max=1.0)",
        "(max_gradient_norm / (norm + 1e-12))",
    ),
}


PREFERENCE: Mistakes = {
    "Bradley-Terry of the other sign": (
        "return -logsigmoid(chosen_score - rejected_score)",
        "return logsigmoid(chosen_score - rejected_score)",
    ),
    "the rejected response preferred": (
        "return -logsigmoid(chosen_score - rejected_score)",
        "return -logsigmoid(rejected_score - chosen_score)",
    ),
    "sigmoid for its logarithm": (
        "return -logsigmoid(chosen_score - rejected_score)",
        "return -(chosen_score - rejected_score).sigmoid()",
    ),
    "centring pulls the two together": (
        "(chosen_score + rejected_score).square()",
        "(chosen_score - rejected_score).square()",
    ),
    "implicit reward without the reference": ("kl_coef * (log_prob - ref_log_prob.detach())", "kl_coef * log_prob"),
    "implicit reward without beta": (
        "kl_coef * (log_prob - ref_log_prob.detach())",
        "log_prob - ref_log_prob.detach()",
    ),
    "gradient into the reference": (
        "kl_coef * (log_prob - ref_log_prob.detach())",
        "kl_coef * (log_prob - ref_log_prob)",
    ),
    "references exchanged": (
        "return (chosen - chosen_ref.detach()) - (rejected - rejected_ref.detach())",
        "return (chosen - rejected_ref.detach()) - (rejected - chosen_ref.detach())",
    ),
    "the margin added up": (
        "return (chosen - chosen_ref.detach()) - (rejected - rejected_ref.detach())",
        "return (chosen - chosen_ref.detach()) + (rejected - rejected_ref.detach())",
    ),
    "IPO drawn to 1 / beta": ("1.0 / (2.0 * kl_coef)", "1.0 / kl_coef"),
    "IPO's margin times beta": ("return (h - 1.0", "return (kl_coef * h - 1.0"),
    "hinge of the other sign": ("torch.relu(1.0 - kl_coef * h)", "torch.relu(1.0 + kl_coef * h)"),
    "hinge without beta": ("torch.relu(1.0 - kl_coef * h)", "torch.relu(1.0 - h)"),
    "smoothing ignored": ("- eps * logsigmoid(-kl_coef * h)", "- 0.0 * logsigmoid(-kl_coef * h)"),
    "smoothing takes labels for flips": (
        "return -(1.0 - eps) * logsigmoid(kl_coef * h) - eps * logsigmoid(-kl_coef * h)",
        "return -eps * logsigmoid(kl_coef * h) - (1.0 - eps) * logsigmoid(-kl_coef * h)",
    ),
    "robust loss adds what it should subtract": (
        "logsigmoid(kl_coef * h) + eps * logsigmoid(-kl_coef * h)) /",
        "logsigmoid(kl_coef * h) - eps * logsigmoid(-kl_coef * h)) /",
    ),
    "robust loss not rescaled": (" / (1.0 - 2.0 * eps)", ""),
    "lengths exchanged": (
        "chosen_ref_log_prob, kl_coef) / chosen_length",
        "chosen_ref_log_prob, kl_coef) / rejected_length",
    ),
    "a tie counted as right": ("(chosen > rejected)", "(chosen >= rejected)"),
    "the reported margin of the other sign": (
        '"rewards/margins": chosen - rejected',
        '"rewards/margins": rejected - chosen',
    ),
    "the reported rewards exchanged": ('"rewards/rejected": rejected', '"rewards/rejected": chosen'),
}

KL: Mistakes = {
    "k1 of the other sign": ("return log_prob - ref_log_prob.detach()", "return ref_log_prob.detach() - log_prob"),
    "k2 without its half": ("0.5 * (log_prob", "1.0 * (log_prob"),
    "k3 the wrong way round": (
        "kl_estimate(ref_log_prob.detach(), log_prob)",
        "kl_estimate(log_prob, ref_log_prob.detach())",
    ),
    "the coefficient falls where the KL is too large": ("kl / target_kl - 1.0", "1.0 - kl / target_kl"),
    "the controller's error not clipped": ("min(max(kl / target_kl - 1.0, -0.2), 0.2)", "kl / target_kl - 1.0"),
    "the controller clipped on one side": (
        "min(max(kl / target_kl - 1.0, -0.2), 0.2)",
        "min(kl / target_kl - 1.0, 0.2)",
    ),
    "the controller ignores how many responses": ("error * responses / horizon", "error / horizon"),
}

TOKENS: Mistakes = {
    "logits of the token itself": ("float32_at_least(logits[:, :-1])", "float32_at_least(logits[:, 1:])"),
    "the tokens that were read": ("temperature, tokens[:, 1:])", "temperature, tokens[:, :-1])"),
    "unnormalised log-probabilities": (" - logits.logsumexp(-1)", ""),
    "multiplied by the temperature": (
        "float32_at_least(logits[:, :-1]) / temperature",
        "float32_at_least(logits[:, :-1]) * temperature",
    ),
    "log-softmax in half precision": (
        "float32_at_least(logits[:, :-1]) / temperature",
        "logits[:, :-1] / temperature",
    ),
    "the mask a token early": (
        "torch.where(batch.response_mask[:, 1:], log_prob",
        "torch.where(batch.response_mask[:, :-1], log_prob",
    ),
    "padding scored": (
        "torch.where(batch.response_mask[:, 1:], log_prob",
        "torch.where(batch.attention_mask[:, 1:], log_prob",
    ),
    "a mean over tokens": ("torch.zeros_like(log_prob)).sum(-1)", "torch.zeros_like(log_prob)).mean(-1)"),
    "the first token for the last": ("valid.long().flip(-1).cumsum(-1).flip(-1) == 1", "valid.long().cumsum(-1) == 1"),
    "positions count padding": (
        "(attention_mask.long().cumsum(-1) - 1).clamp(min=0)",
        "torch.ones_like(attention_mask.long()).cumsum(-1) - 1",
    ),
    "the last column for the last token": (
        "return (index * attention_mask).argmax(-1)",
        "return (index + 0 * attention_mask).argmax(-1)",
    ),
    "the number of tokens for the last one's place": (
        "return (index * attention_mask).argmax(-1)",
        "return attention_mask.sum(-1) - 1",
    ),
    "the other KL of the vocabulary": (
        "Categorical(new).kl(Categorical(ref))",
        "Categorical(ref).kl(Categorical(new))",
    ),
    "a response without logits before it accepted": ("if bool(response[:, 0].any())", "if False"),
    "a row without a response accepted": ("if not bool(response.any(-1).all())", "if False"),
}

RLHF: Mistakes = {
    "the last token truncates": (
        "generalized_advantage(reward, value, last, never,",
        "generalized_advantage(reward, value, never, last,",
    ),
    "the end not marked": (
        "generalized_advantage(reward, value, last, never,",
        "generalized_advantage(reward, value, never, never,",
    ),
    "gamma and lambda exchanged": (
        "self.config.gamma, self.config.gae_lambda)",
        "self.config.gae_lambda, self.config.gamma)",
    ),
    "the target is the advantage": ("target = advantage + value[:-1]", "target = advantage"),
    "padding in the standardisation": (
        "standardize(advantage, valid.to(advantage.dtype))",
        "standardize(advantage, torch.ones_like(advantage))",
    ),
    "padding in PPO's surrogate": ('fixed["advantage"], epsilon) * weight', 'fixed["advantage"], epsilon)'),
    "padding in PPO's value loss": (
        'value_loss(value, fixed["target"]) * weight',
        'value_loss(value, fixed["target"])',
    ),
    "value weight forgotten": ("self.config.value_coef * regression", "regression"),
    "a mean over tokens": (
        "(surrogate + self.config.value_coef * regression).sum(-1)",
        "(surrogate + self.config.value_coef * regression).mean(-1)",
    ),
    "RLOO scores tokens one by one": (
        "new, old = log_prob.sum(-1), steps.log_prob.sum(-1)",
        "new, old = log_prob.mean(-1), steps.log_prob.mean(-1)",
    ),
    "RLOO without the penalty": ("grouped(reward.sum(0), self.config", "grouped(score, self.config"),
    "RLOO's groups across prompts": (
        "score.reshape(-1, group_size)).reshape(-1)",
        "score.reshape(group_size, -1).T).T.reshape(-1)",
    ),
    "GRPO's penalty of the other sign": ("surrogate + self.kl_coef * penalty", "surrogate - self.kl_coef * penalty"),
    "GRPO's penalty on padding": (
        "k3_estimate(log_prob, steps.ref_log_prob) * weight",
        "k3_estimate(log_prob, steps.ref_log_prob + 1.0 - weight)",
    ),
    "GRPO by leave-one-out": (
        "self.config.group_size, group_standardized_advantage)",
        "self.config.group_size, leave_one_out_advantage)",
    ),
    "clip fraction counts padding": ("outside.sum(-1) / valid.sum(-1)", "outside.sum(-1) / valid.shape[-1]"),
}

RLHF_TRAINER: Mistakes = {
    "reference and policy exchanged": (
        "token_rewards(score, steps.log_prob.T, steps.ref_log_prob.T,",
        "token_rewards(score, steps.ref_log_prob.T, steps.log_prob.T,",
    ),
    "rewards never scaled": ("return scaled_token_rewards(reward) if scaled else reward", "return reward"),
    "the temperature forgotten": ("self.head, temperature=self.config.temperature)", "self.head)"),
    "dropout left on": (
        "        with without_dropout(self.lm):\n            if self.head",
        "        with torch.autocast(self.lm.device.type, enabled=False):\n            if self.head",
    ),
    "parts of steps out of order": (
        "torch.cat(found) if found",
        "torch.cat(found[::-1]) if found",
    ),
    "the order of minibatches fixed": ("torch.randperm(len(score), generator=generator)", "torch.arange(len(score))"),
    "the objective forgets kl_coef": ("(score - kl_coef * k1).mean()", "(score - k1).mean()"),
    "evaluations by the adapted price": (
        "drawn.score.to(steps.log_prob), self.config.kl_coef)",
        "drawn.score.to(steps.log_prob), self.kl_coef)",
    ),
    "the best by its score alone": ('best_by = ("eval/objective", "highest")', 'best_by = ("eval/score", "highest")'),
    "processes with parts of groups": (
        "config.group_size * processes.world_size()",
        "config.group_size",
    ),
    "kl_coef never adapted": ("self.kl_coef = proportional_kl_coef(", "_ = proportional_kl_coef("),
    "kl_coef not saved": ('self.kl_coef = float(rest.pop("state/kl_coef"))', 'float(rest.pop("state/kl_coef"))'),
    "the reference at temperature 1": (
        "self.reference.log_probs(rows, self.config.temperature)",
        "self.reference.log_probs(rows)",
    ),
    "no cost of a missing end": (
        " - self.config.missing_eos_penalty * cut",
        "",
    ),
    "alarms again and again": ("if kind not in self.alarmed:", "if True:"),
    "alarms by one batch": ("window = -(-WATCHED // self.config.batch_size)", "window = 1"),
    "the first length not saved": (
        'self.first_length = float(rest.pop("state/first_length", torch.nan))',
        'rest.pop("state/first_length", torch.nan)',
    ),
    "every update draws the same": ('f"responses {step}"', '"responses"'),
    "groups apart": (
        "for i in self.rows_of(step) for _ in range(self.config.group_size)]",
        "for _ in range(self.config.group_size) for i in self.rows_of(step)]",
    ),
    "an evaluation by new random numbers every time": (
        'self._draw(self.eval_data, "evaluation", 1)',
        'self._draw(self.eval_data, f"evaluation {self.step}", 1)',
    ),
    "the score before the penalty of a missing end": (
        "not response.ended for response in drawn]",
        "False for response in drawn]",
    ),
}

DPO: Mistakes = {
    "chosen and rejected exchanged": (
        "four = (of.chosen, of.rejected, of.ref",
        "four = (of.rejected, of.chosen, of.ref",
    ),
    "references exchanged": ("of.ref_chosen, of.ref_rejected)\n    beta", "of.ref_rejected, of.ref_chosen)\n    beta"),
    "lengths exchanged": ("of.chosen_length, of.rejected_length, beta)", "of.rejected_length, of.chosen_length, beta)"),
    "lengths with the prompt": ("side.response_mask.sum(-1)", "side.attended.sum(-1)"),
    "smoothing for robust": (
        'case "robust":\n            loss = robust_dpo_loss(',
        'case "robust":\n            loss = smoothed_dpo_loss(',
    ),
    "references of other pairs than the part's": (
        "self._precomputed()[list(rows)]",
        "self._precomputed()[: len(rows)]",
    ),
    "the reference reads prompts otherwise": (
        "self.reference.pair_log_probs(batch, share_prompts=self.why_not_shared is None)",
        "self.reference.pair_log_probs(batch)",
    ),
    "sharing tried on no pair of the run": ("why_not_shared(lm, tried)", "why_not_shared(lm)"),
    "dropout left on": (
        "        with without_dropout(self.lm):\n            return pair",
        "        with torch.autocast(self.lm.device.type, enabled=False):\n            return pair",
    ),
    "reference computed again on resuming": (
        'self.ref_log_probs = rest.pop("reference/log_probs", None)',
        'rest.pop("reference/log_probs", None)',
    ),
    "references in the order of their length": ("None, order, len(pairs))", "None, sorted(order), len(pairs))"),
    "a trained policy for its reference": ("            if self.step:\n", "            if False:\n"),
    "the sft term per response": ("torch.ones_like(of.chosen)) / of.chosen_length", "torch.ones_like(of.chosen))"),
    "the KL's sign": (
        "of.ref_chosen - of.chosen + of.ref_rejected - of.rejected",
        "of.chosen - of.ref_chosen + of.rejected - of.ref_rejected",
    ),
}

PAIRS: Mistakes = {
    "the halves split in the wrong place": (
        "log_prob[: len(batch.chosen.tokens)], log_prob[len(batch.chosen.tokens) :]",
        "log_prob[::2], log_prob[1::2]",
    ),
    "chosen below rejected": ("torch.cat([fill(a), fill(b)])", "torch.cat([fill(b), fill(a)])"),
    "padded on the left": ("(0, length - x.shape[1])", "(length - x.shape[1], 0)"),
}

DISTRIBUTED: Mistakes = {
    "groups torn apart": ("i // together % world_size() == rank()", "i % world_size() == rank()"),
    "rows as they come": ("out[where] = rows", "out[: len(rows)] = rows"),
    "a list as it comes": ("sorted(pairs, key=lambda pair: pair[0])", "pairs"),
    "types mixed on their way": (
        "(tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)",
        "tensor.device != bucket[0].device",
    ),
}

TRAINING: Mistakes = {
    "a mean of means over parts": (
        "(loss / total).backward()",
        "(loss / self.count(batch) / len(micro_batches)).backward()",
    ),
    "a sum instead of a mean": ("(loss / total).backward()", "loss.backward()"),
    "gradients pile up": ("self.optimizer.zero_grad(set_to_none=True)", "pass"),
    "figures of the last part": ("sums.get(name, 0.0) + float(value.detach())", "float(value.detach())"),
    "rows held out without those of their prompt": (
        "groups.setdefault(tuple(prompt(row)) or place,",
        "groups.setdefault(place,",
    ),
    "other adapters taken for those asked for": (
        "if (rank, alpha) != (config.lora_rank, config.lora_alpha):",
        "if False:",
    ),
    "the norm not limited": (
        "clip_grad_norm_(self.named.values(), self.config.max_gradient_norm)",
        'clip_grad_norm_(self.named.values(), float("inf"))',
    ),
    "the step size never set": ('group["lr"] = self.learning_rate()', 'group["lr"] = group["lr"]'),
    "schedule forgotten": (
        "return base * schedule_factor(self.config.schedule, self.step, self.total_steps, warmup)",
        "return base",
    ),
    "the head not trained": ('self.named |= {f"head.{name}": p for name, p in head.named_parameters()}', "pass"),
    "moments not restored": (
        'for m in ("exp_avg", "exp_avg_sq") if f"{m}/{name}" in tensors}',
        'for m in () if f"{m}/{name}" in tensors}',
    ),
}

SCORING: Mistakes = {
    "values of the state after the token": (
        "nn.functional.pad(value[:, :-1], (1, 0))",
        "nn.functional.pad(value[:, 1:], (1, 0))",
    ),
    "the temperature forgotten": ("else logits / temperature\n", "else logits\n"),
    "the mask a token early": ("wanted = batch.response_mask[:, 1:]", "wanted = batch.response_mask[:, :-1]"),
    "scores a token early": ("nn.functional.pad(wanted, (1, 0))", "nn.functional.pad(wanted, (0, 1))"),
}

REWARD_MODEL: Mistakes = {
    "scored at the last column": ("last_token(batch.attended)]", "-1]"),
    "the head begins large": ("std=1.0 / (width + 1)", "std=1.0"),
    "centring forgotten": (
        "likelihood + config.centring_coef * score_centring_loss(chosen, rejected)",
        "likelihood",
    ),
    "the halves exchanged": (
        "score[: len(batch.chosen.tokens)], score[len(batch.chosen.tokens) :]",
        "score[len(batch.chosen.tokens) :], score[: len(batch.chosen.tokens)]",
    ),
    "confidence of the chosen one, not of the preferred": ("torch.sigmoid(margin.abs())", "torch.sigmoid(margin)"),
    "a tie counted as right": ("0.5 * (1.0 + torch.sign(margin))", "(margin >= 0.0).double()"),
    "bins over all of [0, 1]": ("((probability - 0.5) * (2.0 * bins))", "(probability * bins)"),
    "every bin weighs the same": (
        "(confidence - observed).abs().sum() / margin.numel()",
        "((confidence - observed) / count.clamp(min=1.0)).abs().mean()",
    ),
}


SOFT: Mistakes = {
    "entropy costs in the value": (
        "(q_value - temperature * log_prob).detach()",
        "(q_value + temperature * log_prob).detach()",
    ),
    "no temperature in the value": ("(q_value - temperature * log_prob).detach()", "(q_value - log_prob).detach()"),
    "no entropy in the value": ("(q_value - temperature * log_prob).detach()", "q_value.detach()"),
    "the value carries gradient": ("(q_value - temperature * log_prob).detach()", "(q_value - temperature * log_prob)"),
    "entropy costs in the expectation": ("(q_value - temperature * known)", "(q_value + temperature * known)"),
    "no temperature in the expectation": ("(q_value - temperature * known)", "(q_value - known)"),
    "weighted by log-probabilities": ("probability = log_probs.exp()", "probability = log_probs"),
    "all actions weigh the same": ("(probability * (q_value", "((q_value"),
    "a mean over actions": ("temperature * known)).sum(-1)", "temperature * known)).mean(-1)"),
    "what is illegal overflows": ("torch.where(probability > 0, log_probs, torch.zeros_like(log_probs))", "log_probs"),
    "soft values past the end": (
        "next_value, terminated, gamma).detach()",
        "next_value, terminated & False, gamma).detach()",
    ),
    "soft values at the end alone": (
        "next_value, terminated, gamma).detach()",
        "next_value, ~terminated, gamma).detach()",
    ),
    "soft values undiscounted": ("next_value, terminated, gamma).detach()", "next_value, terminated, 1.0).detach()"),
    "the target carries gradient": ("next_value, terminated, gamma).detach()", "next_value, terminated, gamma)"),
    "the policy descends Q": ("return temperature * log_prob - q_value", "return temperature * log_prob + q_value"),
    "the policy flees entropy": ("return temperature * log_prob - q_value", "return -temperature * log_prob - q_value"),
    "no temperature in the policy's loss": ("return temperature * log_prob - q_value", "return log_prob - q_value"),
    "the policy's loss moves the temperature": (
        "temperature = temperature.detach() if isinstance(temperature, Tensor) else temperature\n"
        "    return temperature * log_prob",
        "return temperature * log_prob",
    ),
    "the temperature falls where entropy is too low": (
        "log_temperature * (entropy - target_entropy)",
        "log_temperature * (target_entropy - entropy)",
    ),
    "the temperature's loss moves the policy": ("(entropy - target_entropy).detach()", "(entropy - target_entropy)"),
    "steps shrink with the temperature": (
        "return log_temperature * (entropy",
        "return log_temperature.exp() * (entropy",
    ),
}

DETERMINISTIC: Mistakes = {
    "the policy descends Q": ("return -q_value", "return q_value"),
    "bootstraps past the end": (
        "next_q_value, terminated, gamma).detach()",
        "next_q_value, terminated & False, gamma).detach()",
    ),
    "bootstraps at the end alone": (
        "next_q_value, terminated, gamma).detach()",
        "next_q_value, ~terminated, gamma).detach()",
    ),
    "the target undiscounted": ("next_q_value, terminated, gamma).detach()", "next_q_value, terminated, 1.0).detach()"),
    "the target carries gradient": ("next_q_value, terminated, gamma).detach()", "next_q_value, terminated, gamma)"),
    "noise unscaled": ("torch.maximum(noise_std * noise, -clip)", "torch.maximum(noise, -clip)"),
    "noise unbounded above": (
        "torch.minimum(torch.maximum(noise_std * noise, -clip), clip)",
        "torch.maximum(noise_std * noise, -clip)",
    ),
    "noise unbounded below": ("torch.maximum(noise_std * noise, -clip)", "noise_std * noise"),
    "the smoothed action out of bounds": ("return (action + blur).clamp(-1.0, 1.0)", "return action + blur"),
    "noise subtracted": ("return (action + blur)", "return (action - blur)"),
    "the clip rounded to float32": ("torch.as_tensor(noise_clip, dtype=action.dtype)", "torch.as_tensor(noise_clip)"),
}

REPLAY: Mistakes = {
    "spare rows drawn too": (
        "max(0, self.written - self.rows)\n        # Behind",
        "max(0, self.written - self.rows - self.spare_rows)\n        # Behind",
    ),
    "stacks from what is overwritten": (
        "oldest + 2 * (self.frame_stack - 1) if",
        "oldest + 0 * (self.frame_stack - 1) if",
    ),
    "the first row forever": ("row = self.first + leaf // self.num_envs", "row = leaf // self.num_envs"),
    "a leaf taken for a row": (
        "row = self.written - 1 - (self.written - 1 - leaf // self.num_envs) % self.length",
        "row = leaf // self.num_envs",
    ),
    "everybody draws the first member's": (
        "self.num_envs * np.arange(self.members)[:, None]",
        "0 * np.arange(self.members)[:, None]",
    ),
    "rows drawn in which nothing was decided": ("np.flatnonzero(~valid[", "np.flatnonzero(False & valid["),
    "no discount of the first reward's successor": (
        "np.float32(gamma), np.float32(1.0))",
        "np.float32(1.0), np.float32(1.0))",
    ),
    "n steps beyond the first one's end": (
        'going = ~(terminated | self.flat["truncated"][here])',
        "going = np.ones_like(terminated)",
    ),
    "the weights' exponent of the other sign": ("** (-importance_exponent)", "** importance_exponent"),
    "weights not scaled": ("(weight / weight.amax(-1, keepdim=True))", "weight"),
    "n rewards undiscounted": ('reward + discount * self.flat["reward"][at]', 'reward + self.flat["reward"][at]'),
    "no discount for the bootstrap": (
        "np.where(decided, discount * np.float32(gamma), discount)",
        "np.where(decided, discount, discount)",
    ),
    "a pause is one of the n steps": ('decided = going & self.flat["valid"][at]', "decided = going"),
    "a truncation terminates": ("(decided & ended)", '(decided & self.flat["truncated"][at])'),
    "n steps run on across truncation": (
        '~(ended | self.flat["truncated"][at])',
        "~ended",
    ),
    "n steps run on across termination": (
        '~(ended | self.flat["truncated"][at])',
        '~self.flat["truncated"][at]',
    ),
    "the next observation is the present one": (
        "np.where(going, row + k + 1, following)",
        "np.where(going, row + k, following)",
    ),
    "n steps run on past the newest row": ("going = going & (row + k < self.written)", "going = going"),
    "the next observation's mask is the present one's": (
        "masks[after]",
        "masks[here]",
    ),
    "a restart is no end": ('self.arrays["truncated"][last] |= ~self.arrays["terminated"][last]', "pass"),
    "a restart makes ended episodes go on": (
        '|= ~self.arrays["terminated"][last]',
        '|= self.arrays["terminated"][last]',
    ),
    "the oldest frame stored": ("newest = stacks[:, :, -channels:]", "newest = stacks[:, :, :channels]"),
    "stacks begin a frame late": ("inside = step >= back", "inside = step > back"),
    "a pause's frame in the stack": (
        'row = row - (inside & ~self.flat["valid"][(row % self.length) * self.envs + env])',
        "row = row - 0",
    ),
    "newest frame first": ("np.concatenate(frames[::-1], axis=1)", "np.concatenate(frames, axis=1)"),
    "stacks filled up in the other way": ("if not self.repeats_first_frame:", "if self.repeats_first_frame:"),
    "priorities without their exponent": (".abs().numpy() + floor) ** exponent", ".abs().numpy() + floor)"),
    "what left comes back": ("np.where(tree.get(leaf) > 0, priority, 0.0)", "priority"),
    "new rows get the last priority": (
        "max(self.highest_priority[m], float(priority.max()))",
        "float(priority.max())",
    ),
    "new rows get priority one": ("(mine * self.highest_priority[m]).ravel()", "mine.astype(np.float64).ravel()"),
    "old rows keep their priority": ("np.zeros(gone.size * self.num_envs))", "np.ones(gone.size * self.num_envs))"),
    "a priority of zero drawn": ("(mass >= left) & (self.sums[2 * node + 1] > 0.0)", "mass >= left"),
    "the left half's mass not subtracted": ("np.where(right, mass - left, mass)", "mass"),
    "shares not apart": ("(share + np.arange(batch_size))", "(batch_size * share)"),
    "sums of half a level": (
        "node = np.arange(1 << level, 2 << level)",
        "node = np.arange(1 << level, 3 << level >> 1)",
    ),
    "a lost row not noticed": ("[needed % self.length] != needed + 1)", "[needed % self.length] < 0)"),
    "rows numbered from the last checkpoint": ("self.written + np.arange(steps) + 1", "np.arange(steps) + 1"),
    "a file of any size will do": ("elif (held := os.fstat(file.fileno()).st_size) != size:", "elif (held := 0) != 0:"),
    "altered rows pass": ("(self.array[at] != self._of(", "(self.array[at] > self._of("),
    "rows of the last flush alone are recorded": ("self.until = max(self.until, until)", "self.until = until + 1"),
}

OFF_POLICY: Mistakes = {
    "the target stands still": ("torch.lerp(state[target], state[source],", "torch.lerp(state[target], state[target],"),
    "the source moves to the target": (
        "torch.lerp(state[target], state[source],",
        "torch.lerp(state[source], state[target],",
    ),
    "the acting network's moments for all": ('{k: state[f"{prefix}{k}"] for k in', "{k: state[k] for k in"),
    "Adam's epsilon of the on-policy algorithms": ("epsilon=1e-8", "epsilon=1e-5"),
}


class Suspect(NamedTuple):
    """Mistakes in some files, and the tests that should notice them (the others run where they do not)."""

    mistakes: Mistakes
    tests: tuple[str, ...]


SUSPECTS: dict[str, Suspect] = {
    # source files, separated by blanks: a mistake is in that one of them which has its text
    "returns.py": Suspect(
        RETURNS | VTRACE | TOKEN_REWARDS, ("unit/test_returns.py", "exact/test_returns.py", "exact/test_vtrace.py")
    ),
    "losses/policy_gradient.py": Suspect(POLICY_GRADIENT, ("exact/test_policy_gradient.py",)),
    "losses/preference.py": Suspect(PREFERENCE, ("exact/test_preference.py",)),
    "preferences/schema.py": Suspect(people.SCHEMA, ("unit/test_preference_store.py",)),
    "preferences/store.py": Suspect(
        people.STORE, ("unit/test_preference_store.py", "unit/test_preference_labelling.py")
    ),
    "preferences/labelling.py": Suspect(people.LABELLING, ("unit/test_preference_labelling.py",)),
    "preferences/exchange.py": Suspect(people.EXCHANGE, ("unit/test_preference_exchange.py",)),
    "preferences/people.py preferences/rewards.py": Suspect(people.LIVE, ("unit/test_live_labels.py",)),
    "preferences/film.py": Suspect(people.FILM, ("unit/test_film.py",)),
    "preferences/judged.py": Suspect(
        people.JUDGED, ("unit/test_preference_agreement.py", "unit/test_preference_labelling.py")
    ),
    "preferences/progress.py": Suspect(people.PROGRESS, ("unit/test_preference_labelling.py",)),
    "losses/kl.py": Suspect(KL, ("exact/test_rlhf.py",)),
    "losses/trust_region.py": Suspect(TRUST_REGION, ("exact/test_trust_region.py", "exact/test_ppo_kl.py")),
    "losses/q_learning.py": Suspect(Q_LEARNING, ("exact/test_q_learning.py",)),
    "losses/value.py": Suspect(VALUE, ("exact/test_value.py",)),
    "distributions.py": Suspect(DISTRIBUTIONS, ("unit/test_distributions.py",)),
    "numerics.py": Suspect(NUMERICS, ("unit/test_numerics.py",)),
    "agents/rollout_updates.py agents/statistics.py agents/average_reward.py": Suspect(
        ON_POLICY, ("unit/test_on_policy.py", "exact/test_updates.py", "exact/test_average_reward.py")
    ),
    "environments/batch.py": Suspect(ENVIRONMENTS, ("unit/test_environments.py",)),
    "experience/rollout.py": Suspect(ROLLOUT, ("unit/test_rollout.py",)),
    "algorithms/ppo.py": Suspect(PPO, ("exact/test_ppo.py", "exact/test_updates.py", "exact/test_average_reward.py")),
    "algorithms/ppo_kl.py": Suspect(PPO_KL, ("exact/test_ppo_kl.py", "exact/test_updates.py")),
    "agents/config.py": Suspect(SCHEDULES, ("exact/test_updates.py", "unit/test_agent.py")),
    "algorithms/trpo.py agents/natural_step.py": Suspect(
        TRPO, ("exact/test_trpo.py", "exact/test_updates.py", "exact/test_average_reward.py")
    ),
    "algorithms/actor_critic.py": Suspect(
        ACTOR_CRITIC, ("exact/test_actor_critic.py", "exact/test_updates.py", "exact/test_average_reward.py")
    ),
    "algorithms/reinforce.py": Suspect(REINFORCE, ("exact/test_reinforce.py", "exact/test_updates.py")),
    "losses/gradient_td.py": Suspect(
        GRADIENT_TD, ("exact/test_gradient_td.py", "exact/test_off_pac.py", "exact/test_off_pac_update.py")
    ),
    "losses/compatible.py": Suspect(COMPATIBLE, ("exact/test_compatible.py",)),
    "algorithms/off_pac.py": Suspect(OFF_PAC, ("exact/test_off_pac_update.py",)),
    "algorithms/dpg.py": Suspect(DPG, ("exact/test_off_pac_update.py",)),
    "algorithms/dqn.py agents/greedy.py": Suspect(
        DQN | replay.GREEDY, ("exact/test_q_learning.py", "exact/test_off_policy_updates.py")
    ),
    "algorithms/sac.py": Suspect(replay.SAC, ("exact/test_off_policy_updates.py",)),
    "algorithms/sac_v.py": Suspect(replay.SAC_V, ("exact/test_off_policy_updates.py",)),
    "algorithms/td3.py": Suspect(replay.TD3, ("exact/test_off_policy_updates.py",)),
    "algorithms/ddpg.py": Suspect(replay.DDPG, ("exact/test_off_policy_updates.py",)),
    "agents/soft.py agents/replay_updates.py networks/critics.py": Suspect(
        replay.SOFT_STEPS, ("exact/test_off_policy_updates.py",)
    ),
    "agents/deterministic.py": Suspect(replay.DETERMINISTIC_STEPS, ("exact/test_off_policy_updates.py",)),
    "losses/soft.py": Suspect(SOFT, ("exact/test_soft.py",)),
    "losses/deterministic.py": Suspect(DETERMINISTIC, ("exact/test_deterministic.py",)),
    "losses/conservative.py": Suspect(offline.CONSERVATIVE, ("exact/test_conservative.py",)),
    "losses/expectile.py": Suspect(offline.EXPECTILE, ("exact/test_expectile.py",)),
    "losses/behaviour.py": Suspect(offline.BEHAVIOUR, ("exact/test_behaviour.py",)),
    "algorithms/bc.py": Suspect(offline.BC, ("exact/test_offline_updates.py",)),
    "algorithms/iql.py": Suspect(offline.IQL, ("exact/test_offline_updates.py",)),
    "algorithms/awac.py": Suspect(offline.AWAC, ("exact/test_offline_updates.py",)),
    "algorithms/rebrac.py algorithms/configs/rebrac.py": Suspect(offline.REBRAC, ("exact/test_offline_updates.py",)),
    "algorithms/cql.py": Suspect(offline.CQL, ("exact/test_offline_updates.py",)),
    "algorithms/discrete_cql.py": Suspect(offline.DISCRETE_CQL, ("exact/test_offline_updates.py",)),
    "agents/likelihood.py": Suspect(offline.LIKELIHOOD, ("exact/test_offline_updates.py",)),
    "agents/conservative.py": Suspect(offline.CONSERVATIVE_STEPS, ("exact/test_offline_updates.py",)),
    "experience/replay.py experience/transitions.py experience/ring_files.py": Suspect(
        REPLAY, ("unit/test_buffers.py",)
    ),
    "experience/datasets/dataset.py": Suspect(dm.ROWS, ("unit/test_datasets.py",)),
    "experience/datasets/sampling.py experience/transitions.py environments/spaces.py": Suspect(
        dm.SAMPLING, ("unit/test_datasets.py", "unit/test_spaces.py")
    ),
    " ".join(
        f"experience/datasets/{name}.py"
        for name in ("layouts", "minari_files", "read", "folders", "flat_files", "spaces")
    ): Suspect(dm.LAYOUTS, ("unit/test_datasets.py",)),
    "experience/datasets/recording.py": Suspect(dm.RECORDING, ("unit/test_recording.py",)),
    "experience/datasets/summary.py": Suspect(dm.SUMMARY, ("unit/test_datasets.py",)),
    "agents/replay_updates.py": Suspect(OFF_POLICY, ("unit/test_off_policy.py",)),
    "runs/loops/off_policy.py": Suspect(
        replay.LOOP,
        (
            "unit/test_off_policy.py",
            "exact/test_off_policy_updates.py",
            "integration/test_off_policy_runs.py",
            "integration/test_online_from_data.py",
        ),
    ),
    "experience/logs.py": Suspect(LOGGED, ("unit/test_logged.py",)),
    "agents/population.py": Suspect(POPULATION, ("unit/test_agent.py", "conformance/test_agents.py")),
    "learner/lifting.py": Suspect(LIFTING, ("unit/test_learner.py",)),
    "learner/step.py": Suspect(ADAM, ("unit/test_learner.py",)),
    "losses/ranking.py": Suspect(ranking.RANKING, ("exact/test_ranking.py",)),
    "preferences/agreement.py": Suspect(ranking.AGREEMENT, ("unit/test_preference_agreement.py",)),
    "preferences/answers.py": Suspect(
        ranking.ANSWERS, ("unit/test_preference_agreement.py", "unit/test_clip_rewards.py")
    ),
    "preferences/scores.py": Suspect(ranking.SCORES, ("unit/test_preference_scores.py",)),
    "preferences/selection.py": Suspect(ranking.SELECTION, ("unit/test_preference_selection.py",)),
    "preferences/clips.py": Suspect(ranking.CLIPS, ("unit/test_clip_rewards.py", "exact/test_clip_rewards.py")),
    "preferences/learned.py": Suspect(ranking.LEARNED, ("unit/test_learned_reward.py",)),
    "language/data/tokens.py": Suspect(
        TOKENS, ("unit/test_tokens.py", "exact/test_preference.py", "exact/test_rlhf.py")
    ),
    "language/training/rlhf.py": Suspect(RLHF, ("exact/test_rlhf.py", "unit/test_rlhf.py")),
    "language/training/dpo.py": Suspect(DPO, ("unit/test_dpo.py", "exact/test_dpo.py", "unit/test_shared_prompts.py")),
    "language/scoring/pairs.py": Suspect(PAIRS | lm.TRIAL, ("unit/test_dpo.py", "unit/test_shared_prompts.py")),
    "language/training/trainer.py language/training/config.py": Suspect(
        TRAINING, ("unit/test_language_sft.py", "exact/test_dpo.py", "unit/test_reward_model.py")
    ),
    "language/scoring/scoring.py": Suspect(
        SCORING | lm.DIVERGENCE,
        ("exact/test_language_divergence.py", "unit/test_language_scoring.py", "exact/test_rlhf.py"),
    ),
    "language/parallel/processes.py": Suspect(DISTRIBUTED | lm.FAILING, ("unit/test_distributed.py",)),
    "language/training/rlhf_base.py language/training/rlhf_watch.py": Suspect(
        RLHF_TRAINER, ("exact/test_rlhf.py", "unit/test_rlhf.py")
    ),
    "language/training/reward_model.py": Suspect(
        REWARD_MODEL, ("unit/test_reward_model.py", "exact/test_reward_model.py")
    ),
    " ".join(f"language/data/{name}.py" for name in ("datasets", "rendering", "examples", "layouts", "rows")): Suspect(
        lm.DATA, ("unit/test_language_data.py",)
    ),
    "language/data/batching.py": Suspect(lm.BATCHING, ("unit/test_language_batching.py",)),
    "language/scoring/generation.py": Suspect(
        lm.GENERATION, ("unit/test_language_generation.py", "unit/test_rewards.py", "unit/test_comparison.py")
    ),
    " ".join(
        f"language/models/{name}.py" for name in ("language_model", "loading", "adapters", "saving", "packages")
    ): Suspect(
        lm.MODELS,
        ("unit/test_language_models.py", "unit/test_language_generation.py", "unit/test_language_batching.py"),
    ),
    "language/scoring/reference.py": Suspect(
        lm.REFERENCE, ("unit/test_dpo.py", "unit/test_rlhf.py", "exact/test_rlhf.py")
    ),
    "language/models/fingerprints.py": Suspect(lm.FINGERPRINTS, ("unit/test_dpo.py", "unit/test_language_data.py")),
    "language/training/sft.py": Suspect(lm.SFT, ("unit/test_language_sft.py",)),
    "language/training/rewards.py": Suspect(lm.REWARDS, ("unit/test_rewards.py", "unit/test_rlhf.py")),
    "language/compare/intervals.py": Suspect(lm.MEASURES, ("unit/test_comparison.py",)),
    "language/compare/comparison.py": Suspect(lm.COMPARISON, ("unit/test_comparison.py",)),
    "evaluation/importance.py": Suspect(em.IMPORTANCE, ("exact/test_off_policy_evaluation.py",)),
    "evaluation/intervals.py": Suspect(em.INTERVALS, ("exact/test_off_policy_evaluation.py",)),
    "evaluation/selection.py": Suspect(em.SELECTION, ("unit/test_policy_selection.py",)),
    "evaluation/bandit_data.py": Suspect(em.BANDIT_DATA, ("unit/test_bandit_data.py",)),
}

ROOMS = sorted({file.partition("/")[0].removesuffix(".py") for files in SUSPECTS for file in files.split()})
IMPORTS = re.compile(rf"^from steepest\.({'|'.join(ROOMS)})\b", re.MULTILINE)
"""What a test says that uses any of these files; the other tests cannot notice."""


class Found(NamedTuple):
    """What became of one mutation."""

    file: str
    mistake: str
    caught_by: str  # a test, "(time limit)", or nothing
    seconds: float
    source: str  # SHA-256 of the file and of the mistake, in hexadecimal


def mutate(source: str, old: str, new: str) -> str:
    """The source with the mistake. ValueError unless the text occurs exactly once and changes."""
    count = source.count(old)
    if count != 1 or old == new:
        raise ValueError(f"the text occurs {count} times instead of once: {old!r}")
    return source.replace(old, new)


def mutations(only: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(file, mistake, old, new) of every mutation whose file or name contains the text."""
    for files, suspect in SUSPECTS.items():
        sources = {file: (ROOT / "src" / "steepest" / file).read_text() for file in files.split()}
        for mistake, (old, new) in suspect.mistakes.items():
            file = next((name for name, source in sources.items() if old in source), files.split()[0])
            if only in f"{file}: {mistake}":
                yield file, mistake, old, new


def suspect(file: str) -> Suspect:
    """The mistakes that a source file is among the files of."""
    return next(found for files, found in SUSPECTS.items() if file in files.split())


def known(place: Path | None) -> dict[tuple[str, str], Found]:
    """What an earlier call has caught, by file and mistake; what survived is tried again."""
    if place is None or not place.exists():
        return {}
    found = [Found(**entry) for entry in json.loads(place.read_text())["found"]]
    return {(f.file, f.mistake): f for f in found if f.caught_by}


class Watch:
    """A pytest plugin that notes the first failure."""

    def __init__(self) -> None:
        self.failed = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


def run_tests(copy: Path, files: list[str], seconds: int, result: Any, log: Path) -> None:
    """Run pytest over these files of a copy, in a process of its own, and send (exit code, first failure)."""
    if "steepest" in sys.modules:
        raise RuntimeError("steepest was imported before the copy could be")
    if seconds:  # at the hard limit comes SIGKILL, which does not say why
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 60))
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.chdir(copy)
    sys.path.insert(0, str(copy / "src"))
    sys.path_importer_cache.clear()
    watch = Watch()
    marks = "not slow and not compiles and not learning"
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "timeout=0", "--tb=no", "-m", marks]
    arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins that HEAVY has brought in
    code = int(pytest.main([*arguments, *(f"tests/{file}" for file in files)], plugins=[watch]))
    where = Path(sys.modules["steepest"].__file__ or "") if "steepest" in sys.modules else copy
    if copy not in (where, *where.parents):
        raise RuntimeError(f"the tests imported {where}, not the copy in {copy}")
    result.send((code, watch.failed))
    result.close()


def caught_by(copy: Path, stages: list[tuple[list[str], int]]) -> str:
    """The first test that fails, or nothing. RuntimeError where the tests do not even start.

    Each stage is files and how many seconds of processor time they may take; 0: any number.
    """
    log = copy / "log"
    for files, seconds in stages:
        receiver, sender = CONTEXT.Pipe(duplex=False)
        child = CONTEXT.Process(target=run_tests, args=(copy, files, seconds, sender, log))
        child.start()
        sender.close()
        try:
            code, failed = receiver.recv()
        except EOFError:
            code, failed = -1, ""
        child.join()
        if child.exitcode == -signal.SIGXCPU:
            return "(time limit)"
        if (code == 1 and not failed) or code not in (0, 1):
            raise RuntimeError(f"the tests did not run (exit code {code}):\n{log.read_text()[-3000:]}")
        if failed:
            return failed
    return ""


def make_copy(folder: Path) -> Path:
    """Sources and tests in a folder of their own."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("src", "tests", "demonstrations", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def stages_of(file: str, copy: Path) -> list[list[str]]:
    """The files that should notice a mistake in a source file, then all others that could."""
    first = list(suspect(file).tests)
    paths = sorted(p for kind in ("exact", "unit") for p in (copy / "tests" / kind).glob("test_*.py"))
    others = [p.relative_to(copy / "tests").as_posix() for p in paths if IMPORTS.search(p.read_text())]
    return [first, [f for f in others if f not in first]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutations whose file or name contains this")
    parser.add_argument("--part", default="1/1", help="I/N: every N-th mutation, from the I-th")
    parser.add_argument("--json", type=Path, help="write the summary here")
    arguments = parser.parse_args()
    first, _, step = arguments.part.partition("/")
    chosen = list(mutations(arguments.only))[int(first) - 1 :: int(step)]
    if not chosen:
        parser.error(f"no mutation's file or name contains {arguments.only!r}")
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("PYTEST_ADDOPTS", None)
    sys.dont_write_bytecode = True
    for name in HEAVY:
        importlib.import_module(name)
    found: list[Found] = []
    caught, before = 0, known(arguments.json)
    with tempfile.TemporaryDirectory(prefix="mutation-") as temporary:
        copy = make_copy(Path(temporary).resolve())
        suspects = sorted({file for file, *_ in chosen})
        used = sorted({f for file in suspects for stage in stages_of(file, copy) for f in stage})
        failing = caught_by(copy, [(used, 0)])
        if failing:
            raise RuntimeError(f"{failing} fails without any mutation, so it can catch none")
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        limits = SECONDS, max(SECONDS, round(TIMES * (usage.ru_utime + usage.ru_stime)))
        for file, mistake, old, new in chosen:
            began = time.monotonic()
            path = copy / "src" / "steepest" / file
            source = path.read_text()
            digest = hashlib.sha256(f"{source}\0{old}\0{new}".encode()).hexdigest()
            earlier = before.get((file, mistake))
            try:
                path.write_text(mutate(source, old, new))
                if earlier is not None and earlier.source == digest:
                    test, began = earlier.caught_by, time.monotonic() - earlier.seconds
                else:
                    test = caught_by(copy, list(zip(stages_of(file, copy), limits, strict=True)))
            except (RuntimeError, ValueError) as error:
                raise type(error)(f"{file}, {mistake}: {error}") from error
            finally:
                path.write_text(source)
            found.append(Found(file, mistake, test, round(time.monotonic() - began, 1), digest))
            print(f"{file:27} {mistake:55} {test or 'SURVIVED'}", flush=True)
            caught = sum(bool(f.caught_by) for f in found)
            before.pop((file, mistake), None)
            if arguments.json:  # after each, since all of them take hours
                kept = [f._asdict() for f in (*found, *before.values())]
                summary = {"caught": sum(bool(f["caught_by"]) for f in kept), "mutations": len(kept), "found": kept}
                arguments.json.write_text(json.dumps(summary, indent=2) + "\n")
    rate = caught / len(found)
    print(f"{caught} of {len(found)} caught ({rate:.1%}); at least {THRESHOLD:.0%} are wanted")
    return 0 if rate >= THRESHOLD else 1


if __name__ == "__main__":
    sys.exit(main())
