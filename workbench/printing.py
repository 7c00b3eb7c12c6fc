"""What the command line prints about a record: aligned tables for people, JSON for programs."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np


def print_json(value: Any) -> None:
    """The value as JSON; numbers that are not finite are null."""
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    """The value as JSON has it; a number that is not finite is null."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Aligned columns: numbers to the right, words to the left."""
    cells = [[_text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    right = [bool(rows) and all(isinstance(row[j], int | float) for row in rows) for j in range(len(head))]
    for line in (head, *cells):
        parts = [part.rjust(w) if r else part.ljust(w) for part, w, r in zip(line, widths, right, strict=True)]
        print("  ".join(parts).rstrip())


def _text(cell: Any) -> str:
    """A number in five digits; "-" where nothing was measured."""
    if isinstance(cell, float):
        return "-" if np.isnan(cell) else f"{cell:.5g}"
    return str(cell)


def _summary(record: Any, seconds: float) -> dict[str, Any]:
    attrs = record.attrs
    same = {name: attrs[name] for name in ("problem", "method", "recipe", "steps", "mode", "device", "dtype")}
    return {**same, "seed": record.wb.attr("seed"), "hyper": record.wb.attr("hyper"), "seconds": seconds}


def _at(record: Any, run: int, step: int) -> dict[str, Any]:
    """Every variable of one run at one recorded step."""
    return {str(name): array.values[run, step] for name, array in record.data_vars.items() if "step" in array.dims}


def _statuses(record: Any) -> list[str]:
    """Each run's status in words; a run whose last loss is not finite is not called ok."""
    finite = np.isfinite(record["loss"].values[:, -1])
    return [
        said if said != "ok" or good else "loss is not finite"
        for said, good in zip(record.wb.status, finite, strict=True)
    ]


def report(args: argparse.Namespace, record: Any, seconds: float) -> None:
    """How the runs of `run` and `train` went."""
    from workbench.figures.runs import hyper_names, run_labels

    swept, statuses = hyper_names(record), _statuses(record)
    if args.json:
        runs = [
            {"run": run, "status": statuses[run], **{name: record[name].values[run] for name in swept}}
            | {"first": _at(record, run, 0), "last": _at(record, run, -1)}
            for run in range(record.sizes["run"])
        ]
        print_json({**_summary(record, seconds), "runs": runs, "saved": args.save})
        return
    _print_head(args, record, seconds)
    names = [str(name) for name, array in record.data_vars.items() if array.dims == ("run", "step")]
    if record.sizes["run"] == 1:
        shown = np.unique(np.linspace(0, record.sizes["step"] - 1, 11).astype(int))
        steps = record["step"].values
        print_table(("step", *names), [(int(steps[k]), *(float(record[n].values[0, k]) for n in names)) for k in shown])
        print(f"status: {statuses[0]}")
        return
    last = [[float(record[name].values[run, -1]) for name in names] for run in range(record.sizes["run"])]
    rows = [(label, *last[run], statuses[run]) for run, label in enumerate(run_labels(record))]
    print_table(("run", *(f"last {name}" for name in names), "status"), rows)


def _print_head(args: argparse.Namespace, record: Any, seconds: float) -> None:
    from workbench.figures.runs import what_ran

    said = _summary(record, seconds)
    runs = "1 run" if record.sizes["run"] == 1 else f"{record.sizes['run']:,} runs"
    how = "{steps} steps, {runs}, seed {seed}, {dtype}, {mode}, {seconds:.2f} s".format(**said, runs=runs)
    print(f"{what_ran(record)}: {how}")
    if args.save:
        print(f"saved to {args.save}")
    if args.plot:
        print(f"figure in {args.plot}")


def report_sweep(args: argparse.Namespace, record: Any, seconds: float, names: list[str]) -> None:
    """How the runs of `sweep` went: the best, how many diverged, a table."""
    last = record["loss"].values[:, -1]
    statuses = _statuses(record)
    sound = np.array([status == "ok" for status in statuses])
    order = np.argsort(np.where(sound, last, np.inf), kind="stable")
    columns = [record[name].values for name in names]
    rows = [(*(float(column[run]) for column in columns), float(last[run]), statuses[run]) for run in range(len(last))]
    head = (*names, "loss", "status")
    best = dict(zip(head, rows[order[0]], strict=True)) if sound.any() else None
    lost = int((~sound).sum())
    if args.json:
        listed = [dict(zip(head, row, strict=True)) for row in rows]
        print_json({**_summary(record, seconds), "best": best, "diverged": lost, "runs": listed, "saved": args.save})
        return
    _print_head(args, record, seconds)
    said = ", ".join(f"{name} = {best[name]:.5g}" for name in names) if best else "none, every run diverged"
    print(f"best: {said}" + (f", loss {best['loss']:.5g}" if best else ""))
    print(f"diverged: {lost} of {len(rows)}")
    few = len(rows) <= 40
    print("all runs:" if few else "the ten best:")
    print_table(head, rows if few else [rows[run] for run in order[:10]])
