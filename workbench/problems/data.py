"""Data sets to learn from: three real ones, and anybody's own from arrays or a file. Inputs are standardised."""

import dataclasses
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from workbench.routine import Declared, Hyper, Key

MAX_BYTES = 20 * 2**20
MAX_ROWS, MAX_COLUMNS, MAX_CLASSES = 100_000, 2_000, 100


@dataclasses.dataclass(frozen=True)
class Data:
    """Samples to train on and samples held out.

    Args:
        name: what menus and scripts call it.
        x, x_test: inputs (samples, features), each feature with mean 0 and standard deviation 1 over `x`.
        y, y_test: classes (samples,) as int64, or values (samples, 1) with mean 0 and standard deviation 1 over `y`.
        classes: names of the classes, () for values.
        image: (height, width) when each input is a picture, else None.
        pixels: held-out pictures as they came, (samples, height, width) from 0 to 1, when there are any.
        unit: unit of the values.
    """

    name: str
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: tuple[str, ...] = ()
    image: tuple[int, int] | None = None
    pixels: np.ndarray | None = None
    unit: str = ""
    recipe: str = ""

    @property
    def outputs(self) -> int:
        """Numbers a model answers with: one a class, or one value."""
        return len(self.classes) or 1

    def to(self, device: Any, dtype: torch.dtype) -> "Data":
        """The same samples on a device, inputs (and values) in a dtype."""

        def move(t: Tensor) -> Tensor:
            return t.to(device=device, dtype=dtype if t.is_floating_point() else t.dtype)

        moved = {name: move(getattr(self, name)) for name in ("x", "y", "x_test", "y_test")}
        return dataclasses.replace(self, **moved)


def split(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    *,
    holdout: float,
    seed: int = 0,
    classes: Sequence[str] = (),
    image: tuple[int, int] | None = None,
    **more: Any,
) -> Data:
    """Shuffle by a key, hold out a share, standardise by the training part alone.

    Features that never vary become 0. Classes are whole numbers from 0; without classes, y is a column of values.
    """
    order = Key(seed).stream("split").permutation(len(x)).numpy()
    cut = len(x) - max(1, round(holdout * len(x)))
    train, test = order[:cut], order[cut:]
    centre, scale = x[train].mean(0), x[train].std(0)
    scale = np.where(scale > 0, scale, 1.0)
    inputs = torch.from_numpy((x - centre) / scale)
    if classes:
        targets = torch.from_numpy(y.astype(np.int64))
    else:
        spread = float(y[train].std()) or 1.0
        targets = torch.from_numpy((y - y[train].mean()) / spread).reshape(-1, 1)
    pixels = None if image is None else (x / x.max())[test].reshape(-1, *image)
    parts = {"x": inputs[train], "y": targets[train], "x_test": inputs[test], "y_test": targets[test]}
    return Data(name, **parts, classes=tuple(classes), image=image, pixels=pixels, **more)


class Dataset(Declared):
    """A data set of the catalogue; `load()` gives the samples."""

    family: ClassVar[str] = "datasets"
    kind: ClassVar[str] = "dataset"
    holdout = Hyper(0.2, 0.01, 0.9, kind="init", doc="Share of the samples held out.")

    def load(self) -> Data:
        """The samples, split by a fixed key."""
        raise NotImplementedError

    def _bundle(self, function: str) -> Any:
        import sklearn.datasets

        return getattr(sklearn.datasets, function)()


class Digits(Dataset):
    """1,797 handwritten digits of 8×8 pixels in 10 classes; 64 inputs."""

    name = "digits"
    title = "Digits (1,797 images, 8×8)"
    source = "Alpaydin & Kaynak 1998, UCI Optical Recognition of Handwritten Digits (test part), via scikit-learn"
    evidence = "tests/problems/test_data.py::test_real_data_have_the_published_size[digits]"

    def load(self) -> Data:
        bundle = self._bundle("load_digits")
        classes = [str(i) for i in range(10)]
        more = {"classes": classes, "image": (8, 8), "recipe": self.recipe()}
        return split(self.name, bundle.data, bundle.target, holdout=self.holdout, **more)


class BreastCancer(Dataset):
    """569 tumours, 30 measurements of cell nuclei each, malignant or benign."""

    name = "breast-cancer"
    title = "Breast cancer (569 tumours)"
    source = "Street, Wolberg & Mangasarian 1993, UCI Breast Cancer Wisconsin (Diagnostic), via scikit-learn"
    evidence = "tests/problems/test_data.py::test_real_data_have_the_published_size[breast-cancer]"

    def load(self) -> Data:
        bundle = self._bundle("load_breast_cancer")
        more = {"classes": ["malignant", "benign"], "recipe": self.recipe()}
        return split(self.name, bundle.data, bundle.target, holdout=self.holdout, **more)


class Diabetes(Dataset):
    """442 patients, 10 measurements each; the value is disease progression after a year."""

    name = "diabetes"
    title = "Diabetes (442 patients)"
    source = "Efron, Hastie, Johnstone & Tibshirani 2004, Annals of Statistics 32(2), via scikit-learn"
    evidence = "tests/problems/test_data.py::test_real_data_have_the_published_size[diabetes]"

    def load(self) -> Data:
        bundle = self._bundle("load_diabetes")
        more = {"unit": "standard deviations", "recipe": self.recipe()}
        return split(self.name, bundle.data, bundle.target, holdout=self.holdout, **more)


# --------------------------------------------------------------------------------------------- anybody's own


def from_arrays(x: Any, y: Any, *, name: str = "data", holdout: float = 0.2, recipe: str = "data") -> Data:
    """Data from two arrays: x (samples, features) numbers, y one class or one value a sample.

    y counts as classes when it holds words, booleans, or at most 20 different whole numbers; as values otherwise.

    Raises:
        ValueError: on too few or too many samples, lengths that differ, or values that are not finite, saying where.
    """
    inputs, targets = _numbers(x), np.asarray(y).reshape(-1)
    if len(inputs) != len(targets):
        raise ValueError(f"expected as many targets as inputs, got {len(targets)} targets and {len(inputs)} inputs")
    if len(inputs) < 10:
        raise ValueError(f"expected at least 10 samples, got {len(inputs)}")
    kinds = np.unique(targets)
    whole = targets.dtype.kind in "biuUSO" or bool(np.all(np.mod(_numbers(targets), 1) == 0))
    if targets.dtype.kind in "USOb" or (whole and len(kinds) <= 20):
        if not 2 <= len(kinds) <= MAX_CLASSES:
            raise ValueError(f"expected 2 to {MAX_CLASSES} classes in the last column, got {len(kinds)}")
        labels = np.searchsorted(kinds, targets)
        names = [f"{kind:g}" if np.issubdtype(kinds.dtype, np.number) else str(kind) for kind in kinds]
        return split(name, inputs, labels, holdout=holdout, classes=names, recipe=recipe)
    return split(name, inputs, _numbers(targets)[:, 0], holdout=holdout, recipe=recipe)


def _numbers(values: Any) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected numbers, got something else ({error})") from None
    array = array.reshape(len(array), -1)
    if array.shape[0] > MAX_ROWS or array.shape[1] > MAX_COLUMNS:
        raise ValueError(f"expected at most {MAX_ROWS} rows and {MAX_COLUMNS} columns, got {array.shape}")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"expected finite numbers, got {array[row, column]} in row {row + 1}, column {column + 1} ({len(bad)} in all)"
        )
    return array


def read(name: str, content: bytes, *, holdout: float = 0.2) -> Data:
    """Data from an uploaded file: CSV (the last column is the target; a first row of words is a header) or NPZ (x, y).

    Pickled arrays are refused.

    Raises:
        ValueError: one sentence that says what was expected, what came, and where.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"expected a file of at most {MAX_BYTES // 2**20} MB, got {len(content) / 2**20:.1f} MB")
    ending = Path(name).suffix.lower()
    recipe = f"wb.load_data({name!r})" if holdout == 0.2 else f"wb.load_data({name!r}, holdout={holdout!r})"
    if ending == ".csv":
        x, y = _csv(content)
    elif ending == ".npz":
        x, y = _npz(content)
    else:
        raise ValueError(f"expected a .csv or .npz file, got {name!r}")
    return from_arrays(x, y, name=Path(name).name, holdout=holdout, recipe=recipe)


def load_data(path: str | os.PathLike, *, holdout: float = 0.2) -> Data:
    """Data from a CSV or NPZ file on disk; see `read`."""
    with open(path, "rb") as file:
        return read(str(path), file.read(MAX_BYTES + 1), holdout=holdout)


def _csv(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    import csv

    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("expected a CSV file in UTF-8 text, got other bytes") from None
    if "\0" in text:
        raise ValueError("expected a CSV file in UTF-8 text, got a NUL character inside")
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    try:
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"expected a readable CSV file, got {error}") from None
    if len(rows) < 2 or len(rows[0]) < 2:
        raise ValueError("expected a CSV file with at least two columns (the last is the target) and two rows")
    if len(rows) > MAX_ROWS + 1:
        raise ValueError(f"expected at most {MAX_ROWS} rows, got {len(rows)}")
    body = rows[0 if _is_number(rows[0][0]) else 1 :]
    first = 1 + len(rows) - len(body)
    for i, row in enumerate(body):
        if len(row) != len(body[0]):
            raise ValueError(f"expected {len(body[0])} columns in every row, got {len(row)} in row {i + first}")
        for j, cell in enumerate(row[:-1]):
            if not _is_number(cell):
                raise ValueError(f"expected numbers, got {cell.strip()[:40]!r} in row {i + first}, column {j + 1}")
    x = np.array([[float(cell) for cell in row[:-1]] for row in body])
    last = [row[-1].strip() for row in body]
    return x, np.array([float(cell) for cell in last]) if all(map(_is_number, last)) else np.array(last)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _npz(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    import zipfile

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(item.file_size for item in archive.infolist())
        if size > 10 * MAX_BYTES:
            raise ValueError(f"expected at most {10 * MAX_BYTES // 2**20} MB unpacked, got {size / 2**20:.0f} MB")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            missing = {"x", "y"} - {name.lower() for name in arrays.files}
            if missing:
                raise ValueError(f"expected arrays named x and y, got {', '.join(arrays.files) or 'none'}")
            found = {name.lower(): arrays[name] for name in arrays.files if name.lower() in "xy"}
    except (zipfile.BadZipFile, OSError, EOFError, KeyError) as error:
        raise ValueError(f"expected a readable .npz file, got a damaged or foreign one ({error})") from None
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise ValueError("expected arrays of numbers, got pickled objects, which are refused for safety") from None
        raise
    if found["x"].ndim < 2 or found["y"].size != len(found["x"]):
        raise ValueError(f"expected x (samples, features) and y (samples,), got {found['x'].shape}, {found['y'].shape}")
    return found["x"], found["y"]
