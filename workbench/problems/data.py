"""Data sets to learn from: three real ones, and anybody's own from arrays or a file. Inputs are standardised."""

import csv
import dataclasses
import io
import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from workbench.routine import Declared, Hyper, Key

MAX_BYTES = 20 * 2**20
MAX_ROWS, MAX_COLUMNS, MAX_CLASSES = 100_000, 2_000, 100
MAX_SIZE = 1e30


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
        """Numbers a model answers with: one a class, or as many as there are values."""
        return len(self.classes) or (self.y.shape[1] if self.y.ndim > 1 else 1)

    def to(self, device: Any, dtype: torch.dtype) -> "Data":
        """The same samples on a device, inputs (and values) in a dtype."""

        def move(t: Tensor) -> Tensor:
            return t.to(device=device, dtype=dtype if t.is_floating_point() else t.dtype)

        x, y, x_test, y_test = map(move, (self.x, self.y, self.x_test, self.y_test))
        return dataclasses.replace(self, x=x, y=y, x_test=x_test, y_test=y_test)


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
    inputs = torch.from_numpy(_standard(x, x[train]))
    if classes:
        targets = torch.from_numpy(y.astype(np.int64))
    else:
        targets = torch.from_numpy(_standard(y.reshape(-1, 1), y[train].reshape(-1, 1)))
    pixels = None if image is None else (x / x.max())[test].reshape(-1, *image)
    parts = (inputs[train], targets[train], inputs[test], targets[test])
    return Data(name, *parts, classes=tuple(classes), image=image, pixels=pixels, **more)


def _standard(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and standard deviation 1 over `train`; one that never varies there is only shifted, to 0."""
    varies = train.max(0) > train.min(0)
    centre = np.where(varies, train.mean(0), train[0])
    return (values - centre) / np.where(varies, train.std(0), 1.0)


class Dataset(Declared):
    """A data set of the catalogue; `load()` gives the samples."""

    family: ClassVar[str] = "datasets"
    kind: ClassVar[str] = "dataset"
    holdout: Any = Hyper(0.2, 0.01, 0.9, kind="init", doc="Share of the samples held out.")

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
        more: Any = {"classes": classes, "image": (8, 8), "recipe": self.recipe()}
        return split(self.name, bundle.data, bundle.target, holdout=self.holdout, **more)


class BreastCancer(Dataset):
    """569 tumours, 30 measurements of cell nuclei each, malignant or benign."""

    name = "breast-cancer"
    title = "Breast cancer (569 tumours)"
    source = "Street, Wolberg & Mangasarian 1993, UCI Breast Cancer Wisconsin (Diagnostic), via scikit-learn"
    evidence = "tests/problems/test_data.py::test_real_data_have_the_published_size[breast-cancer]"

    def load(self) -> Data:
        bundle = self._bundle("load_breast_cancer")
        more: Any = {"classes": ["malignant", "benign"], "recipe": self.recipe()}
        return split(self.name, bundle.data, bundle.target, holdout=self.holdout, **more)


class Diabetes(Dataset):
    """442 patients, 10 measurements each; the value is disease progression after a year."""

    name = "diabetes"
    title = "Diabetes (442 patients)"
    source = "Efron, Hastie, Johnstone & Tibshirani 2004, Annals of Statistics 32(2), via scikit-learn"
    evidence = "tests/problems/test_data.py::test_real_data_have_the_published_size[diabetes]"

    def load(self) -> Data:
        bundle = self._bundle("load_diabetes")
        more: Any = {"unit": "standard deviations", "recipe": self.recipe()}
        return split(self.name, bundle.data, bundle.target, holdout=self.holdout, **more)


# --------------------------------------------------------------------------------------------- anybody's own


def from_arrays(x: Any, y: Any, *, name: str = "data", holdout: float = 0.2, recipe: str = "data") -> Data:
    """Data from two arrays: x (samples, features) numbers, y one class or one value a sample.

    y counts as classes when it holds words, booleans, or at most 20 different whole numbers; as values otherwise.

    Raises:
        ValueError: on too few or too many samples, lengths that differ, or values that are not finite, saying where.
    """
    holdout = Dataset.holdout.check(holdout)
    inputs, targets = _numbers(x), np.asarray(y).reshape(-1)
    if targets.dtype.kind in "SO":
        targets = targets.astype(str)
    if len(inputs) != len(targets):
        raise ValueError(f"expected as many targets as inputs, got {len(targets)} targets and {len(inputs)} inputs")
    if len(inputs) < 10:
        raise ValueError(f"expected at least 10 samples, got {len(inputs)}")
    if not inputs.shape[1]:
        raise ValueError("expected at least one number a sample, got none")
    whole = targets.dtype.kind in "bU" or bool(np.all(np.mod(_numbers(targets), 1) == 0))
    kinds = np.unique(targets)
    if targets.dtype.kind in "bU" or (whole and len(kinds) <= 20):
        if not 2 <= len(kinds) <= MAX_CLASSES:
            raise ValueError(f"expected 2 to {MAX_CLASSES} classes in the last column, got {len(kinds)}")
        labels = np.searchsorted(kinds, targets)
        names = [f"{kind:g}" if np.issubdtype(kinds.dtype, np.number) else str(kind) for kind in kinds]
        return split(name, inputs, labels, holdout=holdout, classes=names, recipe=recipe)
    return split(name, inputs, _numbers(targets)[:, 0], holdout=holdout, recipe=recipe)


def as_data(*arrays: Any) -> Data:
    """Data from arrays (x, y), split here, or (x, y, x_test, y_test), taken as they are (not standardised).

    x may have any shape after its first axis. y of whole numbers counts as classes from 0, otherwise as values.

    Raises:
        ValueError: on another number of arrays, lengths or shapes that disagree, or values that are not finite.
    """
    if len(arrays) == 2:
        data, shape = from_arrays(*arrays), np.shape(arrays[0])[1:]
        if len(shape) < 2:
            return data
        return dataclasses.replace(data, x=data.x.unflatten(1, shape), x_test=data.x_test.unflatten(1, shape))
    if len(arrays) != 4:
        raise ValueError(f"expected data as (x, y) or (x, y, x_test, y_test), got {len(arrays)} arrays")
    names = ("x", "y", "x_test", "y_test")
    x, y, x_test, y_test = (_tensor(part, name) for part, name in zip(arrays, names, strict=True))
    if x.shape[1:] != x_test.shape[1:] or y.shape[1:] != y_test.shape[1:]:
        raise ValueError("expected held-out arrays shaped like the others after the first axis, they differ")
    if not 0 < len(x) == len(y) or not 0 < len(x_test) == len(y_test):
        sizes = [len(part) for part in (x, y, x_test, y_test)]
        raise ValueError(f"expected as many targets as inputs and at least one, got lengths {sizes}")
    classes: tuple[str, ...] = ()
    if not y.is_floating_point():
        y, y_test = y.long(), y_test.long()
        if y.ndim != 1 or min(y.min(), y_test.min()) < 0 or max(y.max(), y_test.max()) >= MAX_CLASSES:
            raise ValueError(f"expected classes as one whole number from 0 to {MAX_CLASSES - 1} a sample, got others")
        classes = tuple(str(i) for i in range(int(max(y.max(), y_test.max())) + 1))
    return Data("data", x, y, x_test, y_test, classes, recipe="data")


def _tensor(values: Any, name: str) -> Tensor:
    """A copy of finite numbers as a tensor with at least one axis."""
    try:
        tensor = values.detach().clone() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected {name} to be an array of numbers, got something else ({error})") from None
    if tensor.ndim == 0 or tensor.is_complex() or not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"expected {name} to be an array of finite real numbers, got others")
    return tensor


def _numbers(values: Any) -> np.ndarray:
    try:
        given = np.asarray(values)
        if given.ndim == 0 or given.dtype.kind not in "biufSUO":
            raise TypeError(f"{given.dtype}, {given.ndim} axes")
        array = given.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected numbers, got something else ({error})") from None
    array = array.reshape(len(array), math.prod(array.shape[1:]))
    if array.shape[0] > MAX_ROWS or array.shape[1] > MAX_COLUMNS:
        raise ValueError(f"expected at most {MAX_ROWS} rows and {MAX_COLUMNS} columns, got {array.shape}")
    bad = np.argwhere(~(np.abs(array) <= MAX_SIZE))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"expected finite numbers of at most {MAX_SIZE:g} in size, got {array[row, column]} in row {row + 1}, "
            f"column {column + 1} ({len(bad)} in all)"
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
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("expected a CSV file in UTF-8 text, got other bytes") from None
    if "\0" in text:
        raise ValueError("expected a CSV file in UTF-8 text, got a NUL character inside")
    rows = _rows(text)
    if len(rows) < 2 or len(rows[0][1]) < 2:
        raise ValueError("expected a CSV file with at least two columns (the last is the target) and two rows")
    body = rows[0 if _is_number(rows[0][1][0]) else 1 :]
    width = len(rows[0][1])
    for line, row in body:
        if len(row) != width:
            raise ValueError(f"expected {width} columns in every row, got {len(row)} in row {line}")
        for j, cell in enumerate(row[:-1]):
            if not _is_number(cell) or not math.isfinite(float(cell)):
                raise ValueError(f"expected finite numbers, got {cell.strip()[:40]!r} in row {line}, column {j + 1}")
    x = np.array([[float(cell) for cell in row[:-1]] for _, row in body])
    last = [row[-1].strip() for _, row in body]
    if not all(map(_is_number, last)):
        return x, np.array(last)
    for (line, _), cell in zip(body, last, strict=True):
        if not math.isfinite(float(cell)):
            raise ValueError(f"expected finite numbers, got {cell!r} in row {line}, column {width} (the target)")
    return x, np.array([float(cell) for cell in last])


def _rows(text: str) -> list[tuple[int, list[str]]]:
    """(line number in the file, cells) of every row that is not blank."""
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    rows: list[tuple[int, list[str]]] = []
    try:
        for row in reader:
            if len(row) > MAX_COLUMNS + 1 or len(rows) > MAX_ROWS:
                raise ValueError(f"expected at most {MAX_ROWS} rows and {MAX_COLUMNS} columns, got more")
            if any(cell.strip() for cell in row):
                rows.append((reader.line_num, row))
    except csv.Error as error:
        raise ValueError(f"expected a readable CSV file, got {error}") from None
    return rows


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _npz(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {item.filename.removesuffix(".npy").lower(): item for item in archive.infolist()}
            if not {"x", "y"} <= set(members):
                raise ValueError(f"expected arrays named x and y, got {', '.join(sorted(members))[:80] or 'none'}")
            x, y = (_array(archive, members[name], name) for name in "xy")
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a damaged archive raises, the reader gets one sentence
        raise ValueError(f"expected a readable .npz file, got a damaged or foreign one ({error})") from None
    if x.ndim < 2 or y.size != len(x):
        raise ValueError(f"expected x (samples, features) and y (samples,), got {x.shape}, {y.shape}")
    return x, y


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> np.ndarray:
    """One array of an archive; what its header promises is held against its size before memory is asked for."""
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if member.file_size > 5 * MAX_BYTES:
        raise ValueError(
            f"expected at most {5 * MAX_BYTES // 2**20} MB in {name}, got {member.file_size / 2**20:.0f} MB"
        )
    with archive.open(member) as file:
        try:
            shape, fortran, dtype = read_header[np.lib.format.read_magic(file)](file)
        except (ValueError, KeyError):
            raise ValueError(f"expected {name} to be an array of numbers, got something else") from None
        if dtype.kind not in "biufSU" or not dtype.itemsize:
            raise ValueError(f"expected {name} to be an array of numbers, got {dtype} (pickled objects are refused)")
        data = file.read()
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"expected {name} whole, of shape {shape}, got {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
