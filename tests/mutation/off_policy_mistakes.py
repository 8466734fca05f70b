"""Mistakes that a person could make in updates from a replay buffer, as in ``mutations``: SAC, TD3, DDPG, DQN."""

from __future__ import annotations

Mistakes = dict[str, tuple[str, str]]

ENDS = 'batch["terminated"], batch["discount"]'

SAC: Mistakes = {
    "the learning critics in the target": (
        'self.q(state["target/params"], state, obs, action, noise, "target")',
        'self.q(state["critic/params"], state, obs, action, noise, "target")',
    ),
    "the learning critics in the target, discrete": (
        'self.q(state["target/params"], state, obs, None, noise, "target")',
        'self.q(state["critic/params"], state, obs, None, noise, "target")',
    ),
    "all critics in the target": (
        'obs, action, noise, "target"), noise.get("subset"))',
        'obs, action, noise, "target"), None)',
    ),
    "the first critics every time": (
        "draw_uniform(updates, config.num_critics).argsort(-1)",
        "draw_uniform(updates, config.num_critics).mul(0.0).argsort(-1)",
    ),
    "a critic too few": ("orders[..., : config.target_critics]", "orders[..., : config.target_critics - 1]"),
    "the action's noise for the next action's": ('noise["next_action"]', 'noise["action"]'),
    "bootstraps from the observation itself": ('batch_obs(batch, "next_obs/")', 'batch_obs(batch, "obs/")'),
    "the mask of the observation itself": ('batch.get("next_action_mask")', 'batch.get("action_mask")'),
    "bootstraps past the end": (ENDS, 'batch["terminated"] & False, batch["discount"]'),
    "undiscounted": (ENDS, 'batch["terminated"], 1.0'),
    "no entropy in the target": (
        "policy.log_prob(action), temperature)",
        "0.0 * policy.log_prob(action), temperature)",
    ),
    "no entropy in the target, discrete": ("policy.log_probs, temperature)", "policy.log_probs, 0.0)"),
    "no delay": ("if with_policy:", "if True:"),
    "the target stands still": ("return self.track(state, hyper), metrics", "return state, metrics"),
    "the target follows with the policy alone": (
        "metrics |= found\n        return self.track(state, hyper), metrics, error",
        "metrics |= found\n        return self.track(state, hyper) if with_policy else state, metrics, error",
    ),
    "the critics' step lost": ("state, metrics, error = self.critic_step(", "_, metrics, error = self.critic_step("),
    "critics at the next observation": (
        'self.q(vector, state, batch_obs(batch, "obs/"), action if',
        'self.q(vector, state, batch_obs(batch, "next_obs/"), action if',
    ),
    "the value of the best action for that of the data": ("chosen(q, action)", "q.amax(-1)"),
    "one dropout for all passes": ("[_USES.index(use)]", "[0]"),
    "no dropout": ('"dropout": config.dropout', '"dropout": 0.0'),
    "layer normalisation forgotten": ('"layer_norm": config.layer_norm', '"layer_norm": False'),
    "always two critics": ("critics=config.num_critics", "critics=2"),
}

SOFT_STEPS: Mistakes = {
    "bounds of the deviation exchanged": (
        "(config.min_log_std, config.max_log_std)",
        "(config.max_log_std, config.min_log_std)",
    ),
    "the deviation unbounded": ("(config.min_log_std, config.max_log_std)", "(-20.0, 2.0)"),
    "no least probability": ("floor = config.min_probability", "floor = 0.0"),
    "critics see the draw before tanh": (
        "None if action is None else unit_action(agent.action_spec, action)",
        "action",
    ),
    "a temperature of e": ("logs = torch.zeros((self.members, 1)", "logs = torch.ones((self.members, 1)"),
    "the target entropy of the other sign": (
        "return -float(self.action_spec.dimension)",
        "return float(self.action_spec.dimension)",
    ),
    "the whole of the uniform entropy as a target": ("else 0.5 * math.log(self", "else 1.0 * math.log(self"),
    "a given target entropy forgotten": (
        "if self.settings.target_entropy is not None:\n            return self.settings.target_entropy\n",
        "if False:\n            return 0.0\n",
    ),
    "masks do not move a target entropy": ("if mask is None or self.settings.target_entropy is not None:", "if True:"),
    "masks move a given target entropy": (
        "if mask is None or self.settings.target_entropy is not None:",
        "if mask is None:",
    ),
    "the policy's step lost": (
        "state, metrics = self.policy_step(gradient, state, loss, hyper)",
        "_, metrics = self.policy_step(gradient, state, loss, hyper)",
    ),
    "the temperature's step lost": ('state, _ = descend(state, "temperature/"', '_ = descend(state, "temperature/"'),
    "the critics' learning rate for the temperature": (
        'rates = (hyper["learning_rate"],',
        'rates = (hyper["critic_learning_rate"],',
    ),
    "a given temperature learned": (
        "if self.settings.temperature is None:\n            goal",
        'if "temperature/params" not in state:\n            goal',
    ),
    "the policy at the next observation": (
        'obs, temperature = batch_obs(batch, "obs/")',
        'obs, temperature = batch_obs(batch, "next_obs/")',
    ),
    "the mask of the next observation": (
        'self.policy(vector, state, obs, batch.get("action_mask"))',
        'self.policy(vector, state, obs, batch.get("next_action_mask"))',
    ),
    "the mean for the least": (
        'torch.Tensor.amin if self.settings.policy_q == "min"',
        'torch.Tensor.mean if self.settings.policy_q == "min"',
    ),
    "the least for the mean": ("else torch.Tensor.mean\n", "else torch.Tensor.amin\n"),
    "max for min": ("reduce = torch.Tensor.amin if", "reduce = torch.Tensor.amax if"),
    "the target's critics for the policy": (
        'self.q(state["critic/params"], state, obs, action, noise, "policy")',
        'self.q(state["target/params"], state, obs, action, noise, "policy")',
    ),
    "the target's critics for the policy, discrete": (
        'self.q(state["critic/params"], state, obs, None, noise, "policy")',
        'self.q(state["target/params"], state, obs, None, noise, "policy")',
    ),
    "the policy descends, discrete": ("loss = -expected_soft_value(", "loss = expected_soft_value("),
    "the next action's noise for the action's": ('noise["action"]', 'noise["next_action"]'),
    "the density fixed": (
        "log_prob = policy.log_prob(action)\n            q",
        "log_prob = policy.log_prob(action).detach()\n            q",
    ),
    "the draw fixed": ('policy.sample(noise["action"])', 'policy.sample(noise["action"]).detach()'),
    "entropy of the other sign": (
        "soft_policy_loss(log_prob, q, temperature), -log_prob",
        "soft_policy_loss(log_prob, q, temperature), log_prob",
    ),
    "the logarithm for the temperature": (
        'return state["temperature/params"].exp()',
        'return state["temperature/params"]',
    ),
    "masks lost on the way": ("PolicyInput(obs, mask, None", "PolicyInput(obs, None, None"),
    "layer normalisation forgotten": ("layer_norm=layer_norm", "layer_norm=False"),
}

SAC_V: Mistakes = {
    "the learning value function in the target": (
        'self.value(state["target/params"]',
        'self.value(state["value/params"]',
    ),
    "bootstraps from the observation itself": ('batch_obs(batch, "next_obs/")', 'batch_obs(batch, "obs/")'),
    "bootstraps past the end": (ENDS, 'batch["terminated"] & False, batch["discount"]'),
    "undiscounted": (ENDS, 'batch["terminated"], 1.0'),
    "no entropy in the value": (
        "soft_value_target(q, log_prob, temperature)",
        "soft_value_target(q, 0.0 * log_prob, temperature)",
    ),
    "max for min over critics": ("obs, action).amin(0)", "obs, action).amax(0)"),
    "the mean over critics, discrete": ("obs, None).amin(0)", "obs, None).mean(0)"),
    "the critics' temperature 1": (
        'temperature = batch_obs(batch, "obs/"), hyper["temperature"]',
        'temperature = batch_obs(batch, "obs/"), 1.0',
    ),
    "one learning rate": ('hyper["critic_learning_rate" if prefix else "learning_rate"]', 'hyper["learning_rate"]'),
    "the rates exchanged": (
        '"critic_learning_rate" if prefix else "learning_rate"',
        '"learning_rate" if prefix else "critic_learning_rate"',
    ),
    "the target stands still": ("return self.track(state, hyper), metrics", "return state, metrics"),
    "the target copies the critics' place": ('{"target/": "value/"}', '{"target/": "critic/"}'),
    "masks forgotten": ('PolicyInput(obs, batch.get("action_mask")', "PolicyInput(obs, None"),
    "the value of the best action for that of the data": ('chosen(q, batch["action"])', "q.amax(-1)"),
    "the policy descends, discrete": ("loss, entropy, soft_value = -value,", "loss, entropy, soft_value = value,"),
    "values of the next observation": (
        'self.value(vector, state, batch_obs(batch, "obs/")), target)',
        'self.value(vector, state, batch_obs(batch, "next_obs/")), target)',
    ),
    "a sum for a mean": ('batch_obs(batch, "obs/")), target).mean()', 'batch_obs(batch, "obs/")), target).sum()'),
    "the critics' target of the new value function": (
        '        critic_slope, (_, metrics) = gradient(partial(self.critic_loss, **shared), state["critic/params"])\n',
        '        shared["state"] = self.track(state, hyper)\n'
        '        critic_slope, (_, metrics) = gradient(partial(self.critic_loss, **shared), state["critic/params"])\n',
    ),
}

TD3: Mistakes = {
    "the acting policy in the target": ('state["target_policy/params"]', 'state["params"]'),
    "the learning critics in the target": ('state["target/params"]', 'state["critic/params"]'),
    "bootstraps from the observation itself": ('batch_obs(batch, "next_obs/")', 'batch_obs(batch, "obs/")'),
    "bootstraps past the end": (ENDS, 'batch["terminated"] & False, batch["discount"]'),
    "undiscounted": (ENDS, 'batch["terminated"], 1.0'),
    "no smoothing": (
        'noise["next_action"], hyper["target_noise"]',
        '0.0 * noise["next_action"], hyper["target_noise"]',
    ),
    "noise and its bound exchanged": (
        'hyper["target_noise"], hyper["target_noise_clip"]',
        'hyper["target_noise_clip"], hyper["target_noise"]',
    ),
    "the first critic alone in the target": (
        'subset_minimum(q_values(self, state["target/params"], state, obs, action), None)',
        'q_values(self, state["target/params"], state, obs, action)[0]',
    ),
    "no delay": ("if with_policy:", "if True:"),
    "the targets stand still": ("self.track(state, hyper), {**metrics, **found}", "state, {**metrics, **found}"),
    "the targets follow at every step": (
        "        return state, metrics, error",
        "        return state if with_policy else self.track(state, hyper), metrics, error",
    ),
    "one critic": ("    critics = 2\n", "    critics = 1\n"),
    "the critics' target alone": (', "target_policy/": ""}', ', "target_policy/": "target_policy/"}'),
    "the critics' step lost": ("state, metrics, error = self.critic_step(", "_, metrics, error = self.critic_step("),
}

DDPG: Mistakes = {
    "the acting policy in the target": ('state["target_policy/params"]', 'state["params"]'),
    "the learning critic in the target": ('state["target/params"]', 'state["critic/params"]'),
    "bootstraps from the observation itself": ('batch_obs(batch, "next_obs/")', 'batch_obs(batch, "obs/")'),
    "bootstraps past the end": (ENDS, 'batch["terminated"] & False, batch["discount"]'),
    "undiscounted": (ENDS, 'batch["terminated"], 1.0'),
    "two critics": ("critics=1", "critics=2"),
    "the targets stand still": ("return self.track(state, hyper), {", "return state, {"),
    "the policy's step lost": ("state, found = self.policy_step(", "_, found = self.policy_step("),
    "the critic's step lost": ("state, metrics, error = self.critic_step(", "_, metrics, error = self.critic_step("),
}

DETERMINISTIC_STEPS: Mistakes = {
    "actions beyond the bounds valued": ('batch["action"].clamp(-1.0, 1.0)', 'batch["action"]'),
    "critics at the next observation": (
        'state, batch_obs(batch, "obs/"), batch["action"]',
        'state, batch_obs(batch, "next_obs/"), batch["action"]',
    ),
    "the policy at the next observation": (
        '    obs = batch_obs(batch, "obs/")',
        '    obs = batch_obs(batch, "next_obs/")',
    ),
    "the last critic climbed": (
        "mean_action(agent, vector, state, obs))[0]",
        "mean_action(agent, vector, state, obs))[-1]",
    ),
    "the least critic climbed": (
        "mean_action(agent, vector, state, obs))[0]",
        "mean_action(agent, vector, state, obs)).amin(0)",
    ),
    "the target's critics climbed": ('state["critic/params"]', 'state["target/params"]'),
    "the policy's own action fixed": (
        "mean_action(agent, vector, state, obs))[0]",
        'mean_action(agent, state["params"], state, obs))[0] + 0.0 * vector.sum()',
    ),
    "the policy descends": ("deterministic_policy_loss(q).mean()", "-deterministic_policy_loss(q).mean()"),
    "a sum for a mean": ("deterministic_policy_loss(q).mean()", "deterministic_policy_loss(q).sum()"),
}

GREEDY: Mistakes = {
    "target and network exchanged": (
        'track(state, "target/params", "params"',
        'track(state, "params", "target/params"',
    ),
    "the target's age of the last call": ('age = state["target/age"] + 1', 'age = state["target/age"] * 0 + 1'),
    "the next action picked at the observation itself": (
        'q, self.q(state["params"], state, obs), *ends',
        'q, self.q(state["params"], state, batch_obs(batch, "obs/")), *ends',
    ),
    "bootstraps past the end": (
        '(batch["terminated"], batch["discount"], batch.get',
        '(batch["terminated"] & False, batch["discount"], batch.get',
    ),
    "undiscounted": ('(batch["terminated"], batch["discount"], batch.get', '(batch["terminated"], 1.0, batch.get'),
}

LOOP: dict[str, tuple[str, str]] = {
    "learns before enough was played": ("self.buffer.written * agent.num_envs < config.learning_starts", "False"),
    "one environment's steps counted": (
        "config.update_ratio * rows * agent.num_envs",
        "config.update_ratio * rows",
    ),
    "a call counts as one gradient step": ("self.due -= config.updates_per_call", "self.due -= 1"),
    "steps still due are never taken": ("for _ in range(self.calls_due):", "for _ in range(0):"),
    "the weights are not annealed": (
        "config.importance_exponent + progress * (1.0 - config.importance_exponent)",
        "config.importance_exponent",
    ),
    "the weights are annealed backwards": (
        "config.importance_exponent + progress * (1.0 - config.importance_exponent)",
        "1.0 - progress * (1.0 - config.importance_exponent)",
    ),
    "one step for n of the buffer": (
        "n_steps=config.n_steps,\n            importance_exponent",
        "n_steps=1,\n            importance_exponent",
    ),
    "one step for n of the data": (
        "self.data[0].sample(agent.generators, *shape, gamma=config.gamma, n_steps=config.n_steps)",
        "self.data[0].sample(agent.generators, *shape, gamma=config.gamma, n_steps=1)",
    ),
    "no priorities": ("self.buffer.set_priorities(index,", "0 and self.buffer.set_priorities(index,"),
    "priorities without an exponent": ("exponent=config.priority_exponent", "exponent=1.0"),
    "noise begins anew in every round": ("self.noise = noise[-1]", "self.noise = None"),
    "uniform for ever": (
        'uniform = warming and self.config.warm_up == "uniform"',
        'uniform = self.config.warm_up == "uniform"',
    ),
    "the policy plays the warm-up": ('uniform = warming and self.config.warm_up == "uniform"', "uniform = False"),
    "statistics stand still": ("if config.normalize_obs:\n", "if False:\n"),
    "minibatches of the buffer alone as large as all": (
        "own = config.batch_size - self.from_data",
        "own = config.batch_size",
    ),
    "what is due is forgotten by a restart": ('self.due = float(figures["due"])', "self.due = 0.0"),
    "learns in the first half of every row alone": (
        "learn(calls * (t + 1) // rows - calls * t // rows)",
        "learn(calls * (t + 1) // rows - calls)",
    ),
    "a masked action in the warm-up": ("logits if mask is None else masked_logits(logits, mask)", "logits"),
    "the warm-up is normal": ("unit = torch.erf(noise / math.sqrt(2.0))", "unit = noise.clamp(-1.0, 1.0)"),
}
"""In runs/loops/off_policy.py."""
