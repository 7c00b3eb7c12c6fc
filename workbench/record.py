"""Records: what a run leaves behind, as an `xarray.Dataset` with named dims, units and provenance; saved and reopened.

Dims are `run`, `step` and those of the routine's variables; chains will have `chain` and `draw`.
"""

import contextlib
import datetime
import json
import os
import platform
import shutil
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


def provenance(routine: Routine, given: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that say how a record came about; structured ones are JSON text, so that every format holds them."""
    return {
        "workbench_record": SCHEMA,
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
        "versions": json.dumps(versions()),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
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


def save(record: xr.Dataset, path: str | os.PathLike) -> Path:
    """Write a record as a Zarr directory: after a crash at any moment the old one or the new one is there, whole.

    Raises:
        ValueError: when `path` exists and is not a record, so that nothing foreign is ever overwritten.
    """
    target = Path(path).absolute()
    if target.exists() and not _is_record(target):
        raise ValueError(f"expected {target} to be free or a saved run, got something else; choose another path")
    target.parent.mkdir(parents=True, exist_ok=True)
    tag = uuid.uuid4().hex[:8]
    fresh, old = target.parent / f".{target.name}.new-{tag}", target.parent / f".{target.name}.old-{tag}"
    try:
        _stored(record).to_zarr(fresh, mode="w", zarr_format=2, consolidated=True, write_empty_chunks=True)
        _sync(fresh)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
    return target


def _stored(record: xr.Dataset) -> xr.Dataset:
    """The record without encodings left from where it was read."""
    return record.drop_encoding()


def _sync(folder: Path) -> None:
    """Ask the disk to keep every file of a folder."""
    for path in [*folder.rglob("*"), folder]:
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
        record = xr.open_zarr(target, chunks=None, consolidated=True, decode_times=False)
        _check_whole(target, record)
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a damaged store raises, the reader gets one sentence
        raise ValueError(f"expected {target} to be a whole saved run, got a damaged one ({error})") from error
    return record


def _is_record(target: Path) -> bool:
    try:
        return json.loads((target / ".zattrs").read_text())["workbench_record"] >= 1
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _check_whole(target: Path, record: xr.Dataset) -> None:
    """Raise when a chunk file is missing: Zarr would fill the gap in silence."""
    import zarr

    group = zarr.open_group(target, mode="r", zarr_format=2)
    for name, array in group.arrays():
        missing = array.nchunks - array.nchunks_initialized
        if missing:
            raise ValueError(f"expected {target} to be a whole saved run, got {missing} missing piece(s) of {name!r}")


def _recover(target: Path) -> None:
    """Put back the previous record when a crash fell between the two renames of `save`."""
    left = sorted(target.parent.glob(f".{target.name}.old-*")) if not target.exists() else []
    if left:
        with contextlib.suppress(OSError):
            left[-1].rename(target)


def listing(folder: str | os.PathLike) -> Iterator[Path]:
    """Saved records in a folder, newest first."""
    root = Path(folder)
    found = [path for path in root.iterdir() if _is_record(path)] if root.is_dir() else []
    return iter(sorted(found, key=lambda path: path.stat().st_mtime, reverse=True))


def delete(path: str | os.PathLike) -> None:
    """Remove a saved record.

    Raises:
        ValueError: when `path` is not a saved record; nothing else is ever removed.
    """
    target = Path(path).absolute()
    if target.is_symlink() or not _is_record(target):
        raise ValueError(f"expected {target} to be a saved run, got something else; nothing was removed")
    shutil.rmtree(target)


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
