"""Points from a file as a density to sample: a CSV or NPZ with two numbers a row; pickles are refused."""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch

from workbench.problems.data import MAX_BYTES, MAX_SIZE, _array, _is_number, _rows
from workbench.problems.densities import MOST, Mixture, from_points

SPREAD = 1.5
"""Standard deviation, over both coordinates, that points of a file are scaled to."""


def read_points(name: str, content: bytes, *, dim: int = 2) -> Mixture:
    """Points of an uploaded file, centred and scaled to a standard deviation of 1.5, each equally likely.

    A CSV has `dim` numbers a row, a first row of words is a header; an NPZ has one array (n, dim), or one named x.

    Raises:
        ValueError: one sentence that says what was expected, what came, and where.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"expected a file of at most {MAX_BYTES // 2**20} MB, got {len(content) / 2**20:.1f} MB")
    ending = Path(name).suffix.lower()
    if ending not in (".csv", ".npz"):
        raise ValueError(f"expected a .csv or .npz file, got {name[:80]!r}")
    found = _from_csv(content, dim) if ending == ".csv" else _from_npz(content)
    if found.ndim != 2 or found.shape[1] != dim:
        raise ValueError(f"expected {dim} numbers a row, got an array of shape {found.shape}")
    if not (np.abs(found) <= MAX_SIZE).all():
        row = int(np.argwhere(~(np.abs(found) <= MAX_SIZE))[0, 0])
        raise ValueError(
            f"expected finite numbers of at most {MAX_SIZE:g} in size, got {found[row].tolist()} in row {row + 1}"
        )
    if len(found) > MOST:
        raise ValueError(f"expected at most {MOST:,} points, got {len(found):,}")
    return from_points(scaled(torch.from_numpy(np.asarray(found, dtype=np.float64))))


def scaled(points: torch.Tensor) -> torch.Tensor:
    """The points centred, with a standard deviation of 1.5 over all coordinates together."""
    centred = points - points.mean(0)
    size = centred.square().mean().sqrt()
    return centred * (SPREAD / size) if float(size) else centred


def _from_csv(content: bytes, dim: int) -> np.ndarray:
    try:
        rows = _rows(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("expected a CSV file in UTF-8 text, got other bytes") from None
    if not rows:
        raise ValueError("expected a CSV file with points, got an empty one")
    body = rows[0 if all(map(_is_number, rows[0][1])) else 1 :]
    for line, row in body:
        if len(row) != dim:
            raise ValueError(f"expected {dim} columns in every row, got {len(row)} in row {line}")
        bad = next((cell for cell in row if not _is_number(cell)), None)
        if bad is not None:
            raise ValueError(f"expected numbers, got {bad.strip()[:40]!r} in row {line}")
    return np.array([[float(cell) for cell in row] for _, row in body]).reshape(-1, dim)


def _from_npz(content: bytes) -> np.ndarray:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {item.filename.removesuffix(".npy").lower(): item for item in archive.infolist()}
            name = "x" if "x" in members else next(iter(members), "")
            if not name or (len(members) > 1 and name != "x"):
                raise ValueError(f"expected one array, or one named x, got {', '.join(sorted(members))[:80] or 'none'}")
            found = _array(archive, members[name], name)
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a damaged archive raises, the reader gets one sentence
        raise ValueError(f"expected a readable .npz file, got a damaged or foreign one ({error})") from None
    if found.dtype.kind not in "biuf":
        raise ValueError(f"expected an array of numbers, got {found.dtype}")
    return found
