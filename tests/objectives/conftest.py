import numpy as np
import pytest
from sklearn.datasets import load_digits


@pytest.fixture(scope="package")
def digits():
    """400 images in [0, 1], [400, 64], and their labels."""
    images, labels = load_digits(return_X_y=True)
    return (images[:400] / 16).astype(np.float32), labels[:400].astype(np.int32)
