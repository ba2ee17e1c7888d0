"""Small changes of code, one at a time: does the replay of the golden vectors notice each?

    PYTHONPATH=.:tests python tests/mutants.py --out FILE [--n 300] [--seed 8] [--only TEXT]

Mutants of the modules between a row and a model's input are drawn with a seed. Each runs in a fork
of a warm process, as plain Python: no compiled kernel can hide it. It is judged twice, as on a host
(the scanner and the kernels, uncompiled) and as on a device (without Numba). What neither notices
has survived: it is explained in ``EXPLAINED``, or the golden episodes have a gap.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import pickle
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from queue import Queue
from typing import Any

ROOT = Path(__file__).parent.parent
TARGETS = (
    "episodes.jsonl", "episodes.reading", "episodes.trust", "features.alignment",
    "features.extraction", "features.loaders", "features.registry", "features.relative",
    "features.shards", "features.summary", "features.windows", "models.scaling",
)  # fmt: skip
RELOADED = (
    "episodes.format", "episodes.jsonl", "episodes.trust", "episodes.reading", "features.registry",
    "features.contract", "features.alignment", "features.relative", "features.summary",
    "features.windows", "features.extraction", "features.shards", "features.loaders",
    "models.scaling", "features.golden", "models.replay", "live.stream", "live.replay",
)  # fmt: skip
"""In order of their imports: a changed module, and whatever imports it, is executed again."""

PATIENCE_S = 120
MODES = ("host", "device")


# --- mutants


class _Sites(ast.NodeVisitor):
    """Every place that can be changed, as ``(path of the node, what becomes of it)``."""

    def __init__(self) -> None:
        self.found: list[tuple[str, ast.AST, str]] = []
        self._where: list[str] = []

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            self._where.append(node.name)
            for each in node.body:
                self.visit(each)
            if isinstance(node, ast.FunctionDef):
                for each in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
                    self.visit(each)
            self._where.pop()
            return
        if isinstance(node, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom | ast.JoinedStr):
            return  # messages and names
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "COMPILES"):
            for each in (*node.body, *node.orelse):
                if ast.unparse(node.test) == "COMPILES":
                    self.visit(each)
            return
        for kind in _kinds(node):
            self.found.append((".".join(self._where) or "module", node, kind))
        if isinstance(node, ast.AnnAssign):
            if node.value:
                self.visit(node.value)
            return
        for each in ast.iter_child_nodes(node):
            self.visit(each)


_SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
    ast.And: ast.Or, ast.Or: ast.And, ast.Pow: ast.Mult,
}  # fmt: skip
_NAMES = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "any": "all",
          "all": "any", "zeros": "ones", "argmin": "argmax", "argmax": "argmin", "left": "right",
          "floor": "ceil", "sum": "max", "append": "remove", "mean": "sum"}  # fmt: skip


def _kinds(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Compare | ast.BoolOp) or (
        isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _SWAPS
    ):
        yield "operator"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield "without"
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool | int | float):
            yield "more"
            if isinstance(node.value, int) and not isinstance(node.value, bool):
                yield "less"
        elif isinstance(node.value, str) and node.value:
            yield "text"
    elif getattr(node, "attr", getattr(node, "id", None)) in _NAMES:
        yield "name"
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        yield "condition"
    if isinstance(node, ast.Assign | ast.AugAssign | ast.Expr):
        yield "gone"
    if isinstance(node, ast.Continue | ast.Break):
        yield "jump"
    if isinstance(node, ast.Return) and node.value is not None:
        yield "none"


def _changed(node: ast.AST, kind: str) -> ast.AST:
    """A node that was changed in place, or what stands for it."""
    new: Any = node
    if kind == "operator" and isinstance(node, ast.Compare):
        new.ops[0] = _SWAPS[type(node.ops[0])]()
    elif kind == "operator":
        new.op = _SWAPS[type(new.op)]()
    elif kind == "without":
        return new.operand
    elif kind in ("more", "less"):
        value = new.value
        if isinstance(value, bool):
            new.value = not value
        elif isinstance(value, int):
            new.value = value + (1 if kind == "more" else -1)
        else:
            new.value = value * 1.01 if value else 1.0
    elif kind == "text":
        new.value = f"{new.value}_"
    elif kind == "name" and isinstance(node, ast.Attribute):
        new.attr = _NAMES[node.attr]
    elif kind == "name":
        new.id = _NAMES[new.id]
    elif kind == "condition":
        new.test = ast.UnaryOp(ast.Not(), new.test)
    elif kind == "gone":
        return ast.Pass()
    elif kind == "jump":
        return ast.Break() if isinstance(node, ast.Continue) else ast.Continue()
    elif kind == "none":
        new.value = ast.Constant(None)
    return new


class _Replace(ast.NodeTransformer):
    def __init__(self, target: ast.AST, new: ast.AST):
        self._target, self._new = target, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self._new if node is self._target else self.generic_visit(node)


def sites_of(module: str) -> list[tuple[str, int]]:
    """Every mutant of a module, by number."""
    return [(module, i) for i in range(len(_sites(ast.parse(_text(module)))))]


@cache
def _text(module: str) -> str:
    return (ROOT / (module.replace(".", "/") + ".py")).read_text()


def mutant(module: str, number: int) -> dict[str, str]:
    """A mutant: where it is, what was and is there, and the whole source."""
    tree = ast.parse(_text(module))
    where, node, kind = _sites(tree)[number]
    statement = _statement(tree, node)
    before = ast.unparse(statement)
    new = _changed(node, kind)
    if new is not node:
        _Replace(node, new).visit(tree)
        statement = new if statement is node else statement
    ast.fix_missing_locations(tree)
    pairs = zip(before.split("\n"), ast.unparse(statement).split("\n"), strict=False)
    was, now = next(((a, b) for a, b in pairs if a != b), (before, "the same"))
    return {
        "module": module, "where": where, "was": was.strip(), "is": now.strip(),
        "source": ast.unparse(tree),
    }  # fmt: skip


def _sites(tree: ast.Module) -> list[tuple[str, ast.AST, str]]:
    sites = _Sites()
    for node in tree.body:
        sites.visit(node)
    return sites.found


def _statement(tree: ast.AST, node: ast.AST) -> ast.AST:
    """The innermost statement around a node."""
    around: dict[ast.AST, ast.AST] = {}
    waiting = [(tree, tree)]
    while waiting:
        each, statement = waiting.pop()
        around[each] = statement
        for child in ast.iter_child_nodes(each):
            waiting.append((child, child if isinstance(child, ast.stmt) else statement))
    return around[node]


def name_of(mutant: dict[str, str]) -> str:
    return f"{mutant['module']} {mutant['where']}: {mutant['was']} -> {mutant['is']}"


_SCANNER = (
    r"episodes\.jsonl (_scan|_scan_number|_string_end|_is_word|_matches|_skip_space|_key_table): "
    r"|episodes\.jsonl module: _TRUE"
)
EXPLAINED: tuple[tuple[str, str], ...] = (
    (
        r"features\.registry Layout\.(channel_of|channel_names|input_names|schema_hash): ",
        "for explanations and lists: tests/test_explanations.py, tests/test_contract.py",
    ),
    (r"problems\.append", "the words for a malformed line: tests/test_validation.py"),
    (
        r"models\.scaling (check_scaling|module: _KEYS)",
        "which file is refused: tests/test_checkpoint.py",
    ),
    (r"models\.scaling fit_scaling: mean = .*count", "one value alone: tests/test_models.py"),
    (r"models\.scaling fit_scaling: std\[std <", "no deviation is exactly the least one"),
    (r"models\.scaling leading_axes: n = 0", "the inputs are centred, so only their scale changes"),
    (
        r"features\.registry Layout\.channels_of: ",
        "which inputs a model keeps stands in its header: tests/test_checkpoint.py",
    ),
    (r"features\.registry Channel: absolute", "every channel says whether it is"),
    (
        r"features\.alignment module: MAX_SPAN_S",
        "an episode of a day less a second is too long: tests/test_validation.py",
    ),
    (
        r"features\.alignment _rate: .*at\[n - 1\] == times|align: times, scratch",
        "scratch space holds no time before it is written",
    ),
    (r"features\.alignment CoarseClock\.instants: .*later >= 1", "a shift by 0 is none"),
    (r"features\.relative baselines: ", "only for a layout without the statistic mean"),
    (
        r"episodes\.jsonl _line_bounds: filled",
        "an empty line is blank, and blank lines are skipped",
    ),
    (r"episodes\.jsonl _parse_line: .*_ENVELOPE", "the names of the envelope are not nested"),
    (
        _SCANNER,
        "other lines go to the standard library's parser, which reads the same in them; "
        "damaged lines agree",
    ),
    (
        r"features\.loaders (RowFiles\.(hand_back|__\w+__)|_count|module): |hand_back\(",
        "when pages are handed back and how many are read at a time: the values are the same",
    ),
    (r"features\.loaders _mapped: ", "which damaged file is refused: tests/test_shards.py"),
    (
        r"features\.shards (write_table|write_parts|read_table|module): ",
        "how a table is compressed and checked: tests/test_shards.py",
    ),
    (
        r"episodes\.jsonl (_described|and_more): |max_problems|MAX_ROWS"
        r"|_line_bounds: (too_many|n_bytes)",
        "the words of problems, and how many rows are read at all: tests/test_extraction.py",
    ),
    (r"features\.relative running_median: .*max\(1, len\(values\)\)", "no window, no median"),
    (r"models\.scaling fit_piecewise_linear: .*X\.shape", "inputs have two axes: the same axis"),
    (
        r"features\.loaders RowFiles\.stretches: self\._(address|touched|maps)",
        "only with more files than may be mapped: tests/test_shards.py",
    ),
    (
        r"episodes\.jsonl module: _(UNWANTED|MOST_NUMBERS)",
        "any number that is no slot; how long a template may be",
    ),
    (
        r"models\.scaling module: _QUANTILE_WINDOWS|fit_piecewise_linear: values = ",
        "only with more windows than the golden ones: tests/test_models.py",
    ),
    (r"models\.scaling _pieces: .*reshape\(len\(X\), -2\)", "NumPy takes it for -1"),
    (r"models\.scaling module: _(BLOCK|CHUNK)", "how many windows are scaled at a time"),
)
"""What survives for a reason: a pattern of the mutant's name, and why its inputs are the same."""


def explained(name: str) -> str | None:
    """Why a mutant may survive."""
    return next((why for pattern, why in EXPLAINED if re.search(pattern, name)), None)


# --- judging: a warm process for each mode, and a fork of it for each mutant


def serve(mode: str, known: Path) -> None:
    """Judge mutants from stdin, one JSON line each.

    Args:
        mode: ``compiled`` only writes what the code as it is computes.
        known: the file of it, so that a mutant need not compute it again.
    """
    if mode == "device":
        sys.modules["numba"] = None  # type: ignore[assignment]
    if mode != "compiled":
        os.environ["NUMBA_DISABLE_JIT"] = "1"
    import importlib
    import warnings

    import numpy as np

    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    for name in RELOADED:
        importlib.import_module(name)
    if mode == "compiled":
        for name, functions in PURE.items():
            for each in functions:
                module = sys.modules[name]
                setattr(
                    module, each, _remembered(getattr(module, each), _known.setdefault(name, {}))
                )
        for name in RELOADED:  # they imported the others
            if name not in PURE:
                exec(compile(_text(name), sys.modules[name].__file__ or "", "exec"),
                     vars(sys.modules[name]))  # fmt: skip
        _rules.append(sys.modules["features.golden"].read_rules())  # type: ignore[attr-defined]
        wrong = _other_rows() or _checked("")
        known.write_bytes(pickle.dumps((wrong, _known, _rows)))
        return
    _, known_here, rows = pickle.loads(known.read_bytes())  # noqa: S301  own results
    _known.update(known_here)
    _rows.extend(rows)
    code = {
        name: compile(_text(name), sys.modules[name].__file__ or "", "exec") for name in RELOADED
    }
    _rules.append(sys.modules["features.golden"].read_rules())  # type: ignore[attr-defined]
    for line in sys.stdin:
        print(json.dumps(_forked(json.loads(line), code)), flush=True)


PURE = {
    "episodes.jsonl": ("parse_rows",),
    "features.alignment": ("align",),
    "features.summary": ("summarise",),
    "features.relative": ("running_median",),
}
"""Functions whose results are kept by their arguments, where their module is not changed."""


def _remembered(function: Any, known: dict[Any, Any]) -> Any:
    def remembered(*arguments: Any) -> Any:
        key = _key(arguments)
        if key not in known:
            known[key] = function(*arguments)
        return known[key]

    return remembered


def _key(value: Any) -> Any:
    import numpy as np

    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    if is_dataclass(value):
        return tuple(_key(getattr(value, each.name)) for each in fields(value))
    if isinstance(value, dict):
        return tuple((name, _key(each)) for name, each in value.items())
    return tuple(map(_key, value)) if isinstance(value, list | tuple) else value


_known: dict[str, dict[Any, Any]] = {}


def _execute(names: Iterable[str], code: dict[str, Any], changed: str) -> None:
    """Execute modules again, in their places; what is pure in unchanged ones is remembered."""
    for name in names:
        module = sys.modules[name]
        if name == changed:  # what the code no longer says is gone
            for each in [each for each in vars(module) if not each.startswith("__")]:
                delattr(module, each)
        exec(code[name], vars(module))
        for each in PURE.get(name, ()) if name != changed else ():
            known = _known.setdefault(name, {})
            setattr(module, each, _remembered(getattr(module, each), known))


def _forked(mutant: dict[str, str], code: dict[str, Any]) -> dict[str, Any]:
    reader, writer = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            noticed = _judged(mutant, code)
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            noticed = f"{type(error).__name__}: {error} ({place.name})"
        os.write(writer, json.dumps(noticed).encode()[:4000])
        os._exit(0)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], PATIENCE_S)
    if not ready:
        os.kill(child, signal.SIGKILL)
    said = os.read(reader, 8192) if ready else b'"it does not end"'
    os.close(reader)
    _, status = os.waitpid(child, 0)
    try:
        noticed = json.loads(said) if said else f"it crashes ({status})"
    except ValueError:
        noticed = said.decode(errors="replace")
    return {"noticed": noticed, "seconds": round(time.monotonic() - began, 2)}


def _judged(mutant: dict[str, str], code: dict[str, Any]) -> str | None:
    """What the replay says of a mutant first; None: nothing."""
    first = RELOADED.index(mutant["module"])
    file = sys.modules[mutant["module"]].__file__ or ""
    code = {**code, mutant["module"]: compile(mutant["source"], file, "exec")}
    _execute(RELOADED[first:], code, mutant["module"])
    return _checked(mutant["module"])


def _checked(module: str) -> str | None:
    """What the replay says of the code as it is now."""
    golden, replay = sys.modules["features.golden"], sys.modules["models.replay"]
    layout = sys.modules["features.registry"].LAYOUT
    rules = _rules[0] if _rules else golden.read_rules()
    _rules[:] = [rules]
    golden.read_rules = lambda: rules  # type: ignore[attr-defined]
    if lines := golden.RuleFile(rules.episodes, rules.contracts).other_layout(layout):
        return str(lines[0])
    if module == "models.scaling":
        return next(iter(replay.scaling_differences()), None)
    if module in ("features.loaders", "features.shards"):
        return next(iter(golden.shard_differences(layout)), None)
    if module == "episodes.jsonl":
        return _other_rows()
    names = [name for name in rules.episodes if name != "horizon"] + ["horizon"]  # it takes longest
    for name in names:
        episode = rules.episodes[name]
        if found := golden.episode_difference(
            episode, golden.computed(name, episode.members, layout), layout
        ):
            return f"{name}: {found[1]}"
    if module in ("", "features.relative", "features.summary", "features.windows"):
        lines = sys.modules["live.replay"].live_differences(layout)
    if not module:
        lines += golden.shard_differences(layout) + replay.scaling_differences()
    return next(iter(lines), None)


_rules: list[Any] = []
_rows: list[Any] = []
LINES = ("json", "malformed", "many-keys", "unusable", "repeated", "coarse-odd", "labels", "jobs",
         "depth")  # fmt: skip
"""Golden episodes whose lines are not as plain as those of the others."""
NESTED = (("rss_bytes",), ("a", "b"), ("a", "c", "d"), ("a", "c", "e"), ("f", "b"), ("load_1m",))


def _other_rows() -> str | None:
    """Whether lines are read otherwise than by the code as it is.

    Those of golden episodes, and damaged ones with nested fields, made with a seed.
    """
    draw = random.Random(8)
    bases = [
        b'{"t_wall_ns":17,"t_mono_ns":5,"source":"x","available_in_deployment":true,'
        b'"rss_bytes":12.5e1,"a":{"b":-3,"c":{"d":0.25,"e":null},"z":1},"load_1m":false}',
        b' { "a" : {"c": {"e": 1e-7 ,"d": 7}, "b":"t"}, "t_wall_ns" : -4,"f":{"b":10},'
        b'"rss_bytes":-0.0,"source" : "y" ,"extra":true,"t_mono_ns":1.5 } ',
        b'{"load_1m":99007199254740993,"t_wall_ns":9223372036854775807,"a":{},"f":{"b":00},'
        b'"other":"text","rss_bytes":1E+3,"available_in_deployment":false,"a":{"b":2}}',
        b'{"t_wall_ns":3,"t_mono_ns":4,"source":"x","available_in_deployment":false,'
        b'"rss_bytes":5,"load_1m":0.06,"more":7}',
    ]
    lines = []
    for i in range(450):
        line = bytearray(bases[i % 4])
        for _ in range(draw.choice((0, 1, 1, 2))):
            at = draw.randrange(len(line))
            kind = draw.randrange(4)
            byte = draw.choice(b'{}[]",:0123456789.eE+-tfn \\a\x01\xc3')
            if kind == 0:
                line[at] = byte
            elif kind == 1:
                del line[at]
            elif kind == 2:
                line.insert(at, byte)
            else:
                line[at:at] = line[at : at + draw.randrange(12)]
        lines.append(bytes(line).replace(b"\n", b""))
    content = b"\n".join(lines)
    jsonl = sys.modules["episodes.jsonl"]
    parse, objects = vars(jsonl)["parse_rows"], vars(jsonl)["parse_objects"]
    sources = sys.modules["episodes.format"].SOURCES  # type: ignore[attr-defined]
    fields = sys.modules["features.registry"].LAYOUT.fields  # type: ignore[attr-defined]
    read = [parse(content, NESTED, "x")]
    for name in LINES:
        members = _rules[0].episodes[name].members
        for source, spec in sources.items():
            first = b"\n".join(members.get(spec.file, b"").split(b"\n")[:40])
            read.append(parse(first, fields[source], spec.tag))
        read += [
            objects(content)
            for file, content in members.items()
            if file[:6] in ("labels", "events")
        ]
    parsed = _key(read)
    if not _rows:
        _rows.append(parsed)
    return None if parsed == _rows[0] else "lines are read otherwise"


class _Judges:
    """A warm process for each mode."""

    def __init__(self, known: Path) -> None:
        self._processes = {
            mode: subprocess.Popen(
                [sys.executable, __file__, "--serve", mode, "--known", str(known)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_DISABLE_JIT": "1"},
            )
            for mode in MODES
        }  # fmt: skip

    def judge(self, mutant: dict[str, str]) -> dict[str, Any]:
        said: dict[str, Any] = {"noticed": None, "seconds": 0.0}
        for mode, process in self._processes.items():
            assert process.stdin
            assert process.stdout
            process.stdin.write(json.dumps(mutant) + "\n")
            process.stdin.flush()
            found = json.loads(process.stdout.readline())
            said["seconds"] += found["seconds"]
            if found["noticed"]:
                return {**said, "noticed": found["noticed"], "mode": mode}
        return said

    def close(self) -> None:
        for process in self._processes.values():
            assert process.stdin
            process.stdin.close()
            process.wait()


def judged(mutants: list[dict[str, str]], workers: int = 2) -> Iterator[dict[str, Any]]:
    """Mutants with what noticed them, in their order."""
    idle: Queue[_Judges] = Queue()
    folder = tempfile.TemporaryDirectory()
    known = Path(folder.name) / "known"
    subprocess.run([sys.executable, __file__, "--serve", "compiled", "--known", str(known)],
                   cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)  # fmt: skip
    wrong = pickle.loads(known.read_bytes())[0]  # noqa: S301  own results
    if wrong:
        raise SystemExit(f"the code as it is: {wrong}")
    judges = [_Judges(known) for _ in range(workers)]
    for each in judges:
        idle.put(each)

    def judge(mutant: dict[str, str]) -> dict[str, Any]:
        mine = idle.get()
        try:
            return {"name": name_of(mutant), **mine.judge(mutant)}
        finally:
            idle.put(mine)

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(judge, mutants)
    for each in judges:
        each.close()
    folder.cleanup()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", choices=("compiled", *MODES))
    parser.add_argument("--known", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--only", default="")
    parser.add_argument("--skip", type=int, default=0, help="of those drawn: they were judged")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.known)
        return 0
    began = time.monotonic()
    everything = [site for module in TARGETS for site in sites_of(module)]
    chosen = [site for site in everything if options.only in site[0]]
    chosen = random.Random(options.seed).sample(chosen, min(options.n, len(chosen)))
    drawn = [mutant(*site) for site in chosen[options.skip :]]
    survivors: list[str] = []
    n_explained = n = 0
    out = options.out.open("w") if options.out else None
    print(f"{len(everything)} mutants, {len(drawn)} of them drawn", flush=True)
    for said in judged(drawn):
        if out:
            out.write(json.dumps(said) + "\n")
            out.flush()
        n += 1
        if said["noticed"]:
            continue
        survivors.append(said["name"])
        why = explained(said["name"])
        n_explained += why is not None
        print(f"survived: {said['name']} ({why or 'NOT EXPLAINED'})", flush=True)
    minutes = (time.monotonic() - began) / 60
    print(f"{n} mutants, {n - len(survivors)} noticed, {len(survivors)} survived, "
          f"{n_explained} of these explained; {minutes:.1f} minutes")  # fmt: skip
    return int(n_explained < len(survivors))


if __name__ == "__main__":
    sys.exit(main())
