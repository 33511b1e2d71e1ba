"""The Gaussian process says what scikit-learn's says."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from reusekit.search.oracle import QuickGaussianProcess


def both(**arguments):
    return [
        kind(kernel=Matern(nu=2.5), alpha=1e-4, random_state=0, **arguments)
        for kind in (GaussianProcessRegressor, QuickGaussianProcess)
    ]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("targets", ["different", "all the same", "almost the same"])
def test_predictions_are_bit_equal(normalize, targets):
    numbers = np.random.default_rng(0)
    x, y = numbers.random((9, 3)), numbers.random(9)
    if targets != "different":
        y = 0.7 + (0 if targets == "all the same" else 1e-17) * y
    known, quick = both(normalize_y=normalize)
    asked = np.concatenate([numbers.random((20, 3)), x])
    np.testing.assert_array_equal(known.predict(asked[:1]), quick.predict(asked[:1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        known.fit(x, y), quick.fit(x, y)
    for points in (asked, *asked[:, None]):
        answers = [process.predict(points, return_std=True) for process in (known, quick)]
        np.testing.assert_array_equal(*answers)
    np.testing.assert_array_equal(known.predict(asked), quick.predict(asked))
