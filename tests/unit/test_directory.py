"""One run, one folder, one writer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steepest.errors import RunError, UsageError
from steepest.files.atomic import write_bytes_atomic
from steepest.runs.store.folder import RunDirectory, changed_since, different, environment_report, read_json

HOLD = """
import sys
from pathlib import Path
from steepest.runs.store.folder import RunDirectory
run = RunDirectory.create(Path(sys.argv[1]), "held")
run.write_json("config.json", {})
print("held", flush=True)
sys.stdin.read()
"""


def test_default_path_and_its_successors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for expected in ("ppo-ALE-Pong-v5-seed0", "ppo-ALE-Pong-v5-seed0-2", "ppo-ALE-Pong-v5-seed0-3"):
        with RunDirectory.create(None, "ppo-ALE/Pong-v5-seed0") as run:
            assert run.path == Path("runs") / expected
            run.write_json("config.json", {})
    with RunDirectory.create(None, "../..") as run:
        assert run.path == Path("runs/run")


def test_an_explicit_path_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, "x") as run:
        run.write_json("config.json", {"algorithm": "ppo"})
    with pytest.raises(UsageError, match=r"already holds a run.*--resume"):
        RunDirectory.create(tmp_path, "x")
    with RunDirectory.open(tmp_path) as run:  # the refusal released its lock
        assert run.read_json("config.json") == {"algorithm": "ppo"}


def test_the_beginnings_of_a_run_are_refused(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, "x") as run:
        write_bytes_atomic(run.checkpoints_path / "step-000000000001.safetensors", b"")
    with pytest.raises(UsageError, match="the beginnings of a run"):
        RunDirectory.create(tmp_path, "x")
    assert (run.checkpoints_path / "step-000000000001.safetensors").exists()


def test_a_folder_that_was_made_and_never_used_goes_again(tmp_path: Path) -> None:
    """What fails before it begins leaves nothing; a folder that was there before stays, and so does what is in one."""
    with RunDirectory.create(tmp_path / "new", "x"):
        assert (tmp_path / "new" / ".lock").exists()
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    for _ in range(2):
        with RunDirectory.create(tmp_path / "old", "x"):
            pass
        assert (tmp_path / "old").is_dir()
    with RunDirectory.create(tmp_path / "used", "x") as run:
        (run.path / "note").write_text("")
    assert (tmp_path / "used" / "note").exists()


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep")
    lock = tmp_path / "run" / ".lock"
    lock.parent.mkdir()
    for make in (lock.symlink_to, lock.hardlink_to):
        make(victim)
        with pytest.raises(UsageError, match=r"cannot write in .*run: \.lock: it .* link"):
            RunDirectory.create(lock.parent, "x")
        lock.unlink()
    assert victim.read_text() == "keep"


def test_where_two_descriptions_differ() -> None:
    one = {"config": {"gamma": 0.9, "sizes": [8, 8]}, "run": {"seed": 0, "total_steps": 5}, "env": "A"}
    assert different(one, {**one, "run": {"seed": 0, "total_steps": 9}}) == []
    other = {"config": {"gamma": 0.8, "sizes": [8], "new": 1}, "run": None, "env": "A"}
    assert different(one, other) == [
        "config.gamma was 0.9, is 0.8",
        "config.sizes was [8, 8], is [8]",
        "config.new was null, is 1",
        'run was {"seed": 0, "total_steps": 5}, is null',
    ]


def test_paths_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        RunDirectory.create(tmp_path / "file", "x")
    with pytest.raises(UsageError, match="cannot be made"):
        RunDirectory.create(tmp_path / "file" / "below", "x")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        RunDirectory.create(None, "x")
    with pytest.raises(UsageError, match=r"no run at .*does not exist"):
        RunDirectory.open(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no run at .*no config\.json"):
        RunDirectory.open(tmp_path / "empty")


def test_another_process_holds_the_lock(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=rf"in use by another process \(pid {process.pid} on "):
            RunDirectory.open(tmp_path)
        with pytest.raises(UsageError, match="in use"):
            RunDirectory.create(tmp_path, "x")
        assert RunDirectory.open(tmp_path, lock=False).read_json("config.json") == {}
        process.kill()
    RunDirectory.open(tmp_path).close()  # a killed process holds nothing


def test_forked_workers_do_not_keep_the_lock(tmp_path: Path) -> None:
    script = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from steepest.runs.store.folder import RunDirectory\n"
        "run = RunDirectory.create(Path(sys.argv[1]), 'x')\n"
        "run.write_json('config.json', {})\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    print(os.getpid(), flush=True)\n"
        "    sys.stdin.read()\n"  # outlives its parent
        "    os._exit(0)\n"
        "os._exit(0)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.wait()
        os.kill(child, 0)  # still there
        RunDirectory.open(tmp_path).close()


def test_json_is_strict_and_written_whole(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, "x") as run:
        path = run.write_json(
            "summary.json", {"mean": float("nan"), "best": float("inf"), "sizes": (64, 64), "é": None}
        )
        assert "NaN" not in path.read_text(encoding="utf-8")
        assert run.read_json("summary.json") == {"mean": None, "best": None, "sizes": [64, 64], "é": None}
        with pytest.raises(TypeError):
            run.write_json("summary.json", {"mean": object()})
        assert run.read_json("summary.json")["sizes"] == [64, 64]
        with pytest.raises(RunError, match="is missing"):
            run.read_json("config.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(RunError, match="object was expected"):
        read_json(tmp_path / "list.json")
    (tmp_path / "torn.json").write_text('{"a": ')
    with pytest.raises(RunError, match="cannot be read as JSON"):
        read_json(tmp_path / "torn.json")


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_environment_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = environment_report()
    assert report["packages"]["torch"].startswith("2.")
    assert {"numpy", "gymnasium"} <= report["packages"].keys()
    assert report["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["cpu_count"] >= 1
    assert report["git"] is None

    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "one")
    state = environment_report()["git"]
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert environment_report()["git"] == {"commit": state["commit"], "dirty": True}

    monkeypatch.setenv("PATH", "")  # no git at all
    assert environment_report()["git"] is None


def test_environment_report_is_fast() -> None:
    environment_report()
    times: list[float] = []
    for _ in range(5):
        start = time.perf_counter()
        environment_report()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05


def test_what_changed_since_a_report() -> None:
    import torch

    now = environment_report()
    assert changed_since(now, now) == []
    version = now["packages"]["torch"]
    assert version == torch.__version__
    then = {**now, "cpu": "Abacus 1", "cpu_count": 3, "packages": {**now["packages"], "torch": "1.0"}}
    assert changed_since(then, now) == [f"torch was 1.0, is {version}", f"CPU was Abacus 1, is {now['cpu']}"]
    unused = {**now["packages"], "envpool": "0.0.1"}
    if "envpool" not in sys.modules:
        assert changed_since({**now, "packages": unused}, now) == []
    assert changed_since({**now, "gpu": "A"}, {**now, "gpu": None}) == []
    assert changed_since({**now, "gpu": "A"}, {**now, "gpu": "B"}) == ["GPU was A, is B"]
