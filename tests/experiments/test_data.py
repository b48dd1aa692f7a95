import gzip
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.harness import data
from experiments.harness.failure import ExperimentError


def idx(array: np.ndarray, code: int = 8) -> bytes:
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def write_set(folder, prefix, count, *, compress=False, mark="-", side=4):
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, side, side), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    for kind, array in ((f"images{mark}idx3", images), (f"labels{mark}idx1", labels)):
        content = gzip.compress(idx(array)) if compress else idx(array)
        (folder / f"{prefix}-{kind}-ubyte{'.gz' if compress else ''}").write_bytes(content)
    return images, labels


def test_digits_are_real_and_divided():
    dataset = data.digits()
    assert dataset.train.images.shape == (1437, 64)
    assert dataset.test.images.shape == (360, 64)
    assert dataset.train.images.dtype == np.float32
    assert (dataset.train.images.min(), dataset.train.images.max()) == (0, 1)
    assert dataset.num_classes == 10
    seen = {image.tobytes() for image in dataset.train.images}
    assert sum(image.tobytes() in seen for image in dataset.test.images) < 5


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=st.lists(st.integers(0, 4), min_size=1, max_size=4), code=st.sampled_from([8, 9, 11, 12, 13, 14]))
def test_reads_every_idx_type(tmp_path, shape, code):
    dtype = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}[code]
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    path = tmp_path / "file"
    for content in (idx(array, code), gzip.compress(idx(array, code))):
        path.write_bytes(content)
        np.testing.assert_array_equal(data.read_idx(path), array)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("mark", ["-", "."])
def test_reads_a_folder_with_training_files(tmp_path, compress, mark):
    images, labels = write_set(tmp_path, "train", 30, compress=compress, mark=mark)
    write_set(tmp_path, "t10k", 10, compress=compress, mark=mark)
    dataset = data.idx_folder(tmp_path)
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (30, 10)
    np.testing.assert_allclose(dataset.train.images, images.reshape(30, -1) / 255, rtol=1e-6)
    np.testing.assert_array_equal(dataset.train.labels, labels)


def test_divides_a_lone_test_set(tmp_path):
    write_set(tmp_path, "t10k", 50, compress=True)
    dataset = data.idx_folder(tmp_path)
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (40, 10)


GOOD = idx(np.zeros((5, 2, 2), np.uint8))


DAMAGED = [
    (b"", "not an IDX file: it begins with nothing"),
    (b"\x89PNG....", "not an IDX file: it begins with 89 50 4e 47"),
    (bytes([0, 0, 7, 1]), "not an IDX file"),
    (bytes([0, 0, 8, 65]) + bytes(260), "it claims 65 dimensions"),
    (GOOD[:7], "truncated: it ends within its header"),
    (GOOD[:-1], "truncated: 19 bytes of values where its header, 5 × 2 × 2, says 20"),
    (GOOD + b"\0", "too long: 21 bytes"),
    (gzip.compress(GOOD)[:-6], "not a whole gzip file"),
    (b"\x1f\x8b" + bytes(20), "not a whole gzip file"),
]


@pytest.mark.parametrize(("content", "message"), DAMAGED, ids=[message for _, message in DAMAGED])
def test_damaged_files_are_one_line_errors(tmp_path, content, message):
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ExperimentError, match=message) as caught:
        data.read_idx(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_do_not_belong_together(tmp_path):
    with pytest.raises(ExperimentError, match="holds no t10k-images"):
        data.idx_folder(tmp_path)
    with pytest.raises(ExperimentError, match="is not a folder"):
        data.idx_folder(tmp_path / "nowhere")
    write_set(tmp_path, "t10k", 20)
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(19, np.uint8)))
    with pytest.raises(ExperimentError, match=r"images of shape \(20, 4, 4\) and labels of shape \(19,\)"):
        data.idx_folder(tmp_path)
    images = tmp_path / "t10k-images-idx3-ubyte"
    for content, wrong, message in [
        (np.zeros((20, 4, 4), np.uint8), np.full(20, 2**31 - 1, ">i4"), "labels must be 0 to 999, they are 2147483647"),
        (np.zeros((20, 0, 4), np.uint8), np.zeros(20, np.uint8), "hold no pixels"),
        (np.zeros((3, 4, 4), np.uint8), np.zeros(3, np.uint8), "holds 3 images, too few to divide"),
    ]:
        images.write_bytes(idx(content))
        labels.write_bytes(idx(wrong, 12 if wrong.itemsize == 4 else 8))
        with pytest.raises(ExperimentError, match=message):
            data.idx_folder(tmp_path)
    labels.unlink()
    with pytest.raises(ExperimentError, match="holds t10k files but not their labels"):
        data.idx_folder(tmp_path)


def test_mnist_without_a_network_says_what_to_do(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route\nto host")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fail)
    with pytest.raises(ExperimentError, match=r"no route to host.*--data-dir DIR.*--dataset digits"):
        data.mnist()
