"""The embedded data set: sizes, values, constants."""

import forked
import numpy as np
import pytest

from offramp.data import digits, load


def test_digits_are_uint8_with_one_channel_and_normalised_by_their_own_constants():
    data = load("digits")
    assert data.shape == (1, 8, 8)
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 1295,
        "val": 72,
        "cal": 71,
        "test": 359,
    }
    source = data.splits["train"].source
    pixels = source.batch(np.arange(len(source)))
    assert pixels.dtype == np.uint8
    assert (pixels.min(), pixels.max()) == (0, 255)
    trained = np.concatenate([data.splits[name].ids for name in ("train", "val", "cal")])
    scaled = pixels[trained] / 255
    np.testing.assert_allclose([scaled.mean(), scaled.std()], [data.mean[0], data.std[0]], atol=5e-5)
    assert data.augmentation == "crop"


def test_scikit_learn_is_needed_but_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import would be half of the time that a training on digits takes to start."""
    code = "import sys\nfrom offramp.data import load\nload('digits')\nassert 'sklearn' not in sys.modules"
    ran = forked.run_code(code)
    assert ran.returncode == 0, ran.stderr
    digits._read.cache_clear()
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"digits come with scikit-learn: pip install 'offramp\[demo\]'"):
        load("digits")
