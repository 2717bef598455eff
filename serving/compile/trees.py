"""Trees of every kind → one graph that routes each row and adds the leaves up in scikit-learn's order.

A leaf of a ``TreeEnsemble`` adds to one output. A leaf with several values (an impure one of a classifier) is therefore
written once for each value that is not zero: the tree comes again with the second of them, and so on. Adding zero
changes no sum, so each output still gets its terms tree by tree. A single leaf in front starts the sums elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serving.compile import NotCompiled
from serving.compile.masks import masks
from serving.kernels import Kernel
from serving.kernels.models import Average, ByColumns, Classifier, SeveralClassifiers, Values
from serving.kernels.trees import Trees

LESS_OR_EQUAL, IS_MEMBER = 0, 6  # of ai.onnx.ml 5
LEAF = -1
NO_CATEGORY = -1  # where only a gap goes left: ONNX Runtime takes no empty set


@dataclass(frozen=True)
class Tree:
    """A tree by its nodes, the root first; ``left`` and ``right`` are -1 in a leaf. ``values`` is (nodes, outputs).

    ``members`` has the categories that go left, for the nodes that split by them.
    """

    left: np.ndarray
    right: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    missing_left: np.ndarray
    values: np.ndarray
    members: dict[int, list[int]] = field(default_factory=dict)


def of_sklearn(tree: Any, values: np.ndarray) -> Tree:
    """A scikit-learn ``tree_`` with the values that its leaves add."""
    missing = getattr(tree, "missing_go_to_left", np.zeros(tree.node_count, np.uint8))
    return Tree(tree.children_left, tree.children_right, tree.feature, tree.threshold, missing, values)


def constant(values: np.ndarray) -> Tree:
    """A single leaf."""
    none = np.array([LEAF])
    return Tree(none, none, np.array([0]), np.array([0.0]), np.array([0]), values.reshape(1, -1))


class Ensemble:
    """The attributes of a ``TreeEnsemble`` node, tree after tree."""

    def __init__(self) -> None:
        self.roots: list[int] = []
        self.features: list[int] = []
        self.thresholds: list[float] = []
        self.modes: list[int] = []
        self.missing_left: list[int] = []
        self.ways: dict[str, list[int]] = {"true": [], "false": []}
        self.leafs: dict[str, list[int]] = {"true": [], "false": []}
        self.targets: list[int] = []
        self.weights: list[float] = []
        self.members: list[float] = []

    def add(self, tree: Tree) -> None:
        """Once for each rank among the values of its leaves."""
        leaves = tree.left == LEAF
        used = tree.values != 0
        ranks = max(1, int(used[leaves].sum(axis=1).max()))
        order = np.argsort(~used, axis=1, kind="stable")
        every = np.arange(len(tree.values))
        for rank in range(ranks):
            targets = order[:, rank]
            self._add(tree, targets, tree.values[every, targets])

    def _add(self, tree: Tree, targets: np.ndarray, weights: np.ndarray) -> None:
        inner = np.flatnonzero(tree.left != LEAF)
        self.roots.append(len(self.features))
        if not len(inner):
            leaf = self._leaf(targets[0], weights[0])
            self._node(0, 0.0, LESS_OR_EQUAL, 0, (1, leaf), (1, leaf))
            return
        place = {int(node): len(self.features) + position for position, node in enumerate(inner)}

        def way(child: int) -> tuple[int, int]:
            if tree.left[child] == LEAF:
                return 1, self._leaf(targets[child], weights[child])
            return 0, place[int(child)]

        for node in map(int, inner):
            self.members.extend([*tree.members[node], np.nan] if node in tree.members else [])
            mode = IS_MEMBER if node in tree.members else LESS_OR_EQUAL
            left, right = way(tree.left[node]), way(tree.right[node])
            missing = int(tree.missing_left[node])
            self._node(int(tree.feature[node]), float(tree.threshold[node]), mode, missing, left, right)

    def _leaf(self, target: Any, weight: Any) -> int:
        self.targets.append(int(target))
        self.weights.append(float(weight))
        return len(self.targets) - 1

    def _node(
        self, feature: int, threshold: float, mode: int, missing: int, true: tuple[int, int], false: tuple[int, int]
    ) -> None:
        self.features.append(feature)
        self.thresholds.append(threshold)
        self.modes.append(mode)
        self.missing_left.append(missing)
        for side, (is_leaf, where) in (("true", true), ("false", false)):
            self.ways[side].append(where)
            self.leafs[side].append(is_leaf)

    def graph(self, outputs: int) -> bytes:
        """The ONNX model: ``x`` (rows, columns) to ``y`` (rows, outputs), both float64."""
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        node = helper.make_node(
            "TreeEnsemble",
            ["x"],
            ["y"],
            domain="ai.onnx.ml",
            aggregate_function=1,
            post_transform=0,
            n_targets=outputs,
            tree_roots=self.roots,
            nodes_featureids=self.features,
            nodes_truenodeids=self.ways["true"],
            nodes_falsenodeids=self.ways["false"],
            nodes_trueleafs=self.leafs["true"],
            nodes_falseleafs=self.leafs["false"],
            nodes_missing_value_tracks_true=self.missing_left,
            leaf_targetids=self.targets,
        )
        tensors: dict[str, np.ndarray] = {
            "nodes_splits": np.array(self.thresholds, np.float64),
            "nodes_modes": np.array(self.modes, np.uint8),
            "leaf_weights": np.array(self.weights, np.float64),
        }
        if self.members:
            tensors["membership_values"] = np.array(self.members, np.float64)
        for name, tensor in tensors.items():
            node.attribute.append(helper.make_attribute(name, numpy_helper.from_array(tensor, name)))
        table = helper.make_tensor_value_info("x", TensorProto.DOUBLE, [None, None])
        sums = helper.make_tensor_value_info("y", TensorProto.DOUBLE, [None, outputs])
        graph = helper.make_graph([node], "trees", [table], [sums])
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 5)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        content: bytes = model.SerializeToString()
        del onnx
        return content


def trees(of: list[Tree], *, narrow: bool, takes: str) -> Trees:
    """The kernel that adds up these trees."""
    ensemble = Ensemble()
    for tree in of:
        ensemble.add(tree)
    graph = np.frombuffer(ensemble.graph(of[0].values.shape[1]), np.uint8)
    splits = np.array(ensemble.modes) == LESS_OR_EQUAL
    features, thresholds = np.array(ensemble.features)[splits], np.array(ensemble.thresholds)[splits]
    return Trees(graph, narrow, takes, features, thresholds, masks(of))


# --- forests and single trees ----------------------------------------------------------------------------------------


def _takes(estimator: Any) -> str:
    return "missing" if estimator.__sklearn_tags__().input_tags.allow_nan else "finite"


def _members(estimator: Any) -> list[Any]:
    return list(getattr(estimator, "estimators_", [estimator]))


def _forest(estimator: Any, values: Callable[[Any], np.ndarray]) -> Kernel:
    of = [of_sklearn(member.tree_, values(member)) for member in _members(estimator)]
    sums = trees(of, narrow=True, takes=_takes(estimator))
    return Average(sums, len(of)) if hasattr(estimator, "estimators_") else sums


def forest_regressor(estimator: Any) -> Kernel:
    """Decision trees, random forests and extra trees; one output or several."""
    return Values(_forest(estimator, lambda member: member.tree_.value[:, :, 0]))


def forest_classifier(estimator: Any) -> Kernel:
    """As `forest_regressor`; with several outputs the classes of each stand side by side."""
    if estimator.n_outputs_ == 1:
        return Classifier(
            _forest(estimator, lambda member: member.tree_.value[:, 0, :]), tuple(estimator.classes_.tolist())
        )

    def side_by_side(member: Any) -> np.ndarray:
        counts = member.n_classes_
        return np.hstack([member.tree_.value[:, k, : counts[k]] for k in range(len(counts))])

    labels = tuple(tuple(classes.tolist()) for classes in estimator.classes_)
    return SeveralClassifiers(_forest(estimator, side_by_side), labels)


# --- gradient boosting -----------------------------------------------------------------------------------------------


def _boosted(estimator: Any) -> Trees:
    from sklearn.dummy import DummyClassifier, DummyRegressor

    if estimator.init_ != "zero" and type(estimator.init_) not in (DummyClassifier, DummyRegressor):
        raise NotCompiled("its boosting starts from a model of its own")
    start = estimator._raw_predict_init(np.zeros((1, estimator.n_features_in_)))
    outputs = start.shape[1]
    of = [constant(start[0])]
    for stage in estimator.estimators_:
        for output, member in enumerate(stage):
            values = np.zeros((member.tree_.node_count, outputs))
            values[:, output] = estimator.learning_rate * member.tree_.value[:, 0, 0]
            of.append(of_sklearn(member.tree_, values))
    return trees(of, narrow=True, takes="finite")


def boosting_classifier(estimator: Any) -> Kernel:
    """Log loss and exponential loss; the probabilities of the latter are expit of twice the score."""
    if estimator.loss != "log_loss":
        raise NotCompiled(f"GradientBoostingClassifier with loss={estimator.loss!r}")
    return _log_loss(_boosted(estimator), estimator, inclusive=True)


def boosting_regressor(estimator: Any) -> Kernel:
    """Every loss of GradientBoostingRegressor has the identity as its link."""
    return Values(_boosted(estimator))


def _log_loss(scores: Kernel, estimator: Any, *, inclusive: bool) -> Kernel:
    labels = tuple(estimator.classes_.tolist())
    return Classifier(scores, labels, link="softmax" if len(labels) > 2 else "expit", inclusive=inclusive)


# --- histogram gradient boosting -------------------------------------------------------------------------------------


def _histogram(estimator: Any) -> Kernel:
    from serving.compile.columns import column_transformer
    from serving.kernels.columns import Chain

    start = estimator._baseline_prediction
    outputs = start.shape[1]
    of = [constant(start[0])]
    for stage in estimator._predictors:
        for output, predictor in enumerate(stage):
            of.append(_of_predictor(predictor, output, outputs))
    sums = trees(of, narrow=False, takes="all")
    if estimator._preprocessor is None:
        return sums
    return Chain((column_transformer(estimator._preprocessor), sums))


def _set_bits(bitset: np.ndarray) -> Iterator[int]:
    for number in range(256):
        if int(bitset[number // 32]) >> (number % 32) & 1:
            yield number


def _of_predictor(predictor: Any, output: int, outputs: int) -> Tree:
    nodes = predictor.nodes
    leaf = nodes["is_leaf"].astype(bool)
    values = np.zeros((len(nodes), outputs))
    values[:, output] = nodes["value"]
    left = np.where(leaf, LEAF, nodes["left"].astype(np.int64))
    right = np.where(leaf, LEAF, nodes["right"].astype(np.int64))
    members = {
        int(node): list(_set_bits(predictor.raw_left_cat_bitsets[nodes["bitset_idx"][node]])) or [NO_CATEGORY]
        for node in np.flatnonzero(nodes["is_categorical"].astype(bool) & ~leaf)
    }
    return Tree(left, right, nodes["feature_idx"], nodes["num_threshold"], nodes["missing_go_to_left"], values, members)


def histogram_classifier(estimator: Any) -> Kernel:
    return _log_loss(ByColumns(_histogram(estimator)), estimator, inclusive=False)


def histogram_regressor(estimator: Any) -> Kernel:
    """Losses of counts and amounts (poisson, gamma) have the logarithm as their link."""
    return Values(_histogram(estimator), "log" if estimator.loss in ("poisson", "gamma") else "identity")


BUILDERS = {
    "DecisionTreeClassifier": forest_classifier,
    "ExtraTreeClassifier": forest_classifier,
    "RandomForestClassifier": forest_classifier,
    "ExtraTreesClassifier": forest_classifier,
    "DecisionTreeRegressor": forest_regressor,
    "ExtraTreeRegressor": forest_regressor,
    "RandomForestRegressor": forest_regressor,
    "ExtraTreesRegressor": forest_regressor,
    "GradientBoostingClassifier": boosting_classifier,
    "GradientBoostingRegressor": boosting_regressor,
    "HistGradientBoostingClassifier": histogram_classifier,
    "HistGradientBoostingRegressor": histogram_regressor,
}
