"""Every mistake gets an error that names the argument, what came and what was needed."""

import numpy as np
import pandas
import pytest
import torch

from pyro_zilognormal.models import (
    Condition,
    HurdleData,
    HurdleGuide,
    HurdleModel,
    HurdlePriors,
    cell_parameters,
    expected_fdr,
    fit_hurdle,
    log_fold_change,
)
from pyro_zilognormal.sufficient import SufficientStatistics

X = torch.tensor([[0.0, 2.0], [1.5, 0.0], [3.0, 1.0], [2.0, 2.0]])
ONE = torch.ones(4, 1)
TWO = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
NAN, INF = float("nan"), float("inf")
STATS = SufficientStatistics.from_cells(X, [0, 0, 1, 1])
DATA = HurdleData.from_cells(X, TWO)
MODEL = HurdleModel(DATA)
GUIDE = HurdleGuide(MODEL, DATA)
DRAWS = {k: torch.zeros(3, 2, 1) for k in ("intercept", "effects", "zero_intercept", "zero_effects")}
DRAWS |= {"log_sigma": torch.zeros(3, 2, 2), "zero_slope": torch.ones(3, 1, 1)}
cells, groups = HurdleData.from_cells, HurdleData.from_groups


def at(row, column, value):
    changed = X.clone()
    changed[row, column] = value
    return changed


def other(**changed):
    """A fit of data of other sizes than those the model was made from."""
    fit_hurdle(MODEL, GUIDE, cells(**{"x": X, "design": TWO} | changed), steps=10)


BAD = {
    "x, a list": (lambda: cells([[0.0]], [[1.0]]), ValueError, "x: a list; needed a tensor, numpy array or CSR"),
    "x, a vector": (lambda: cells(X[0], ONE[:2]), ValueError, r"x: shape \(2,\); needed .* of cells x genes"),
    "x, empty": (lambda: cells(X[:0], ONE[:0]), ValueError, r"x: shape \(0, 2\); .* at least one cell"),
    "x < 0": (lambda: cells(at(1, 0, -1), ONE), ValueError, r"got -1.0 in row 1, column 0"),
    "x < 0, kept": (lambda: cells(at(1, 0, -1), ONE, reduce=False), ValueError, r"got -1.0 in row 1, column 0"),
    "x NaN, kept": (lambda: cells(at(3, 1, NAN), ONE, reduce=False), ValueError, r"got nan in row 3, column 1"),
    "x inf": (lambda: cells(at(3, 1, INF), ONE), ValueError, r"got inf in row 3, column 1"),
    "design, rows": (lambda: cells(X, ONE[:3]), ValueError, r"design: shape \(3, 1\); needed 4 x columns"),
    "design, vector": (lambda: cells(X, ONE[:, 0]), ValueError, r"design: shape \(4,\); needed 4 x columns"),
    "design, no columns": (lambda: cells(X, ONE[:, :0]), ValueError, "design: the first column is not all 1; needed"),
    "design, no intercept": (lambda: cells(X, TWO[:, 1:]), ValueError, "needed an intercept there"),
    "design, NaN": (
        lambda: cells(X, TWO * torch.tensor([1, NAN])),
        ValueError,
        "design: row 0 is not finite; leave out",
    ),
    "design, words": (lambda: cells(X, [["a"]] * 4), TypeError, "design: a list that holds more than numbers"),
    "design, None": (lambda: cells(X, None), ValueError, r"design: shape \(\); needed 4 x columns"),
    "zero design": (lambda: cells(X, ONE, TWO[:, 1:]), ValueError, "zero_design: the first column is not all 1"),
    "zero design, rows": (lambda: cells(X, ONE, TWO[:2]), ValueError, r"zero_design: shape \(2, 2\); needed 4 x"),
    "scale design": (lambda: cells(X, ONE, ONE, TWO[:, 1:]), ValueError, "scale_design: the first column is not all"),
    "scale design, NaN": (
        lambda: cells(X, ONE, scale_design=TWO * torch.tensor([1, INF])),
        ValueError,
        "scale_design: row 0 is not finite",
    ),
    "factors, rows": (
        lambda: cells(X, ONE, factors=[0, 1]),
        ValueError,
        r"factors: shape \(2, 1\); needed 4 x",
    ),
    "factors, cube": (lambda: cells(X, ONE, factors=torch.zeros(4, 1, 1)), ValueError, r"factors: shape \(4, 1, 1\)"),
    "factors < 0": (lambda: cells(X, ONE, factors=[0, 1, -1, 0]), ValueError, "factors: got -1; needed whole numbers"),
    "factors, half": (lambda: cells(X, ONE, factors=[0, 1, 0.5, 0]), ValueError, "factors: got 0.5; needed whole"),
    "factors, NaN": (lambda: cells(X, ONE, factors=[0, NAN, 1, 0]), ValueError, "factors: row 1 is not finite"),
    "factors, names": (lambda: cells(X, ONE, factors=list("abab")), TypeError, r"factors: .*categories: \.cat\.codes"),
    "offset, rows": (lambda: cells(X, ONE, offset=[0.0]), ValueError, r"offset: shape \(1,\); needed 4"),
    "offset, inf": (lambda: cells(X, ONE, offset=[0, 0, INF, 0]), ValueError, "offset: row 2 is not finite"),
    "stats": (lambda: groups(STATS.value, TWO[:2]), TypeError, "stats is a Tensor; needed SufficientStatistics"),
    "stats, rows": (lambda: groups(STATS, TWO), ValueError, r"design: shape \(4, 2\); needed 2 x columns"),
    "stats, factors": (lambda: groups(STATS, ONE[:2], factors=[0]), ValueError, r"factors: shape \(1, 1\); needed 2 x"),
    "pair": (lambda: HurdlePriors(random_sd=0.3), TypeError, "random_sd is 0.3; needed a pair"),
    "pair, None": (lambda: HurdlePriors(effects_share=None), TypeError, "effects_share is None; needed a pair"),
    "pair, three": (
        lambda: HurdlePriors(log_sigma_mean=(0, 1, 2)),
        TypeError,
        r"log_sigma_mean is \(0, 1, 2\); needed",
    ),
    "median": (lambda: HurdlePriors(random_sd=(0, 1)), ValueError, "random_sd is .*, with median and spread > 0"),
    "spread": (lambda: HurdlePriors(zero_random_spread=(1, 0)), ValueError, "zero_random_spread is .* spread > 0"),
    "sd": (lambda: HurdlePriors(intercept_mean=(-1, 0)), ValueError, r"intercept_mean is \(-1, 0\); .*, with sd > 0"),
    "slope": (lambda: HurdlePriors(zero_slope=(1, -1)), ValueError, r"zero_slope is \(1, -1\); .*, with sd > 0"),
    "infinite": (lambda: HurdlePriors(zero_intercept_mean=(0, INF)), ValueError, "zero_intercept_mean is .* finite"),
    "tensor": (
        lambda: HurdlePriors(log_sigma_effects_sd=(torch.tensor([1.0, NAN]), 1)),
        ValueError,
        "log_sigma_effects_sd is .* finite",
    ),
    "share": (lambda: HurdlePriors(effects_share=(1, 1)), ValueError, "effects_share is .*, and a median < 1"),
    "spike": (lambda: HurdlePriors(spike_sd=0), ValueError, "spike_sd is 0; needed a finite number > 0"),
    "spike, bool": (lambda: HurdlePriors(spike_sd=True), ValueError, "spike_sd is True; needed a finite number"),
    "spike, inf": (lambda: HurdlePriors(spike_sd=INF), ValueError, "spike_sd is inf; needed a finite number"),
    "no prior": (lambda: HurdlePriors.for_data(DATA, effect_sd=(1, 1)), TypeError, "unexpected .* 'effect_sd'"),
    "data": (lambda: HurdleModel(X), TypeError, "data is a Tensor; needed HurdleData.from_cells"),
    "priors": (lambda: HurdleModel(DATA, {}), TypeError, r"priors is a dict; needed HurdlePriors\(...\), or None"),
    "wide": (
        lambda: HurdleModel(DATA, HurdlePriors(log_sigma_effects_sd=(torch.ones(3), 1))),
        ValueError,
        r"a prior of HurdlePriors is \(tensor.*; needed numbers, or 1 elements",
    ),
    "fewer steps": (
        lambda: fit_hurdle(MODEL, GUIDE, DATA, steps=9),
        ValueError,
        "steps is 9; needed at least 10",
    ),
    "genes": (lambda: other(x=X[:, :1]), ValueError, "data has {.*'genes': 1, .* the model {.*'genes': 2"),
    "levels": (
        lambda: other(factors=[0, 1, 0, 1]),
        ValueError,
        r"data has .*'levels': \(2,\).* model .*: \(\)",
    ),
    "columns": (lambda: other(design=ONE), ValueError, "data has .*'design columns': 1.* model .*'design columns': 2"),
    "scale columns": (lambda: other(scale_design=ONE), ValueError, "data has .*'scale_design columns': 1"),
    "zero columns": (
        lambda: other(zero_design=ONE),
        ValueError,
        "data has .*'zero_design columns': 1.* needed a model",
    ),
    "condition": (
        lambda: log_fold_change(DRAWS, Condition([1]), Condition([1, 0])),
        ValueError,
        r"condition: a row of shape \(1,\) for the 2 coefficients of intercept and effects; needed one number for each",
    ),
    "condition, zero part": (
        lambda: log_fold_change(DRAWS, Condition([1, 1], [1, 0, 0]), Condition([1, 0])),
        ValueError,
        r"a row of shape \(3,\) for the 2 coefficients of zero_intercept and zero_effects",
    ),
    "condition, sigma": (
        lambda: cell_parameters(DRAWS, Condition([1, 1], scale_design=[1])),
        ValueError,
        r"a row of shape \(1,\) for the 2 coefficients of log_sigma",
    ),
    "guide, no model": (
        lambda: HurdleGuide(DATA, DATA),
        TypeError,
        r"model is a HurdleData; needed HurdleModel\(data\)",
    ),
    "guide, no data": (lambda: HurdleGuide(MODEL, X), TypeError, "data is a Tensor; needed HurdleData.from_cells"),
    "guide, other data": (lambda: HurdleGuide(MODEL, cells(X[:, :1], TWO)), ValueError, "data has .*'genes': 1"),
    "rows": (lambda: fit_hurdle(MODEL, GUIDE, cells(X, TWO, reduce=False)), ValueError, "data has {'rows': 4"),
    "draws": (
        lambda: log_fold_change({"intercept": DRAWS["intercept"]}, Condition([1]), Condition([1])),
        ValueError,
        r"draws: no zero_intercept among \['intercept'\]; needed those of all sites",
    ),
    "error > 1": (lambda: expected_fdr(torch.tensor([0.1, 2.0])), ValueError, "error .* needed one probability"),
    "error NaN": (lambda: expected_fdr(torch.tensor([0.1, NAN])), ValueError, "error .* needed one probability"),
    "error, matrix": (lambda: expected_fdr(torch.zeros(2, 2)), ValueError, r"error of shape \(2, 2\); needed one"),
}


@pytest.mark.parametrize(("mistake", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(mistake, error, message):
    with pytest.raises(error, match=message):
        mistake()


def test_good_input_that_is_near():
    """What stands beside the mistakes above."""
    assert cells(X.numpy(), np.ones((4, 1)), factors=np.array([0, 2, 0, 2])).levels == (3,)
    assert cells(X, ONE, factors=[[0, 1], [1, 0], [0, 1], [1, 3]]).levels == (2, 4)
    assert cells(X, ONE.tolist(), offset=[0, 1, 2, 3]).offset.dtype == torch.float64
    assert groups(STATS, ONE[:2], TWO[1:3], factors=[0, 1]).levels == (2,)
    assert HurdlePriors(log_sigma_effects_sd=(torch.ones(2), 1), effects_share=(0.5, 1)).effects_share == (0.5, 1)
    HurdleModel(DATA, HurdlePriors(log_sigma_effects_sd=(torch.ones(1), 1)))


def test_tables_of_pandas():
    frame = pandas.DataFrame({"Intercept": 1.0, "treated": [False, False, True, True]})
    donor = pandas.Series(["a", "b", "a", "b"], dtype="category", index=list("wxyz")).cat.codes
    factors = pandas.DataFrame({"donor": donor, "batch": [0, 0, 1, 1]})
    data = cells(X, frame, factors=factors, offset=pandas.Series([0.0, 0.1, 0.2, 0.3]), reduce=False)
    torch.testing.assert_close(data.design, TWO.double())
    assert data.factors.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert data.offset.tolist() == [0.0, 0.1, 0.2, 0.3]
    assert cells(X, frame, factors=donor, reduce=False).factors.tolist() == [[0], [1], [0], [1]]


def test_designs_that_are_left_out_are_the_log_means():
    data = cells(X, TWO)
    assert torch.equal(data.zero_design, data.design)
    assert torch.equal(data.scale_design, data.design)
    other = cells(X, ONE, zero_design=TWO)
    assert other.design.shape == other.scale_design.shape == (2, 1)
    assert other.zero_design.tolist() == [[1.0, 0.0], [1.0, 1.0]]
