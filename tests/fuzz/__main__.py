"""Tries mutated inputs, which may only raise a ValueError or OSError of one short line, without hanging or filling
memory.

python -m tests.fuzz                                      # 200 of each kind
python -m tests.fuzz --kind media --count 2000 --seed 7   # a line a fault, exit code 1 where there is one
python -m tests.fuzz --kind media --seed 7 --case 123     # one of them again, with its traceback
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter

from .cases import KINDS, Bounds, Outcome


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", action="append", choices=KINDS, help="of input; repeatable (all)")
    parser.add_argument("--count", type=int, default=200, help="cases of each kind (200)")
    parser.add_argument("--seed", default="0", help="of the cases (0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (0)")
    parser.add_argument("--case", type=int, action="append", help="try this number alone; repeatable")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop a kind after this time")
    parser.add_argument("--bound-seconds", type=float, default=Bounds.seconds, help="that a case may take (20)")
    parser.add_argument("--show", action="store_true", help="say what becomes of every case")
    given = parser.parse_args()
    numbers = given.case or list(range(given.first, given.first + given.count))
    faults = 0
    for kind in given.kind or KINDS:
        faults += _try(kind, numbers, given)
    return 1 if faults else 0


def _try(kind: str, numbers: list[int], given: argparse.Namespace) -> int:
    from .harness import try_all

    outcomes: list[Outcome] = []
    places: Counter[str] = Counter()
    began, bounds = time.monotonic(), Bounds(seconds=given.bound_seconds)
    with tempfile.TemporaryDirectory(prefix="omni_jax_fuzz_") as folder:
        cases = [(kind, number) for number in numbers]
        for outcome in try_all(cases, seed=given.seed, bounds=bounds, seconds=given.seconds, folder=folder):
            outcomes.append(outcome)
            if outcome.fault:
                places[f"{outcome.fault[:60]} at {outcome.place}"] += 1
                said = " ".join(outcome.fault.split())[:300]
                again = f"--kind {kind} --seed {given.seed} --case {outcome.number}"
                what = " ".join(outcome.what.split())[:300]
                print(f"{kind} {outcome.number}: {said} | at {outcome.place} | {what} | again: {again}", flush=True)
                if given.case:
                    _show_log(folder)
            elif given.show:
                how = "refused" if outcome.refused else "answered"
                print(f"{kind} {outcome.number}: {how}, {outcome.seconds:.2f} s | {outcome.what[:300]}", flush=True)
    for place, count in places.most_common():
        print(f"    {count} x {' '.join(place.split())}")
    refused = sum(outcome.refused for outcome in outcomes)
    longest = max((outcome.seconds for outcome in outcomes), default=0)
    most = max((outcome.growth for outcome in outcomes), default=0)
    print(
        f"{kind}, seed {given.seed}: {len(outcomes):,} cases, {refused:,} refused, {sum(places.values()):,} faults; "
        f"{time.monotonic() - began:,.0f} s, the longest case {longest:.1f} s, the largest {most / 1e6:,.0f} MB",
        flush=True,
    )
    return sum(places.values())


def _show_log(folder: str) -> None:
    for name in os.listdir(folder):
        if name.endswith(".log"):
            with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
                shutil.copyfileobj(file, sys.stdout)


if __name__ == "__main__":
    programs = tempfile.TemporaryDirectory(prefix="omni_jax_programs_")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", programs.name)  # for a worker that is restarted
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
    sys.exit(main())
