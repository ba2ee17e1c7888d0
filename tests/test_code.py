"""Code that changes under a checkpoint: its meaning is known, what it computes is replayed."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from code_changes import CODE_CHANGES, ROOT, SAME, CodeChange
from tiny import CNN, GBT, forge, header_of, put

import features.code
import models.checkpoint
from features import golden
from features.code import DEVICE_PATH, MODEL_PATH, PATH, Code, code_of, meaning
from features.registry import LAYOUT
from features.rules import RULES
from live.replay import LEFT_OUT, live_differences
from models import replay
from models.checkpoint import CodeChangedError, load_checkpoint
from stages.checkpoints import check_training_code
from stages.ingest import check_corpus_code, keep_contracts
from stages.project import Project
from stages.workspace import Workspace

OTHER = {"modules": {}, "libraries": {}}
"""Recorded code that no code here is equal to."""


def text_of(module: str) -> bytes:
    return (ROOT / (module.replace(".", "/") + ".py")).read_bytes()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own: nothing was replayed yet."""
    monkeypatch.setattr(replay, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(replay, "_passed", set())
    return tmp_path / "cache"


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each replay adds a word; what the last says is what it finds."""
    counted: list[str] = []

    def differences(_: Any) -> list[str]:
        counted.append("replayed")
        return []

    monkeypatch.setattr(replay, "differences", differences)
    return counted


def finds(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(replay, "differences", lambda _: list(lines))


# --- digests


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_an_edit_without_meaning_keeps_the_digest(change: CodeChange):
    assert change.source.encode() != text_of(change.module)
    assert meaning(change.source.encode()) == meaning(text_of(change.module))


def test_every_edit_with_meaning_has_a_digest_of_its_own():
    digests = {(c.module, meaning(c.source.encode())) for c in CODE_CHANGES.values()}
    assert len(digests) == len({(c.module, c.source) for c in CODE_CHANGES.values()})
    assert not digests & {(module, meaning(text_of(module))) for module in PATH}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f(x):\n    y = x\n    return y", "def f(x):\n    z = x\n    return z"),
        ("def f(x):\n    return [i for i in x]", "def f(x):\n    return [j for j in x]"),
        ("def f():\n    '''a'''\n    return 1", "def f() -> int:\n    return 1  # one"),
        ("def f():\n    def g(): return 1\n    return g()", "def f():\n    def h(): return 1\n"
         "    return h()"),
        ("def f():\n    n: int = 1\n    return n", "def f():\n    m: float = 1\n    return m"),
    ],
)  # fmt: skip
def test_names_of_locals_and_annotations_mean_nothing(one: str, other: str):
    assert meaning(one.encode()) == meaning(other.encode())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f(x):\n    return g", "def f(x):\n    return h"),
        ("def f(a, b):\n    return a - b", "def f(b, a):\n    return b - a"),
        ("def f(x):\n    return [x for y in x]", "def f(x):\n    return [y for y in x]"),
        ("def f():\n    x = 1\n    return [x for x in x]", "def f():\n    x = 1\n"
         "    return [y for x in x]"),
        ("def f():\n    global a\n    a = 1", "def f():\n    global b\n    b = 1"),
        ("def f():\n    y = 1\n    def g():\n        nonlocal y\n        y = 2\n    g()\n",
         "def f():\n    y = 1\n    def g():\n        y = 2\n    g()\n"),
        ("def f():\n    import numpy\n    return numpy.pi", "def f():\n    import scipy\n"
         "    return scipy.pi"),
        ("x = 1", "x = True"), ("x = 1", "x = 1.0"),
        ("class A:\n    a: int", "class A:\n    b: int"),
        ("def f(a=1): pass", "def f(a=2): pass"), ("def f(*, a): pass", "def f(*, b): pass"),
        ("x = a < b", "x = a <= b"), ("x = 'a'", "x = b'a'"), ("x = (", "x = [")
    ],
)  # fmt: skip
def test_what_means_something_changes_the_digest(one: str, other: str):
    assert meaning(one.encode()) != meaning(other.encode())


def test_parsing_is_done_once_for_the_same_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features.code, "cache_folder", lambda: tmp_path)
    first = features.code.code_of.__wrapped__()
    monkeypatch.setattr(features.code, "meaning", lambda _: pytest.fail("parsed again"))
    assert features.code.code_of.__wrapped__() == first
    [kept] = (tmp_path / "code").iterdir()
    kept.write_text(kept.read_text().replace(first.modules[PATH[0]], "0" * 16))
    with pytest.raises(pytest.fail.Exception):  # what was damaged is not believed
        features.code.code_of.__wrapped__()


def imported(module: str) -> set[str]:
    """Modules of ours that a module imports, wherever it does."""
    found, waiting = set(), [ast.parse(text_of(module))]
    while waiting:
        node: Any = waiting.pop()
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            waiting += ast.iter_child_nodes(node)
    return {m for m in found if m.split(".")[0] in ("episodes", "features", "models", "live")}


@pytest.mark.parametrize(
    ("path", "roots", "beside"),
    [
        (PATH, ("episodes.reading", "features.extraction", "features.loaders", "models.scaling"),
         {"episodes.archive", "episodes.environment", "models.base", "models.device",
          "models.metrics"}),
        (DEVICE_PATH, ("live.stream", "models.scaling"),
         {"live.silence", "models.base", "models.device", "models.metrics"}),
    ],
)  # fmt: skip
def test_the_path_holds_what_is_imported_on_it(
    path: tuple[str, ...], roots: tuple[str, ...], beside: set[str]
):
    """Beside it: archives have checks of their own, the collector of garbage, and the model."""
    reached, waiting = set(), list(roots)
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += imported(module)
    assert reached - beside == set(path)
    assert "models.base" in MODEL_PATH


def test_a_change_of_code_or_library_is_named():
    here = code_of(PATH)
    assert here.changes(here.as_header()) == []
    modules = here.modules | {"features.alignment": "0" * 16}
    libraries = {n: v for n, v in here.libraries.items() if n != "numba"} | {"numpy": "1.0"}
    numba, numpy = here.libraries["numba"], here.libraries["numpy"]
    assert Code(modules, libraries).changes(here.as_header()) == [
        "features/alignment.py", f"numba {numba}, now absent", f"numpy {numpy}, now 1.0",
    ]  # fmt: skip
    assert here.changes(None)
    assert here.changes({"modules": 3, "libraries": None})


def test_bytecode_of_an_older_source_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Python tells the two apart by time and size, so it runs the old one."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    name = "some_kernel"
    file = tmp_path / f"{name}.py"
    file.write_text("x = 1\n")
    before = file.stat()
    importlib.import_module(name)
    assert features.code.outdated([name, *PATH]) == []
    file.write_text("x = 2\n")
    os.utime(file, ns=(before.st_mtime_ns, before.st_mtime_ns))
    [line] = features.code.outdated([name])
    assert line.startswith(str(file))


# --- golden episodes


def test_every_golden_episode_comes_out_as_committed():
    assert replay.differences(LAYOUT) == []
    assert live_differences(LAYOUT) == []


def test_the_committed_episodes_are_those_that_the_script_makes():
    episodes = golden.read_rules().episodes
    assert list(episodes) == list(RULES)
    assert {n: e.members for n, e in episodes.items()} == {n: r.files() for n, r in RULES.items()}
    assert {n: e.rule for n, e in episodes.items()} == {n: r.text for n, r in RULES.items()}
    assert set(LEFT_OUT) < set(episodes)


def test_another_layout_is_named_in_the_words_of_a_contract():
    from changes import CHANGES

    change = CHANGES["unit"]
    with change.in_force() as layout:
        lines = golden.rule_differences(layout)
    assert len(lines) == len(change.lines)
    assert all(was in now for was, now in zip(change.lines, lines, strict=True))


def test_a_file_of_golden_episodes_that_is_damaged_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    damaged = tmp_path / "rules.xz"
    content = bytearray(golden.RULES_FILE.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    monkeypatch.setattr(golden, "RULES_FILE", damaged)
    assert "rules.xz cannot be read" in golden.rule_differences(LAYOUT)[0]


# --- the gate of checkpoints


def test_a_checkpoint_records_the_code_and_is_not_replayed_under_it(
    tmp_path: Path, replays: list[str]
):
    path = put(tmp_path, GBT)
    recorded = header_of(path)["code"]
    assert recorded["modules"].keys() == {*PATH, *MODEL_PATH}
    assert recorded["libraries"].keys() >= {"python", "numpy", "xgboost"}
    assert recorded["golden"]["episodes"].keys() == RULES.keys()
    load_checkpoint(path, LAYOUT)
    assert replays == []


@pytest.mark.parametrize("recorded", [None, OTHER])
def test_under_other_code_the_vectors_are_replayed_once(
    recorded: Any, tmp_path: Path, replays: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
):
    path = put(tmp_path, GBT)
    header = header_of(path)
    header.pop("code")
    path.write_text(json.dumps(header))
    forge(path, **({"code": recorded} if recorded else {}))
    for _ in range(3):
        load_checkpoint(path, LAYOUT)
    assert replays == ["replayed"]
    monkeypatch.setattr(replay, "_passed", set())  # another process
    load_checkpoint(path, LAYOUT)
    assert replays == ["replayed"]
    for kept in (cache / "golden").iterdir():
        kept.write_bytes(b"damaged")
    monkeypatch.setattr(replay, "_passed", set())
    load_checkpoint(path, LAYOUT)
    assert replays == ["replayed"] * 2


def test_without_a_cache_it_is_replayed_each_time(
    tmp_path: Path, replays: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
):
    cache.write_text("no folder", encoding="utf-8")
    path = put(tmp_path, GBT)
    forge(path, code=OTHER)
    for _ in range(2):
        monkeypatch.setattr(replay, "_passed", set())
        load_checkpoint(path, LAYOUT)
    assert replays == ["replayed"] * 2


def test_what_comes_out_otherwise_is_refused_by_rule_and_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = put(tmp_path, GBT)
    code = header_of(path)["code"]
    code["modules"]["features.alignment"] = "0" * 16
    forge(path, code=code)
    finds(monkeypatch, "counter-reset: a rule: figures")
    for _ in range(2):  # a failure is not kept
        with pytest.raises(CodeChangedError) as refused:
            load_checkpoint(path, LAYOUT)
        assert refused.value.differences == ["counter-reset: a rule: figures"]
        assert "features/alignment.py" in str(refused.value)


@pytest.mark.usefixtures("replays")
def test_a_golden_episode_that_was_rewritten_since_is_refused(tmp_path: Path):
    path = put(tmp_path, GBT)
    code = header_of(path)["code"]
    code["golden"] |= {"rules": "other", "scaling": "other"}
    code["golden"]["episodes"] |= {"ties": "0" * 16, "gone": "0" * 16}
    forge(path, code=code)
    load_checkpoint(path, LAYOUT)  # by the very code that trained it
    code["modules"]["features.alignment"] = "0" * 16
    forge(path, code=code)
    with pytest.raises(CodeChangedError) as refused:
        load_checkpoint(path, LAYOUT)
    assert len(refused.value.differences) == 3
    assert [
        name in line
        for name, line in zip(("ties", "gone", "scalings"), refused.value.differences, strict=True)
    ] == [True] * 3
    code["golden"] |= {
        "episodes": {},
        "scaling": replay.recorded_code(code_of())["golden"]["scaling"],
    }
    forge(path, code=code)
    load_checkpoint(path, LAYOUT)  # episodes were added: nothing speaks against it


@pytest.mark.usefixtures("replays")
@pytest.mark.parametrize("which", [GBT, CNN])
def test_a_model_that_gives_other_probabilities_is_refused(
    which: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = put(tmp_path, which)
    real = models.checkpoint.Checkpoint.predict_episode
    monkeypatch.setattr(
        models.checkpoint.Checkpoint, "predict_episode",
        lambda *arguments: real(*arguments)[:, ::-1],
    )  # fmt: skip
    load_checkpoint(path, LAYOUT)  # its code is as it was
    code = header_of(path)["code"]
    code["modules"]["models.base"] = "0" * 16
    forge(path, code=code)
    with pytest.raises(CodeChangedError, match="probability of"):
        load_checkpoint(path, LAYOUT)


# --- the gates of a corpus and of training


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "store").mkdir()
    return Workspace(store=str(tmp_path / "store"), artifacts=str(tmp_path / "artifacts"))


def test_a_corpus_records_its_codes_and_takes_no_other(
    workspace: Workspace, replays: list[str], monkeypatch: pytest.MonkeyPatch
):
    check_corpus_code(workspace)
    assert replays == ["replayed"]
    keep_contracts(workspace.contracts_folder, LAYOUT)
    [kept] = workspace.contracts_folder.glob("code-*.json")
    recorded = json.loads(kept.read_bytes())
    assert recorded.items() > replay.recorded_code(code_of(PATH)).items()
    finds(monkeypatch, "ties: a rule: figures")
    check_corpus_code(workspace)  # made with this very code
    kept.write_text(json.dumps(recorded | OTHER))
    replay._passed.clear()
    for each in (workspace.artifacts_path.parent / "cache" / "golden").iterdir():
        each.unlink()
    with pytest.raises(CodeChangedError, match="ties"):
        check_corpus_code(workspace)
    kept.unlink()  # a corpus of an earlier version
    project = Project(workspace)
    with pytest.raises(CodeChangedError, match="ties"):
        project.stages["ingest"].make(project, "any", (), lambda *_: None)


def test_code_that_computes_something_else_trains_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
):
    finds(monkeypatch, "ties: a rule: figures")
    with pytest.raises(CodeChangedError, match="ties"):
        check_training_code(Project(workspace), "host")


# --- changes in code, one for each rule


EVERY = 1 if os.environ.get("EVERY_CHANGE") else 8
"""All changes take minutes, which `make mutants` does; here every eighth one is made."""
CHOSEN = list(CODE_CHANGES)[::EVERY]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What predict, score and ingest say under each change."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "code_changes.py"),
         str(tmp_path_factory.mktemp("changes")), *CHOSEN, *SAME],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}, cwd=ROOT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_every_change_of_a_rule_is_refused_and_named(said: dict[str, dict[str, str]]):
    missed = [
        (name, gate, text)
        for name, change in ((name, CODE_CHANGES[name]) for name in CHOSEN)
        for gate, text in said[name].items()
        if f"{change.shown_by}: " not in text or change.module.replace(".", "/") not in text
    ]
    assert missed == []
    assert all(said[name].keys() == {"predict", "score", "ingest"} for name in CHOSEN)


@pytest.mark.slow
def test_comments_layout_and_renamed_locals_pass(said: dict[str, dict[str, str]]):
    for name in SAME:
        assert said[name] == {"predict": "passed", "score": "passed"}
