"""What apps give to take away, and the folder of saved runs."""

import base64
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import workbench as wb
from workbench.record import delete, listing

NAME = re.compile(r"[\w\-. ]{1,80}")


def netcdf(record: Any) -> bytes:
    """A record as a NetCDF file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.nc"
        record.to_netcdf(path, engine="h5netcdf")
        return path.read_bytes()


def weights(parts: Mapping[str, Tensor]) -> bytes:
    """Tensors by name as a safetensors file."""
    from safetensors.torch import save as written

    return written({name: part.detach().cpu().contiguous() for name, part in parts.items()})


def read_weights(content: bytes) -> dict[str, Tensor]:
    """Tensors by name of a safetensors file.

    Raises:
        ValueError: when it is none, or holds what is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as read

    try:
        parts = read(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"expected weights in a .safetensors file, got one that is damaged or foreign ({error})"
        ) from None
    bad = next((name for name, part in parts.items() if not bool(part.isfinite().all())), None)
    if bad is not None:
        raise ValueError(f"expected finite weights, got {bad!r} with some that are not")
    return {name: part.clone() for name, part in parts.items()}  # aligned as other tensors are


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
