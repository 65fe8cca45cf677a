import numpy as np
import pytest

from rankckpt_jax.prediction import standardize as st


def test_logit_is_clipped_by_half_an_image():
    assert st.logit(np.array([0.5]))[0] == 0
    np.testing.assert_allclose(
        st.logit(np.array([0.0, 1.0]), 100), [-5.293305, 5.293305]
    )
    assert st.logit(np.array([1.0]))[0] == pytest.approx(np.log(0.998 / 0.002))


def test_standardize_has_mean_zero_and_variance_one_and_keeps_missing_values():
    x, scale = st.standardize(np.array([3.0, np.nan, 5.0, 4.0, 8.0]))
    assert np.isnan(x[1])
    assert np.nanmean(x) == pytest.approx(0)
    assert np.nanvar(x) == pytest.approx(1)
    assert scale == pytest.approx(np.std([3, 5, 4, 8]))


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [2.0, np.nan], [np.nan, np.nan]])
def test_standardize_knows_nothing_of_values_without_order(values):
    x, scale = st.standardize(np.array(values))
    assert np.isnan(x).all()
    assert np.isnan(scale)


def test_winsorize_moves_outliers_to_four_robust_deviations():
    x = st.winsorize(np.array([-580_000.0, 1, 2, 3, 4, 5, 6]))
    # The median is 3 and the median absolute deviation 2.
    assert x[0] == pytest.approx(3 - 4 * 1.4826 * 2)
    assert x[1:].tolist() == [1, 2, 3, 4, 5, 6]
    # Most values are equal.
    assert st.winsorize(np.array([1.0, 1, 1, 9])).tolist() == [1, 1, 1, 9]
