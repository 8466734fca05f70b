"""Mistakes that a person could make in off-policy evaluation, as in ``mutations``."""

from __future__ import annotations

Mistakes = dict[str, tuple[str, str]]

IMPORTANCE: Mistakes = {
    "policies exchanged": ("log_prob_target - log_prob_behaviour, 0.0)", "log_prob_behaviour - log_prob_target, 0.0)"),
    "log-likelihoods for probabilities": (
        "return torch.where(valid, log_prob_target - log_prob_behaviour, 0.0)",
        "return torch.where(valid, (-log_prob_target).log() - (-log_prob_behaviour).log(), 0.0)",
    ),
    "an ended episode loses its weight": (
        "log_prob_target - log_prob_behaviour, 0.0)",
        "log_prob_target - log_prob_behaviour, -torch.inf)",
    ),
    "padding has a ratio": (
        "return torch.where(valid, log_prob_target - log_prob_behaviour, 0.0)",
        "return log_prob_target - log_prob_behaviour",
    ),
    "ratios of single steps": ("valid).cumsum(-1)", "valid)"),
    "weights accumulate over episodes": ("valid).cumsum(-1)", "valid).cumsum(-2)"),
    "an empty episode accepted": ("if not bool(valid[..., 0].all()) or bool(", "if bool("),
    "a gap in an episode accepted": ("or bool((valid[..., 1:] & ~valid[..., :-1]).any())", ""),
    "actions that the behaviour never takes accepted": (
        "torch.isfinite(log_prob_behaviour)[valid].all()",
        "(log_prob_behaviour <= torch.inf)[valid].any()",
    ),
    "an infinite target accepted": ("(log_prob_target < torch.inf)[valid]", "(log_prob_target <= torch.inf)[valid]"),
    "actions that the target never takes refused": (
        "(log_prob_target < torch.inf)[valid]",
        "torch.isfinite(log_prob_target)[valid]",
    ),
    "the effective sample without the square": ("weight.sum(-1).square() /", "weight.sum(-1) /"),
    "the effective sample upside down": (
        "weight.sum(-1).square() / weight.square().sum(-1).clamp(",
        "weight.square().sum(-1) / weight.sum(-1).square().clamp(",
    ),
    "weights overflow": ("(log_weight - torch.where(largest == -torch.inf, 0.0, largest)).exp()", "log_weight.exp()"),
    "no weights at all": ("torch.where(largest == -torch.inf, 0.0, largest)", "largest"),
    "every row on its own scale": ("log_weight.amax(dim, keepdim=True)", "log_weight.amax(-1, keepdim=True)"),
    "the final value undiscounted": ("reward + gamma * final_value", "reward + final_value"),
    "the final value at every step": ("torch.where(last, reward +", "torch.where(valid, reward +"),
    "the final value behind the end": (
        "last = valid & ~torch.cat([valid[..., 1:], torch.zeros_like(valid[..., :1])], -1)",
        "last = ~valid & torch.cat([torch.zeros_like(valid[..., :1]), valid[..., :-1]], -1)",
    ),
    "no final value in the last column": (
        "torch.zeros_like(valid[..., :1])], -1)\n    return",
        "torch.ones_like(valid[..., :1])], -1)\n    return",
    ),
    "the first step's ratio for the trajectory's": (
        "behaviour, valid)[..., -1:].exp()",
        "behaviour, valid)[..., :1].exp()",
    ),
    "the log of the weight": ("behaviour, valid)[..., -1:].exp()", "behaviour, valid)[..., -1:]"),
    "trajectories not weighted": ("_mean_of(weight * discounted(", "_mean_of(discounted("),
    "weighted trajectories by the first step": (
        "weight = _scaled(log_weights(log_prob_target, log_prob_behaviour, valid)[..., -1:], -2)",
        "weight = _scaled(log_weights(log_prob_target, log_prob_behaviour, valid)[..., :1], -2)",
    ),
    "trajectories normalised one by one": (
        "weight = _scaled(log_weights(log_prob_target, log_prob_behaviour, valid)[..., -1:], -2)",
        "weight = _scaled(log_weights(log_prob_target, log_prob_behaviour, valid)[..., -1:], -1)",
    ),
    "weighted trajectories over their number": (
        "discounted(reward, valid, gamma).sum(-1, keepdim=True), weight)",
        "discounted(reward, valid, gamma).sum(-1, keepdim=True), torch.ones_like(weight))",
    ),
    "rewards weighted by the whole trajectory": (
        "_mean_of((weight * discounted(reward, valid, gamma)).sum(",
        "_mean_of((weight[..., -1:] * discounted(reward, valid, gamma)).sum(",
    ),
    "weights a step late": (
        "_mean_of((weight * discounted(reward, valid, gamma)).sum(",
        "_mean_of((weight.roll(1, -1) * discounted(reward, valid, gamma)).sum(",
    ),
    "normalised over running episodes": (
        "return Contributions(weight * discounted(reward, valid, gamma), weight)",
        "return Contributions(weight * discounted(reward, valid, gamma), torch.where(valid, weight, 0.0))",
    ),
    "normalised over all steps": (
        "return Contributions(weight * discounted(reward, valid, gamma), weight)",
        "return Contributions((weight * discounted(reward, valid, gamma)).sum(-1, keepdim=True), "
        "weight.mean(-1, keepdim=True))",
    ),
    "the direct method summed": ("torch.ones_like(per_episode))", "torch.ones_like(per_episode) / len(per_episode))"),
    "the recursion forwards": ("in reversed(range(reward.shape[-1]))", "in range(reward.shape[-1])"),
    "no discount in the recursion": ("+ gamma * rest - q_value[..., t]", "+ rest - q_value[..., t]"),
    "the rest not weighted": (
        "value[..., t] + ratio[..., t] * error",
        "value[..., t] + ratio[..., t] * (error - gamma * rest) + gamma * rest",
    ),
    "the model's error not weighted": ("value[..., t] + ratio[..., t] * error", "value[..., t] + error"),
    "Q added to the correction": ("rest - q_value[..., t]", "rest + q_value[..., t]"),
    "V left out": ("value[..., t] + ratio[..., t] * error, 0.0)", "ratio[..., t] * error, 0.0)"),
    "Q for V": ("value[..., t] + ratio[..., t] * error, 0.0)", "q_value[..., t] + ratio[..., t] * error, 0.0)"),
    "padding counts in the recursion": (
        "rest = torch.where(valid[..., t], value[..., t] + ratio[..., t] * error, 0.0)",
        "rest = value[..., t] + ratio[..., t] * error",
    ),
    "the weighted form's V of the same step": (
        "torch.cat([torch.where(valid, value, 0.0)[..., 1:], beyond], -1)",
        "torch.where(valid, value, 0.0)",
    ),
    "V of padding in the weighted form": (
        "torch.cat([torch.where(valid, value, 0.0)[..., 1:], beyond], -1)",
        "torch.cat([value[..., 1:], beyond], -1)",
    ),
    "no discount of V in the weighted form": ("discounted(reward + gamma * following", "discounted(reward + following"),
    "no Q in the weighted form": ("following - q_value, valid, gamma)", "following, valid, gamma)"),
    "V weighted by the first ratio": (
        "torch.cat([torch.ones_like(first), weight], -1)",
        "torch.cat([weight[..., :1], weight], -1)",
    ),
    "no V of the first state": ("torch.cat([first, errors], -1)", "torch.cat([torch.zeros_like(first), errors], -1)"),
    "no discount": ("power = gamma ** torch", "power = 1.0 ** torch"),
    "the discount begins a step early": (
        "torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)",
        "(1 + torch.arange(x.shape[-1], dtype=x.dtype, device=x.device))",
    ),
    "padding counts": ("power * torch.where(valid, x, 0.0)", "power * x"),
    "any gamma": ("if not 0.0 <= gamma <= 1.0:", "if gamma < -1.0:"),
    "counts of the resamples forgotten": (
        "return counts @ numerator, counts @ denominator",
        "return counts @ numerator, torch.ones_like(counts) @ denominator",
    ),
    "a ratio of sums": (
        "found = (numerator / denominator).sum(-1)",
        "found = numerator.sum(-1) / denominator.sum(-1)",
    ),
}

INTERVALS: Mistakes = {
    "the standard deviation": ("(number * (number - 1))", "(number - 1)"),
    "variance over the number": ("(number * (number - 1))", "(number * number)"),
    "weights taken for certain": (
        "contributions.numerator @ scale.mT - contributions.denominator @ (ratio * scale).mT",
        "contributions.numerator @ scale.mT",
    ),
    "the variance for its root": ("(number * (number - 1))).sqrt()", "(number * (number - 1)))"),
    "resamples count every episode once": ("else (counts.mT * square).sum(-2)", "else square.sum(-2)"),
    "influence without the mean denominator": ("scale = number / denominator", "scale = torch.ones_like(denominator)"),
    "drawn without replacement": (
        "index = torch.randint(episodes, shape, generator=generator, device=numerator.device)",
        "index = torch.rand(shape, generator=generator, device=numerator.device).argsort(-1)",
    ),
    "half of the episodes drawn": (
        "1, index, torch.ones(shape,",
        "1, index[:, : (episodes + 1) // 2], torch.ones(shape,",
    ),
    "every episode counts at most once": (".scatter_add_(", ".scatter_("),
    "one part of the resamples": (
        "for begin in range(0, resamples, rows):",
        "for begin in range(0, min(resamples, rows), rows):",
    ),
    "both tails on one side": ("[(1.0 - share) / 2.0, (1.0 + share) / 2.0]", "[1.0 - share, 1.0]"),
    "a one-sided share": ("[(1.0 - share) / 2.0, (1.0 + share) / 2.0]", "[1.0 - share, share]"),
    "t quantiles not exchanged": (
        "torch.where(flat, centre, centre - high * error),\n        torch.where(flat, centre, centre - low * error),",
        "torch.where(flat, centre, centre + low * error),\n        torch.where(flat, centre, centre + high * error),",
    ),
    "t without its error": ("centre - high * error", "centre - high"),
    "the resample's error forgotten": (
        "distance / standard_error(contributions, counts))",
        "distance / error.unsqueeze(-1))",
    ),
    "distances from nothing": (
        "estimate(contributions, counts) - centre.unsqueeze(-1)",
        "estimate(contributions, counts)",
    ),
    "resamples without a weight ignored": (
        "torch.where(broken, torch.nan, ordered",
        "torch.where(broken & ~broken, torch.nan, ordered",
    ),
    "one episode accepted": ("numerator.shape[-2] < 2:", "numerator.shape[-2] < 1:"),
    "any share": ("or not 0.0 < share < 1.0:", "or share < 0.0:"),
    "one resample accepted": ("if resamples < 2 or", "if resamples < 1 or"),
}

SELECTION: Mistakes = {
    "ties take the lowest rank": (
        "((other == here).to(x.dtype).sum(-1) + 1.0) / 2.0",
        "1.0",
    ),
    "ranks in the other direction": ("(other < here)", "(other > here)"),
    "correlation of the returns themselves": (
        "x, y = (mid_ranks(side) for side in (estimated, true))",
        "x, y = estimated, true",
    ),
    "ranks not centred": ("(ranks - ranks.mean(-1, keepdim=True) for", "(ranks for"),
    "correlation without the root": ("y.square().sum(-1)).sqrt()", "y.square().sum(-1))"),
    "one policy accepted": ("if estimated.shape[-1] < 2:", "if estimated.shape[-1] < 1:"),
    "the worst k": ("argsort(dim=-1, descending=True, stable=True)", "argsort(dim=-1, descending=False, stable=True)"),
    "regret by the estimates": ("true.amax(-1) - true.gather(", "true.amax(-1) - estimated.gather("),
    "regret of the mean": ("true.gather(-1, chosen).amax(-1)", "true.gather(-1, chosen).mean(-1)"),
    "the best true returns": ("chosen = estimated.argsort(", "chosen = true.argsort("),
    "any k": ("if not 1 <= k <= estimated.shape[-1]:", "if k < 0:"),
    "errors with their sign": ("(estimated - true).abs().mean(-1)", "(estimated - true).mean(-1)"),
    "all policies are candidates": (".argsort(-1)[:, :number]", ".argsort(-1)"),
    "the first policies are candidates": (
        "torch.rand((repeats, policies), generator=generator, device=device).argsort(-1)",
        "torch.arange(policies, device=device).expand(repeats, -1)",
    ),
    "kept by the returns seen alone": (
        "kept.append(true.gather(-1, best))",
        "kept.append((total / count).gather(-1, best))",
    ),
    "the last one tried is kept": ("true.gather(-1, best))", "true.gather(-1, tried))"),
    "no bonus": ("mean + bonus)", "mean)"),
    "bonus without the root": ("count.clamp(min=1.0)).sqrt()", "count.clamp(min=1.0))"),
    "bonus without the count": (
        "torch.log(count.sum(-1, keepdim=True).clamp(min=1.0)) / count.clamp(min=1.0))",
        "torch.log(count.sum(-1, keepdim=True).clamp(min=1.0)))",
    ),
    "untried policies wait": ("torch.where(count == 0.0, torch.inf, mean + bonus)", "mean + bonus"),
    "untried policies are kept": (
        "torch.where(count == 0.0, -torch.inf, total /",
        "torch.where(count < 0.0, -torch.inf, total /",
    ),
    "one episode forever": ("episode[:, t : t + 1]]", "episode[:, :1]]"),
    "returns of the candidate's place": ("returns[order.gather(-1, tried),", "returns[tried,"),
    "any number of tries": ("or tries < 1 or repeats < 1:", "or repeats < 1:"),
}

BANDIT_DATA: Mistakes = {
    "positions from one": ("position = position.long() - 1", "position = position.long()"),
    "not in the order of time": (
        "chosen = sorted((row[0], *map(float, row[1:]))",
        "chosen = list((row[0], *map(float, row[1:]))",
    ),
    "propensities for their logarithms": ("click, propensity.log(),", "click, propensity,"),
    "columns by their place": (
        "places = [header.index(name) for name in names]",
        "places = list(range(1, len(names) + 1))",
    ),
    "the header counts as an item": ("header = next(rows, [])", "header = list(names)"),
    "missing columns accepted": ("if name not in header]", "if not header]"),
    "items that the campaign lacks accepted": ("(item < num_items)", "(item >= 0)"),
    "position zero accepted": ("(position >= 1)", "(position >= 0)"),
    "any click accepted": ("(click == 0) | (click == 1)", "click >= 0"),
    "propensity zero accepted": ("(propensity > 0)", "(propensity >= 0)"),
    "propensities above one accepted": ("(propensity <= 1)", "(propensity > 0)"),
    "an empty log accepted": ("if not chosen:", "if chosen is None:"),
}
