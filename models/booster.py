"""What a file of boosted trees must look like before XGBoost reads it.

XGBoost trusts its files: an index that points outside, or a cycle, crashes the process or hangs it.
So a file is read here first, and refused unless everything in it is what training writes: UBJSON
(the types that XGBoost uses) and, in it, whole binary trees of numeric splits.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import MAX_TREE_DEPTH

_MAX_LEVELS = 8  # of objects and lists in each other
_NO_PARENT = 2**31 - 1

_ARRAYS: dict[int, np.dtype] = {
    ord(kind): np.dtype(name)
    for kind, name in {"d": ">f4", "D": ">f8", "U": "u1", "i": "i1", "l": ">i4", "L": ">i8"}.items()
}
_INTEGERS = {
    ord(kind): struct.Struct(f">{code}")
    for kind, code in {"i": "b", "U": "B", "I": "h", "l": "i", "L": "q"}.items()
}
_LENGTH = struct.Struct(">q")
_NAMES = ("feature_names", "feature_types")


def check_booster(content: bytes, n_inputs: int, n_classes: int) -> None:
    """Refuse what is not the model of ``multi:softprob`` that training would write.

    Raises:
        ValueError: says what is wrong; the file must not be given to XGBoost.
    """
    try:
        model, end = _object(content, 0, 0)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"not a file of trees: {error}") from None
    if end != len(content):
        raise ValueError("not a file of trees: something follows the model")
    learner = _fields(model, "model", ("learner", "version"))["learner"]
    _fields(
        learner,
        "learner",
        (*_NAMES, "attributes", "gradient_booster", "learner_model_param", "objective"),
    )
    if learner["attributes"] or any(len(learner[name]) for name in _NAMES):
        raise ValueError("the features must not have names, and the model must not have attributes")
    _same(learner["objective"], _objective(n_classes), "objective")
    about = dict(learner["learner_model_param"])
    _check_scores(about.pop("base_score", None), n_classes)
    _same(about.pop("boost_from_average", "1"), "1", "boost_from_average")
    shape = {"num_class": str(n_classes), "num_feature": str(n_inputs), "num_target": "1"}
    _same(about, shape, "learner_model_param")
    booster = _fields(learner["gradient_booster"], "gradient_booster", ("model", "name"))
    _same(booster["name"], "gbtree", "gradient_booster")
    inside = dict(booster["model"])
    categories = inside.pop("cats", {})
    if any(len(part) for part in categories.values()):
        raise ValueError("inputs must be numbers, got categories")
    _fields(inside, "model", ("gbtree_model_param", "iteration_indptr", "tree_info", "trees"))
    trees = inside["trees"]
    n_trees = len(trees)
    _same(
        inside["gbtree_model_param"],
        {"num_parallel_tree": "1", "num_trees": str(n_trees)},
        "gbtree_model_param",
    )
    _same(list(inside["tree_info"]), [i % n_classes for i in range(n_trees)], "tree_info")
    _same(
        list(inside["iteration_indptr"]), list(range(0, n_trees + 1, n_classes)), "iteration_indptr"
    )
    _check_trees(trees, n_inputs)


def _objective(n_classes: int) -> dict[str, Any]:
    return {
        "name": "multi:softprob",
        "softmax_multiclass_param": {"num_class": str(n_classes)},
    }


def _check_scores(text: Any, n_classes: int) -> None:
    scores: Any = json.loads(text) if isinstance(text, str) else None
    numbers = scores if isinstance(scores, list) else [scores]
    if len(numbers) not in (1, n_classes) or not all(
        isinstance(number, int | float) and math.isfinite(number) for number in numbers
    ):
        raise ValueError(f"base_score must be {n_classes} numbers")


_PER_NODE = {
    "base_weights": ">f4", "default_left": "u1", "left_children": ">i4", "loss_changes": ">f4",
    "parents": ">i4", "right_children": ">i4", "split_conditions": ">f4", "split_indices": ">i4",
    "split_type": "u1", "sum_hessian": ">f4",
}  # fmt: skip
_EMPTY = ("categories", "categories_nodes", "categories_segments", "categories_sizes")
_TREE = frozenset((*_PER_NODE, *_EMPTY, "id", "tree_param"))


def _check_trees(trees: list[Any], n_inputs: int) -> None:
    if not trees:
        raise ValueError("must have a tree")
    sizes = []
    for number, tree in enumerate(trees):
        _fields(tree, f"tree {number}", _TREE)
        n = len(tree["left_children"])
        about = {"num_deleted": "0", "num_feature": str(n_inputs), "num_nodes": str(n)}
        if n < 1 or tree["id"] != number or any(len(tree[name]) for name in _EMPTY):
            raise ValueError(f"tree {number}: must have its number and numeric splits")
        _same(tree["tree_param"], about | {"size_leaf_vector": "1"}, f"tree {number}")
        for name, kind in _PER_NODE.items():
            values = tree[name]
            if not isinstance(values, np.ndarray) or values.dtype != kind or len(values) != n:
                raise ValueError(f"tree {number}: {name} must have {n} values")
        sizes.append(n)
    nodes = {name: np.concatenate([tree[name] for tree in trees]) for name in _PER_NODE}
    _check_nodes(nodes, np.array(sizes), n_inputs)


def _check_nodes(nodes: dict[str, NDArray[Any]], sizes: NDArray[np.int64], n_inputs: int) -> None:
    """Check all nodes of all trees, one tree after the other."""
    for name in ("base_weights", "loss_changes", "split_conditions", "sum_hessian"):
        if not np.all(np.isfinite(nodes[name])):
            raise ValueError(f"{name} must be finite")
    if np.any(nodes["split_type"]) or np.any(nodes["default_left"] > 1):
        raise ValueError("splits must be numeric, with a side for missing values")
    if np.any(nodes["sum_hessian"] < 0):
        raise ValueError("sum_hessian must be at least 0")
    index = nodes["split_indices"]
    if index.min() < 0 or index.max() >= n_inputs:
        raise ValueError(f"split_indices must be below {n_inputs}")
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)  # of the tree of each node
    left, right = (nodes[f"{side}_children"].astype(np.int64) for side in ("left", "right"))
    leaf = left == -1
    if np.any(leaf != (right == -1)):
        raise ValueError("a node must have two children or none")
    each = np.arange(len(leaf))
    inner = each[~leaf]
    children = np.concatenate([(left + first)[inner], (right + first)[inner]])
    owner = np.concatenate([inner, inner])
    parents = nodes["parents"].astype(np.int64) + first
    roots = np.unique(first)
    # every node but the roots is the child of one node of its tree, which comes before it
    if not np.array_equal(np.sort(children), np.setdiff1d(each, roots)):
        raise ValueError("a node must be the child of one node")
    if np.any(children <= owner) or np.any(first[children] != first[owner]):
        raise ValueError("a child must come after its parent, in the same tree")
    if np.any(parents[children] != owner) or np.any(nodes["parents"][roots] != _NO_PARENT):
        raise ValueError("each child must name its own parent, and a root none")
    level = roots
    for _ in range(MAX_TREE_DEPTH + 1):
        level = level[~leaf[level]]
        if not len(level):
            return
        level = np.concatenate([(left + first)[level], (right + first)[level]])
    raise ValueError(f"a tree must be at most {MAX_TREE_DEPTH} deep")


def _fields(value: Any, name: str, expected: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != set(expected):
        raise ValueError(f"{name} must have {', '.join(sorted(expected))}")
    return value


def _same(value: Any, expected: Any, name: str) -> None:
    if value != expected:
        raise ValueError(f"{name} must be {str(expected)[:200]}, got {str(value)[:200]}")


# --- UBJSON, as far as XGBoost writes it


def _object(content: bytes, at: int, level: int) -> tuple[dict[str, Any], int]:
    if content[at] != ord("{") or level > _MAX_LEVELS:
        raise ValueError("not a file of trees: must be an object")
    at += 1
    members: dict[str, Any] = {}
    while content[at] != ord("}"):
        key, at = _text(content, at)
        if key in members:
            raise ValueError(f"not a file of trees: {key[:40]} appears twice")
        members[key], at = _value(content, at, level + 1)
    return members, at + 1


def _value(content: bytes, at: int, level: int) -> tuple[Any, int]:
    kind = content[at]
    if kind == ord("["):
        return _list(content, at + 1, level)
    if kind == ord("{"):
        return _object(content, at, level)
    if kind == ord("S"):
        return _text(content, at + 1)
    if kind in _INTEGERS:
        number = _INTEGERS[kind]
        return number.unpack_from(content, at + 1)[0], at + 1 + number.size
    raise ValueError("not a file of trees: it has a value of an unsupported type")


def _list(content: bytes, at: int, level: int) -> tuple[Any, int]:
    kind = None
    if content[at] == ord("$"):
        kind = _ARRAYS.get(content[at + 1])
        if kind is None:
            raise ValueError("not a file of trees: it has a list of an unsupported type")
        at += 2
    if content[at : at + 2] != b"#L":
        raise ValueError("not a file of trees: a list must have its length")
    count, at = _length(content, at + 1)
    if count * (kind.itemsize if kind else 1) > len(content) - at:
        raise ValueError("not a file of trees: a list is cut off")
    if kind:
        return np.frombuffer(content, kind, count, at), at + count * kind.itemsize
    if level > _MAX_LEVELS:
        raise ValueError("not a file of trees: too deep")
    values = []
    for _ in range(count):
        value, at = _value(content, at, level + 1)
        values.append(value)
    return values, at


def _text(content: bytes, at: int) -> tuple[str, int]:
    count, at = _length(content, at)
    if count > len(content) - at:
        raise ValueError("not a file of trees: a text is cut off")
    return content[at : at + count].decode("ascii"), at + count


def _length(content: bytes, at: int) -> tuple[int, int]:
    if content[at] != ord("L"):
        raise ValueError("not a file of trees: a length of another type")
    count = _LENGTH.unpack_from(content, at + 1)[0]
    if count < 0:
        raise ValueError("not a file of trees: a length below 0")
    return count, at + 9
