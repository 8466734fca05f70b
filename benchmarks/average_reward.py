"""Average reward as the objective: exact shares of the best gain where it is known, a continuing MuJoCo task where not.

    python benchmarks/average_reward.py [CASE ...] [--seeds 5]

On RiverSwim and the access-control queue the gain of the learnt policy is computed from its probabilities in every
state, the best one by policy iteration. On HalfCheetah-v5, which never terminates, PPO with either objective is
evaluated by its mean reward per step. Results go to benchmarks/results/average-reward.json, case by case.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import steepest
from steepest.agents.agent import Agent
from steepest.exact import finite_mdp as mdps
from steepest.exact import gains, optimal
from steepest.networks.inputs import PolicyInput
from steepest.problems import Problem, access_control, riverswim
from steepest.runs.store.folder import environment_report

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "average-reward.json"
RIVERSWIM, QUEUE, CHEETAH = "steepest/RiverSwim-v0", "steepest/AccessControl-v0", "HalfCheetah-v5"
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ppo-riverswim": ("ppo", RIVERSWIM, {}),
    "ppo-access-control": ("ppo", QUEUE, {}),
    "actor_critic-riverswim": ("actor_critic", RIVERSWIM, {}),
    "ppo-halfcheetah-average": ("ppo", CHEETAH, {"objective": "average", "normalize_reward": False}),
    "ppo-halfcheetah-discounted": ("ppo", CHEETAH, {}),
}
PROBLEMS = {RIVERSWIM: riverswim, QUEUE: access_control}


def share_of_the_best_gain(agent: Agent, problem: Problem) -> float:
    """The exact gain of the policy that an agent draws from, over the best there is."""
    mdp = mdps.FiniteMDP.from_problem(problem)
    state = {k: x[0] for k, x in agent.state.items()}
    states = PolicyInput({"obs": torch.arange(mdp.num_states)}, None, None, None, None)
    with torch.no_grad():
        distribution: Any = agent.forward(state["params"], state, states).distribution
    policy = distribution.log_probs.double().softmax(-1)
    return float(gains.gain(mdp, policy) / optimal.optimal_gain(mdp)[0])


def run_case(case: str, seeds: int) -> dict[str, Any]:
    """Train one case; the figure of every seed."""
    algorithm, env, options = CASES[case]
    agents = steepest.train_seeds(algorithm, env, seeds=seeds, eval_episodes=0, threads=1, **options)
    if env in PROBLEMS:
        best = float(optimal.optimal_gain(mdps.FiniteMDP.from_problem(PROBLEMS[env]()))[0])
        shares = [share_of_the_best_gain(agent, PROBLEMS[env]()) for agent in agents]
        return {"best_gain": best, "share_of_the_best_gain_by_seed": shares, "worst": min(shares)}
    rewards: list[float] = []
    for agent in agents:
        found = steepest.evaluate(agent, env, episodes=20, deterministic=True)[0]
        rewards.append(sum(found.returns) / sum(found.lengths))
    return {"reward_per_step_by_seed": rewards, "mean": sum(rewards) / len(rewards)}


def main() -> None:
    """Run the cases that were asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    for case in arguments.cases:
        if case not in CASES:
            parser.error(f"no case {case!r}; there are {', '.join(CASES)}")
    for case in arguments.cases:
        result = {
            "options": CASES[case],
            "command": shlex.join(["python", "benchmarks/average_reward.py", case, "--seeds", str(arguments.seeds)]),
            "commit": subprocess.run(
                ("git", "rev-parse", "HEAD"), cwd=HERE, capture_output=True, text=True, check=False
            ).stdout.strip(),
            **run_case(case, arguments.seeds),
        }
        known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"cases": {}}
        known["environment"] = environment_report()
        known["cases"][case] = result
        RESULTS.write_text(json.dumps(known, indent=2) + "\n")
        print(case, {k: v for k, v in result.items() if k not in ("options", "command", "commit")}, flush=True)


if __name__ == "__main__":
    sys.exit(main())
