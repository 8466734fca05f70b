"""`steepest verify`: every row passes, a broken function is found, and what the command prints and returns."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

import steepest
from steepest import distributions, evaluation, losses, numerics, returns
from steepest.agents import greedy, natural_step, rollout_updates
from steepest.algorithms import actor_critic, ppo, ppo_kl, reinforce, trpo
from steepest.cli import main
from steepest.evaluation import importance
from steepest.language.data import tokens
from steepest.language.training import rlhf, rlhf_base
from steepest.losses import compatible, gradient_td
from steepest.preferences import clips
from steepest.verification import SHIPPED, Result, check, statements, verify
from steepest.verification.statement import Sides, Statement


def failing(rows: list[Result]) -> set[str]:
    return {f"{r.section} {r.statement}" for r in rows if not r.passed}


def test_everything_passes() -> None:
    rows = verify(seeds=3)
    assert failing(rows) == set()
    assert len(rows) > 150
    assert {r.kind for r in rows} == {"equality", "inequality", "negative control"}
    assert [r.section for r in rows] == sorted((r.section for r in rows), key=lambda s: [int(x) for x in s.split(".")])
    assert steepest.verify is verify


def test_rows_are_all_different() -> None:
    rows = [(s.section, s.claim, s.tested) for s in statements()]
    assert len(set(rows)) == len(rows)


def test_tested_names_exist() -> None:
    """What a row says it tests can be found under that name."""
    for statement in SHIPPED:
        owner: Any = steepest
        module, *rest = statement.tested.split(".")
        owner = __import__(f"steepest.{module}", fromlist=["_"])
        if module == "algorithms":
            owner, rest = __import__(f"steepest.algorithms.{rest[0]}", fromlist=["_"]), rest[1:]
        for name in rest:
            owner = getattr(owner, name)
        assert callable(owner)


def negated(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: -function(*args, **kwargs)


def scaled(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: (1.0 + 1e-6) * function(*args, **kwargs)


def products_scaled(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: scaled(function(*args))


def without_the_limit(function: Callable[..., Any]) -> Callable[..., Any]:
    """A search that takes whatever it tries first."""

    def wrong(measure: Any, start: Any, step: Any, at: Any, backtrack: Any, least: Any, most: Any) -> Any:
        return function(measure, start, step, at, backtrack, -math.inf, math.inf)

    return wrong


def without_the_improvement(function: Callable[..., Any]) -> Callable[..., Any]:
    """A search that asks for the trust region alone."""

    def wrong(measure: Any, start: Any, step: Any, at: Any, backtrack: Any, least: Any, most: Any) -> Any:
        return function(measure, start, step, at, backtrack, -math.inf, most)

    return wrong


def without_the_gain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Rewards as they are, though nothing discounts them."""

    def wrong(state: Any, rollout: Any, hyper: Any) -> Any:
        statistics, reward, gamma = function(state, rollout, hyper)
        return statistics, reward + statistics.get("gain", 0.0), gamma

    return wrong


def slower(function: Callable[..., Any]) -> Callable[..., Any]:
    """Conjugate gradients that move a millionth too far in every iteration."""

    def wrong(matvec: Any, at: Any) -> Any:
        new = function(matvec, at)
        return new._replace(solution=new.solution + 1e-6 * (new.solution - at.solution))

    return wrong


def without_the_end(function: Callable[..., Any]) -> Callable[..., Any]:
    """The mistake that half the field makes: bootstrapping past termination."""

    def wrong(reward: Any, value: Any, next_value: Any, terminated: Any, gamma: Any) -> Any:
        return function(reward, value, next_value, torch.zeros_like(terminated), gamma)

    return wrong


def without_entropy(function: Callable[..., Any]) -> Callable[..., Any]:
    """A policy that climbs Q alone."""
    return lambda log_prob, q_value, temperature: function(log_prob, q_value, 0.0 * temperature)


def with_one_network(function: Callable[..., Any]) -> Callable[..., Any]:
    """Double DQN whose target network picks the action that it values."""
    return lambda reward, q_value, online, *ends: function(reward, q_value, q_value, *ends)


def first_scaled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A little too much in the first part of a result of several."""

    def wrong(*args: Any, **kwargs: Any) -> Any:
        found = function(*args, **kwargs)
        return found._replace(**{found._fields[0]: (1.0 + 1e-6) * found[0]})

    return wrong


def ratios_forgotten(function: Callable[..., Any]) -> Callable[..., Any]:
    """Another policy's data taken as one's own."""
    return lambda log_ratio, *args: function(torch.zeros_like(log_ratio), *args)


def values_kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """Targets that are no nearer than the values themselves."""

    def wrong(log_ratio: Any, reward: Any, value: Any, *args: Any) -> Any:
        return function(log_ratio, reward, value, *args)._replace(target=value[:-1])

    return wrong


BROKEN: list[tuple[Any, str, Callable[..., Any], str]] = [
    (losses, "score_function_loss", negated, "1.2 full return"),
    (losses, "score_function_loss", scaled, "1.2 mean over two trajectories"),
    (losses, "score_function_loss", scaled, "1.4 baseline b(s_t), arbitrary"),
    (losses, "clipped_surrogate_loss", negated, "1.10 clipped surrogate at ratio 1: grad V"),
    (losses, "clipped_surrogate_loss", scaled, "1.10 clipped surrogate by cases"),
    (losses, "kl_estimate", scaled, "1.10 E_old[k3] = KL(old||new)"),
    (losses, "value_loss", scaled, "1.5 Monte-Carlo critic"),
    (returns, "reward_to_go", scaled, "1.3 reward-to-go with gamma^t"),
    (returns, "td_error", without_the_end, "1.5 bootstrapped critic, target fixed"),
    (returns, "td_error", without_the_end, "1.10 GAE within episodes"),
    (returns, "generalized_advantage", scaled, "1.10 GAE = mixture of A^(k)"),
    (returns, "lambda_return", scaled, "1.10 lambda-return by its recursion"),
    (numerics, "standardize", scaled, "1.5 standardised advantages"),
    (ppo, "clipped_surrogate_loss", negated, "1.10 PPO, gamma = 1, V exact, lambda 0.7"),
    (losses, "penalised_surrogate_loss", negated, "1.10 penalised loss at ratio 1: grad V"),
    (losses, "penalised_surrogate_loss", scaled, "1.10 penalised loss = -(L - beta KL)"),
    (losses, "adapt_kl_coef", scaled, "1.10 beta halves, doubles or stays"),
    (returns, "vtrace", first_scaled, "1.10 V-trace on-policy: lambda-return and GAE"),
    (returns, "vtrace", first_scaled, "1.10 V-trace = sum of clipped TD errors"),
    (returns, "vtrace", first_scaled, "1.10 V-trace's fixed point: V of pi_rho"),
    (returns, "td_error", without_the_end, "1.10 V-trace's fixed point, rho unclipped: V^pi"),
    (returns, "vtrace", ratios_forgotten, "1.10 V-trace's q at its fixed point: Q of pi_rho"),
    (returns, "vtrace", values_kept, "1.10 V-trace contracts to V of pi_rho"),
    (ppo_kl, "penalised_surrogate_loss", negated, "1.10 PPO-KL, gamma = 1, V exact, lambda 0.7"),
    (ppo, "value_loss", scaled, "1.10 PPO's critic is pulled to V^pi"),
    (rollout_updates, "generalized_advantage", scaled, "1.10 PPO, gamma = 1, lambda = 1, any V"),
    (rollout_updates, "score_function_loss", negated, "1.3 REINFORCE at gamma = 1"),
    (rollout_updates, "value_loss", scaled, "1.4 REINFORCE's baseline is pulled to V^pi"),
    (losses, "surrogate_objective", scaled, "1.10 E[rho A]/(1 - gamma) = L(pi')"),
    (losses, "surrogate_objective", negated, "1.10 grad E[rho A] at pi' = pi: grad V"),
    (trpo.TRPO, "fisher", products_scaled, "1.10 Fisher-vector product = dense Fisher matrix"),
    (trpo, "surrogate_objective", negated, "1.10 TRPO's full step = exact natural step"),
    (natural_step, "conjugate_gradient_step", slower, "1.10 TRPO's full step = exact natural step"),
    (trpo, "line_search_step", without_the_limit, "1.10 KL(old||new) <= delta, searched"),
    (trpo, "line_search_step", without_the_limit, "1.10 a failed search changes nothing"),
    (trpo, "line_search_step", without_the_improvement, "1.10 L(new) >= 0, searched"),
    (trpo, "line_search_step", without_the_improvement, "1.10 a step downhill is refused"),
    (returns, "full_return", scaled, "1.2 the full return is R(tau) at every step"),
    (returns, "n_step_advantage", scaled, "1.10 n-step advantage by TD errors"),
    (returns, "differential_td_error", negated, "1.8 differential GAE by its sum"),
    (returns, "differential_generalized_advantage", scaled, "1.8 differential GAE by its sum"),
    (reinforce, "full_return", scaled, "1.2 REINFORCE, full return"),
    (reinforce, "state_weights", scaled, "1.2 REINFORCE, full return, from the episode's first step"),
    (reinforce, "reward_to_go", scaled, "1.3 REINFORCE, reward-to-go, gamma^t"),
    (reinforce, "state_weights", scaled, "1.4 REINFORCE less v, gamma^t"),
    (rollout_updates, "score_function_loss", negated, "1.5 actor-critic, GAE, V exact"),
    (actor_critic, "generalized_advantage", scaled, "1.5 actor-critic, lambda = 1, any V"),
    (actor_critic, "n_step_advantage", scaled, "1.5 actor-critic, two steps, V exact"),
    (actor_critic, "state_weights", scaled, "1.5 actor-critic, one step, V exact"),
    (actor_critic, "reward_to_go", scaled, "1.5 actor-critic: Monte-Carlo critic pulled to V^pi"),
    (rollout_updates, "value_loss", scaled, "1.5 actor-critic: bootstrapped critic pulled to the backup"),
    (actor_critic, "generalized_advantage", scaled, "1.8 actor-critic, average reward: grad r(pi)"),
    (actor_critic, "pinned_target", scaled, "1.8 critic pulled to r - gain + v(s'), pinned"),
    (rollout_updates, "generalized_advantage", scaled, "1.8 PPO, average reward: grad r(pi)"),
    (ppo_kl, "penalised_surrogate_loss", negated, "1.8 PPO-KL, average reward: grad r(pi)"),
    (rollout_updates, "generalized_advantage", scaled, "1.8 PPO-KL, average reward: grad r(pi)"),
    (trpo, "surrogate_objective", negated, "1.8 TRPO, average reward: grad r(pi)"),
    (rollout_updates, "generalized_advantage", scaled, "1.8 TRPO, average reward: grad r(pi)"),
    (rollout_updates, "objective_rewards", without_the_gain, "1.8 TRPO's critic pulled to r - gain + v(s'), pinned"),
    (rollout_updates, "pinned_target", scaled, "1.8 TRPO's critic pulled to r - gain + v(s'), pinned"),
    (gradient_td, "eligibility_trace", scaled, "1.6 actor's trace = lambda-returns, any V"),
    (gradient_td, "eligibility_trace", negated, "1.6 Off-PAC with traces, V exact: grad Q dropped"),
    (gradient_td, "followon_trace", scaled, "1.6 emphatic actor: grad J_beta, p^beta"),
    (gradient_td, "followon_trace", scaled, "1.6 emphatic actor: grad J_beta, d^beta"),
    (gradient_td, "emphatic_weight", scaled, "1.6 Off-PAC, V exact, d^beta"),
    (gradient_td, "tdc_direction", scaled, "1.6 TDC(lambda) = -1/2 grad MSPBE"),
    (gradient_td, "gtd2_direction", negated, "1.6 GTD2(lambda), expected"),
    (gradient_td, "auxiliary_direction", scaled, "1.6 auxiliary weights, expected"),
    (gradient_td, "curvature_direction", negated, "1.6 GTD2, V not linear"),
    (compatible, "compatible_feature", scaled, "1.11 compatible features: slope J w, 0 at mu(s)"),
    (compatible, "compatible_action_gradient", scaled, "1.11 COPDAC's actor with the fitted compatible critic"),
    (compatible, "deterministic_policy_direction", negated, "1.11 E[grad mu grad_a Q], Q exact"),
    (distributions.Categorical, "entropy", scaled, "1 Categorical: H = -E[log p], KL = E[log p - log q]"),
    (distributions.Factored, "log_prob", scaled, "1 Factored: log_prob is the log-density"),
    (distributions.Bernoulli, "kl", negated, "1 Bernoulli: H = -E[log p], KL = E[log p - log q]"),
    (distributions.DiagonalGaussian, "log_prob", scaled, "1.7 reparametrised gradient"),
    (losses, "soft_value_target", scaled, "1.7 V-network's loss: its gradient"),
    (losses, "soft_value_target", scaled, "1.7 target at Q^pi, LQR"),
    (losses, "soft_q_target", scaled, "1.7 Q-network's loss: its gradient"),
    (losses, "expected_soft_value", scaled, "1.7 target at the soft optimum, finite"),
    (losses, "soft_policy_loss", negated, "1.7 policy's loss: its gradient"),
    (losses, "soft_policy_loss", without_entropy, "1.7 policy's loss at the soft optimum, LQR"),
    (losses, "temperature_loss", negated, "1.7 temperature's loss: its gradient"),
    (losses, "deterministic_policy_loss", scaled, "1.11 policy's loss: the deterministic policy gradient, LQR"),
    (losses, "q_learning_target", scaled, "1.11 target at Q^mu, LQR"),
    (losses, "dqn_target", scaled, "1.11 DQN's target at Q*, finite"),
    (losses, "dqn_target", scaled, "1.11 DQN's overestimation, errors listed"),
    (losses, "double_dqn_target", scaled, "1.11 double DQN's target at Q*, finite"),
    (losses, "double_dqn_target", with_one_network, "1.11 no overestimation by double DQN"),
    (losses, "double_dqn_target", scaled, "1.11 double DQN's target <= DQN's"),
    (greedy, "double_dqn_target", scaled, "1.11 DQN at rest at Q*, finite"),
    (losses, "chosen_q_value", scaled, "1.11 Q-network's loss: its semi-gradient"),
    (losses, "huber_loss", scaled, "1.11 Q-network's loss beyond the Huber threshold"),
    (distributions.FullGaussian, "kl", scaled, "1 FullGaussian: H = -E[log p], KL = E[log p - log q]"),
    (distributions.TanhGaussian, "log_prob", scaled, "1 TanhGaussian: density and KL"),
    (distributions.TanhGaussian, "entropy", scaled, "1 TanhGaussian: H = -E[log p]"),
    (distributions, "expected_log_tanh_derivative", negated, "1 TanhGaussian: H = -E[log p]"),
]


def a_token_late(function: Callable[..., Any]) -> Callable[..., Any]:
    """Logits taken for those of the token that they were read at."""
    return lambda logits, tokens, *more: function(logits.roll(1, 1), tokens, *more)


def scored_late(function: Callable[..., Any]) -> Callable[..., Any]:
    """Log-probabilities a token after the one that they are about."""

    def wrong(*args: Any, **kwargs: Any) -> Any:
        log_prob, value = function(*args, **kwargs)
        return log_prob.roll(1, 1), value

    return wrong


def with_answers_exchanged(function: Callable[..., Any]) -> Callable[..., Any]:
    """The worse clip preferred."""
    return lambda score, *more: function(score.flip(-1), *more)


BROKEN += [
    (tokens, "token_log_probs", a_token_late, "2.2.1 log pi(y|x) of padded rows"),
    (tokens, "token_kl", scaled, "2.2.1 KL of the vocabulary, summed over tokens"),
    (returns, "token_rewards", scaled, "2.2.1 reward per token, score on the last"),
    (returns, "scaled_token_rewards", scaled, "2.2.1 score and penalty scaled as one"),
    (rlhf_base, "token_log_probs_and_values", scored_late, "2.2.1 RLHF by PPO, lambda = 1, any V"),
    (rlhf, "clipped_surrogate_loss", scaled, "2.2.1 RLHF by PPO, lambda 0.7, V exact"),
    (rlhf_base, "token_rewards", scaled, "2.2.1 RLHF by PPO, lambda 0.7, V exact"),
    (rlhf, "leave_one_out_advantage", scaled, "2.2.1 RLHF by RLOO, all groups of two"),
    (losses, "score_function_loss", scaled, "2.2.1 RLHF by the score function"),
    (losses, "k1_estimate", negated, "2.2.1 E[k1] = KL(pi||ref)"),
    (losses, "k2_estimate", scaled, "2.2.1 E[grad k2] = grad KL(pi||ref)"),
    (losses, "k3_estimate", scaled, "2.2.1 E[grad k3] = grad KL(ref||pi)"),
    (losses, "bradley_terry_loss", scaled, "2.2.1 L_R over all pairs, value and gradient"),
    (losses, "dpo_loss", scaled, "2.2.2 L_DPO over all pairs, value and gradient"),
    (losses, "dpo_loss", scaled, "2.2.2 L_DPO = ln 2 at the reference"),
    (losses, "smoothed_dpo_loss", scaled, "2.2.2 smoothed DPO with soft labels"),
    (losses, "robust_dpo_loss", scaled, "2.2.2 robust DPO undoes flipped labels"),
    (losses, "implicit_reward", scaled, "2.2.2 r = implicit reward + beta log Z"),
    (losses, "plackett_luce_loss", scaled, "2.2.1 Plackett-Luce: drawn one by one, sum 1"),
    (losses, "plackett_luce_loss", scaled, "2.2.1 Plackett-Luce of the first two = sum over the rest"),
    (losses, "davidson_preference_loss", scaled, "2.2.1 Davidson: win, loss and tie by worths, sum 1"),
    (losses, "davidson_tie_loss", scaled, "2.2.1 Davidson: win, loss and tie by worths, sum 1"),
    (losses, "kto_loss", scaled, "2.2.2 KTO: its gradient over all responses"),
    (clips, "clip_score", scaled, "2.2.1 reward of all clips = r + constant"),
    (clips, "comparison_loss", with_answers_exchanged, "2.2.1 reward of all clips: its optimal policy"),
]


def numerator_scaled(function: Callable[..., Any]) -> Callable[..., Any]:
    """An estimator that is off by a factor."""

    def wrong(*arguments: Any) -> Any:
        found = function(*arguments)
        return found._replace(numerator=(1.0 + 1e-6) * found.numerator)

    return wrong


BROKEN += [
    (evaluation, "trajectory_importance", numerator_scaled, "2.1.1 E_beta[w R] = V^pi"),
    (evaluation, "per_decision_importance", numerator_scaled, "2.1.1 E_beta[sum gamma^t w_t r_t] = V^pi"),
    (evaluation, "doubly_robust", numerator_scaled, "2.1.1 doubly robust with any Q: E_beta[D] = V^pi"),
    (evaluation, "doubly_robust", numerator_scaled, "2.1.1 doubly robust with Q^pi: the bound of trees"),
    (evaluation, "log_weights", negated, "2.1.1 E_beta[w_t] = 1 at every step"),
    (evaluation, "with_final_value", scaled, "2.1.1 IS of cut episodes, V of the rest added"),
    (importance, "log_weights", negated, "2.1.1 weighted IS: V^pi from infinitely many episodes"),
    (importance, "log_weights", negated, "2.1.1 weighted per-decision IS: V^pi from infinitely many episodes"),
    (importance, "discounted", scaled, "2.1.1 weighted doubly robust: V^pi from infinitely many episodes"),
]


@pytest.mark.parametrize(("owner", "name", "wrong", "row"), BROKEN, ids=lambda x: x if isinstance(x, str) else "")
def test_a_broken_function_fails_its_rows(
    owner: Any, name: str, wrong: Callable[..., Any], row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (statement,) = [s for s in statements() if f"{s.section} {s.claim}" == row]
    assert check(statement, 2).passed
    monkeypatch.setattr(owner, name, wrong(getattr(owner, name)))
    result = check(statement, 2)
    assert not result.passed
    assert result.figure > 1e-9


def test_the_command_fails_when_a_function_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["verify", "--section", "1.2", "--seeds", "2"]) == 0
    assert "FAIL" not in capsys.readouterr().out
    monkeypatch.setattr(losses, "score_function_loss", negated(losses.score_function_loss))
    assert main.main(["verify", "--section", "1.2", "--seeds", "2"]) == 1
    out = capsys.readouterr().out
    assert any(line.startswith("1.2    FAIL     full return ") for line in out.splitlines())
    assert "3 failed" in out
    assert main.main(["verify", "--section", "1.2", "--seeds", "2", "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)[0]["passed"]


def test_a_function_that_raises_fails_its_row_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("a bug\nover two lines")

    monkeypatch.setattr(losses, "kl_estimate", broken)
    assert main.main(["verify", "--section", "1.10", "--seeds", "2", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    bad = [r for r in rows if not r["passed"]]
    assert {r["tested"] for r in bad} == {"losses.kl_estimate"}
    assert bad[0]["message"] == "RuntimeError: a bug over two lines"
    assert bad[0]["figure"] is None
    assert main.main(["verify", "--section", "1.10", "--seeds", "2"]) == 1
    assert "RuntimeError: a bug over two lines" in capsys.readouterr().out


def test_sections_are_chosen_with_their_subsections(capsys: pytest.CaptureFixture[str]) -> None:
    def sections(section: str) -> set[str]:
        return {s.section for s in statements(section)}

    assert sections("1.1") == {"1.1"}
    assert sections("1.10") == {"1.10"}
    assert sections("2.1") == {"2.1", "2.1.1", "2.1.2"}
    assert sections("2") == {"2.1", "2.1.1", "2.1.2", "2.2.1", "2.2.2"}
    assert "1.11" in sections("1")
    assert main.main(["verify", "--section", "1.9", "--seeds", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {r["section"] for r in rows} == {"1.9"}
    assert any("Theorem 6" in r["statement"] for r in rows)


@pytest.mark.parametrize("arguments", [["--section", "3"], ["--section", "1."], ["--section", ""], ["--seeds", "0"]])
def test_misuse_is_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["verify", *arguments]) == 2
    message = capsys.readouterr().err
    assert "1.10" in message if "--section" in arguments else "seeds is 0" in message


def test_json_says_what_the_python_call_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["verify", "--section", "2.2", "--seeds", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == [r.as_dict() for r in verify("2.2", seeds=2)]
    assert set(rows[0]) == {
        *("section", "statement", "kind", "tested", "seeds", "passed", "figure", "share", "message")
    }


def test_lines_are_one_per_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["verify", "--section", "1.9", "--seeds", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = statements("1.9")
    for line, row in zip(lines, rows, strict=False):
        assert line.startswith("1.9 ")
        assert row.claim in line
        assert row.tested in line
        assert {"equality": "error", "inequality": "ratio", "negative control": "off"}[row.kind] in line
    controls = sum(row.kind == "negative control" for row in rows)
    said = f"{len(rows)} statements on 2 random problems each: {len(rows)} as expected "
    assert lines[-1].startswith(f"{said}({len(rows) - controls} hold; {controls} known mistakes detected), 0 failed")


def test_a_terminal_sees_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    assert main.main(["verify", "--section", "1.9", "--seeds", "1"]) == 0
    out = capsys.readouterr().out
    assert "│" in out
    for word in ("statement", "tested", "Theorem 6: performance difference", "rejected", "pass"):
        assert word in out


def sides(kind: Any, *pairs: tuple[float, float]) -> Statement:
    def problem(seed: int) -> Sides:
        return Sides(*(torch.tensor(x, dtype=torch.float64) for x in pairs[seed]))

    return Statement("1", "made up", kind, problem, lambda s: s)


def test_the_rules_by_which_rows_pass() -> None:
    assert check(sides("equality", (1.0, 1.0), (1.0, 1.0 + 9e-10)), 2).passed
    bad = check(sides("equality", (1.0, 1.0), (1.0, 1.0 + 3e-9)), 2)
    assert not bad.passed
    assert bad.share == 0.5
    assert bad.figure == pytest.approx(3e-9, rel=1e-3)
    assert check(sides("inequality", (1.0, 2.0), (2.0, 2.0)), 2).figure == pytest.approx(1.0)
    assert not check(sides("inequality", (1.0, 2.0), (2.0, 1.99)), 2).passed
    most = [(1.0, 2.0)] * 9 + [(1.0, 1.0)]
    assert check(sides("negative control", *most), 10).passed
    assert check(sides("negative control", *most), 10).share == 0.9
    assert not check(sides("negative control", *most[1:], (1.0, 1.0 + 5e-4)), 10).passed
    for kind in ("equality", "inequality", "negative control"):
        result = check(sides(kind, (1.0, 2.0), (1.0, math.nan)), 2)
        assert not result.passed
        assert math.isnan(result.figure)
        assert result.as_dict()["figure"] is None


def test_a_single_figure_that_is_no_number_fails_a_control() -> None:
    """However many problems the others are: something is undefined there."""
    result = check(sides("negative control", *[(1.0, 2.0)] * 19, (1.0, math.nan)), 20)
    assert result.share == 0.95
    assert not result.passed
    assert math.isnan(result.figure)


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["verify", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("--section", "--seeds", "--json"))
    assert main.main(["--help"]) == 0
    assert "verify" in capsys.readouterr().out


def test_help_of_the_command_stays_light() -> None:
    code = (
        "import sys; from steepest.cli.main import main; main(['--help']); "
        "print('steepest.verification' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip().endswith("False")


def test_what_is_tested_is_looked_up_when_it_runs() -> None:
    """The rows reach shipped functions through their modules, or a monkeypatch would test a copy."""
    names = {"score_function_loss", "clipped_surrogate_loss", "generalized_advantage", "td_error", "standardize"}
    files = (m for name, m in sys.modules.items() if name.startswith("steepest.verification."))
    assert not any(names & set(vars(m)) for m in files)
