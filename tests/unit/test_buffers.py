"""The replay buffer against loops over everything that happened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from helpers import CountingEnvironments, box, discrete, vector
from steepest import RunError, UsageError
from steepest.experience.replay import ReplayBuffer, SumTree
from steepest.types import ObsField, ObsSpec, Rollout

GAMMA = 0.9


class Moment(NamedTuple):
    """What one environment did at one row, as a loop remembers it."""

    obs: np.ndarray
    action: int
    reward: float
    terminated: bool
    truncated: bool
    valid: bool


class History:
    """Plays counting environments into a buffer and remembers everything, with a restart every so many rows."""

    def __init__(self, buffer: ReplayBuffer, lengths: tuple[int, ...], *, pause: bool = False, seed: int = 0) -> None:
        self.buffer = buffer
        self.env = CountingEnvironments(lengths, pause=pause, masked=True)
        self.rng = np.random.default_rng(seed)
        self.rows: list[list[Moment]] = []
        self.masks: list[np.ndarray] = []
        self.obs, self.mask = self.env.reset(0)

    def play(self, steps: int) -> None:
        """``steps`` rows in one append."""
        n = self.env.num_envs
        obs, masks, parts = [self.obs["obs"]], [self.mask], []
        for _ in range(steps):
            action = self.rng.integers(0, 3, n)
            result = self.env.step(action)
            parts.append((action, result.reward, result.terminated, result.truncated, result.valid))
            self.rows.append([Moment(obs[-1][i], int(action[i]), *(x[i] for x in parts[-1][1:])) for i in range(n)])
            self.masks.append(masks[-1])
            obs.append(result.obs["obs"])
            masks.append(result.action_mask)
        self.obs, self.mask = {"obs": obs[-1]}, masks[-1]
        columns = [torch.as_tensor(np.stack([p[k] for p in parts])) for k in range(5)]
        columns[1] = columns[1].float()
        self.buffer.append(
            Rollout(
                {"obs": torch.as_tensor(np.stack(obs))},
                *columns,
                torch.zeros((steps + 1, n), dtype=torch.int64),
                torch.as_tensor(np.stack(masks)),
                None,
            )
        )

    def restart(self) -> None:
        """A cut, as at a checkpoint: the last row becomes a truncation, the next one decides nothing."""
        self.rows[-1] = [m if m.terminated else m._replace(truncated=True) for m in self.rows[-1]]
        self.rows.append([Moment(x, 0, 0.0, False, False, False) for x in self.obs["obs"]])
        self.masks.append(self.mask)
        self.buffer.cut()
        self.obs, self.mask = self.env.reset(0)

    def expected(self, row: int, env: int, n_steps: int) -> dict[str, Any]:
        """By a plain loop: sum rewards until n rows have passed, the episode has ended, or nothing more is known."""
        reward, discount, terminated, at = 0.0, 1.0, False, row
        for _ in range(n_steps):
            if at == len(self.rows):
                break
            moment = self.rows[at][env]
            at += 1
            if moment.valid:
                reward += discount * moment.reward
                discount *= GAMMA
                terminated = moment.terminated
            if moment.terminated or moment.truncated:
                break
        newest = at == len(self.rows)
        following = self.obs["obs"][env] if newest else self.rows[at][env].obs
        first = self.rows[row][env]
        return {
            "obs/obs": first.obs,
            "action": first.action,
            "action_mask": self.masks[row][env],
            "reward": reward,
            "discount": discount,
            "terminated": terminated,
            "next_obs/obs": following,
            "next_action_mask": self.mask[env] if newest else self.masks[at][env],
        }


def make(rows: int, envs: int = 3, **options: Any) -> ReplayBuffer:
    return ReplayBuffer(vector(3), discrete(3), rows=rows, num_envs=envs, **options)


def filled(
    pause: bool, rows: int = 40, steps: int = 61, restarts: tuple[int, ...] = (7, 8, 30), **options: Any
) -> History:
    history = History(make(rows, **options), (3, 5, 1), pause=pause)
    for t in range(steps):
        history.play(1 + t % 3)
        if t in restarts:
            history.restart()
    return history


@pytest.mark.parametrize("pause", [False, True])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 7])
def test_n_step_returns_against_a_loop(n_steps: int, pause: bool) -> None:
    history = filled(pause, steps=60, restarts=(7, 8, 48, 55))
    buffer = history.buffer
    assert buffer.written == len(history.rows) > 2 * buffer.rows
    kept = history.rows[buffer.first :]
    assert any(not m.terminated and not m.truncated and m.valid for m in kept[-1]), "some step is the newest of all"
    assert sum(not any(m.valid for m in row) for row in kept) >= 2, "and there are restarts"
    pairs = [(r, e) for r in range(buffer.first, buffer.written) for e in range(3) if history.rows[r][e].valid]
    rows, envs = np.array(pairs).T
    found = buffer.transitions(rows, envs, gamma=GAMMA, n_steps=n_steps)
    ends = 0
    for i, (r, e) in enumerate(pairs):
        for key, value in history.expected(r, e, n_steps).items():
            np.testing.assert_allclose(found[key][i].numpy(), value, rtol=1e-6, err_msg=f"{key} {r} {e}")
        ends += bool(found["terminated"][i]) and n_steps > 1
    assert ends > 0 or n_steps == 1
    longest = float(found["discount"].min())
    assert longest == pytest.approx(GAMMA ** min(n_steps, 5)) or pause


def test_a_window_ends_with_the_last_episode_in_it() -> None:
    """However many steps are asked for: they are not counted to their end."""
    buffer = filled(pause=False).buffer
    few, many = (buffer.sample([torch.Generator().manual_seed(9)], 1, 40, gamma=GAMMA, n_steps=n) for n in (40, 10**12))
    assert all(torch.equal(few[k], many[k]) for k in few)


def test_next_observations_are_the_true_ones() -> None:
    """One row further in the same episode, whatever row comes next in the ring."""
    history = filled(pause=False)
    buffer = history.buffer
    pairs = [(r, e) for r in range(buffer.first, buffer.written) for e in range(3) if history.rows[r][e].valid]
    rows, envs = np.array(pairs).T
    found = buffer.transitions(rows, envs, gamma=GAMMA)
    now, following = found["obs/obs"], found["next_obs/obs"]
    assert torch.equal(following[:, :2], now[:, :2]), "the same environment and episode"
    assert torch.equal(following[:, 2], now[:, 2] + 1.0), "a step later"
    # What is naively taken for the next observation is another episode's first one where the environment restarts at
    # once; here such a row is not valid.
    assert not all(history.rows[r + 1][e].valid for r, e in pairs if r + 1 < len(history.rows))


def test_only_decided_rows_are_drawn() -> None:
    for pause in (False, True):
        history = filled(pause, members=1)
        batch = history.buffer.sample([torch.Generator().manual_seed(1)], 4, 500, gamma=GAMMA)
        valid = history.buffer.flat["valid"][batch["index"].flatten().numpy()]
        assert valid.all()
        assert not history.buffer.flat["valid"].all()
        assert batch["obs/obs"].shape == (1, 4, 500, 3)
        assert (batch["discount"] == np.float32(GAMMA)).all()


def test_uniform_sampling_is_uniform() -> None:
    """Every decided transition of the last ``rows`` rows equally often: chi-squared within 5 standard deviations."""
    history = filled(pause=False, spare_rows=9)
    buffer = history.buffer
    pairs = [(r, e) for r in range(buffer.first, buffer.written) for e in range(3) if history.rows[r][e].valid]
    draws = 200 * len(pairs)
    index = buffer.sample([torch.Generator().manual_seed(2)], 1, draws, gamma=GAMMA)["index"].flatten()
    counts = torch.bincount(index, minlength=buffer.length * 3)
    expected = {(r % buffer.length) * 3 + e for r, e in pairs}
    assert set(counts.nonzero().flatten().tolist()) == expected
    freedom = len(pairs) - 1
    chi2 = float(((counts[counts > 0] - 200.0) ** 2 / 200.0).sum())
    assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


def test_members_draw_their_own_environments_from_their_own_generators() -> None:
    buffer = make(20, envs=2, members=2)
    history = History(buffer, (3, 5, 2, 4))
    history.play(30)
    generators = [torch.Generator().manual_seed(s) for s in (3, 4)]
    batch = buffer.sample(generators, 2, 50, gamma=GAMMA)
    for m in range(2):
        assert set(batch["obs/obs"][m, :, :, 0].unique().tolist()) == {2.0 * m, 2.0 * m + 1}
    again = buffer.sample([torch.Generator().manual_seed(s) for s in (3, 5)], 2, 50, gamma=GAMMA)
    assert torch.equal(batch["index"][0], again["index"][0])
    assert not torch.equal(batch["index"][1], again["index"][1])


def test_an_empty_buffer_says_so() -> None:
    for prioritized in (False, True):
        with pytest.raises(ValueError, match="no transition"):
            make(5, prioritized=prioritized).sample([torch.Generator()], 1, 2, gamma=GAMMA)


# Memory


def test_memory_is_the_observations_once() -> None:
    """A million frames of 84 x 84, seen in stacks of four, in 1.05 times their 7.06 GB: here a thousandth of that, with
    room for a checkpoint interval of 3% of the buffer."""
    spec = ObsSpec((ObsField("obs", "image", (4, 84, 84), "uint8"),), is_dict=False)
    rows = 1_000
    buffer = ReplayBuffer(spec, discrete(6), rows=rows, spare_rows=30, frame_stack=4, prioritized=True)
    priorities = buffer.trees[0].sums.nbytes
    assert buffer.nbytes + priorities <= 1.05 * rows * 84 * 84
    naive = 2 * 4 * rows * 84 * 84
    assert naive / buffer.nbytes > 7.5


def stacked(rows: int, padding: str, pause: bool = False, **options: Any) -> tuple[ReplayBuffer, list[Any]]:
    """Random frames in stacks of three, padded as environments do; all (row, env, stack) that were shown."""
    spec = ObsSpec((ObsField("obs", "image", (3, 2, 2), "uint8"),), is_dict=False)
    buffer = ReplayBuffer(spec, discrete(2), rows=rows, num_envs=2, frame_stack=3, **options)
    rng = np.random.default_rng(0)
    shown: list[Any] = []

    def first() -> np.ndarray:
        frame = rng.integers(1, 256, (1, 2, 2), dtype=np.uint8)
        return np.concatenate([frame] * 3 if padding == "repeat" else [np.zeros_like(frame)] * 2 + [frame])

    obs, step, left, over = [first(), first()], np.zeros(2, np.int64), np.array([3, 8]), np.zeros(2, bool)
    for t in range(3 * rows):
        valid = np.full(2, not over.any()) if pause else ~over
        new, new_step, done = list(obs), step.copy(), np.zeros(2, bool)
        for e in range(2):
            if over[e]:
                new[e], new_step[e], left[e] = first(), 0, rng.integers(1, 7)
            elif valid[e]:
                frame = rng.integers(1, 256, (1, 2, 2), dtype=np.uint8)
                new[e], new_step[e] = np.concatenate([obs[e][1:], frame]), step[e] + 1
                left[e] -= 1
                done[e] = left[e] == 0
        flags = torch.as_tensor(np.stack([done, np.zeros(2, bool), valid])).unsqueeze(1)
        buffer.append(
            Rollout(
                {"obs": torch.as_tensor(np.stack([np.stack(obs), np.stack(new)]))},
                torch.zeros((1, 2), dtype=torch.int64),
                torch.zeros((1, 2)),
                *flags,
                torch.as_tensor(np.stack([step, new_step])),
                None,
                None,
            )
        )
        shown += [(t, e, obs[e], new[e], valid[e]) for e in range(2)]
        obs, step, over = new, new_step, done
    return buffer, shown


@pytest.mark.parametrize("pause", [False, True])
@pytest.mark.parametrize("padding", ["zero", "repeat"])
def test_frame_stacks_come_out_as_they_went_in(padding: str, pause: bool) -> None:
    buffer, shown = stacked(15, padding, pause)
    assert buffer.arrays["obs/obs"].shape[2] == 1
    drawable = [x for x in shown if x[0] >= buffer.first and x[4]]
    assert len(drawable) > 10
    row, env = (np.array([x[k] for x in drawable]) for k in (0, 1))
    found = buffer.transitions(row, env, gamma=GAMMA)
    assert np.array_equal(found["obs/obs"].numpy(), np.stack([x[2] for x in drawable]))
    assert np.array_equal(found["next_obs/obs"].numpy(), np.stack([x[3] for x in drawable]))


def test_what_is_no_stack_of_frames_is_refused() -> None:
    spec = ObsSpec((ObsField("obs", "image", (3, 2, 2), "uint8"),), is_dict=False)
    with pytest.raises(UsageError, match="frame_stack is 2"):
        ReplayBuffer(spec, discrete(2), rows=5, frame_stack=2)
    buffer = ReplayBuffer(spec, discrete(2), rows=5, frame_stack=3)
    colours = torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 2, 2) + 1
    flag = torch.zeros((1, 1), dtype=torch.bool)
    rollout = Rollout(
        {"obs": colours},
        flag.long(),
        flag.float(),
        flag,
        flag,
        ~flag,
        torch.zeros((2, 1), dtype=torch.int64),
        None,
        None,
    )
    with pytest.raises(UsageError, match="no stack of one frame"):
        buffer.append(rollout)


# Priorities


def test_the_sum_tree_keeps_its_sums() -> None:
    rng = np.random.default_rng(0)
    tree = SumTree(13)
    priority = np.zeros(13)
    for _ in range(50):
        leaf = rng.integers(0, 13, 5)
        value = rng.random(5)
        tree.set(leaf, value)
        for i, x in zip(leaf, value, strict=True):
            priority[i] = x
    np.testing.assert_array_equal(tree.get(np.arange(13)), priority)
    np.testing.assert_allclose(tree.sums[1], priority.sum(), rtol=1e-12)
    other = SumTree(13)
    other.fill(tree.leaves())
    np.testing.assert_array_equal(other.sums, tree.sums)


def test_draws_of_the_tree_never_have_priority_zero() -> None:
    tree = SumTree(8)
    tree.set(np.array([2, 5]), np.array([1e-30, 1e30]))
    leaf, probability = tree.draw(1, 10_000, torch.Generator().manual_seed(0))
    assert set(leaf.tolist()) <= {2, 5}
    assert (probability > 0).all()


def test_priorities_are_drawn_in_proportion() -> None:
    """Frequencies are priorities over their sum, and the weights undo them; what left the buffer is never drawn."""
    history = filled(pause=False, prioritized=True)
    buffer = history.buffer
    generator = torch.Generator().manual_seed(5)
    pairs = [(r, e) for r in range(buffer.first, buffer.written) for e in range(3) if history.rows[r][e].valid]
    index = torch.tensor([(r % buffer.length) * 3 + e for r, e in pairs])
    error = torch.rand(len(index), generator=generator) + 0.05
    buffer.set_priorities(index.unsqueeze(0), error.unsqueeze(0), exponent=0.5, floor=0.0)
    draws = 400_000
    batch = buffer.sample([generator], 1, draws, gamma=GAMMA, importance_exponent=1.0)
    counts = torch.bincount(batch["index"].flatten(), minlength=buffer.length * 3)
    share = error.sqrt() / error.sqrt().sum()
    np.testing.assert_allclose(counts[index] / draws, share, atol=5 * np.sqrt(0.02 / draws))
    assert int(counts.sum()) == int(counts[index].sum()), "nothing else is drawn"
    assert float(batch["weight"].amax()) == 1.0
    # Weighted by 1 / (n P), any mean over draws is the plain mean: of rewards, for instance.
    weight = batch["weight"].double().flatten()
    rewards = torch.from_numpy(buffer.flat["reward"]).double()
    found = float((weight * rewards[batch["index"].flatten()]).sum() / weight.sum())
    assert found == pytest.approx(float(rewards[index].mean()), rel=0.02)  # 400,000 draws of rewards that vary by 50%
    wrong = float(rewards[batch["index"].flatten()].mean())
    assert wrong != pytest.approx(float(rewards[index].mean()), rel=0.02)
    history.play(3)
    fresh = buffer.trees[0].get(np.arange((buffer.written - 3) % buffer.length * 3, buffer.written % buffer.length * 3))
    assert fresh.max() == buffer.highest_priority[0]
    batch = buffer.sample([generator], 1, 20_000, gamma=GAMMA, n_steps=3)
    place = batch["index"].flatten().numpy()
    row = buffer.written - 1 - (buffer.written - 1 - place // 3) % buffer.length
    assert buffer.written > buffer.length
    assert row.max() > buffer.written - 3
    wanted = buffer.transitions(row, place % 3, gamma=GAMMA, n_steps=3)
    assert torch.equal(batch["reward"].flatten(), wanted["reward"])


# Files


def state_of(buffer: ReplayBuffer) -> list[torch.Tensor]:
    batch = buffer.sample([torch.Generator().manual_seed(9)], 3, 40, gamma=GAMMA, n_steps=3)
    return [batch[k] for k in sorted(batch)]


@pytest.mark.parametrize("prioritized", [False, True])
def test_a_reopened_buffer_gives_the_same_bits(tmp_path: Path, prioritized: bool) -> None:
    """More rows after the checkpoint, up to the spare ones, and then no flush: what the checkpoint had is all there."""
    options: dict[str, Any] = {"spare_rows": 12, "folder": tmp_path / "replay", "prioritized": prioritized}
    history = filled(pause=False, **options)
    buffer = history.buffer
    before = state_of(buffer)
    buffer.flush()
    tensors, figures = buffer.state()
    history.play(12)
    assert not all(torch.equal(a, b) for a, b in zip(state_of(buffer), before, strict=True))
    again = make(40, reopen=True, **options)
    again.load_state(tensors, figures)
    assert all(torch.equal(a, b) for a, b in zip(state_of(again), before, strict=True))
    history.play(1)
    lost = make(40, reopen=True, **options)
    with pytest.raises(RunError, match="only the newest checkpoint"):
        lost.load_state(tensors, figures)
    assert [x.name for x in sorted((tmp_path / "replay").iterdir())] == [
        f"{x}.bin"
        for x in ("action", "action_mask", "check", "obs.obs", "reward", "row", "terminated", "truncated", "valid")
    ]


STORED = ("action", "action_mask", "check", "obs.obs", "reward", "terminated", "truncated", "valid")


@pytest.mark.parametrize("name", STORED)
def test_an_altered_file_is_noticed(name: str, tmp_path: Path) -> None:
    """Any bit of any row that resuming needs, in a ring that has come round, after several flushes."""
    options: dict[str, Any] = {"spare_rows": 20, "folder": tmp_path / "replay"}
    history = History(make(30, **options), (4, 6, 9))
    for steps in (11, 1, 17, 40):
        history.play(steps)
        history.buffer.flush()
        state = history.buffer.state()
        if steps != 40:
            history.restart()  # as a run does behind its checkpoints
    make(30, reopen=True, **options).load_state(*state)
    file = tmp_path / "replay" / f"{name}.bin"
    whole, buffer = file.read_bytes(), history.buffer
    per_row = len(whole) // buffer.length
    for row in (buffer.written - 30, buffer.written - 13, buffer.written - 1):
        damaged = bytearray(whole)
        damaged[(row % buffer.length) * per_row + per_row // 2] ^= 1
        file.write_bytes(damaged)
        again = make(30, reopen=True, **options)
        if name in ("truncated", "check") and row == buffer.written - 1:
            again.load_state(*state)  # the checkpoint has it: a restart changes the row
            continue
        with pytest.raises(RunError, match=r"1 of the 31 rows of replay in .*replay are not what was written"):
            again.load_state(*state)
    if name in ("obs.obs", "action_mask"):
        damaged = bytearray(whole)
        damaged[(buffer.written % buffer.length) * per_row] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(RunError, match="1 of the 31 rows"):
            make(30, reopen=True, **options).load_state(*state)


def test_restarts_and_flushes_behind_a_checkpoint_are_no_damage(tmp_path: Path) -> None:
    """A run restarts its environments behind a checkpoint, and may die after the next flush, before it is saved."""
    options: dict[str, Any] = {"spare_rows": 20, "folder": tmp_path / "replay"}
    history = History(make(30, **options), (4, 6, 9))
    for _ in range(6):
        history.play(13)
        history.buffer.flush()
        state = history.buffer.state()
        history.restart()
        make(30, reopen=True, **options).load_state(*state)
        history.buffer.arrays["truncated"][(history.buffer.written - 2) % history.buffer.length] = True
    history.play(5)
    history.buffer.flush()
    make(30, reopen=True, **options).load_state(*state)


def test_what_was_written_after_a_checkpoint_is_no_damage(tmp_path: Path) -> None:
    """A killed run has restarted its environments and played on; and runs of earlier versions have no checksums.

    A run that had them has not: what they would say is not believed without them.
    """
    options: dict[str, Any] = {"spare_rows": 20, "folder": tmp_path / "replay"}
    history = History(make(30, **options), (4, 6, 9))
    history.play(50)
    history.buffer.flush()
    state = history.buffer.state()
    for _ in range(3):
        again = make(30, reopen=True, **options)
        again.load_state(*state)
        history.buffer = again
        history.restart()
        history.play(7)
        again.flush()
    checks = tmp_path / "replay" / "check.bin"
    for lost in (checks.unlink, lambda: checks.write_bytes(bytes(checks.stat().st_size))):
        lost()
        with pytest.raises(RunError, match=r"29 of the 31 rows .* not what was written"):
            make(30, reopen=True, **options).load_state(*state)
    old = {k: v for k, v in state[1].items() if k not in ("newest", "last_truncated")}
    make(30, reopen=True, **options).load_state(state[0], old)


@pytest.mark.parametrize("name", ["row.bin", "reward.bin", "all"])
def test_a_file_that_is_gone_costs_no_other(name: str, tmp_path: Path) -> None:
    """Whoever finds it again resumes: nothing is made anew in its place."""
    options: dict[str, Any] = {"spare_rows": 20, "folder": tmp_path / "replay"}
    history = History(make(30, **options), (4, 6, 9))
    history.play(50)
    history.buffer.flush()
    state = history.buffer.state()
    gone, aside = (tmp_path / "replay", tmp_path) if name == "all" else (tmp_path / "replay" / name, tmp_path)
    gone.rename(aside / "elsewhere")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.bin")}
    with pytest.raises(RunError, match="cannot be used for replay: No such file"):
        make(30, reopen=True, **options)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.bin")} == before
    (aside / "elsewhere").rename(gone)
    make(30, reopen=True, **options).load_state(*state)


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_what_does_not_fit_is_refused_before_any_of_it_is_taken(where: str, tmp_path: Path) -> None:
    folder = tmp_path / "replay" if where == "disk" else None
    match = r"the replay buffer \(1,000,000,000,000,000 rows of 3 environments\) needs 93 PB .*; give a smaller buffer"
    with pytest.raises(UsageError, match=match):
        make(10**15, folder=folder)
    match = "and 1,000,000,000,000 between checkpoints.* or checkpoints more often"
    with pytest.raises(UsageError, match=match):
        make(10, folder=folder, spare_rows=10**12)
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_its_place_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep")
    (tmp_path / "replay").mkdir()
    for name in ("reward.bin", "row.bin"):
        (tmp_path / "replay" / name).symlink_to(victim)
    make(10, folder=tmp_path / "replay")
    assert victim.read_text() == "keep"
    (tmp_path / "replay" / "reward.bin").unlink()
    (tmp_path / "replay" / "reward.bin").symlink_to(victim)
    with pytest.raises(RunError, match="symbolic link"):
        make(10, folder=tmp_path / "replay", reopen=True)
    assert victim.read_text() == "keep"


def test_files_of_another_size_are_refused(tmp_path: Path) -> None:
    make(10, folder=tmp_path)
    with pytest.raises(RunError, match="bytes"):
        make(11, folder=tmp_path, reopen=True)


def test_a_full_disk_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """The space is taken when the buffer is made: a file-size limit stands for the disk."""
    code = (
        "import resource, sys; from pathlib import Path; sys.path[:0] = sys.argv[2:]\n"
        "from helpers import discrete, vector; from steepest.experience.replay import ReplayBuffer\n"
        "from steepest import RunError\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    ReplayBuffer(vector(3), discrete(3), rows=100_000, folder=Path(sys.argv[1]))\n"
        "except RunError as error:\n    print('refused', error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), *sys.path]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    assert out.stdout.startswith("refused"), out
    assert list(tmp_path.iterdir()) == [], "and nothing is left"


def test_boxes_and_dictionaries_are_stored(tmp_path: Path) -> None:
    spec = ObsSpec(
        (ObsField("a/b", "vector", (2,), "float32"), ObsField("c", "discrete", (), "int64", (4,), (0,))), is_dict=True
    )
    buffer = ReplayBuffer(spec, box(2), rows=4, folder=tmp_path)
    flag = torch.zeros((2, 1), dtype=torch.bool)
    obs = {"a/b": torch.arange(6.0).view(3, 1, 2), "c": torch.arange(3).view(3, 1)}
    action = torch.tensor([[[0.5, -2.0]], [[1.5, 3.0]]])
    buffer.append(
        Rollout(obs, action, flag.float(), flag, flag, ~flag, torch.zeros((3, 1), dtype=torch.int64), None, None)
    )
    found = buffer.transitions(np.array([0, 1]), np.array([0, 0]), gamma=GAMMA)
    assert torch.equal(found["action"], action[:, 0])
    for name, x in obs.items():
        assert torch.equal(found[f"obs/{name}"], x[:2, 0])
        assert torch.equal(found[f"next_obs/{name}"], x[1:, 0])
        assert found[f"obs/{name}"].dtype == x.dtype
