"""Speeds beside those of a peer, from the same run on the same machine: `workbench bench [NAME …] [--json]`.

Benchmarks live in the repository, in `tests/benchmarks/bench_*.py`. One is a function and its declaration:

    from workbench.bench import Figures, Sides, benchmark

    @benchmark("seek-10000", what="seek to any of the last 10,000 steps, 95th percentile", peer="150 steps", most=1.0)
    def seek(quick):
        …
        return Sides(ours=seek_once, peer=step_150_times)

`least=1.5` says that ours is to be at least 1.5 times as good as the peer, `most=1.25` that ours may cost at most 1.25
times as much. The function gets `quick`, true when a test only wants to know that it runs (then it should take a second
or two), prepares whatever is needed, and returns either

- `Sides(ours, peer)`: two functions that do the same job once. They are timed here: called in turn, many times; what
  counts is the fastest call of each, which other work on the machine disturbs least. The ratio of the medians of all
  calls is printed too. Let them return what they made: giving memory back is not timed. Or
- `Figures(ours, peer, unit)`: two numbers that it measured itself, such as frames a second or a percentile.

Every benchmark runs in its own process, with two threads and, where the system allows, on two processors, so that
neither thread pools nor memory of one disturb the next. `env` in the declaration sets environment variables for it.
A missing package is reported in `note`, with no figures.
"""

import argparse
import dataclasses
import fnmatch
import gc
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.printing import print_table
from workbench.routine import unknown

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "benchmarks"
THREADS = 2
SECONDS, CALLS = 8.0, 41
"""Both sides are called in turn until this much time is spent or so many calls are made, at least nine times."""

TIMES = {"s": 1.0, "ms": 1e3, "µs": 1e6}
COSTS = (*TIMES, "GB")
"""Units of what is better when it is less."""


@dataclasses.dataclass(frozen=True)
class Sides:
    """Two functions that do the same job, to be timed.

    Args:
        ours, peer: called without arguments.
        unit: "s", "ms" or "µs"; anything else is jobs a second, such as "trajectories/s".
        jobs: how many jobs one call of ours and one call of the peer's do.
        limit: the fastest way known, timed too and reported beside them.
        note: anything to add.
    """

    ours: Callable[[], Any]
    peer: Callable[[], Any]
    unit: str = "ms"
    jobs: tuple[int, int] = (1, 1)
    limit: Callable[[], Any] | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Figures:
    """Two numbers that were measured. Of the units in `COSTS` less is better, of others more."""

    ours: float
    peer: float
    unit: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One row. `least` or `most` is its bar (see the top of this file); `target` is what is aimed at, in words."""

    name: str
    what: str
    peer: str
    function: Callable[[bool], Sides | Figures]
    least: float | None = None
    most: float | None = None
    target: str = ""
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def bar(self) -> float:
        """The number that the ratio is held against."""
        return self.least if self.least is not None else self.most  # type: ignore[return-value]

    def row(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """One line of the report, from `ours`, `peer`, `unit` and whatever else was measured."""
        ratio = self.ratio(found["ours"], found["peer"], found["unit"])
        holds = None if ratio is None else ratio >= self.bar if self.least is not None else ratio <= self.bar
        head = {"name": self.name, "ours": found["ours"], "peer": found["peer"], "ratio": ratio}
        rest = {"bar": self.bar, "at": "least" if self.least is not None else "most", "holds": holds}
        more = {key: value for key, value in found.items() if key not in ("ours", "peer", "medians")}
        if "medians" in found:
            ours, peer = found["medians"]
            more["ratio_of_medians"] = self.ratio(ours, peer, found["unit"])
        words = {"target": self.target, "what": self.what, "against": self.peer}
        return {key: _short(value) for key, value in {**head, **rest, **more, **words}.items()}

    def ratio(self, ours: float | None, peer: float | None, unit: str) -> float | None:
        """How many times better ours is, or, where the bar is `most`, how many times as much it costs."""
        if ours is None or peer is None:
            return None
        better = peer / ours if unit in COSTS else ours / peer
        return better if self.least is not None else 1 / better


def benchmark(
    name: str,
    *,
    what: str,
    peer: str,
    least: float | None = None,
    most: float | None = None,
    target: str = "",
    env: Mapping[str, str] | None = None,
) -> Callable[[Callable[[bool], Sides | Figures]], Callable[[bool], Sides | Figures]]:
    """Declare a benchmark; arguments as for `Benchmark`.

    Raises:
        ValueError: when it does not have exactly one bar, or its name is taken.
    """
    if (least is None) == (most is None):
        raise ValueError(f"expected one of least and most for {name!r}, got least={least}, most={most}")
    if name in _DECLARED:
        raise ValueError(f"expected a name of its own, got {name!r} twice")

    def declare(function: Callable[[bool], Sides | Figures]) -> Callable[[bool], Sides | Figures]:
        _DECLARED[name] = Benchmark(name, what, peer, function, least, most, target, env or {})
        return function

    return declare


_DECLARED: dict[str, Benchmark] = {}


def benchmarks() -> dict[str, Benchmark]:
    """Every benchmark of the repository, by name, in the order of files and lines.

    Raises:
        ValueError: when there is no repository around this installation.
    """
    files = sorted(FOLDER.glob("bench_*.py"))
    if not files:
        raise ValueError(f"the benchmarks live in the repository, not in the installed package: none in {FOLDER}")
    for file in files:
        name = f"workbench_{file.stem}"
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, file)
            sys.modules[name] = module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
            spec.loader.exec_module(module)  # type: ignore[union-attr]
    return _DECLARED


# ------------------------------------------------------------------------------------------------- measuring


def alternate(ours: Callable[[], Any], peer: Callable[[], Any], seconds: float, calls: int) -> tuple[list, list]:
    """Seconds that each call took, in turn; who goes first changes every time. The first call of each warms up."""
    sides, spent = (ours, peer), ([], [])  # type: tuple[Any, tuple[list[float], list[float]]]
    stop = math.inf
    gc.collect()
    gc.disable()
    try:
        while len(spent[0]) < 1 + min(calls, 9) or (len(spent[0]) <= calls and time.perf_counter() < stop):
            for side in (0, 1) if len(spent[0]) % 2 else (1, 0):
                start = time.perf_counter()
                made = sides[side]()
                spent[side].append(time.perf_counter() - start)
                del made
            stop = min(stop, time.perf_counter() + seconds)
    finally:
        gc.enable()
    return spent[0][1:], spent[1][1:]


def measure(sides: Sides, quick: bool) -> dict[str, Any]:
    """What `Sides` come to: the fastest call of each, and the medians of all."""
    seconds, calls = (0.0, 2) if quick else (SECONDS, CALLS)
    ours, peer = alternate(sides.ours, sides.peer, seconds, calls)
    found = {"ours": _figure(sides, min(ours), 0), "peer": _figure(sides, min(peer), 1), "unit": sides.unit}
    medians = (_figure(sides, statistics.median(ours), 0), _figure(sides, statistics.median(peer), 1))
    found |= {"medians": medians, "calls": len(ours)}
    if sides.limit is not None:
        limit, _ = alternate(sides.limit, lambda: None, seconds / 2, calls)
        found["limit"] = _figure(sides, min(limit), 0)
    return found | {"note": sides.note}


def _figure(sides: Sides, seconds: float, side: int) -> float:
    return seconds * TIMES[sides.unit] if sides.unit in TIMES else sides.jobs[side] / seconds


def run(one: Benchmark, quick: bool) -> dict[str, Any]:
    """The row of one benchmark, measured in this process."""
    try:
        found = one.function(quick)
    except ModuleNotFoundError as error:
        note = f"{error.name} is not installed: pip install 'gradient-workbench[app,peers]'"
        return one.row({"ours": None, "peer": None, "unit": "", "note": note})
    return one.row(measure(found, quick) if isinstance(found, Sides) else dataclasses.asdict(found))


def settle() -> None:
    """Two threads for this process, on two processors where the system lets it choose."""
    import torch

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    torch.set_num_threads(THREADS)


def run_apart(one: Benchmark, quick: bool) -> dict[str, Any]:
    """The row of one benchmark, measured in a process of its own.

    Raises:
        OSError: when that process fails; what it said stands on standard error.
    """
    threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    env = {**os.environ, **threads, **one.env, "PYTHONPATH": os.pathsep.join([str(FOLDER.parent.parent), *sys.path])}
    line = [sys.executable, "-m", "workbench.bench", one.name, "--here", *(["--quick"] if quick else [])]
    done = subprocess.run(line, env=env, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise OSError(f"the benchmark {one.name} failed")
    return json.loads(done.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------------------------- reporting


def main(argv: Sequence[str] | None = None) -> int:
    """Run benchmarks and print a row for each; returns 0, or 1 when one of them failed.

    Raises:
        ValueError: on a name that no benchmark has, or when there are none here.
    """
    parser = argparse.ArgumentParser(
        prog="workbench bench",
        description="Print each speed beside its peer's, measured in the same run.",
        epilog="Times are those of the fastest of many alternating calls; 'limit' is a loop written by hand.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these; * stands for anything (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--list", action="store_true", help="print what there is, and run nothing")
    parser.add_argument("--quick", action="store_true", help="small sizes and few calls: shows that it runs, no more")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    chosen, failed = _chosen(args.names), False
    if args.here:
        settle()
        print(json.dumps(run(chosen[0], args.quick)), flush=True)
        return 0
    if args.list:
        print_table(("name", "bar", "what", "against"), [(b.name, _bar(b), b.what, b.peer) for b in chosen])
        return 0
    rows = []
    for one in chosen:
        try:
            rows.append(run_apart(one, args.quick))
        except OSError as error:
            print(f"workbench: {error}", file=sys.stderr)
            failed = True
            continue
        if args.json:
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    if not args.json:
        _print(rows)
    return int(failed)


def _chosen(names: Sequence[str]) -> list[Benchmark]:
    known = benchmarks()
    for name in names:
        if not fnmatch.filter(known, name):
            raise unknown("a benchmark", name, known)
    return [one for name, one in known.items() if not names or any(fnmatch.fnmatch(name, given) for given in names)]


def _bar(one: Benchmark) -> str:
    return f"≥ {one.least:g}" if one.least is not None else f"≤ {one.most:g}"


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    head = ("name", "ours", "peer", "limit", "unit", "ratio", "medians", "bar", "holds", "target", "against")
    lines = []
    for row in rows:
        bar = f"{'≥' if row['at'] == 'least' else '≤'} {row['bar']:g}"
        holds = {True: "yes", False: "NO", None: "-"}[row["holds"]]
        figures = [_cell(row.get(name)) for name in ("ours", "peer", "limit", "unit", "ratio", "ratio_of_medians")]
        lines.append((row["name"], *figures, bar, holds, _cell(row["target"]), row["against"]))
    print_table(head, lines)
    for row in rows:
        if row.get("note"):
            print(f"{row['name']}: {row['note']}")


def _cell(value: Any) -> Any:
    return "-" if value is None or value == "" else value


def _short(value: Any) -> Any:
    """Numbers in four digits."""
    return float(f"{value:.4g}") if isinstance(value, float) and math.isfinite(value) else value


if __name__ == "__main__":
    from workbench.bench import main as run_main  # the module that benchmark files import, not this one by another name

    sys.exit(run_main())
