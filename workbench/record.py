"""Records: what a run leaves behind, as an `xarray.Dataset` with named dims, units and provenance; saved and reopened.

Dims are `run`, `step` and those of the routine's variables; chains will have `chain` and `draw`.
"""

import contextlib
import datetime
import glob
import json
import os
import platform
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.routine import Routine, Variable, status

SCHEMA = 1
SIZES = "workbench_sizes"


def plain(value: Any) -> Any:
    """The value as JSON can hold it: tensors and arrays as nested lists."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def versions() -> dict[str, str]:
    """Versions of what computed a record."""
    import workbench

    return {
        "workbench": workbench.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "xarray": xr.__version__,
        "python": platform.python_version(),
    }


def mark() -> dict[str, Any]:
    """Attributes that make a dataset a record: it can be saved and reopened."""
    return {
        "workbench_record": SCHEMA,
        "versions": json.dumps(versions()),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def provenance(routine: Routine, given: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that say how a record came about; structured ones are JSON text, so that every format holds them.

    `setup`, where there is one, holds the Python lines that `recipe` needs before it.
    """
    setup = routine.setup()
    return {
        **mark(),
        **({"setup": setup} if setup else {}),
        "recipe": routine.recipe(),
        **{name: plain(value) for name, value in routine.describe().items()},
        "seed": json.dumps(plain(given["seed"])),
        "start": json.dumps(plain(given["start"])),
        "hyper": json.dumps(plain({**defaults(routine), **given["hyper"]})),
        "edits": json.dumps([list(plain(tuple(edit))) for edit in given["edits"]]),
        "steps": given["steps"],
        "mode": given["mode"],
        "device": str(routine.device),
        "dtype": str(routine.dtype).removeprefix("torch."),
    }


def defaults(routine: Routine) -> dict[str, Any]:
    """Default of every hyperparameter by name."""
    return {name: hyper.default for name, hyper in routine.hypers.items()}


def build(routine: Routine, collected: Any, final: Any, given: Mapping[str, Any]) -> xr.Dataset:
    """The record of what a collector gathered."""
    runs = routine.runs(final)
    variables: dict[str, Any] = {}
    labels = dict(routine.variables)
    for probe in collected.probes:
        labels.update(probe.variables)
    for name, array in collected.stacked().items():
        variables[name] = _variable(labels[name], array, routine.run_axis)
    variables.update(_measured(labels, collected, runs))
    diverged = final.diverged.cpu().numpy()
    words = "step at which the run stopped being finite, -1 when it did not; later frames repeat its last finite point"
    variables["diverged_at"] = (("run",), diverged, {"long_name": words, "units": "step"})
    coords = {
        "run": ("run", np.arange(runs), {"long_name": "run", "units": "1"}),
        "step": ("step", np.asarray(collected.steps), {"long_name": "steps made", "units": "step"}),
        **_hyper_coords(routine, given["hyper"]),
        **routine.coords(),
    }
    return xr.Dataset(variables, coords, provenance(routine, given))


def _variable(label: Variable, array: Tensor, run_axis: int) -> tuple:
    """(dims, values, attrs) with run first and step second, whatever order the tensor has them in."""
    moved = array.detach().cpu().numpy()
    moved = np.moveaxis(moved, run_axis % (moved.ndim - 1) + 1, 0)
    return ("run", "step", *label.dims), moved, {"long_name": label.long_name, "units": label.units}


def _measured(labels: Mapping[str, Variable], collected: Any, runs: int) -> dict[str, tuple]:
    """What steps measured, at the step that they led to; before the first step nothing was measured (NaN)."""
    steps, arrays = collected.trace.arrays()
    wanted = np.asarray(collected.steps)
    found = {}
    for name, array in arrays.items():
        values = np.full((len(wanted), runs), np.nan, array.dtype)
        at = np.searchsorted(steps + 1, wanted)
        known = (at < len(steps)) & (np.minimum(at, len(steps) - 1) == at)
        known &= np.where(known, steps[np.minimum(at, len(steps) - 1)] + 1 == wanted, False)
        values[known] = array[at[known]]
        words = f"{labels[name].long_name}, measured by the step that led here (none at step 0)"
        found[name] = (("run", "step"), values.T, {"long_name": words, "units": labels[name].units})
    return found


def _hyper_coords(routine: Routine, hyper: Mapping[str, Any]) -> dict[str, tuple]:
    """Hyperparameters that differ between runs, as coordinates of `run`."""
    found = {}
    for name, value in hyper.items():
        if np.ndim(value) == 1:
            declared = routine.hypers[name]
            attrs = {"long_name": declared.doc or name, "units": declared.unit or "1"}
            found[name] = (("run",), np.asarray(value, dtype=np.float64), attrs)
    return found


# --------------------------------------------------------------------------------------------- on disk


_saving = threading.Lock()


def save(record: xr.Dataset, path: str | os.PathLike) -> Path:
    """Write a record as a Zarr directory: after a crash at any moment the old one or the new one is there, whole.

    Raises:
        ValueError: when it is no record of the workbench, or `path` exists and is not one: nothing foreign is ever
            overwritten.
    """
    if "workbench_record" not in record.attrs:
        raise ValueError("expected a record made by the workbench, got a dataset without its mark")
    target = place(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = _beside(target, "new")
    try:
        # Without the encodings left from where it was read.
        record.drop_encoding().to_zarr(fresh, mode="w", zarr_format=2, consolidated=True, write_empty_chunks=True)
        _note_sizes(fresh)
        _sync(*fresh.rglob("*"), fresh)
        with _saving:
            _put(fresh, target)
        _sync(target.parent)
        _clear(target, "old", "new", "gone")
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target


def place(path: str | os.PathLike) -> Path:
    """Where a record may be saved.

    Raises:
        ValueError: when something stands there that is no record.
    """
    target = Path(path).absolute()
    if target.is_symlink() or (target.exists() and not _is_record(target)):
        raise ValueError(f"expected {target} to be free or a saved run, got something else; choose another path")
    return target


def _beside(target: Path, what: str) -> Path:
    return target.parent / f".{target.name}.{what}-{uuid.uuid4().hex[:8]}"


def _left(target: Path, what: str) -> list[Path]:
    """What an interrupted save or delete of a record has left beside it."""
    return sorted(target.parent.glob(f".{glob.escape(target.name)}.{what}-*"))


def _clear(target: Path, *whats: str) -> None:
    for what in whats:
        for path in _left(target, what):
            shutil.rmtree(path, ignore_errors=True)


def _put(fresh: Path, target: Path) -> None:
    """Move a written record to its place; the one that was there waits beside it until then."""
    old = _beside(target, "old")
    if target.exists():
        target.rename(old)
    try:
        fresh.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise


def _note_sizes(folder: Path) -> None:
    """Add the size of every piece to the consolidated metadata, so that a truncated copy is told from a whole one."""
    index = folder / ".zmetadata"
    files = [path for path in folder.rglob("*") if path.is_file() and path != index]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    index.write_text(json.dumps({**json.loads(index.read_text()), SIZES: sizes}))


def _sync(*paths: Path) -> None:
    """Ask the disk to keep files and folders."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def open_record(path: str | os.PathLike) -> xr.Dataset:
    """Read a saved record back, lazily: values are loaded when they are used.

    Raises:
        ValueError: when there is nothing, or something that is not a whole record, saying which.
    """
    target = Path(path).absolute()
    _recover(target)
    if not target.exists():
        raise ValueError(f"expected a saved run at {target}, got nothing there")
    if not _is_record(target):
        raise ValueError(f"expected {target} to be a saved run, got something else (no record inside)")
    try:
        damaged = _damaged(target)
        record = None if damaged else xr.open_zarr(target, chunks=None, consolidated=True, decode_times=False)
        if record is not None and not record.data_vars:
            raise KeyError("it names no variables")
    except Exception as error:
        raise ValueError(f"expected {target} to be a whole saved run, got a damaged one ({error})") from error
    if record is None:
        words = f"{len(damaged)} missing or cut piece(s), {damaged[0]} among them"
        raise ValueError(f"expected {target} to be a whole saved run, got {words}")
    return record


def _is_record(target: Path) -> bool:
    try:
        return json.loads((target / ".zattrs").read_text())["workbench_record"] >= 1
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _damaged(target: Path) -> list[str]:
    """Pieces of a record that are missing or not of the size they were written with (Zarr would not say)."""
    sizes = json.loads((target / ".zmetadata").read_text()).get(SIZES, {})
    return [name for name, size in sizes.items() if _size(target / name) != size]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _recover(target: Path) -> None:
    """Put back the previous record when a crash fell between the two renames of `save`."""
    with _saving, contextlib.suppress(OSError):
        left = [path for path in _left(target, "old") if _is_record(path)]
        if left and not target.exists():
            left[-1].rename(target)


def listing(folder: str | os.PathLike) -> Iterator[Path]:
    """Saved records in a folder, newest first."""
    root = Path(folder)
    for path in root.glob(".*.old-*"):
        _recover(root / path.name[1:].rpartition(".old-")[0])
    found = []
    for path in root.iterdir() if root.is_dir() else []:
        with contextlib.suppress(OSError):  # removed meanwhile
            if not path.name.startswith(".") and _is_record(path):
                found.append((path.stat().st_mtime_ns, path))
    return (path for _, path in sorted(found, reverse=True))


def delete(path: str | os.PathLike) -> None:
    """Remove a saved record.

    Raises:
        ValueError: when `path` is not a saved record; nothing else is ever removed.
    """
    target = Path(path).absolute()
    if target.is_symlink() or not _is_record(target):
        raise ValueError(f"expected {target} to be a saved run, got something else; nothing was removed")
    _clear(target, "old")
    target.rename(_beside(target, "gone"))
    _clear(target, "gone")


@xr.register_dataset_accessor("wb")
class WorkbenchAccessor:
    """`record.wb`: what the workbench knows to do with a record."""

    def __init__(self, record: xr.Dataset) -> None:
        self._record = record

    @property
    def status(self) -> list[str]:
        """Each run's status in words."""
        return [status(int(step)) for step in self._record["diverged_at"].values]

    def attr(self, name: str) -> Any:
        """A structured attribute (hyper, edits, seed, start, versions) as plain values."""
        return json.loads(self._record.attrs[name])

    def plot(self, variable: str | None = None, **options: Any) -> Any:
        """A Plotly figure: curves of a variable against steps, or the path in the plane when none is named."""
        from workbench import figures

        return figures.plot(self._record, variable, **options)
