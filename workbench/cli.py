"""The command line: `workbench list | run | train | flow | sweep | bench | serve`.

Every command that reports takes `--json`. What a person got wrong is one sentence on standard error and exit code 2.
"""

import argparse
import importlib
import importlib.metadata
import os
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from workbench.printing import print_json, print_table, report, report_sweep

GROUP = "workbench.commands"
DISTRIBUTION = "gradient-workbench"
MAX_RUNS = 1_000_000
EXAMPLES = """examples:
  workbench list optimizers                        what exists, with its hyperparameters
  workbench run rosenbrock adam --steps 500 --hyper lr=0.1
  workbench run "x**2 + 3*y**2" sgd --hyper lr=0.01,0.1,0.4 --start -1,1
  workbench train mlp digits adam --batch-size 64 --hyper width=64
  workbench flow two-moons --coupling minibatch-ot --steps 2000 --save moons.safetensors
  workbench sweep rosenbrock momentum lr=1e-4:1:log:32 momentum=0:0.99:linear:16 --steps 500
  workbench serve                                  the apps, in a browser
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are errors like any other: one sentence."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}. See {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, or 2 when something was asked for that cannot be."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(given)
    except SystemExit as done:  # --help, --version
        return done.code if isinstance(done.code, int) else 0 if done.code is None else 2
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"workbench: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _dispatch(given: list[str]) -> int:
    others = _commands()
    if given and given[0] == "bench":
        return _bench(given[1:])
    if given and given[0] in others:
        return _other(given[0], others[given[0]], given[1:])
    parser = _parser(others)
    if not given:
        parser.print_help()
        return 0
    args = parser.parse_args(_joined(given))
    return args.command(args)


def _joined(given: list[str]) -> list[str]:
    """`--start -1,2` as `--start=-1,2`, which argparse would otherwise take for an option."""
    joined: list[str] = []
    for word in given:
        if joined and joined[-1] == "--start":
            joined[-1] = f"--start={word}"
        else:
            joined.append(word)
    return joined


# ------------------------------------------------------------------------------------------------ the parser


def _parser(others: dict[str, str]) -> argparse.ArgumentParser:
    import workbench

    raw = argparse.RawDescriptionHelpFormatter
    about = "Watch, steer and rewind anything that gradients move."
    parser = _Parser(prog="workbench", description=about, epilog=EXAMPLES, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"workbench {workbench.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], int], words: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=words, description=words, formatter_class=raw)
        made.set_defaults(command=command)
        made.add_argument("--json", action="store_true", help="print JSON instead of text")
        return made

    listing = add("list", _list, "Print what exists: problems and methods.")
    listing.add_argument("family", nargs="?", metavar="FAMILY", help="only this family, such as optimizers")
    run = add("run", _run, "Descend a surface and print how it went.")
    _surface(run)
    run.add_argument("--every", type=int, default=1, metavar="N", help="record one step in so many (default 1)")
    train = add("train", _train, "Train a model on data and print how it went.")
    train.add_argument("model", metavar="MODEL", help="a model's name, such as mlp")
    train.add_argument("data", metavar="DATA", help="a data set's name, such as digits")
    train.add_argument("optimizer", metavar="OPTIMIZER", help="an optimizer's name, such as adam")
    train.add_argument("--loss", help="cross_entropy or mse (default: what suits the data)")
    train.add_argument("--batch-size", type=int, metavar="N", help="samples a step (default 128)")
    train.add_argument("--every", type=int, metavar="N", help="measure one step in so many (default: ten in all)")
    _common(train)
    flow = add("flow", _flow, "Train a flow from the unit normal to a density, and keep its field.")
    flow.add_argument("target", metavar="DENSITY", help="a density's name, such as eight-gaussians")
    for name, usual in (("objective", "flow-matching"), ("coupling", "independent"), ("interpolant", "linear-path")):
        flow.add_argument(f"--{name}", default=usual, metavar="NAME", help=f"of the catalogue (default {usual})")
    flow.add_argument("--optimizer", default="adam", metavar="NAME", help="of the catalogue (default adam)")
    flow.add_argument("--batch-size", type=int, default=256, metavar="N", help="pairs a step (default 256)")
    flow.add_argument("--settle", action="store_true", help="divide lr by five for the last third of the steps")
    _common(flow, plot=False)
    sweep = add("sweep", _sweep, "Descend once for each value of one or two hyperparameters, all at once.")
    _surface(sweep)
    words = "NAME=LOW:HIGH:SCALE:COUNT with SCALE linear, log or integer; one or two of them"
    sweep.add_argument("ranges", nargs="+", metavar="RANGE", help=words)
    commands.add_parser("bench", help="Print each speed beside its peer's.", add_help=False)
    for name, where in others.items():
        words = "Serve the apps in a browser." if name == "serve" else f"From {where.partition(':')[0]}."
        commands.add_parser(name, help=words, add_help=False)
    return parser


def _surface(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("objective", metavar="OBJECTIVE", help='a surface\'s name, or a formula such as "x**2 + y**4"')
    parser.add_argument("optimizer", metavar="OPTIMIZER", help="an optimizer's name, such as adam")
    parser.add_argument(
        "--start", type=_numbers, metavar="X,Y", help="where to begin (default: the surface's own start)"
    )
    parser.add_argument("--compile", action="store_true", help="run compiled code; needs a C++ compiler")
    _common(parser)


def _common(parser: argparse.ArgumentParser, *, plot: bool = True) -> None:
    words = "a hyperparameter or a setting; NAME=A,B,C runs once for each value, all at once"
    parser.add_argument("--steps", type=int, default=500, metavar="N", help="how many (default 500)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    parser.add_argument("--hyper", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help=words)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="default float32")
    parser.add_argument("--device", type=_device, default="cpu", help="such as cuda (default cpu)")
    if not plot:
        parser.add_argument("--save", metavar="FILE.safetensors", help="keep the field (wb.load_field reads it)")
        return
    parser.add_argument("--save", metavar="PATH", help="keep the record in this folder (wb.open reads it)")
    parser.add_argument("--plot", metavar="FILE.html", help="write the figure as one HTML file")


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, got {text!r}") from None


def _device(text: str) -> str:
    import torch

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError):
        raise argparse.ArgumentTypeError(f"expected a device of this machine, got {text!r}") from None
    return text


# ------------------------------------------------------------------------------------------------ commands


def _list(args: argparse.Namespace) -> int:
    from workbench.catalogue import catalogue

    rows = sorted(catalogue(args.family), key=lambda row: (row.family, row.name))
    if args.json:
        print_json([row.describe() for row in rows])
        return 0
    cells = [(row.name, row.family, row.title, ", ".join(hyper["name"] for hyper in row.hyper)) for row in rows]
    print_table(("name", "family", "what it is", "hyperparameters"), cells)
    return 0


def _run(args: argparse.Namespace) -> int:
    routine, hyper = _descent(args)
    record, seconds = _rolled(args, routine, hyper, every=args.every)
    report(args, record, seconds)
    return 0


def _train(args: argparse.Namespace) -> int:
    import torch

    import workbench as wb
    from workbench.catalogue import find, find_optimizer

    given = _hypers(args.hyper)
    model: Any
    data: Any
    model, data = find("models", "a model", args.model).make, find("datasets", "a data set", args.data).make
    (sizes, known), (parts, more) = _settings(model, given), _settings(data, given)
    samples = data(**parts).load()
    loss = args.loss or ("cross_entropy" if samples.classes else "mse")
    options = {} if args.batch_size is None else {"batch_size": args.batch_size}
    dtype = getattr(torch, args.dtype)
    method = find_optimizer(args.optimizer)
    routine = wb.training(model(**sizes), loss, samples, method, dtype=dtype, device=args.device, **options)
    _check_names(given, {*routine.hypers, *known, *more})
    every = args.every or max(1, args.steps // 10)
    record, seconds = _rolled(args, routine, given, every=every, probes=("train", "heldout"))
    report(args, record, seconds)
    return 0


def _flow(args: argparse.Namespace) -> int:
    import torch

    import workbench as wb
    from workbench.catalogue import find

    given = {"width": 128, "depth": 3, "activation": "silu", **_hypers(args.hyper)}
    sizes, known = _settings(find("models", "a model", "mlp").make, given)
    network = wb.make("mlp", **{name: int(v) if isinstance(v, float) else v for name, v in sizes.items()})
    parts = {name: getattr(args, name) for name in ("coupling", "interpolant", "optimizer", "batch_size", "device")}
    dtype = getattr(torch, args.dtype)
    routine = wb.flow_training(None, args.target, args.objective, network=network, dtype=dtype, **parts)
    _check_names(given, {*routine.hypers, *known})
    began = time.perf_counter()
    session = wb.Session(routine, seed=args.seed, hyper=given)
    late = args.steps // 3 if args.settle else 0
    session.step(args.steps - late)
    if late:
        session.set(lr=session.hyper["lr"] / 5).step(late)
    seconds = time.perf_counter() - began
    if args.save:
        wb.save_field(routine.field(session.state), args.save)
    _, arrays = session.trace()
    loss = float(np.mean(arrays["loss"][-100:])) if arrays else float("nan")
    row = {"target": args.target, "objective": args.objective, "steps": session.index, "status": session.status[0]}
    row |= {"loss": loss, "seconds": round(seconds, 2), "field": args.save or ""}
    print_json(row) if args.json else print_table(tuple(row), [tuple(row.values())])
    return 0


def _sweep(args: argparse.Namespace) -> int:
    routine, hyper = _descent(args)
    if len(args.ranges) > 2:
        raise ValueError(f"expected one or two ranges, got {len(args.ranges)}: {' '.join(args.ranges)}")
    axes = dict(_range(text, routine) for text in args.ranges)
    if len(axes) < len(args.ranges) or axes.keys() & hyper.keys():
        raise ValueError(f"expected each hyperparameter once, got {', '.join([*axes, *hyper])}")
    runs = int(np.prod([len(values) for values in axes.values()]))
    if runs > MAX_RUNS:
        raise ValueError(f"expected at most {MAX_RUNS:,} runs, got {runs:,}")
    grid = np.meshgrid(*axes.values(), indexing="ij")
    swept = {name: values.ravel() for name, values in zip(axes, grid, strict=True)}
    record, seconds = _rolled(args, routine, {**hyper, **swept}, every=max(1, args.steps), figure="sweep")
    report_sweep(args, record, seconds, list(axes))
    return 0


def _bench(argv: list[str]) -> int:
    try:
        bench = importlib.import_module("workbench.bench")
    except ModuleNotFoundError as error:
        if error.name != "workbench.bench":
            raise ValueError(f"bench needs {error.name}; pip install '{DISTRIBUTION}[app,peers]'") from error
        raise ValueError("the benchmarks are not part of this installation") from error
    return int(bench.main(argv) or 0)


def _commands() -> dict[str, str]:
    """Commands of other packages by name, as "module:function": installed entry points, or those of this checkout."""
    found = {point.name: point.value for point in importlib.metadata.entry_points(group=GROUP)}
    project = Path(__file__).parents[1] / "pyproject.toml"
    if found or not project.is_file():
        return found
    table = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {})
    return dict(table.get("entry-points", {}).get(GROUP, {})) if table.get("name") == DISTRIBUTION else {}


def _other(name: str, where: str, argv: list[str]) -> int:
    module, _, function = where.partition(":")
    try:
        return int(getattr(importlib.import_module(module), function)(argv) or 0)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "workbench":
            raise
        raise ValueError(f"{name} needs {error.name}, which is not here: pip install '{DISTRIBUTION}[app]'") from error


# ------------------------------------------------------------------------------------------------ what was asked for


def _hypers(texts: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE, …: numbers as floats, with commas as arrays, anything else as the word it is."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise ValueError(f"expected --hyper NAME=VALUE, got {text!r}")
        if name in found:
            raise ValueError(f"expected {name} once, got it twice")
        try:
            numbers = [float(part) for part in value.split(",")]
        except ValueError:
            found[name] = {"true": True, "false": False}.get(value.lower(), value)
        else:
            found[name] = numbers if "," in value else numbers[0]
    return found


def _settings(declared: Any, given: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """What is fixed when a thing is made, taken out of what was given; and the names there are."""
    names = {name for name, hyper in declared.hypers.items() if hyper.kind == "init"}
    return {name: given.pop(name) for name in names & given.keys()}, names


def _check_names(given: dict[str, Any], known: set[str]) -> None:
    from workbench.routine import unknown

    for name in given:
        if name not in known:
            raise unknown("a hyperparameter", name, known)


def _descent(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The routine that was asked for, and its hyperparameters."""
    import torch

    import workbench as wb
    from workbench.catalogue import find_objective

    given = _hypers(args.hyper)
    objective = find_objective(args.objective)
    settings, names = _settings(objective, given)
    if settings:
        objective = type(objective)(**settings)
    routine = wb.descent(objective, args.optimizer, dtype=getattr(torch, args.dtype), device=args.device)
    _check_names(given, {*routine.hypers, *names})
    return routine, given


def _range(text: str, routine: Any) -> tuple[str, np.ndarray]:
    """(name, values) of NAME=LOW:HIGH[:SCALE[:COUNT]]; without them the declared scale and 32 values."""
    name, _, span = text.partition("=")
    parts = span.split(":")
    try:
        low, high = float(parts[0]), float(parts[1])
        count = int(parts[3]) if len(parts) > 3 else 32
    except (ValueError, IndexError):
        parts = []
    if not 2 <= len(parts) <= 4 or not 1 <= count <= MAX_RUNS or not low <= high:
        raise ValueError(f"expected NAME=LOW:HIGH:SCALE:COUNT such as lr=1e-4:1:log:32, got {text!r}")
    _check_names({name: None}, set(routine.hypers))
    if routine.hypers[name].kind != "value":
        raise ValueError(f"expected a hyperparameter that may differ between runs, got {name}")
    scale = parts[2] if len(parts) > 2 else routine.hypers[name].scale
    if scale not in ("linear", "log", "integer"):
        raise ValueError(f"expected the scale of {name} to be linear, log or integer, got {scale!r}")
    if scale == "log" and not low > 0:
        raise ValueError(f"expected {name} to begin above 0 on a log scale, got {low:g}")
    values = np.geomspace(low, high, count) if scale == "log" else np.linspace(low, high, count)
    return name, np.unique(np.rint(values)) if scale == "integer" else values


def _rolled(
    args: argparse.Namespace, routine: Any, hyper: dict[str, Any], *, every: int, probes: Any = (), figure: str = "plot"
) -> tuple[Any, float]:
    """(the record, seconds it took), saved and drawn where that was asked for."""
    import workbench as wb

    began = time.perf_counter()
    more = {"start": args.start, "compile": args.compile} if hasattr(args, "start") else {}
    record = wb.rollout(routine, args.steps, seed=args.seed, hyper=hyper, every=every, probes=probes, **more)
    seconds = time.perf_counter() - began
    if args.save:
        wb.save(record, args.save)
    if args.plot:
        from workbench import figures

        getattr(figures, figure)(record).write_html(args.plot, include_plotlyjs=True)
    return record, seconds
