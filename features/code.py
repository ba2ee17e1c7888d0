"""What the code from a row to a model's input means, as digests that edits without meaning keep.

Comments, docstrings, layout, annotations of functions and names of local variables do not change a
digest; everything else does. What changed code computes is not known here: ``features.golden``.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.paths import cache_folder
from features.files import fingerprint, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PATH = (
    "episodes.format",
    "episodes.jit",
    "episodes.jsonl",
    "episodes.reading",
    "episodes.trust",
    "features.alignment",
    "features.extraction",
    "features.loaders",
    "features.registry",
    "features.relative",
    "features.shards",
    "features.summary",
    "features.windows",
    "models.scaling",
)
"""Modules between an episode's files and what a model is given."""

MODEL_PATH = (
    "models.base",
    "models.checkpoint",
    "models.cnn",
    "models.ensemble",
    "models.gbt",
    "models.knn",
    "models.mlp",
    "models.nets",
    "models.pooling",
    "models.recurrent",
    "models.trainer",
    "models.transformer",
    "models.trees",
)
"""Modules between what a model is given and its probabilities."""

DEVICE_PATH = (
    "episodes.format",
    "episodes.jit",
    "episodes.jsonl",
    "features.alignment",
    "features.registry",
    "features.relative",
    "features.summary",
    "features.windows",
    "live.stream",
    "models.scaling",
)
"""The same while rows arrive, as on a device."""

_LIBRARIES = ("numpy", "numba", "llvmlite")
_DIGITS = 16


@dataclass(frozen=True)
class Code:
    """Digests of modules, and the versions that compute with them."""

    modules: dict[str, str]
    libraries: dict[str, str]  # absent ones left out

    def as_header(self) -> dict[str, Any]:
        """The code as a checkpoint's header or a bundle has it."""
        return {"modules": self.modules, "libraries": self.libraries}

    @property
    def digest(self) -> str:
        return fingerprint(self.as_header())

    def changes(self, recorded: object) -> list[str]:
        """What of it is not as recorded, in words; nothing recorded is a change, too."""
        if not isinstance(recorded, dict):
            return ["the code that trained it is not recorded"]
        lines = []
        for part, now in self.as_header().items():
            was = recorded.get(part)
            was = was if isinstance(was, dict) else {}
            lines += [
                f"{name} {was.get(name, 'absent')}, now {now.get(name, 'absent')}"
                if part == "libraries"
                else name.replace(".", "/") + ".py"
                for name in sorted(was.keys() | now.keys())
                if was.get(name) != now.get(name)
            ]
        return lines


@cache
def code_of(modules: tuple[str, ...] = PATH, libraries: tuple[str, ...] = ()) -> Code:
    """The code that runs here; computed once per process.

    Args:
        libraries: distributions that compute with the modules, beside those that always do.
    """
    sources = {name: _source(name) for name in modules}
    return Code(_digests(sources), dict(_versions(libraries)))


def _versions(libraries: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    yield "machine", platform.machine()
    for name in (*_LIBRARIES, *libraries):
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _source(module: str) -> bytes:
    """A module's source; it is found, and not imported."""
    loaded = sys.modules.get(module)
    place = getattr(loaded, "__file__", None)
    if place is None:
        spec = importlib.util.find_spec(module)
        place = spec.origin if spec else None
    return Path(place).read_bytes() if place else b""


def outdated(modules: Iterable[str]) -> list[str]:
    """Modules whose kept bytecode is that of another source, one line each.

    Python tells sources apart by time and size alone, so what runs may not be what is read here.
    """
    lines = []
    for name in modules:
        loaded = sys.modules.get(name)
        loader: Any = loaded.__spec__.loader if loaded and loaded.__spec__ else None
        if isinstance(loader, SourceFileLoader):
            fresh = loader.source_to_code(loader.get_data(loader.path), loader.path)
            if loader.get_code(name) != fresh:
                lines.append(
                    f"{loader.path}: Python runs an older state of it; delete its __pycache__"
                )
    return lines


def _digests(sources: dict[str, bytes]) -> dict[str, str]:
    """Digest of each module; parsing takes a tenth of a second, so the result is kept."""
    own = _source(__name__)
    raw = [hashlib.sha256(source).hexdigest() for source in (own, *sources.values())]
    key = fingerprint([sys.version, list(sources), raw])
    kept = cache_folder() / "code" / f"{key}.json"
    try:
        document = json.loads(kept.read_bytes())
        if document["sha256"] == fingerprint(document["modules"]):
            return dict(document["modules"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    modules = {name: meaning(source) for name, source in sources.items()}
    text = json.dumps({"modules": modules, "sha256": fingerprint(modules)})
    with suppress(OSError):  # computed again next time
        write_atomically(kept, text.encode())
    return modules


def meaning(source: bytes) -> str:
    """Digest of what a module's source means; of its bytes if it cannot be parsed."""
    try:
        content = repr(_Plain().visit(ast.parse(source))).encode()
    except (SyntaxError, ValueError, RecursionError):
        content = b"\0" + source
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
_IGNORED = {"type_comment", "kind", "ctx", "type_params", "type_ignores"}


class _Plain:
    """A syntax tree as nested tuples, local variables numbered in the order they appear in.

    A name is numbered where it is bound in a function or a comprehension around it, so functions
    get equal trees only if renaming local variables makes one of the other. Parameters keep their
    names, because callers may use them.
    """

    def __init__(self) -> None:
        self._scopes: list[dict[str, int | str]] = []
        self._n_names = 0

    def visit(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.visit(each) for each in node if not _without_meaning(each)]
        if not isinstance(node, ast.AST):
            return (type(node).__name__, node) if isinstance(node, float | complex) else node
        if isinstance(node, _Function):
            return self._function(node)
        if isinstance(node, _Comprehension):
            return self._comprehension(node)
        if isinstance(node, ast.Name):
            return "Name", self._name(node.id)
        if isinstance(node, ast.AnnAssign) and self._scopes and isinstance(node.target, ast.Name):
            return "AnnAssign", self.visit(node.target), self.visit(node.value)
        if isinstance(node, ast.ClassDef):
            return self._class(node)
        return (type(node).__name__, *self._fields(node))

    def _fields(self, node: ast.AST) -> Iterator[tuple[str, Any]]:
        for name, value in ast.iter_fields(node):
            if name in _IGNORED or value is None or value == []:
                continue
            bound = name in _BOUND.get(type(node), ()) and isinstance(value, str)
            yield name, self._name(value) if bound else self.visit(value)

    def _name(self, name: str) -> int | str:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        return name

    def _enter(self, names: list[str], plain: Iterable[str] = ()) -> None:
        scope: dict[str, int | str] = {name: name for name in plain}
        for name in names:
            if name not in scope:
                scope[name] = self._n_names
                self._n_names += 1
        self._scopes.append(scope)

    def _function(self, node: Any) -> Any:
        arguments = node.args
        outside = (
            self.visit(getattr(node, "decorator_list", [])),
            self.visit(arguments.defaults),
            [self.visit(each) for each in arguments.kw_defaults],
        )
        name = self._name(node.name) if hasattr(node, "name") else None
        every = [
            arguments.posonlyargs, arguments.args, arguments.kwonlyargs,
            [arguments.vararg] if arguments.vararg else [],
            [arguments.kwarg] if arguments.kwarg else [],
        ]  # fmt: skip
        parameters = [[each.arg for each in kind] for kind in every]
        body = node.body if isinstance(node.body, list) else [node.body]
        kept, outer, bound = _bound(body)
        self._enter(
            [each for each in bound if each not in outer], kept.union(*map(set, parameters))
        )
        inside = self.visit(body)
        self._scopes.pop()
        return type(node).__name__, name, outside, parameters, inside

    def _comprehension(self, node: Any) -> Any:
        first = self.visit(node.generators[0].iter)  # evaluated outside
        self._enter([name for each in node.generators for name in _targets(each.target)])
        generators = [
            (
                self.visit(each.target),
                first if i == 0 else self.visit(each.iter),
                self.visit(each.ifs),
                each.is_async,
            )
            for i, each in enumerate(node.generators)
        ]
        parts = (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,)
        values = [self.visit(each) for each in parts]
        self._scopes.pop()
        return type(node).__name__, generators, values

    def _class(self, node: ast.ClassDef) -> Any:
        """Its own names are public, so they are kept; its methods do not see them."""
        name = self._name(node.name)
        outside = [self.visit(p) for p in (node.decorator_list, node.bases, node.keywords)]
        around, self._scopes = self._scopes, []
        inside = self.visit(node.body) if not around else ast.dump(node)
        self._scopes = around
        return "ClassDef", name, outside, inside


_BOUND: dict[type, tuple[str, ...]] = {
    ast.ExceptHandler: ("name",),
    ast.MatchAs: ("name",),
    ast.MatchStar: ("name",),
    ast.MatchMapping: ("rest",),
}


def _without_meaning(node: Any) -> bool:
    """Docstrings and imports for type checkers."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return isinstance(node.value.value, str)
    return isinstance(node, ast.If) and ast.dump(node.test) == _TYPE_CHECKING and not node.orelse


_TYPE_CHECKING = ast.dump(ast.parse("TYPE_CHECKING", mode="eval").body)


def _targets(node: ast.AST) -> list[str]:
    return [each.id for each in ast.walk(node) if isinstance(each, ast.Name)]


def _bound(body: list[Any]) -> tuple[set[str], set[str], list[str]]:
    """Names that a body declares global or imports, that it declares nonlocal, and that it binds.

    An import binds a local, too, but its name says what it is; it is kept.
    """
    kept: set[str] = set()
    outer: set[str] = set()
    bound: list[str] = []
    waiting = list(reversed(body))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Global):
            kept.update(node.names)
        elif isinstance(node, ast.Nonlocal):
            outer.update(node.names)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            kept.update((each.asname or each.name).partition(".")[0] for each in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.append(node.name)
            continue
        elif isinstance(node, ast.Lambda):
            continue
        elif isinstance(node, _Comprehension):
            bound += [each.target.id for each in ast.walk(node) if isinstance(each, ast.NamedExpr)]
            continue
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            bound.append(node.id)
        for field in _BOUND.get(type(node), ()):
            if name := getattr(node, field):
                bound.append(name)
        waiting.extend(reversed(list(ast.iter_child_nodes(node))))
    return kept, outer, bound
