"""What apps give to take away, and the folder of saved runs."""

import base64
import re
import tempfile
from pathlib import Path
from typing import Any

import workbench as wb
from workbench.record import delete, listing

NAME = re.compile(r"[\w\-. ]{1,80}")


def netcdf(record: Any) -> bytes:
    """A record as a NetCDF file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.nc"
        record.to_netcdf(path, engine="h5netcdf")
        return path.read_bytes()


def data_uri(content: bytes) -> str:
    """A file as an address that holds it, which a browser can save."""
    return f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"


def names(runs: Path) -> list[str]:
    """Saved runs, newest first."""
    return [path.name for path in listing(runs)]


def place(runs: Path, name: str) -> Path:
    """Where a run of that name is kept; never outside the folder of runs.

    Raises:
        ValueError: on a name that is empty, too long, or has signs other than letters, digits, space and - _ . inside.
    """
    if not NAME.fullmatch(name) or name.strip(". ") != name:
        raise ValueError(f"expected a name of letters, digits, spaces and -_. (at most 80), got {name[:80]!r}")
    return runs / name


def save(runs: Path, name: str, record: Any) -> Path:
    """Save a record under a name."""
    return wb.save(record, place(runs, name))


def load(runs: Path, name: str) -> Any:
    """The record of a name, opened lazily."""
    return wb.open(place(runs, name))


def remove(runs: Path, name: str) -> None:
    """Delete the record of a name."""
    delete(place(runs, name))
