"""Mistakes that a person could make in offline learning, as in ``mutations``: losses, updates, requests to data."""

from __future__ import annotations

Mistakes = dict[str, tuple[str, str]]

CONSERVATIVE: Mistakes = {
    "rho left out": ("x = q_value if log_prior is None else q_value + log_prior", "x = q_value"),
    "divided by rho": ("else q_value + log_prior", "else q_value - log_prior"),
    "illegal actions pushed down": ("x if action_mask is None else masked_logits(x, action_mask)", "x"),
    "a hard maximum": ("torch.logsumexp(x if", "torch.amax(x if"),
    "the mean of all values": ("torch.logsumexp(x if", "torch.mean(x if"),
    "proposals not averaged": (" - math.log(q_value.shape[-1])", ""),
    "averaged over the wrong axis": ("math.log(q_value.shape[-1])", "math.log(q_value.shape[0])"),
    "importance weights inverted": (
        "torch.logsumexp(q_value + log_ratio, -1)",
        "torch.logsumexp(q_value - log_ratio, -1)",
    ),
    "importance weights forgotten": ("torch.logsumexp(q_value + log_ratio, -1)", "torch.logsumexp(q_value, -1)"),
    "densities added": (" - math.log(len(log_density))", ""),
    "the mean of log-densities": (
        "torch.logsumexp(log_density, 0) - math.log(len(log_density))",
        "log_density.mean(0)",
    ),
    "the larger density": ("torch.logsumexp(log_density, 0)", "torch.amax(log_density, 0)"),
    "the uniform density above 1": ("return -dimension * math.log(2.0)", "return dimension * math.log(2.0)"),
    "the uniform density of one component": ("return -dimension * math.log(2.0)", "return -math.log(2.0)"),
    "the uniform density of [0, 1]": ("return -dimension * math.log(2.0)", "return -dimension * math.log(1.0)"),
    "the uniform density of the root of D": ("return -dimension * math.log(2.0)", "return math.sqrt(dimension)"),
    "the data's values not raised": ("return pushed_down - data_q_value", "return pushed_down"),
    "the data's values fixed": ("return pushed_down - data_q_value", "return pushed_down - data_q_value.detach()"),
    "what is pushed down fixed": ("return pushed_down - data_q_value", "return pushed_down.detach() - data_q_value"),
    "the gap of the other sign": ("return pushed_down - data_q_value", "return data_q_value - pushed_down"),
    "mu moves": ("probability.detach() * q_value", "probability * q_value"),
    "a mean over actions": ("(probability.detach() * q_value).sum(-1)", "(probability.detach() * q_value).mean(-1)"),
    "min for max in calibration": ("torch.maximum(q_value, reference", "torch.minimum(q_value, reference"),
    "the reference moves": ("reference_value.detach())", "reference_value)"),
    "the weight falls where the gap is large": ("(threshold - gap).detach()", "(gap - threshold).detach()"),
    "the weight's loss moves the critics": ("(threshold - gap).detach()", "(threshold - gap)"),
    "steps shrink with the weight": ("return log_weight * (threshold", "return log_weight.exp() * (threshold"),
    "no threshold": ("(threshold - gap).detach()", "(-gap).detach()"),
}

EXPECTILE: Mistakes = {
    "tau for 1 - tau": ("(error < 0.0)", "(error > 0.0)"),
    "the error of the other sign": ("error = target.detach() - value", "error = value - target.detach()"),
    "the target moves": ("error = target.detach() - value", "error = target - value"),
    "weights of two signs": ("(error.dtype)).abs() * 0.5", "(error.dtype)) * 0.5"),
    "a quantile for an expectile": ("0.5 * error.square()", "error.abs()"),
    "no half": ("* 0.5 * error.square()", "* error.square()"),
    "the temperature inverted": ("(advantage / temperature)", "(advantage * temperature)"),
    "the worse actions preferred": ("(advantage / temperature)", "(-advantage / temperature)"),
    "max for min in the limit": ("torch.minimum((advantage", "torch.maximum((advantage"),
    "no limit": (
        "torch.minimum((advantage / temperature).clamp(max=80.0).exp(), limit)",
        "(advantage / temperature).exp()",
    ),
    "the weights carry gradient": (".exp(), limit).detach()", ".exp(), limit)"),
    "negative advantages count as none": (
        "(advantage / temperature).clamp(max=80.0)",
        "(advantage / temperature).clamp(0.0, 80.0)",
    ),
    "advantages for their exponentials": (".clamp(max=80.0).exp()", ".clamp(max=80.0)"),
}

BEHAVIOUR: Mistakes = {
    "the data's action moves": ("(action - data_action.detach())", "(action - data_action)"),
    "the policy's action fixed": ("(action - data_action.detach())", "(action.detach() - data_action.detach())"),
    "components averaged": (".square().sum(-1)", ".square().mean(-1)"),
    "the distance not squared": (".square().sum(-1)", ".abs().sum(-1)"),
    "the policy descends Q": ("penalty * distance - q_value / scale", "penalty * distance + q_value / scale"),
    "the policy flees the data": ("penalty * distance - q_value / scale", "-penalty * distance - q_value / scale"),
    "no penalty's weight": ("penalty * distance - q_value / scale", "distance - q_value / scale"),
    "Q not scaled": ("penalty * distance - q_value / scale", "penalty * distance - q_value"),
    "Q scaled the other way": ("penalty * distance - q_value / scale", "penalty * distance - q_value * scale"),
    "alpha for its inverse": ("penalty * distance - q_value / scale", "distance - penalty * q_value / scale"),
    "the scale moves": ("q_scale.detach() if isinstance(q_scale, Tensor) else q_scale", "q_scale"),
    "the penalty added": ("(next_q_value - penalty * distance)", "(next_q_value + penalty * distance)"),
    "no weight of the next penalty": ("(next_q_value - penalty * distance)", "(next_q_value - distance)"),
    "the next value carries gradient": (
        "(next_q_value - penalty * distance).detach()",
        "(next_q_value - penalty * distance)",
    ),
}

BC: Mistakes = {
    "importance weights of the other sign": ("weight=sample_weight(batch)", "weight=-sample_weight(batch)"),
    "importance weights forgotten": (
        "weight=sample_weight(batch)",
        'weight=sample_weight({"reward": batch["reward"]})',
    ),
    "all episodes taken for the best": ("rows.keep_best(self.config.best_fraction)", "rows.keep_best(1.0)"),
    "the others kept": ("rows.keep_best(self.config.best_fraction)", "rows.keep_best(1.0 - self.config.best_fraction)"),
    "nothing learned": (
        "state, metrics = self.policy_step(gradient, state, loss, hyper)",
        "_, metrics = self.policy_step(gradient, state, loss, hyper)",
    ),
}

LIKELIHOOD: Mistakes = {
    "a sum for a mean": ("score_function_loss(log_prob, weight).mean()", "score_function_loss(log_prob, weight).sum()"),
    "unlikely made likelier": ("score_function_loss(log_prob, weight)", "-score_function_loss(log_prob, weight)"),
    "the policy's own action raised": ('policy.log_prob(batch["action"])', "policy.log_prob(policy.mode())"),
    "the policy at the next observation": (
        'self.policy(vector, state, batch_obs(batch, "obs/"), batch',
        'self.policy(vector, state, batch_obs(batch, "next_obs/"), batch',
    ),
    "illegal actions in the likelihood": ('batch.get("action_mask"))', "None)"),
    "the mask of the next observation": ('batch.get("action_mask"))', 'batch.get("next_action_mask"))'),
    "draws beyond the bounds valued": ("None if action is None else action.clamp(-1.0, 1.0)", "action"),
    "the value of the best action for that of the data": (
        "chosen(self.q(vector, state, obs, None), action)",
        "self.q(vector, state, obs, None).amax(-1)",
    ),
    "values of the next observation": (
        'obs, action = batch_obs(batch, "obs/"), batch["action"]',
        'obs, action = batch_obs(batch, "next_obs/"), batch["action"]',
    ),
    "the deviation's bounds forgotten": ("(config.min_log_std, config.max_log_std)", "(-20.0, 2.0)"),
    "the deviation unbounded": ("log_std = (config.min_log_std, config.max_log_std)", "log_std = (-20.0, 20.0)"),
    "the bounds exchanged": ("(config.min_log_std, config.max_log_std)", "(config.max_log_std, config.min_log_std)"),
    "no least probability": ("min_probability=config.min_probability", "min_probability=0.0"),
}

IQL: Mistakes = {
    "always two critics": ("critics=config.num_critics", "critics=2"),
    "layer normalisation forgotten": ("layer_norm=config.layer_norm", "layer_norm=False"),
    "the learning critics for the target's": (
        'self.data_q(state["target/params"]',
        'self.data_q(state["critic/params"]',
    ),
    "max for min over critics": (".amin(0)", ".amax(0)"),
    "the mean over critics": (".amin(0)", ".mean(0)"),
    "the first critic alone": (".amin(0)", "[0]"),
    "tau exchanged": ('hyper["expectile"])).mean()', '1.0 - hyper["expectile"])).mean()'),
    "the mean of the data's actions": ('hyper["expectile"])).mean()', "0.5)).mean()"),
    "a sum for a mean": ('hyper["expectile"])).mean()', 'hyper["expectile"])).sum()'),
    "importance weights of the value forgotten": ("(sample_weight(batch) * expectile_loss(", "(1.0 * expectile_loss("),
    "the policy's learning rate for the value function": (
        'hyper["critic_learning_rate"], hyper["max',
        'hyper["learning_rate"], hyper["max',
    ),
    "the advantage of the other sign": ("advantage = q - self.value(", "advantage = -q + self.value("),
    "Q for its advantage": (
        'q - self.value(state["value/params"], state, batch_obs(batch, "obs/"))',
        "q",
    ),
    "the advantage over the value function before its step": (
        '        state, metrics["value_gradient_norm"] = descend(state, "value/", slope, *rates)\n\n'
        '        advantage = q - self.value(state["value/params"], state, batch_obs(batch, "obs/"))\n',
        '        advantage = q - self.value(state["value/params"], state, batch_obs(batch, "obs/"))\n'
        '        state, metrics["value_gradient_norm"] = descend(state, "value/", slope, *rates)\n',
    ),
    "the advantage over the next value": (
        'advantage = q - self.value(state["value/params"], state, batch_obs(batch, "obs/"))',
        'advantage = q - self.value(state["value/params"], state, batch_obs(batch, "next_obs/"))',
    ),
    "beta for the temperature": (
        'hyper["temperature"], hyper["max_weight"]',
        '1.0 / hyper["temperature"], hyper["max_weight"]',
    ),
    "all actions of the data alike": ("batch=batch, weight=weight)", "batch=batch, weight=sample_weight(batch))"),
    "bootstraps from the observation itself": ('batch_obs(batch, "next_obs/")', 'batch_obs(batch, "obs/")'),
    "bootstraps past the end": (
        'batch["terminated"], batch["discount"]',
        'batch["terminated"] & False, batch["discount"]',
    ),
    "undiscounted": ('batch["terminated"], batch["discount"]', 'batch["terminated"], 1.0'),
    "the least critic alone learns": (
        "regress(self.data_q(vector, state, batch), target",
        "regress(self.data_q(vector, state, batch).amin(0, keepdim=True), target",
    ),
    "the target stands still": ("return self.track(state, hyper), {", "return state, {"),
    "the value function's step lost": (
        'state, metrics["value_gradient_norm"] = descend(',
        '_, metrics["value_gradient_norm"] = descend(',
    ),
    "the policy's step lost": (
        "state, found = self.policy_step(gradient, state, loss, hyper)",
        "_, found = self.policy_step(gradient, state, loss, hyper)",
    ),
}

AWAC: Mistakes = {
    "always two critics": ("critics=config.num_critics", "critics=2"),
    "layer normalisation forgotten": ("layer_norm=config.layer_norm", "layer_norm=False"),
    "the learning critics in the target": ('self.policy_value("target/params"', 'self.policy_value("critic/params"'),
    "the target's critics in the advantage": (
        'self.data_q(state["critic/params"], state, batch).amin(0)',
        'self.data_q(state["target/params"], state, batch).amin(0)',
    ),
    "the target's critics in the value": ('self.policy_value("critic/params"', 'self.policy_value("target/params"'),
    "the next action's noise for the action's": ('noise.get("action"))', 'noise.get("next_action"))'),
    "the action's noise for the next action's": ('noise.get("next_action"))', 'noise.get("action"))'),
    "the mask of the observation itself": ('batch.get("next_action_mask")', 'batch.get("action_mask")'),
    "the mask of the next observation": ('batch.get("action_mask")', 'batch.get("next_action_mask")'),
    "bootstraps from the observation itself": ('batch_obs(batch, "next_obs/")', 'batch_obs(batch, "obs/")'),
    "the mode for a draw": ("policy.sample(noise)", "policy.mode()"),
    "max for min over critics": ("policy.sample(noise)).amin(0)", "policy.sample(noise)).amax(0)"),
    "the greedy value of discrete actions": (
        "(policy.log_probs.exp() * self.q(state[critic], state, obs, None).amin(0)).sum(-1)",
        "self.q(state[critic], state, obs, None).amin(0).amax(-1)",
    ),
    "a mean over discrete actions": ("obs, None).amin(0)).sum(-1)", "obs, None).amin(0)).mean(-1)"),
    "log-probabilities for probabilities": ("(policy.log_probs.exp() *", "(policy.log_probs *"),
    "the mean over critics": ("obs, None).amin(0)).sum", "obs, None).mean(0)).sum"),
    "the advantage of the other sign": (
        'self.data_q(state["critic/params"], state, batch).amin(0) - value',
        'value - self.data_q(state["critic/params"], state, batch).amin(0)',
    ),
    "Q for its advantage": ("state, batch).amin(0) - value", "state, batch).amin(0)"),
    "the temperature inverted": (
        'hyper["temperature"], hyper["max_weight"]',
        '1.0 / hyper["temperature"], hyper["max_weight"]',
    ),
    "all actions of the data alike": ("batch=batch, weight=weight)", "batch=batch, weight=weight * 0.0 + 1.0)"),
    "bootstraps past the end": (
        'batch["terminated"], batch["discount"]',
        'batch["terminated"] & False, batch["discount"]',
    ),
    "undiscounted": ('batch["terminated"], batch["discount"]', 'batch["terminated"], 1.0'),
    "the target stands still": ("return self.track(state, hyper), metrics", "return state, metrics"),
    "the critics' step lost": (
        "state, metrics, error = self.critic_step(",
        "_, metrics, error = self.critic_step(",
    ),
}

REBRAC: Mistakes = {
    "the acting policy in the target": ('state["target_policy/params"]', 'state["params"]'),
    "the learning critics in the target": (
        'q_values(self, state["target/params"]',
        'q_values(self, state["critic/params"]',
    ),
    "the target's critics in the policy's loss": (
        'q_values(self, state["critic/params"]',
        'q_values(self, state["target/params"]',
    ),
    "bootstraps from the observation itself": ('batch_obs(batch, "next_obs/")', 'batch_obs(batch, "obs/")'),
    "the action for the next action": ('batch["next_action"].clamp(-1.0, 1.0)', 'batch["action"].clamp(-1.0, 1.0)'),
    "a penalty where the recording ends": (' * batch["next_known"]', ""),
    "no penalty in the target": ('if "next_action" in batch:', "if False:"),
    "the policy's penalty in the target": ('distance, hyper["critic_penalty"]', 'distance, hyper["policy_penalty"]'),
    "the critics' penalty for the policy": ('distance, hyper["policy_penalty"]', 'distance, hyper["critic_penalty"]'),
    "bootstraps past the end": (
        'batch["terminated"], batch["discount"]',
        'batch["terminated"] & False, batch["discount"]',
    ),
    "undiscounted": ('batch["terminated"], batch["discount"]', 'batch["terminated"], 1.0'),
    "no delay": ("if with_policy:", "if True:"),
    "the first critic alone in the target": (
        'subset_minimum(q_values(self, state["target/params"], state, obs, action), None)',
        'q_values(self, state["target/params"], state, obs, action)[0]',
    ),
    "the targets stand still": ("self.track(state, hyper), {**metrics, **found}", "state, {**metrics, **found}"),
    "the policy always climbs the least": ('q.amin(0) if self.config.policy_q == "min" else q[0]', "q.amin(0)"),
    "the policy always climbs the first": ('q.amin(0) if self.config.policy_q == "min" else q[0]', "q[0]"),
    "max for min over critics": ("q.amin(0) if self", "q.amax(0) if self"),
    "components always averaged": ("if self.config.average_components:", "if True:"),
    "components never averaged": ("if self.config.average_components:", "if False:"),
    "the scale of a mean that cancels": ("q.abs().mean()", "q.mean().abs()"),
    "no scale": ("q.abs().mean()", "(0.0 * q.mean() + 1.0)"),
    "the distance to the next action": (
        'batch["action"].clamp(-1.0, 1.0)',
        'batch.get("next_action", batch["action"]).clamp(-1.0, 1.0)',
    ),
    "noise and its bound exchanged": (
        'hyper["target_noise"], hyper["target_noise_clip"]',
        'hyper["target_noise_clip"], hyper["target_noise"]',
    ),
    "no smoothing": (
        'noise["next_action"], hyper["target_noise"]',
        '0.0 * noise["next_action"], hyper["target_noise"]',
    ),
    "layer normalisation forgotten": ("layer_norm=config.layer_norm", "layer_norm=False"),
    "one critic": ("    critics = 2\n", "    critics = 1\n"),
    "next actions not asked for": ("if self.config.critic_penalty > 0.0:", "if False:"),
    "next actions always asked for": ("if self.config.critic_penalty > 0.0:", "if True:"),
    "alpha for its inverse in TD3+BC": ("policy_penalty: NonNegative = 0.4", "policy_penalty: NonNegative = 2.5"),
    "TD3+BC climbs the least": (
        'policy_q: Literal["min", "first"] = "first"',
        'policy_q: Literal["min", "first"] = "min"',
    ),
    "observations as they are in TD3+BC": ("normalize_obs: bool = True", "normalize_obs: bool = False"),
}

CQL: Mistakes = {
    "entropy in every target": ("if self.config.entropy_backup:", "if True:"),
    "entropy in no target": ("if self.config.entropy_backup:", "if False:"),
    "the learning critics in the target": (
        'soft_q(self, state["target/params"]',
        'soft_q(self, state["critic/params"]',
    ),
    "max for min over critics": ("state, obs, action).amin(0)", "state, obs, action).amax(0)"),
    "the action's noise for the next action's": ('noise["next_action"]', 'noise["action"]'),
    "bootstraps from the observation itself": ('batch_obs(batch, "next_obs/")', 'batch_obs(batch, "obs/")'),
    "bootstraps past the end": (
        'batch["terminated"], batch["discount"]',
        'batch["terminated"] & False, batch["discount"]',
    ),
    "undiscounted": ('batch["terminated"], batch["discount"]', 'batch["terminated"], 1.0'),
    "weights for densities": ("-log_density.flatten(0, 1)", "log_density.flatten(0, 1)"),
    "the uniform density of one component": (
        "uniform_log_density(self.action_spec.dimension)",
        "uniform_log_density(1)",
    ),
    "densities of the policy for uniform ones": (
        "torch.stack([by_policy, by_uniform])",
        "torch.stack([by_policy, by_policy])",
    ),
    "every kind over its own density": (
        "mixture_log_density(torch.stack([by_policy, by_uniform]))",
        "torch.stack([by_policy[0], by_uniform[1]])",
    ),
    "uniform before tanh": ('torch.atanh(noise["uniform"])', 'noise["uniform"]'),
    "uniform proposals alone": ("draws = torch.stack([draw,", 'draws = torch.stack([torch.atanh(noise["uniform"]),'),
    "actions of the data before tanh": (
        'data = unit_action(self.action_spec, batch["action"])',
        'data = batch["action"]',
    ),
    "proposals at the next observation": (
        'obs = batch_obs(batch, "obs/")\n        if self.config.regulariser',
        'obs = batch_obs(batch, "next_obs/")\n        if self.config.regulariser',
    ),
    "rho's draws beyond the bounds": ('.sample(noise["proposal"]).clamp(-1.0, 1.0)', '.sample(noise["proposal"])'),
    "the policy for rho": (
        'rho(self, state["behaviour/params"], state, obs)',
        "self.policy(state['params'], state, obs, None)",
    ),
    "uniform proposals calibrated": ("mine = self.config.proposals", "mine = 2 * self.config.proposals"),
    "nothing calibrated": ('if "return_to_go" in batch:', "if False:"),
    "rewards for returns in calibration": (
        'calibrated_q_value(others[:, :mine], batch["return_to_go"])',
        'calibrated_q_value(others[:, :mine], batch["reward"])',
    ),
    "returns not asked for": ("if self.config.calibrated:", "if False:"),
    "returns undiscounted": ("rows.add_returns_to_go(self.config.gamma)", "rows.add_returns_to_go(1.0)"),
    "the penalty of the other sign": ("return loss + weight * gap.sum()", "return loss - weight * gap.sum()"),
    "a mean over critics for the sum": ("return loss + weight * gap.sum()", "return loss + weight * gap.mean()"),
    "the penalty without its weight": ("return loss + weight * gap.sum()", "return loss + gap.sum()"),
    "the weight learns from the sum over critics": (
        '{"conservative_gap": gap.mean()',
        '{"conservative_gap": gap.sum()',
    ),
    "importance weights of the penalty forgotten": (
        "(sample_weight(batch) * conservative_gap(pushed, data_q))",
        "(1.0 * conservative_gap(pushed, data_q))",
    ),
    "own regularisers without importance weights": (
        "own_pushed_down(self._regulariser, others, weights)",
        "own_pushed_down(self._regulariser, others, 0.0 * weights)",
    ),
    "own regularisers forgotten": ("if self._regulariser is None:", "if True:"),
    "the weight's step lost": ("state = weight_step(", "_ = weight_step("),
    "rho's step lost": ("state, found = rho_step(", "_, found = rho_step("),
    "rho fitted to draws before tanh": (
        'batch, unit_action(self.action_spec, batch["action"]))',
        'batch, batch["action"])',
    ),
    "no delay": ("if with_policy:", "if True:"),
    "the target stands still": ("return self.track(state, hyper), metrics", "return state, metrics"),
    "layer normalisation forgotten": ("layer_norm=config.layer_norm", "layer_norm=False"),
    "fewer uniform draws before the bounds": ("2.0 * self.draw_uniform(", "1.0 * self.draw_uniform("),
}

DISCRETE_CQL: Mistakes = {
    "the penalty of the other sign": ("return loss + weight * gap,", "return loss - weight * gap,"),
    "the penalty without its weight": ("return loss + weight * gap,", "return loss + gap,"),
    "illegal actions pushed down": ("else None, mask)", "else None, None)"),
    "illegal actions before own regularisers": ("legal = q if mask is None else masked_logits(q, mask)", "legal = q"),
    "rho left out": ("prior.log_probs if isinstance(prior, Categorical) else None", "None"),
    "rho of illegal actions": (
        'rho(self, state["behaviour/params"], state, obs, mask)',
        'rho(self, state["behaviour/params"], state, obs)',
    ),
    "the best action's value for the data's": ('data_q = chosen_q_value(q, batch["action"])', "data_q = q.amax(-1)"),
    "importance weights of the error forgotten": ("(sample_weight(batch) * huber_loss", "(1.0 * huber_loss"),
    "importance weights of the penalty forgotten": (
        "(sample_weight(batch) * conservative_gap",
        "(1.0 * conservative_gap",
    ),
    "a sum for a mean": ("conservative_gap(pushed, data_q)).mean()", "conservative_gap(pushed, data_q)).sum()"),
    "errors squared however large": ('hyper["huber_threshold"]', "1e9"),
    "the penalty at the next observation": (
        'obs, mask = batch_obs(batch, "obs/")',
        'obs, mask = batch_obs(batch, "next_obs/")',
    ),
    "the mask of the next observation": ('batch.get("action_mask")', 'batch.get("next_action_mask")'),
    "the weight's step lost": ("state = weight_step(", "_ = weight_step("),
    "rho's step lost": ("state, found = rho_step(", "_, found = rho_step("),
    "the network's step lost": ('state, metrics["gradient_norm"] = descend(', '_, metrics["gradient_norm"] = descend('),
    "the target stands still": ("return self.follow(state, hyper), metrics", "return state, metrics"),
    "the target moves before the step": (
        '"target": self.target(state, batch), "hyper"',
        '"target": self.target(self.follow(state, hyper), batch), "hyper"',
    ),
}

CONSERVATIVE_STEPS: Mistakes = {
    "the weight for its logarithm": ("device=device).log()", "device=device)"),
    "the logarithm of a weight of 0": ("max(config.conservative_weight, 1e-3)", "config.conservative_weight"),
    "the logarithm for the weight": ('state["conservative/params"].exp().clamp', 'state["conservative/params"].clamp'),
    "a weight without limit": (".exp().clamp(max=MAX_WEIGHT)", ".exp()"),
    "a limit of the logarithm": (".exp().clamp(max=MAX_WEIGHT)", ".clamp(max=MAX_WEIGHT).exp()"),
    "a threshold of 0": ('gap, hyper["gap_threshold"])', "gap, 0.0)"),
    "a learned weight not used": (
        'if "conservative/params" not in state:\n        return hyper["conservative_weight"]\n',
        'if "conservative/params" in state or True:\n        return hyper["conservative_weight"]\n',
    ),
    "the policy's learning rate for the weight": (
        'hyper["critic_learning_rate" if "critic_learning_rate" in hyper else "learning_rate"]',
        'hyper["learning_rate"]',
    ),
    "own probabilities without importance weights": (
        "regulariser(q_value.detach(), log_ratio)",
        "regulariser(q_value.detach(), 0.0 * log_ratio)",
    ),
    "rho at the next observation": ('batch_obs(batch, "obs/")', 'batch_obs(batch, "next_obs/")'),
    "rho's mask of the next observation": ('batch.get("action_mask")', 'batch.get("next_action_mask")'),
    "rho without masks": ("PolicyInput(obs, mask,", "PolicyInput(obs, None,"),
    "rho flees the data": ("torch.ones_like(log_prob)", "-torch.ones_like(log_prob)"),
    "a sum for a mean": (
        "score_function_loss(log_prob, torch.ones_like(log_prob)).mean()",
        "score_function_loss(log_prob, torch.ones_like(log_prob)).sum()",
    ),
    "rho at the critics' rate": (
        'slope, hyper["learning_rate"], hyper["max_gradient_norm"])[0], metrics',
        'slope, hyper.get("critic_learning_rate", hyper["learning_rate"]), hyper["max_gradient_norm"])[0], metrics',
    ),
    "rho's step lost": ('if "behaviour/params" not in state:', "if True:"),
}
