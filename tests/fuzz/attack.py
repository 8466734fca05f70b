"""Try to break the command: ``make fuzz`` for an hour, or

    python tests/fuzz/attack.py --seconds 600                         every kind in turn
    python tests/fuzz/attack.py --kinds kills --cases 300 --seconds 7200
    python tests/fuzz/attack.py --kinds config --first 1234 --cases 1   one case again, by its number

Every case is drawn from its number alone. A case fails if the command ends as it never may (``harness``), leaves
temporary files, or goes on to other bits than those of what was not spoiled. Exit code 1 if any failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "integration")]

from fuzz.kinds import KINDS, Stock, Tried  # noqa: E402


def attempt(kind: str, number: int, stock: Stock, folder: Path) -> Tried:
    """Run one case in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        return KINDS[kind](random.Random(f"{kind} {number}"), stock, folder)
    except AssertionError as error:  # what the case begins from could not be made
        return Tried("before the case", [str(error)], 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--cases", type=int, help="at most so many of every kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--verbose", action="store_true", help="say what every case was")
    parser.add_argument("--json", type=Path, help="write the summary here")
    args = parser.parse_args()
    began = time.monotonic()
    tried: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    failed: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        stock = Stock(Path(temporary) / "stock")
        stock.folder.mkdir()
        for number, kind in ((n, k) for n in itertools.count(args.first) for k in args.kinds):
            if time.monotonic() - began > args.seconds or number - args.first == args.cases:
                break
            found = attempt(kind, number, stock, Path(temporary) / "case")
            tried[kind] += 1
            codes[f"{kind}: {found.code}"] += 1
            if found.faults:
                failed.append({"kind": kind, "number": number, **found._asdict()})
                print(f"FAILED {kind} {number}: {found.what}\n       {'; '.join(found.faults)[:2000]}", flush=True)
            elif args.verbose:
                print(f"{kind} {number}: {found.what} -> {found.code}", flush=True)
    total = sum(tried.values())
    print(f"{total} cases in {time.monotonic() - began:.0f} s, {len(failed)} failed: {dict(tried)}")
    print(f"exit codes: {dict(sorted(codes.items()))}")
    if args.json:
        args.json.write_text(json.dumps({"tried": tried, "codes": codes, "failed": failed}, indent=1) + "\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
