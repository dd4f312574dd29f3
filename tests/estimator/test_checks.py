"""scikit-learn's own checks of an estimator, on vectors: a quick part, and all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator, parametrize_with_checks

from odc import DeepClusterer

Check = Callable[[Any], None]

# Every check must pass. The one that is skipped, check_array_api_input, needs an environment variable of SciPy's.
EXPECTED_TO_FAIL: dict[str, str] = {}
QUICK = {
    *("check_clusterer_compute_labels_predict", "check_complex_data", "check_dict_unchanged"),
    *("check_do_not_raise_errors_in_init_or_set_params", "check_dont_overwrite_parameters"),
    *("check_estimator_cloneable", "check_estimator_repr", "check_estimator_sparse_array", "check_estimators_nan_inf"),
    *("check_estimators_pickle", "check_estimators_unfitted", "check_fit1d", "check_fit2d_1feature"),
    *("check_fit2d_1sample", "check_get_params_invariance", "check_methods_subset_invariance", "check_mixin_order"),
    *("check_n_features_in", "check_no_attributes_set_in_init", "check_parameters_default_constructible"),
    *("check_set_params", "check_transformers_unfitted", "check_valid_tag_types"),
}


def trained(method: str) -> DeepClusterer:
    return DeepClusterer(n_clusters=3, method=method, max_epochs=1)


def name(check: Any) -> str:
    return str(getattr(check.func if isinstance(check, partial) else check, "__name__", check))


def quick() -> list[Any]:
    found: dict[str, Any] = {}
    for estimator, check in estimator_checks_generator(trained("scan")):
        if name(check) in QUICK:  # some come again with other kinds of arrays
            found.setdefault(name(check), pytest.param(estimator, check, id=name(check)))
    assert found.keys() == QUICK, QUICK - found.keys()
    return list(found.values())


pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),  # of 20 samples or less
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning"),
]


@pytest.mark.parametrize(("estimator", "check"), quick())
def test_quick_checks(estimator: DeepClusterer, check: Check) -> None:
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(  # type: ignore[untyped-decorator]
    [trained("scan"), trained("odc"), trained("spice"), DeepClusterer(n_clusters=3)],
    expected_failed_checks=lambda estimator: EXPECTED_TO_FAIL,
)
def test_all_checks(estimator: DeepClusterer, check: Check) -> None:
    check(estimator)
