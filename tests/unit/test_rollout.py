"""Collecting, with environments that count: every row of a rollout is known in advance."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import CountingEnvironments, box, discrete, vector
from helpers_envs import Counting
from steepest.agents.rollout_updates import batch_inputs, gather, score_rollout
from steepest.algorithms.ppo import PPO, PPOConfig
from steepest.environments import make_env
from steepest.experience.rollout import Collector, Episode
from steepest.learner.trees import tree_map
from steepest.networks.inputs import PolicyInput
from steepest.types import ActionSpec, Rollout

STEPS = 8


def make(env: CountingEnvironments, members: int = 1, **config: Any) -> PPO:
    options = {"rollout_steps": STEPS, "hidden_sizes": (6,), "minibatches": 1, "sequence_length": 4, **config}
    agent = PPO(
        PPOConfig(**options),
        env.obs_spec,
        env.action_spec,
        num_envs=env.num_envs // members,
        seeds=tuple(range(members)),
    )
    agent.parameters["policy_head.weight"].mul_(50.0)  # far from uniform, so that what the policy sees matters
    return agent


def kept(rollout: Rollout) -> Rollout:
    return tree_map(torch.clone, rollout)


def join(x: Tensor) -> Tensor:
    """(M, T, N, ...) -> (T, M N, ...)."""
    return x.transpose(0, 1).flatten(1, 2)


@pytest.mark.parametrize("members", [1, 2])
def test_every_row_is_what_the_environments_said(members: int) -> None:
    """NEXT_STEP: environment i repeats a cycle of L_i decided rows and one restart row, whatever the rollouts' length.

    With row k of a cycle, obs shows step k, also for k = L: the true final observation, before the restart row.
    """
    lengths = np.array([1, 2, 3, 5])
    env = CountingEnvironments(tuple(lengths))
    agent = make(env, members)
    collector = Collector(env, agent, STEPS)
    collector.reset(0)
    episodes: list[Episode] = []
    for call in range(3):
        rollout, finished = collector.collect()
        episodes += finished
        t = call * STEPS + np.arange(STEPS + 1)[:, None]
        cycle, k = np.divmod(t, lengths + 1)
        i = np.broadcast_to(np.arange(4), k.shape)
        expected = np.stack([i, cycle, k], -1)
        np.testing.assert_array_equal(join(rollout.obs["obs"]), expected)
        np.testing.assert_array_equal(join(rollout.episode_step), k)
        k, cycle, i = k[:-1], cycle[:-1], i[:-1]
        valid, done = k < lengths, k == lengths - 1
        np.testing.assert_array_equal(join(rollout.valid), valid)
        np.testing.assert_array_equal(join(rollout.reward), np.where(valid, 100 * i + 10 * cycle + k + 1, 0))
        np.testing.assert_array_equal(join(rollout.terminated), done & (cycle % 2 == 0))
        np.testing.assert_array_equal(join(rollout.truncated), done & (cycle % 2 == 1))
        assert rollout.reward.shape == (members, STEPS, 4 // members)
        assert rollout.action_mask is None
        assert rollout.memory is None
    # Episode e of environment i pays sum_{k=1}^L (100 i + 10 e + k), also where rollouts cut it.
    expected = [
        Episode(i // (4 // members), 100 * i * n + 10 * e * n + n * (n + 1) / 2, int(n))
        for t in range(3 * STEPS)
        for i, n in enumerate(lengths)
        for e, k in [divmod(t, n + 1)]
        if k == n - 1
    ]
    assert episodes == expected


class Fails(Counting):
    """Cannot take its second step."""

    def step(self, action: Any) -> Any:
        if self.steps == 1:
            raise RuntimeError("the second step")
        return super().step(action)


@pytest.mark.parametrize(("kind", "when"), [(Counting, 0), (Counting, 1), (Fails, 1)])
def test_what_fails_meanwhile_leaves_no_step_under_way(kind: type[Counting], when: int) -> None:
    """Environments in processes of their own can be reset and closed, and what failed first is what is heard of."""
    env = make_env(kind, 2, vectorization="async")
    agent = PPO(PPOConfig(rollout_steps=4, minibatches=1), env.obs_spec, env.action_spec, num_envs=2)
    collector = Collector(env, agent, 4)
    collector.reset(0)

    def fail(t: int) -> None:
        if t == when:
            raise OverflowError("learning failed")

    def play(meanwhile: Callable[[int], None]) -> None:
        collector.play(agent.actor(fused=False), agent.draw_noise((4, 2)), meanwhile)

    with pytest.raises(OverflowError, match="learning failed"):
        play(fail)
    if kind is Counting:
        collector.reset(0)
        play(lambda t: None)
        assert collector.rows().valid[0].all()
    env.close()


def test_what_the_policy_drew_is_recorded_and_what_it_means_is_played() -> None:
    """With bounds of 0.1 nearly every draw is clipped on its way to the environment, but not in the rollout."""
    env = CountingEnvironments((2, 3), action_spec=box(2, bound=0.1))
    agent = make(env)
    collector = Collector(env, agent, STEPS)
    collector.reset(0)
    rollout, _ = collector.collect()
    drawn = join(rollout.action).numpy()
    assert (np.abs(drawn) > 1.0).any()
    np.testing.assert_allclose(np.stack(env.received), 0.1 * np.clip(drawn, -1, 1), rtol=1e-5)


@pytest.mark.parametrize("spec", [discrete(3), discrete(3, 2), box(2)])
def test_actions_are_the_policy_at_the_recorded_observation(spec: ActionSpec) -> None:
    """Repeated by hand from the same noise: an off-by-one in observations or noise would show at once."""
    env = CountingEnvironments((2, 3, 5), action_spec=spec)
    agent = make(env)
    collector = Collector(env, agent, STEPS)
    collector.reset(0)
    for _ in range(2):
        again = copy.deepcopy(agent.generators[0].get_state())
        rollout, _ = collector.collect()
        agent.generators[0].set_state(again)
        noise = agent.draw_noise((STEPS, 3))[:, 0]
        state = {k: v[0] for k, v in agent.state.items()}
        obs = {"obs": rollout.obs["obs"][0, :-1]}
        policy = agent.forward(state["params"], state, PolicyInput(obs, None, None, None, None)).distribution
        action = policy.sample(noise)
        torch.testing.assert_close(rollout.action[0], action, rtol=1e-5, atol=1e-6)


def test_masks_belong_to_their_observation() -> None:
    """One action is legal at each step: (environment + step) mod 3, which only an aligned mask gives."""
    env = CountingEnvironments((2, 3, 5), masked=True)
    agent = make(env)
    collector = Collector(env, agent, STEPS)
    collector.reset(0)
    for _ in range(2):
        rollout, _ = collector.collect()
        assert rollout.action_mask is not None
        legal = rollout.obs["obs"][..., [0, 2]].sum(-1).to(torch.int64) % 3
        assert torch.equal(rollout.action_mask, torch.nn.functional.one_hot(legal, 3).bool())
        assert torch.equal(rollout.action, legal[:, :-1])


@pytest.mark.parametrize("pause", [False, True])
def test_a_second_reset_starts_afresh(pause: bool) -> None:
    env = CountingEnvironments((3, 5), pause=pause)
    collector = Collector(env, make(env), STEPS)
    collector.reset(0)
    first, episodes = collector.collect()
    first = kept(first)
    collector.reset(0)
    second, again = collector.collect()
    assert torch.equal(first.obs["obs"], second.obs["obs"])
    assert torch.equal(first.episode_step, second.episode_step)
    assert episodes == again


def test_pause_rows_stand_still_for_all() -> None:
    env = CountingEnvironments((2, 3), pause=True)
    collector = Collector(env, make(env), STEPS)
    collector.reset(0)
    #          both play  0 ends  pause   0, 1 end...
    expected_valid = [True, True, False, True, False, True, False, True]
    expected_steps = [[0, 0], [1, 1], [2, 2], [0, 2], [1, 3], [1, 0], [2, 1], [0, 1], [1, 2]]
    rollout, episodes = collector.collect()
    assert rollout.valid[0].tolist() == [[v, v] for v in expected_valid]
    assert rollout.episode_step[0].tolist() == expected_steps
    counts = rollout.obs["obs"][0, :, :, 2].to(torch.int64)
    assert counts.tolist() == expected_steps
    assert [(e.length, e.episode_return) for e in episodes] == [(2, 3.0), (3, 306.0), (2, 23.0)]


def test_the_number_of_environments_must_fit() -> None:
    env = CountingEnvironments((2, 3, 4))
    agent = make(CountingEnvironments((2, 3)))
    with pytest.raises(ValueError, match="3 environments for 1 members of 2 each"):
        Collector(env, agent, STEPS)


# Recurrence


@pytest.mark.parametrize("pause", [False, True])
@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("shared", [False, True])
def test_recurrent_memory_and_scores(kind: Any, pause: bool, shared: bool) -> None:
    """By hand, one step at a time: memory is forgotten exactly at an episode's first step and kept over invalid rows.

    The memories recorded at sequence starts, the actions drawn, and the log-probabilities and values recomputed from
    whole sequences are those of that walk. Then the update's own sequences give them once more.
    """
    env = CountingEnvironments((2, 3, 6), pause=pause)
    agent = make(env, recurrent=kind, recurrent_size=4, shared_torso=shared, hidden_sizes=(5,))
    collector = Collector(env, agent, STEPS)
    collector.reset(0)
    state = {k: v[0] for k, v in agent.state.items()}
    forward = partial(agent.forward, state["params"], state)
    memory = torch.zeros((3, agent.memory_size))
    step = np.zeros(3, dtype=int)  # our own count of actions since the episode began
    ended = np.zeros(3, dtype=bool)
    for _ in range(2):
        again = copy.deepcopy(agent.generators[0].get_state())
        rollout, _ = collector.collect()
        one = tree_map(lambda x: x[0], rollout)
        agent.generators[0].set_state(again)
        noise = agent.draw_noise((STEPS, 3))[:, 0]
        with torch.no_grad():
            log_prob, value = score_rollout(forward, one, agent.sequence_length)
            rows = []
            for t in range(STEPS):
                if t % agent.sequence_length == 0:
                    torch.testing.assert_close(one.memory[t // agent.sequence_length], memory, rtol=1e-5, atol=1e-6)
                start = torch.from_numpy(step == 0)
                memory = torch.where(start.unsqueeze(-1), 0.0, memory)
                quiet, counts = torch.zeros((1, 3), dtype=torch.bool), torch.ones((1, 3), dtype=torch.bool)
                obs = {"obs": one.obs["obs"][t : t + 1]}
                out = forward(PolicyInput(obs, None, quiet, counts, memory))
                policy = tree_map(lambda x: x[0], out.distribution)
                assert torch.equal(policy.sample(noise[t]), one.action[t])
                rows.append(policy.log_prob(one.action[t]))
                torch.testing.assert_close(log_prob[t], rows[-1], rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(value[t], out.value[0], rtol=1e-5, atol=1e-6)
                memory = torch.where(one.valid[t].unsqueeze(-1), out.memory, memory)
                step += one.valid[t].numpy()
                step[ended] = 0
                ended = (one.terminated[t] | one.truncated[t]).numpy()
            obs = {"obs": one.obs["obs"][STEPS:]}
            start = torch.from_numpy(step == 0).unsqueeze(0)
            out = forward(PolicyInput(obs, None, start, torch.ones_like(start), memory))
            torch.testing.assert_close(value[STEPS], out.value[0], rtol=1e-5, atol=1e-6)
            hyper = {"gamma": torch.tensor(0.9), "gae_lambda": torch.tensor(0.9)}
            _, batch, _ = agent.prepare(state, one, hyper)
            batch = gather(batch, torch.tensor([4, 1, 3, 5]))
            found = forward(batch_inputs(batch)).distribution.log_prob(batch["action"])
            torch.testing.assert_close(found, batch["log_prob"], rtol=1e-5, atol=1e-6)


def test_the_ratio_is_one_at_the_start_of_an_update() -> None:
    """With normalised observations too: the statistics stay frozen for a whole collect and update."""
    for recurrent in ("none", "gru"):
        env = CountingEnvironments((2, 3, 6))
        agent = make(env, recurrent=recurrent, normalize_obs=True, normalize_reward=True, epochs=1, entropy_coef=0.0)
        collector = Collector(env, agent, STEPS)
        collector.reset(0)
        for _ in range(3):
            rollout, _ = collector.collect()
            figures = agent.update(rollout, 0.0)
            # one minibatch, hence one step, taken at the policy that acted
            assert abs(float(figures["approx_kl"][0])) < 1e-6
            assert float(figures["clip_fraction"][0]) == 0.0
        assert agent.state["obs_count"] > 0
        assert agent.obs_spec == vector(3)


@pytest.mark.parametrize("parts", [(3, 8, 1, 4), (8, 8), (1,) * 16, (5, 3, 8)])
@pytest.mark.parametrize("pause", [False, True])
def test_fewer_steps_continue_where_they_stopped(parts: tuple[int, ...], pause: bool) -> None:
    """The rows are those of whole calls, whichever way they are cut."""

    def play(parts: tuple[int, ...]) -> dict[str, Tensor]:
        env = CountingEnvironments((2, 3, 5), pause=pause)
        agent = make(env)
        collector = Collector(env, agent, STEPS)
        collector.reset(0)
        noise = torch.zeros((16, 1, 3, 3))
        found: dict[str, list[Tensor]] = {}
        done = 0
        for count in parts:
            collector.play(agent.actor(), noise[done : done + count])
            done += count
            rows = collector.rows()
            assert len(rows.reward) == count
            assert rows.episode_step.shape[0] == rows.obs["obs"].shape[0] == count + 1
            for name in ("action", "reward", "terminated", "truncated", "valid"):
                found.setdefault(name, []).append(getattr(rows, name).clone())
            found.setdefault("obs", []).append(rows.obs["obs"][:-1].clone())
            found.setdefault("next_obs", []).append(rows.obs["obs"][1:].clone())
            found.setdefault("episode_step", []).append(rows.episode_step[:-1].clone())
        return {name: torch.cat(x) for name, x in found.items()}

    cut, whole = play(parts), play((8, 8))
    for name, expected in whole.items():
        assert torch.equal(cut[name], expected), name


def test_a_reset_after_fewer_steps_is_seen() -> None:
    env = CountingEnvironments((4, 4))
    agent = make(env)
    collector = Collector(env, agent, STEPS)
    collector.reset(0)
    collector.play(agent.actor(), torch.zeros((3, 1, 2, 3)))
    collector.reset(0)
    collector.play(agent.actor(), torch.zeros((2, 1, 2, 3)))
    assert collector.rows().obs["obs"][:, 0].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]
