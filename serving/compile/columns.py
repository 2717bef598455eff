"""Pipelines, column transformers, scalers, imputers, encoders."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from serving.compile import NotCompiled, build
from serving.kernels import Kernel
from serving.kernels.columns import Arithmetic, Beside, Chain, Codes, FillNumbers, FillTexts, OneHot, Same, Take
from serving.kernels.linear import Layers, Linear
from serving.kernels.trees import Trees


def pipeline(estimator: Any) -> Kernel:
    """Its steps one after the other; a step that is None or "passthrough" does nothing."""
    kernels: list[Kernel] = []
    sparse = False
    for _, step in estimator.steps:
        if step is None or step == "passthrough":
            continue
        built = build(step)
        kernels.append(on_sparse(built) if sparse else built)
        sparse = gives_sparse(step, sparse)
    return Chain(tuple(kernels)) if len(kernels) != 1 else kernels[0]


def gives_sparse(step: Any, sparse: bool) -> bool:
    """Whether a transformer's output is a sparse matrix, given whether its input is one."""
    name = type(step).__name__
    if name == "ColumnTransformer":
        return bool(step.sparse_output_)
    if name == "OneHotEncoder":
        return bool(step.sparse_output)
    if name == "Pipeline":
        for _, inner in step.steps:
            sparse = gives_sparse(inner, sparse)
    return sparse


def on_sparse(kernel: Kernel) -> Kernel:
    """The same on a sparse matrix, where scikit-learn multiplies column by column, and by ``1 / x`` for ``/ x``."""
    if isinstance(kernel, (Linear, Layers)):
        return dataclasses.replace(kernel, sparse=True)
    if isinstance(kernel, Arithmetic):
        return _reciprocal(kernel)
    if isinstance(kernel, Trees):  # they take missing values from arrays only
        return dataclasses.replace(kernel, takes="finite")
    if isinstance(kernel, Chain):
        return Chain((on_sparse(kernel.steps[0]), *kernel.steps[1:])) if kernel.steps else kernel
    for inner in ("score", "sums"):
        if hasattr(kernel, inner):
            return dataclasses.replace(kernel, **{inner: on_sparse(getattr(kernel, inner))})
    return kernel


def _reciprocal(kernel: Arithmetic) -> Arithmetic:
    pairs = [
        ("multiply", 1.0 / operand) if operation == "divide" else (operation, operand)
        for operation, operand in zip(kernel.operations, kernel.operands, strict=True)
    ]
    return Arithmetic(tuple(name for name, _ in pairs), tuple(operand for _, operand in pairs), kernel.clip)


def column_transformer(estimator: Any) -> Kernel:
    """Each part on the columns that it takes, in the order of its output; dropped columns go nowhere."""
    parts = []
    for name, transformer, _ in estimator.transformers_:
        positions = tuple(int(position) for position in estimator._transformer_to_input_indices[name])
        where = estimator.output_indices_[name]
        if not positions or transformer == "drop" or where.stop == where.start:
            continue
        step = Same() if transformer == "passthrough" else build(transformer)
        steps = step.steps if isinstance(step, Chain) else (step,)
        parts.append((where.start, where.stop - where.start, Chain((Take(positions), *steps))))
    if not parts:
        raise NotCompiled("its column transformer gives no columns")
    parts.sort(key=lambda part: part[0])
    if len(parts) == 1:
        return parts[0][2]
    return Beside(tuple(part for _, _, part in parts), tuple(width for _, width, _ in parts))


def scaler(estimator: Any) -> Kernel:
    """StandardScaler: ``(x - mean) / scale``, either of them only where the scaler uses it."""
    operations = []
    if estimator.with_mean:
        operations.append(("subtract", estimator.mean_))
    if estimator.with_std:
        operations.append(("divide", estimator.scale_))
    return _arithmetic(operations)


def min_max(estimator: Any) -> Kernel:
    """``x * scale + min``, cut to the range where the scaler says so."""
    clip = tuple(map(float, estimator.feature_range)) if estimator.clip else None
    return _arithmetic([("multiply", estimator.scale_), ("add", estimator.min_)], clip)


def robust(estimator: Any) -> Kernel:
    """``(x - center) / scale``, either of them only where the scaler uses it."""
    operations = []
    if estimator.with_centering:
        operations.append(("subtract", estimator.center_))
    if estimator.with_scaling:
        operations.append(("divide", estimator.scale_))
    return _arithmetic(operations)


def max_abs(estimator: Any) -> Kernel:
    """``x / scale``."""
    return _arithmetic([("divide", estimator.scale_)])


def _arithmetic(operations: list[tuple[str, np.ndarray]], clip: Any = None) -> Kernel:
    names, operands = zip(*operations, strict=True) if operations else ((), ())
    return Arithmetic(tuple(names), tuple(operands), clip)


def imputer(estimator: Any) -> Kernel:
    """SimpleImputer for NaN, over numbers or over texts."""
    missing = estimator.missing_values
    if not (missing is None or missing != missing):
        raise NotCompiled(f"SimpleImputer with missing_values={missing!r}")
    marked = tuple(estimator.indicator_.features_.tolist()) if estimator.indicator_ is not None else ()
    statistics = estimator.statistics_
    if statistics.dtype.kind in "fiu" and estimator._fit_dtype.kind != "O":
        empty = np.isnan(statistics) & (not estimator.keep_empty_features)
        return FillNumbers(statistics.astype(np.float64), tuple(np.flatnonzero(~empty).tolist()), marked)
    fill = statistics.tolist()
    if any(value is None or value != value for value in fill):
        raise NotCompiled("SimpleImputer with a column of objects that was always missing")
    return FillTexts(tuple(fill), marked)


def one_hot(estimator: Any) -> Kernel:
    """OneHotEncoder: the category's own output, that of all infrequent ones, or none."""
    drops = estimator._drop_idx_after_grouping
    values, otherwise, start = [], [], 0
    for column, (own, infrequent) in enumerate(_grouped(estimator, {})):
        gone = drops[column] if drops is not None else None
        values.append(tuple(_place(code, gone, start) for code in own))
        to_infrequent = infrequent is not None and estimator.handle_unknown in ("infrequent_if_exist", "warn")
        unknown = _place(infrequent, gone, start) if to_infrequent and infrequent is not None else -1
        otherwise.append(None if estimator.handle_unknown == "error" else unknown)
        start += estimator._n_features_outs[column]
    codes = Codes(_categories(estimator), tuple(values), tuple(otherwise), "int64")
    return OneHot(codes, int(start), np.dtype(estimator.dtype).name)


def _place(code: int, gone: Any, start: int) -> int:
    """The output of a category's ``code`` where that of ``gone`` has none."""
    if gone is None:
        return int(start + code)
    return -1 if code == gone else int(start + code - (code > gone))


def ordinal(estimator: Any) -> Kernel:
    """OrdinalEncoder: the category's number, or that of all infrequent ones."""
    gaps = estimator._missing_indices
    values = []
    for column, (codes, _) in enumerate(_grouped(estimator, gaps)):
        numbers = list(codes)
        if column in gaps:
            numbers[gaps[column]] = estimator.encoded_missing_value
        values.append(tuple(numbers))
    unknown = estimator.unknown_value if estimator.handle_unknown == "use_encoded_value" else None
    otherwise = (unknown,) * len(values)
    return Codes(_categories(estimator), tuple(values), otherwise, np.dtype(estimator.dtype).name)


def _grouped(estimator: Any, gaps: dict[int, int]) -> Iterator[tuple[list[int], int | None]]:
    """For each column its categories' codes and the code of the infrequent ones; those of ``gaps`` stay alone."""
    for column, categories in enumerate(estimator.categories_):
        codes = list(range(len(categories)))
        infrequent = estimator._infrequent_indices[column] if estimator._infrequent_enabled else None
        if infrequent is None:
            yield codes, None
            continue
        mapping = estimator._default_to_infrequent_mappings[column].tolist()
        grouped = [code if gaps.get(column) == code else mapping[code] for code in codes]
        yield grouped, mapping[int(infrequent[0])]


def _categories(estimator: Any) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(values.tolist()) for values in estimator.categories_)


def check_only(estimator: Any) -> Kernel:
    """The function that histogram gradient boosting puts before its numeric columns only checks them."""
    if estimator.func is None:  # how a column transformer passes columns through
        return Same()
    function = getattr(estimator.func, "func", None)
    if getattr(function, "__name__", "") != "check_array":
        raise NotCompiled("FunctionTransformer with a function of its own")
    return Same()


def selected(estimator: Any) -> Kernel:
    """Feature selection of any kind keeps some columns."""
    return Take(tuple(int(position) for position in estimator.get_support(indices=True)))


BUILDERS = {
    "Pipeline": pipeline,
    "ColumnTransformer": column_transformer,
    "StandardScaler": scaler,
    "MinMaxScaler": min_max,
    "RobustScaler": robust,
    "MaxAbsScaler": max_abs,
    "SimpleImputer": imputer,
    "OneHotEncoder": one_hot,
    "OrdinalEncoder": ordinal,
    "FunctionTransformer": check_only,
    "SelectKBest": selected,
    "SelectPercentile": selected,
    "VarianceThreshold": selected,
    "SelectFromModel": selected,
}
