"""Bad data and calls: each gets one line that names what came and what to do, and leaves the AnnData as it was."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from pyro_zilognormal.singlecell import (
    ArgumentTypeError,
    HurdleDE,
    SingleCellError,
    UnknownNameError,
    differential_expression,
    to_scanpy,
    write_results,
)
from tests.singlecell.cell_cases import GENES, experiment, fitted, frame, values

STIM = ("condition", "stim", "ctrl")


def call(adata: Any, formula: Any = "~ condition", contrast: Any = STIM, **options: Any) -> Any:
    return differential_expression(adata, formula, contrast, steps=10, **options)


def with_value(value: float, make: Callable[[Any], Any] = np.asarray) -> anndata.AnnData:
    x = values()
    x[17, 3] = value
    return experiment(x=make(x))


def with_obs(**columns: Any) -> anndata.AnnData:
    adata = experiment()
    for name, column in columns.items():
        adata.obs[name] = column
    return adata


def with_missing(name: str) -> anndata.AnnData:
    adata = experiment()
    adata.obs[name] = adata.obs[name].astype(object)
    adata.obs.iloc[[5, 9], list(adata.obs.columns).index(name)] = None
    return adata


def renamed(genes: list[str]) -> anndata.AnnData:
    adata = experiment()
    adata.var_names = genes
    return adata


def counted(empty: list[int] | None = None) -> anndata.AnnData:
    x = np.ceil(values())
    x[empty or []] = 0
    return experiment(x=x)


AGE = frame()["age"]

# What is wrong: the call, and what its error says.
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "negative": (
        lambda: call(with_value(-0.5)),
        r"adata.X: -0.5 in cell 'cell17', gene 'same': values are centred or scaled; needed values >= 0",
    ),
    "negative in csr": (lambda: call(with_value(-0.5, sp.csr_matrix)), r"-0.5 in cell 'cell17', gene 'same'"),
    "negative in csc": (lambda: call(with_value(-0.5, sp.csc_matrix)), r"-0.5 in cell 'cell17', gene 'same'"),
    "nan": (lambda: call(with_value(np.nan)), r"adata.X: nan in cell 'cell17', gene 'same'; needed finite values"),
    "nan in csr": (lambda: call(with_value(np.nan, sp.csr_matrix)), r"nan in cell 'cell17', gene 'same'"),
    "nan in csc": (lambda: call(with_value(np.nan, sp.csc_matrix)), r"nan in cell 'cell17', gene 'same'"),
    "masked": (
        lambda: call(with_value(0.5, lambda x: np.ma.masked_equal(x, 0.5))),
        r"adata.X: nan in cell 'cell17', gene 'same'; needed finite values",
    ),
    "infinite": (lambda: call(with_value(np.inf)), r"inf in cell 'cell17', gene 'same'; needed finite"),
    "minus infinite": (lambda: call(with_value(-np.inf)), r"-inf in cell 'cell17', gene 'same'; needed finite"),
    "no logarithm": (
        lambda: call(with_value(5000.0), scale="log1p"),
        r"inf in cell 'cell17', gene 'same' once scale='log1p' is undone; .*: scale='linear'\?",
    ),
    "text": (lambda: call(experiment(x=values().astype(str).astype(object))), r"dtype object; needed real numbers"),
    "complex": (lambda: call(experiment(x=values() + 0j)), r"dtype complex128; needed real numbers"),
    "all zero": (lambda: call(experiment(x=values() * 0)), "holds no value above the detection threshold"),
    "threshold above all": (lambda: call(experiment(), detection_threshold=1e9), "no value above the detection"),
    "no cells": (lambda: call(experiment()[:0]), r"adata.X is empty, of shape \(0, 6\); needed cells x genes"),
    "no genes": (lambda: call(experiment()[:, :0]), r"adata.X is empty, of shape \(160, 0\)"),
    "one cell": (lambda: call(experiment()[:1], scale="linear"), "has one value only"),
    "no X": (lambda: call(anndata.AnnData(obs=frame())), "adata has no X; name a layer: it has none"),
    "an AnnData without matrix": (lambda: call(SimpleNamespace(obs=frame())), "adata is a SimpleNamespace; needed an"),
    "duplicate genes": (
        lambda: call(renamed(["a", "b", "a", "c", "a", "d"])),
        r"gene name 'a' stands 3 times in var_names; needed unique names: call adata.var_names_make_unique\(\)",
    ),
    "no layer": (lambda: call(experiment(), layer="counts"), "layer: 'counts' is not one of the layers of adata: none"),
    "no raw": (lambda: call(experiment(), use_raw=True), "use_raw is True, but adata.raw is None; pass use_raw=False"),
    "layer and raw": (lambda: call(experiment(), use_raw=True, layer="a"), "layer is 'a' and use_raw is True"),
    "scale": (lambda: call(experiment(), scale="log2"), "needed one of 'linear', 'log1p', 'log2p1', 'log10p1',"),
    "threshold": (lambda: call(experiment(), detection_threshold=-1), "detection_threshold is -1; needed a number"),
    "no column": (
        lambda: call(experiment(), "~ conditoin"),
        "formula: 'conditoin' is not one of the columns of adata.obs: .*; did you mean 'condition'?",
    ),
    "no column in a function": (lambda: call(experiment(), "~ center(agee)"), "does not fit adata.obs: .*agee"),
    "no level": (
        lambda: call(experiment(), contrast=("condition", "stimm", "ctrl")),
        r"condition: 'stimm' is not one of the levels of obs\['condition'\]: ctrl, stim; did you mean 'stim'\?",
    ),
    "no variable": (
        lambda: call(experiment(), contrast=("sex", "f", "m")),
        "condition: 'sex' is not one of the variables of the formula '~ condition': condition",
    ),
    "one level": (
        lambda: call(with_obs(condition="ctrl")),
        r"obs\['condition'\] has one value only, 'ctrl'; needed two levels",
    ),
    "one level left": (lambda: call(experiment()[:80].copy()), r"obs\['condition'\] has one value only"),
    "one number": (lambda: call(with_obs(age=3.0), "~ condition + age"), r"obs\['age'\] has one value only, 3.0"),
    "itself": (lambda: call(experiment(), contrast=("condition", "stim", "stim")), "compares a condition with itself"),
    "numbers": (
        lambda: call(with_obs(cluster=np.arange(160) % 4), "~ cluster", ("cluster", 3, 1)),
        r"obs\['cluster'\] holds numbers, so '~ cluster' has one slope for it and no levels; write C\(cluster\)",
    ),
    "not among two numbers": (
        lambda: call(with_obs(dose=np.arange(160) % 2), "~ dose", ("dose", 1, 3)),
        r"contrast: 3 is not one of the values of obs\['dose'\]: 0, 1",
    ),
    "not estimable": (
        lambda: call(with_obs(batch=frame()["condition"]), "~ condition + batch"),
        r"'condition: stim vs ctrl' is not estimable from '~ condition \+ batch': .* \(rank 2 of 3\)",
    ),
    "interaction": (
        lambda: call(experiment(), "~ condition * sex"),
        r"'condition: stim vs ctrl' depends on sex, with which it interacts in '~ condition \* sex'; .*,sex=\.\.\.'\)",
    ),
    "interaction with a number": (lambda: call(experiment(), "~ condition * age"), r"depends on age"),
    "interaction with a numeric function": (lambda: call(experiment(), "~ condition * center(age)"), r"depends on age"),
    "no intercept": (lambda: call(experiment(), "~ 0 + condition"), "'~ 0 \\+ condition' has no intercept; needed one"),
    "two sides": (lambda: call(experiment(), "age ~ condition"), "has several sides or parts; needed one"),
    "unreadable formula": (lambda: call(experiment(), "~ condition +* sex"), "cannot be read: "),
    "single cells as donors": (
        lambda: call(experiment(), donor="age"),
        r"donor: obs\['age'\] has 160 levels in 160 cells; needed a column that names groups of cells, such as donors",
    ),
    "names of pairs and single cells as a random effect": (
        lambda: call(with_obs(name=[f"cell{max(i, 79)}" for i in range(160)]), "~ condition + (1 | sex:name)"),
        r"formula: obs\['name'\] has 81 levels in 160 cells",
    ),
    "single cells as groups": (
        lambda: differential_expression(with_obs(name=frame().index), groupby="name"),
        r"groupby: obs\['name'\] has 160 levels in 160 cells",
    ),
    "a variable of single cells": (
        lambda: call(with_obs(name=frame().index), "~ condition + name"),
        "has 161 coefficients for 160 cells; needed fewer: leave out variables that name single cells",
    ),
    "unclosed": (lambda: call(experiment(), "~ C(condition"), "cannot be read: "),
    "log of zero": (lambda: call(with_obs(age=AGE - AGE.min()), "~ log(age)"), r"'log\(age\)' is not finite"),
    "no donor column": (lambda: call(experiment(), donor="doner"), "donor: 'doner' is not .*did you mean 'donor'"),
    "one donor": (lambda: call(with_obs(donor="d"), donor="donor"), "names one donor only, 'd'; pass donor=None"),
    "confounded donors": (
        lambda: call(with_obs(donor=frame()["condition"] + "1"), donor="donor"),
        r"the 2 donors of obs\['donor'\] are confounded with condition: .*; needed more donors a condition",
    ),
    "donor in the formula": (lambda: call(experiment(), "~ condition + donor", donor="donor"), "in the formula .* too"),
    "missing condition": (
        lambda: call(with_missing("condition")),
        r"obs\['condition'\] is missing in 2 of 160 cells, the first 'cell5'; fill it, or keep adata\[",
    ),
    "missing donor": (lambda: call(with_missing("donor"), donor="donor"), r"obs\['donor'\] is missing in 2 of 160"),
    "missing number": (lambda: call(with_missing("age"), "~ condition + age"), r"obs\['age'\] is missing in 2 of 160"),
    "missing in a function": (
        lambda: call(with_obs(age=AGE.where(AGE > 40)), "~ condition + center(age)"),
        r"obs\['age'\] is missing in",
    ),
    "infinite number": (lambda: call(with_obs(age=AGE.where(AGE > 40, np.inf)), "~ condition + age"), "holds infinite"),
    "mixed": (
        lambda: call(with_obs(condition=["a", 1] * 80)),
        r"obs\['condition'\] holds objects of type int, str; needed .*astype\(str\)",
    ),
    "numbers as objects": (
        lambda: call(with_obs(age=AGE.astype(object)), "~ condition + age"),
        r"obs\['age'\] holds objects of type (float|int); needed .*astype\(str\)",
    ),
    "times": (
        lambda: call(with_obs(day=pd.date_range("2020-01-01", periods=160).to_numpy()), "~ condition + day"),
        r"obs\['day'\] is datetime64.*; needed numbers or categories",
    ),
    "no offset": (lambda: call(experiment(), offset="size"), "offset: 'size' is not one of the columns"),
    "offset of text": (lambda: call(experiment(), offset="sex"), r"offset: obs\['sex'\] is not a finite number"),
    "offset too short": (lambda: call(experiment(), offset=[0.0]), r"offset has shape \(1,\); needed one number"),
    "infinite offset": (lambda: call(experiment(), offset=np.where(AGE > 40, AGE, -np.inf)), "offset is not a finite"),
    "offset of counts": (lambda: call(counted(), scale="counts", offset="age"), "offset is given with scale='counts'"),
    "no counts": (
        lambda: call(experiment(), scale="counts"),
        r"adata.X: [\d.]+ in cell 'cell0', gene .\w+.; needed whole numbers, as scale is 'counts': name the layer",
    ),
    "negative counts": (
        lambda: call(with_value(-1.0), scale="counts"), r"in cell 'cell\d+', gene '\w+'",
    ),
    "empty cell": (
        lambda: call(counted(empty=[5, 9]), scale="counts"),
        r"adata.X: the total of cell 'cell5' is 0.0; needed a number > 0, which 2 of 160 cells have not: leave out",
    ),
    "no depth column": (lambda: call(experiment(), depth="ages"), "depth: 'ages' is not .*did you mean 'age'"),
    "depth of text": (lambda: call(experiment(), depth="sex"), r"depth: obs\['sex'\] of cell 'cell0' is f; needed"),
    "depth of zero": (
        lambda: call(with_obs(total_counts=np.maximum(AGE - 40, 0)), depth="auto"),
        r"depth: obs\['total_counts'\] of cell .* is 0.0; needed a number > 0, .* or pass depth=None",
    ),
    "depth is missing": (lambda: call(with_missing("age"), depth="age"), r"depth: obs\['age'\] is missing in 2 of"),
    "infinite depth": (lambda: call(with_obs(age=np.inf), depth="age"), r"depth: obs\['age'\] holds infinite"),
    "slope of a number": (
        lambda: call(experiment(), "~ condition + (age | donor)"),
        r"\(age \| donor\) is a random slope of the number age, which the model has not; needed 0, 1 or a category",
    ),
    "two left of the bar": (lambda: call(experiment(), "~ condition + (2 | donor)"), "formula: '2' cannot be read: "),
    "no effect": (lambda: call(experiment(), "~ condition + (0 | donor)"), r"\(0 \| donor\) has no effect; needed 1"),
    "nothing right of the bar": (lambda: call(experiment(), "~ condition + (1 | )"), r"\(1 \| \) has no effect"),
    "nothing left of the bar": (lambda: call(experiment(), "~ condition + ( | donor)"), r"\( \| donor\) has no effect"),
    "a grouping less 1": (lambda: call(experiment(), "~ condition + (1 | sex-1)"), r"\(1 \| sex-1\) has no effect"),
    "a grouping by 1": (lambda: call(experiment(), "~ condition + (1 | 1)"), r"\(1 \| 1\) has no effect; needed 1"),
    "no such grouping": (lambda: call(experiment(), "~ condition + (1 | doner)"), "'doner' is not .* mean 'donor'"),
    "no such slope": (lambda: call(experiment(), "~ condition + (sexx | donor)"), "'sexx' is not .*did you mean 'sex'"),
    "levels of the design": (
        lambda: call(experiment(), "~ condition + (1 | condition)"),
        r"the 2 levels of \(1 \| condition\) are confounded with condition: .*; needed a formula without",
    ),
    "one level of a grouping": (
        lambda: call(with_obs(batch="b"), "~ condition + (1 | batch)"),
        r"formula: \(1 \| batch\) has one level only, 'b'; needed two or more: leave it out",
    ),
    "missing in a grouping": (
        lambda: call(with_missing("sex"), "~ condition + (1 | sex:donor)"), r"obs\['sex'\] is missing in 2 of 160",
    ),
    "a bar without parentheses": (lambda: call(experiment(), "~ condition + 1 | donor"), "has several sides or parts"),
    "no contrast": (lambda: call(experiment(), contrast=[]), "contrast: got none; needed at least one"),
    "twice": (lambda: call(experiment(), contrast=[STIM, STIM]), "needed at least one, and each once"),
    "nothing asked": (lambda: call(experiment(), None, None), "formula is None, contrast None; needed both"),
    "half a question": (lambda: call(experiment(), "~ condition", None), "contrast None; needed both"),
    "two questions": (lambda: call(experiment(), groupby="condition"), "groupby is given with a formula or a contrast"),
    "groups alone": (lambda: call(experiment(), groups=["stim"]), "groups or reference is given without groupby"),
    "no group": (lambda: call(experiment(), None, None, groupby="condition", groups=["x"]), "'x' is not one of"),
    "no reference": (lambda: call(experiment(), None, None, groupby="condition", reference="x"), "'x' is not one of"),
    "reference among groups": (
        lambda: call(experiment(), None, None, groupby="condition", groups=["ctrl"], reference="ctrl"),
        r"groups is \['ctrl'\], reference 'ctrl'; needed groups other than the reference",
    ),
    "delta": (lambda: call(experiment(), delta=-1), "delta is -1; needed a number >= 0"),
    "fdr": (lambda: call(experiment(), fdr=1.0), "fdr is 1.0; needed a number between 0 and 1"),
    "credible": (lambda: call(experiment(), credible=95), "credible is 95; needed a number between 0 and 1"),
    "draws": (lambda: call(experiment(), draws=10), "draws is 10; needed a whole number of at least 100"),
    "true draws": (lambda: call(experiment(), draws=True), "draws is True; needed a whole number of at least 100"),
    "steps": (lambda: HurdleDE(experiment(), "~ condition").fit(steps=torch.tensor([1.0, 2.0])), "steps is tensor"),
    "steps of a fraction": (lambda: HurdleDE(experiment(), "~ condition").fit(steps=5.5), "steps is 5.5; needed a"),
    "checkpoint": (lambda: call(experiment(), checkpoint=5), "checkpoint: path is 5; needed the name of a file"),
    "a callback": (lambda: call(experiment(), callbacks=["x"]), "callbacks holds 'x'; needed instances of Callback"),
    "device": (lambda: call(experiment(), device="cuda:7"), "device is 'cuda:7', which cannot be used here"),
    "key": (lambda: call(experiment(), key_added="a/b"), "key_added is 'a/b'; needed text without '/'"),
    "priors": (lambda: call(experiment(), priors={"effect_share": 1}), "'effect_share' is not .*mean 'effects_share'"),
    "not fitted": (lambda: HurdleDE(experiment(), "~ condition").test(STIM), r"not been fitted; call fit\(\) first"),
    "no such combination": (
        lambda: HurdleDE(experiment()[(frame()["condition"] == "ctrl") | (frame()["sex"] == "f")].copy(),
                         "~ condition * sex").cond(condition="stim", sex="m"),
        "condition: 'condition=stim,sex=m' is not estimable: no cells determine it",
    ),
    "no number": (lambda: HurdleDE(experiment(), "~ age").cond(age="old"), "age: got 'old'; needed a finite number"),
    "no results": (lambda: to_scanpy(experiment()), "key: 'ziln_de' is not one of the keys of adata.uns: none"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_calls(case: str) -> None:
    make, says = BAD[case]
    with pytest.raises(SingleCellError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: call(values()), "adata is a ndarray; needed an AnnData"),
        (lambda: call(experiment(), 3), "formula is a int; needed text"),
        (
            lambda: call(experiment(), contrast="stim"),
            r"contrast is 'stim'; needed \(column, test level, reference level\)",
        ),
        (
            lambda: call(experiment(), contrast=("condition", "stim")),
            "needed \\(column, test level, reference level\\)",
        ),
        (
            lambda: fitted().predict(),
            "needed one or more conditions, from cond",
        ),
    ],
)
def test_arguments_of_another_kind(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        make()


# Arguments of another type, and what is said of them.
KINDS: dict[str, tuple[Callable[[], Any], str]] = {
    "use_raw": (lambda: call(experiment(), use_raw=set()), r"use_raw is set\(\); needed True or False"),
    "copy": (lambda: call(experiment(), copy=1), "copy is 1; needed True or False"),
    "formula": (lambda: call(experiment(), torch.tensor(3)), "formula is a Tensor; needed text"),
    "callbacks": (lambda: call(experiment(), callbacks=5), "callbacks is 5; needed a list of callbacks"),
    "priors": (lambda: call(experiment(), priors="weak"), "priors is 'weak'; needed HurdlePriors, or a dict"),
    "fdr": (lambda: call(experiment(), fdr="0.1"), "fdr is '0.1'; needed a number between 0 and 1"),
    "delta": (lambda: call(experiment(), delta=torch.ones(2)), r"delta is tensor.*; needed a number >= 0"),
    "donor": (lambda: call(experiment(), donor=["donor"]), r"donor is \['donor'\]; needed the name of a column"),
    "layer": (lambda: call(experiment(), layer=3), "layer is 3; needed the name of a layer, or None"),
    "device": (lambda: call(experiment(), device=None), "device is None; needed the name of a torch device"),
    "groupby": (lambda: call(experiment(), None, None, groupby=3), "groupby is 3; needed the name of a column"),
    "groups": (lambda: call(experiment(), None, None, groupby="sex", groups=3), "groups is 3; needed 'all' or a list"),
    "a level": (
        lambda: call(experiment(), contrast=("condition", ["stim"], "ctrl")),
        r"got \['stim'\]; needed one level",
    ),
    "quantiles": (
        lambda: fitted().predict(fitted().cond(), quantiles=0.5),
        "quantiles is 0.5; needed a list of numbers",
    ),
    "genes": (lambda: fitted().gene_fits("up", STIM), "genes is 'up'; needed a list of names"),
    "class": (lambda: call(anndata.AnnData), "adata is a type; needed an AnnData"),
}


@pytest.mark.parametrize("case", KINDS)
def test_an_argument_of_another_type_is_named(case: str) -> None:
    make, says = KINDS[case]
    with pytest.raises(ArgumentTypeError, match=says) as caught:
        make()
    assert isinstance(caught.value, SingleCellError)
    assert str(caught.value).isprintable()


def test_numbers_of_numpy_and_torch_are_taken() -> None:
    de = HurdleDE(
        experiment(), "~ condition", draws=np.int64(200), detection_threshold=np.float32(0.0), use_raw=np.False_
    )
    de.fit(steps=torch.tensor(10), seed=np.uint8(3), batch_size=np.int32(64))
    assert (de.settings["steps"], de.settings["seed"], de.settings["draws"]) == (10, 3, 200)
    assert len(de.test(STIM, delta=np.float64(0.1), fdr=np.float32(0.1), credible=np.float64(0.9))) == len(GENES)


def test_names_are_also_key_errors() -> None:
    with pytest.raises(KeyError) as caught:
        call(experiment(), "~ nothing")
    assert isinstance(caught.value, UnknownNameError)
    assert str(caught.value).startswith("formula: 'nothing' is not one of")  # not in quotes, as a KeyError's is


def test_a_failed_call_writes_nothing() -> None:
    adata = experiment()
    for contrast in (("condition", "stim", "none"), [STIM, STIM]):
        with pytest.raises(SingleCellError):
            call(adata, contrast=contrast)
    assert not list(adata.uns)
    assert not list(adata.varm)
    assert list(adata.obs.columns) == list(frame().columns)


def test_results_of_a_bad_key_are_not_written() -> None:
    adata = experiment()
    with pytest.raises(SingleCellError, match="key_added is ''"):
        write_results(adata, None, {}, "")
    assert not list(adata.uns)


def test_genes_are_those_of_the_table() -> None:
    assert HurdleDE(experiment(), "~ condition").genes == list(GENES)
