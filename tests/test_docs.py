"""Every command and link of the docs: run here, or in the table with the reason why not."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from itertools import pairwise, takewhile
from pathlib import Path

import pytest
from lab import RECIPE, Lab, put_in_use
from typer.testing import CliRunner

from features.contract import contract_hashes
from features.registry import LAYOUT
from pipelines.cli.app import FAILED, OK, USAGE, app
from pipelines.graph import build_defs

ROOT = Path(__file__).parent.parent
PAGES = [
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "artifacts/*.md", "data/store/*.md")
    for path in sorted(ROOT.glob(pattern))
]
PROGRAMS = ("phasewatch", "dagster", "dagster-daemon", "dagster-webserver", "make", "python")

RUN = {
    "phasewatch --version": OK,
    "phasewatch champion": OK,
    "phasewatch bundle --out bundle": FAILED,  # there is no champion
    "phasewatch bundle --out bundle --checkpoint CHECKPOINT": OK,
    "phasewatch contract": OK,
    "phasewatch contract diff CHECKPOINT": OK,
    "phasewatch champion --restore": OK,
    "phasewatch keys list": OK,
    "phasewatch keys new NAME": OK,
    "phasewatch keys new lab-a": OK,
    "phasewatch log verify": OK,
    "phasewatch doctor": FAILED,  # two recipes of three are not trained
    "phasewatch doctor --config config/gpu.yaml": FAILED,
    'phasewatch exclude EPISODE --reason "wrong label"': OK,
    "phasewatch extract EPISODE --out episode.npz": OK,
    "phasewatch inspect PATH…": OK,
    "phasewatch inspect artifacts/checkpoints": OK,
    "phasewatch predict EPISODE": OK,
    "phasewatch predict EPISODE --why": OK,
    "phasewatch predict BATCH --out windows.parquet": OK,
    "phasewatch predict 01M7ZVV20HFQWZ385HM9KXP5BJ --checkpoint "
    "artifacts/checkpoints/host/gbt_realistic.ckpt.json": OK,
    "phasewatch promote ensemble": FAILED,  # as above
    "phasewatch promote ensemble --dry-run": FAILED,
    'phasewatch promote ensemble --why "first champion"': FAILED,
    'phasewatch promote ensemble --accept-alarms "only to try it"': FAILED,
    'phasewatch promote ensemble --accept-alarms "to try it"': FAILED,
    "phasewatch prune": OK,
    "phasewatch prune --older-than 30d": OK,
    "phasewatch prune --older-than 30d --dry-run": OK,
    "phasewatch report": OK,
    "phasewatch report --json": OK,
    "phasewatch report --recipe host --json": OK,
    "phasewatch rollback": OK,
    "phasewatch run --batch BATCH": OK,
    "phasewatch run --batch lab-a.2026-11-21 --batch lab-b.2026-11-21": OK,
    "phasewatch run --ingest-only": OK,
    "phasewatch sync": OK,
    "phasewatch sync --json": OK,
    "phasewatch validate": OK,
    "phasewatch validate EPISODE": OK,
    "phasewatch validate BATCH": OK,
    "phasewatch validate --policy other.yaml": OK,
}
"""Run in a lab, with this exit code."""

FILLED = {
    # as in the docs -> as in the lab
    "CHECKPOINT": f"artifacts/checkpoints/{RECIPE}/gbt_realistic.ckpt.json",
    "CKPT": f"artifacts/checkpoints/{RECIPE}/gbt_realistic.ckpt.json",
    "artifacts/checkpoints/host/gbt_realistic.ckpt.json": (
        f"artifacts/checkpoints/{RECIPE}/gbt_realistic.ckpt.json"
    ),
    "PATH…": "artifacts/checkpoints",
    "host": RECIPE,
    "BATCH": "lab-a.2026-11-02",
    "lab-a.2026-11-21": "lab-a.2026-11-02",
    "lab-b.2026-11-21": "lab-b.2026-11-02",
}
EPISODES = ("EPISODE", "01M7ZVV20HFQWZ385HM9KXP5BJ")

NAMED = {
    "phasewatch bundle",
    "phasewatch exclude",
    "phasewatch hub --log-windows",
    "phasewatch keys new",
    "phasewatch keys trust FILE",
    "phasewatch keys trust lab-a.pub",
    "phasewatch log replay",
    "phasewatch log replay BUNDLE",
    "phasewatch promote MODEL",
    "phasewatch verify",
    "phasewatch verify BUNDLE",
    "phasewatch verify CHECKPOINT",
    "phasewatch contract diff",
    "phasewatch extract",
    "phasewatch hub",
    "phasewatch hub --read-only",
    "phasewatch inspect --verify PATH",
    "phasewatch live",
    "phasewatch predict",
    "phasewatch produce",
    "phasewatch produce all",
    "phasewatch produce embedding",
    "phasewatch produce metrics",
    "phasewatch produce perf",
    "phasewatch produce phases",
    "phasewatch produce profiles",
    "phasewatch produce replay",
    "phasewatch promote",
    "phasewatch simulate",
    "phasewatch ui",
    "phasewatch ui --read-only",
}
"""Only spoken of: that there are such commands and options is looked up in their help."""

WHOLE_RUNS = {"phasewatch run", "phasewatch run --force", "phasewatch run --json"}
"""These take minutes; here they get as far as a recipe that does not exist."""

NOT_RUN = {
    "phasewatch --install-completion": "writes to the home; test_cli completes a word",
    "phasewatch --show-completion": "depends on the shell; test_cli completes a word",
    "source .venv/bin/activate": "make makes it",
    **dict.fromkeys(
        (
            "phasewatch simulate --store sim --episodes 20000 --days 40",
            "phasewatch simulate --store sim --append --episodes 500 --days 2 --hosts 10",
            "phasewatch simulate --store sim --episodes 52000 --days 40 --shards sim-artifacts",
            "phasewatch simulate --store sim --episodes 76660 --days 8 --longest 20 --shards "
            "sim-artifacts",
            "phasewatch run --ingest-only --store sim --artifacts sim-artifacts",
        ),
        "takes minutes; test_simulation makes smaller ones",
    ),
    'export DAGSTER_HOME="$PWD/artifacts/dagster_home"': "set for every command here",
    "python -m pytest tests/test_scores.py": "the suite runs it",
    "python -m features.golden": "rewrites what is committed; test_inspection replays it",
    "python -m models.replay": "rewrites what is committed; test_code replays it",
    "python -m benchmarks.choices": "takes an hour",
    "python -m benchmarks.choices --mode realistic --recipe host --recipe session --only keep mlp "
    "gru": "takes half an hour",
    "phasewatch hub --host 0.0.0.0 --allow-host hub.lab --token-file token": "serves until it is "
    "stopped; test_hub starts one",
    "curl -N http://127.0.0.1:8447/events": "test_hub reads it",
    "phasewatch live bundle --this-machine --to http://127.0.0.1:8447": "test_scorer runs it",
    "phasewatch live bundle --replay 01M88FV6MVB9G0SE15Y75AP9CP --speed 20 --to "
    "http://127.0.0.1:8447": "make live runs it",
    "phasewatch-device enrol bundle --minutes 5 --out baseline.npz": "takes five minutes",
    "phasewatch-device live bundle --this-machine --baseline baseline.npz": "test_scorer runs it",
    "python -m benchmarks.device": "needs the checkpoints of a whole run",
    "python -m benchmarks.machine": "takes two minutes",
    "python -m benchmarks.streaming": "takes three minutes",
    "python -m benchmarks.streaming --bundle bundle": "takes three minutes",
    **dict.fromkeys(
        (
            "pip wheel --no-deps ./device",
            "scp -r phasewatch_device-*.whl bundle device/phasewatch-device.service "
            "pi@raspberrypi:",
            "sudo apt install python3-venv",
            "sudo python3 -m venv /opt/phasewatch/venv",
            "sudo /opt/phasewatch/venv/bin/pip install ./phasewatch_device-*.whl",
            "sudo mv bundle /opt/phasewatch/",
            "/opt/phasewatch/venv/bin/phasewatch-device check /opt/phasewatch/bundle",
            "sudo /opt/phasewatch/venv/bin/phasewatch-device live /opt/phasewatch/bundle "
            "--this-machine",
            "sudo cp phasewatch-device.service /etc/systemd/system/",
            "sudo systemctl enable --now phasewatch-device",
            "curl http://127.0.0.1:9477/metrics",
        ),
        "sets up a device; test_device installs and checks",
    ),
    "python -m hub.events": "rewrites what is committed; test_hub compares",
    "PYTHONPATH=.:tests python tests/test_definitions.py": "rewrites what is committed; "
    "test_definitions compares",
    "python -m hub.vendor": "fetches from npm; test_page compares hashes",
    "python -m hub.vendor --record": "fetches from npm and rewrites what is committed",
    "python -m benchmarks.hub": "takes two minutes",
    "python -m benchmarks.reading --scale": "takes minutes",
    "python -m benchmarks.million": "takes an hour, and 24 GB of disk",
    "python -m benchmarks.growth": "takes minutes",
    "python -m benchmarks.retention --home artifacts/dagster_home": "needs records of a whole run",
    "python -m benchmarks.partitions --keep FOLDER": "takes minutes",
    "python -m benchmarks.evaluation": "takes minutes",
    "python -m benchmarks.days": "needs the embedded corpus; takes half an hour",
    'python -m benchmarks.days --mode oracle --question "first session"': "the same, five minutes",
    "python -m benchmarks.onset": "needs the checkpoints of a whole run",
    "python -m benchmarks.chance": "needs the embedded corpus; test_trust does the same on a lab",
    "python -m benchmarks.coverage": "takes half an hour; test_trust does fewer",
    "python -m benchmarks.likeness": "needs the embedded corpus; takes minutes",
    "python -m benchmarks.choices --hosts": "takes an hour",
    'PYTHONPATH=.:tests python -m faults --only "flipped bit: bundle" --try 17': "test_faults "
    "does the same in this process",
    "python data/build_store.py CORPUS_STORE": "needs the recorded corpus",
    "python tests/keep_artifacts.py": "writes 3 MB; test_compatibility opens what it wrote",
    "ray start --head --dashboard-host=0.0.0.0": "test_ray starts a cluster of its own",
    "ray start --address=head:6379": "test_ray starts a cluster of its own",
    "export RAY_ADDRESS=http://head:8265": "test_ray sets it",
}
"""Why; that the modules and files are there is looked at."""


@dataclass(frozen=True)
class Command:
    where: str  # page:line
    text: str


def commands(page: Path) -> Iterator[Command]:
    """Lines of ``sh`` blocks, and inline code that begins with a program and goes on."""
    fence: str | None = None
    for number, line in enumerate((ROOT / page).read_text().splitlines(), start=1):
        where = f"{page}:{number}"
        if line.startswith("```"):
            fence = line[3:] if fence is None else None
        elif fence == "sh" and (text := re.sub(r"(^|\s+)# .*", "", line).strip()):
            yield Command(where, text)
        elif fence is None:
            for code in re.findall(r"`([^`]+)`", line):
                program, *words = code.split()
                if program in PROGRAMS and words:
                    yield Command(where, code)


COMMANDS = [command for page in PAGES for command in commands(page)]
TEXTS = sorted({command.text for command in COMMANDS})


def of(*programs: str) -> list[str]:
    return [text for text in TEXTS if text.split()[0] in programs and text not in NOT_RUN]


def test_every_command_is_known_here() -> None:
    known = {*RUN, *NAMED, *WHOLE_RUNS, *NOT_RUN, *of("make"), *of(*PROGRAMS[1:4])}
    assert [f"{c.where}: {c.text}" for c in COMMANDS if c.text not in known] == []


def test_nothing_is_known_here_that_the_docs_forgot() -> None:
    assert [text for text in {*RUN, *NAMED, *WHOLE_RUNS, *NOT_RUN} if text not in TEXTS] == []


# --- phasewatch


@pytest.fixture(scope="module")
def place(trained: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the clone is after a run, but only one recipe is trained."""
    root = tmp_path_factory.mktemp("docs")
    shutil.copytree(trained.artifacts, root / "artifacts")
    (root / "config").symlink_to(ROOT / "config")
    (root / "other.yaml").write_text("max_gap_s: 10\n")
    return root


@pytest.fixture
def clone(
    place: Path, trained: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The clone is the working directory; the words that stand for others there."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("PHASEWATCH_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("DAGSTER_HOME", str(place / "artifacts" / "dagster_home"))
    monkeypatch.setenv("PHASEWATCH_ARTIFACTS", str(place / "artifacts"))
    monkeypatch.setenv("PHASEWATCH_STORE", str(trained.store.root))
    return FILLED | dict.fromkeys(EPISODES, trained.store.added[0].episode_id)


def phasewatch(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize("text", RUN)
def test_a_command_does_what_it_says(
    text: str, place: Path, clone: dict[str, str], trained: Lab
) -> None:
    words = [clone.get(word, word) for word in shlex.split(text)[1:]]
    champion = place / "artifacts" / "champion"
    shutil.rmtree(champion, ignore_errors=True)
    (place / "artifacts" / "exclusions.yaml").unlink(missing_ok=True)
    for model in ("gbt", "knn") if words[0] in ("champion", "predict", "rollback") else ():
        put_in_use(trained, model, champion)
    code, output = phasewatch(*words)
    assert code == RUN[text], output


@pytest.mark.parametrize("text", sorted(NAMED))
def test_a_command_that_is_spoken_of_exists(text: str) -> None:
    words = text.split()[1:]
    names = [word for word in words if not word.startswith("-")]
    code, output = phasewatch(*names, "--help")
    assert code == OK, output
    assert [word for word in words if word.startswith("-") and word not in output] == []


@pytest.mark.usefixtures("clone")
@pytest.mark.parametrize("text", sorted(WHOLE_RUNS))
def test_a_whole_run_would_begin(text: str) -> None:
    code, output = phasewatch(*text.split()[1:], "--recipe", "nowhere")
    assert (code, "got 'nowhere'" in output) == (USAGE, True), output


# --- the others: what is named exists


@pytest.mark.parametrize("text", of("make"))
def test_make_knows_the_target_and_the_words(text: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", *text.split()[1:]],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    makefile = (ROOT / "Makefile").read_text()
    names = [word.partition("=")[0] for word in text.split() if "=" in word]
    assert [name for name in names if f"$({name})" not in makefile] == []


@pytest.mark.parametrize("text", of(*PROGRAMS[1:4]))
def test_dagster_knows_the_command_its_options_and_what_it_names(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Headless commands and a backfill are run by ``make e2e``."""
    program, *words = shlex.split(text)
    (entry,) = entry_points(group="console_scripts", name=program)
    names = list(takewhile(lambda word: not word.startswith("-"), words))
    monkeypatch.setattr(sys, "argv", [program, *names, "--help"])
    with pytest.raises(SystemExit) as end:
        entry.load()()
    assert end.value.code == 0
    known = re.findall(r"(?<!\S)--?[a-z][a-z-]*", capsys.readouterr().out.replace(",", " "))
    assert [word for word in words if word.startswith("-") and word not in known] == []
    given = dict(pairwise(words))
    definitions = build_defs()
    if "-j" in given:
        definitions.resolve_job_def(given["-j"])
    if "-m" in given:
        assert importlib.util.find_spec(given["-m"])
    for option in ("-c", "-w"):
        assert option not in given or (ROOT / given[option]).is_file()
    if names[:2] == ["sensor", "start"]:
        definitions.resolve_sensor_def(names[2])
    if names[:2] == ["schedule", "start"]:
        definitions.resolve_schedule_def(names[2])


@pytest.mark.parametrize("text", [text for text in NOT_RUN if text.startswith("python ")])
def test_python_finds_what_it_is_given(text: str) -> None:
    _, first, *rest = text.split()
    assert importlib.util.find_spec(rest[0]) if first == "-m" else (ROOT / first).is_file()


# --- links


def headings(path: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    path = ROOT / page
    lost = []
    for link in re.findall(r"\]\(([^):]+)\)", path.read_text()):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in headings(target)):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_fence_of_code_has_a_line_of_its_own(page: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "```" in line]
    assert [line for line in lines if not re.fullmatch(r" *```\w*", line)] == []
    assert len(lines) % 2 == 0


def test_the_contract_that_is_shown_is_the_current_one() -> None:
    shown = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")
    current = {*contract_hashes(LAYOUT).values(), LAYOUT.schema_hash("summary")}
    assert current <= set(re.findall(r"\b[0-9a-f]{64}\b", shown))
