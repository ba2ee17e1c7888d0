"""Who is believed: seals, signatures, the chain from episodes to a bundle, and the log."""

from __future__ import annotations

import asyncio
import errno
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import StoreBuilder
from faults.rest import BUNDLE, GBT, made_artifacts
from lab import RECIPE, TINY, Lab, once
from tiny import forge
from typer.testing import CliRunner

from champion.history import (
    POINTER_FILE,
    REFERENCE_FILE,
    ChampionError,
    checkpoint_copy_path,
    put_in_use,
    read_champion,
    read_pointer,
)
from config import signing
from config.signing import SigningError, new_key, sealed, signed, trust, trusted_keys, unsealed
from episodes.reading import read_episode
from evaluation.decisions import (
    AnswerRecord,
    DecisionRecord,
    chain_record,
    log_files,
    read_chain,
)
from features.files import fingerprint
from hub.decisions import DecisionLog
from hub.events import LiveDetection
from live.bundle import BundleError, bundle_id, load_bundle
from live.cli import main as live
from live.scorer import LiveScorer
from live.sources import ReplaySource
from models.checkpoint import CheckpointError, artifact_id, checkpoint_path, read_header
from pipelines.cli.app import FAILED, OK, USAGE, app
from stages.chain import ChainVerifier
from stages.champion import promote, restore
from stages.manifest import read_manifest, write_manifest
from stages.project import Project
from stages.scoring import champion_scorer, scorer_of
from stages.status import StageError


@pytest.fixture(autouse=True)
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of keys of this test's own, without any."""
    folder = tmp_path / "keys"
    monkeypatch.setenv(signing.VARIABLE, str(folder))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and an artifacts folder with every kind of file, unsigned; never change it."""
    return once(tmp_path_factory, "trust-plain", made_artifacts)


def opened(root: Path) -> Lab:
    store = StoreBuilder.reopen(root / "store")
    return Lab(store, root / "artifacts", None, TINY)  # type: ignore[arg-type]


@pytest.fixture
def lab(plain: Path, tmp_path: Path) -> Lab:
    return opened(Path(shutil.copytree(plain, tmp_path / "lab")))


# --- seals


VALUE = {"facts": {"seal": "x", "value": ""}, "n": [1, 2.5, None]}


@pytest.mark.parametrize("signs", [False, True])
def test_every_bit_of_a_sealed_document_counts(signs: bool) -> None:
    if signs:
        new_key("me")
    content = sealed(VALUE, "manifest")
    found = unsealed(content, set(VALUE))
    assert found.value == VALUE
    assert found.signed("manifest").state == ("holds" if signs else "unsigned")
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            other = unsealed(bytes(flipped), set(VALUE))
        except ValueError:
            continue
        assert other.value == VALUE
        assert other.signed("manifest").state != "holds" or other.signature == found.signature


def test_a_document_from_before_seals_opens_and_one_without_its_seal_does_not_pass_for_it() -> None:
    old = json.dumps(VALUE).encode()
    assert unsealed(old, set(VALUE)).digest is None
    content = sealed(VALUE, "manifest")
    with pytest.raises(ValueError, match="unknown field 'sebl'"):
        unsealed(content.replace(b'"seal": "', b'"sebl": "').replace(b'"sebl": "x', b'"seal": "x'),
                 set(VALUE))  # fmt: skip


# --- keys


def test_a_signature_holds_for_its_kind_its_digest_and_a_trusted_key(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_key("lab-a")
    made = signing.signature_of("bundle", "d" * 64)
    assert signed("bundle", "d" * 64, made).state == "holds"
    assert signed("bundle", "e" * 64, made).state == "wrong"
    assert signed("checkpoint", "d" * 64, made).state == "wrong"
    monkeypatch.setenv(signing.VARIABLE, str(tmp_path / "other"))
    assert signed("bundle", "d" * 64, made).state == "unknown"
    assert trust(keys / "lab-a.pub", "from-a").name == "from-a"
    assert signed("bundle", "d" * 64, made).state == "holds"
    assert signed("bundle", "d" * 64, made).by == "from-a"
    assert (keys / "lab-a.key").stat().st_mode & 0o077 == 0


def test_a_key_that_cannot_be_written_whole_leaves_nothing_behind(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = signing.sync
    for n_written in (0, 1):  # the private key, then the public one
        with monkeypatch.context() as full:
            left = iter(range(n_written))

            def until_full(handle: int, left: Any = left) -> None:
                if next(left, None) is None:
                    raise OSError(errno.ENOSPC, "no space left")
                real(handle)

            full.setattr(signing, "sync", until_full)
            with pytest.raises(SigningError, match="cannot be written"):
                new_key("lab-a")
        assert [*keys.iterdir()] == []
    new_key("lab-a")


def test_a_machine_has_one_key_and_says_what_is_wrong_with_keys(keys: Path) -> None:
    new_key("a")
    with pytest.raises(SigningError, match="signs with a already"):
        new_key("b")
    for name in ("../a", "", "a b", ".a"):
        with pytest.raises(SigningError, match="name may only contain"):
            new_key(name)
    (keys / "bad.pub").write_bytes(b"no key")
    with pytest.raises(SigningError, match=r"bad.pub: not a public Ed25519 key"):
        trusted_keys()


def invoke(lab: Lab, *words: str) -> Any:
    where = ["--store", str(lab.store.root), "--artifacts", str(lab.artifacts)]
    return CliRunner().invoke(app, [*words, *where])


def test_the_commands_about_keys(lab: Lab, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = CliRunner().invoke(app, ["keys", "new", "me", "--json"])
    assert (made.exit_code, json.loads(made.stdout)["signs"]) == (OK, "me")
    assert CliRunner().invoke(app, ["keys", "new", "me"]).exit_code == FAILED
    assert CliRunner().invoke(app, ["keys", "new", "bad name!"]).exit_code == USAGE
    assert CliRunner().invoke(app, ["keys", "trust", str(keys / "me.pub")]).exit_code == OK
    named = ["keys", "trust", str(keys / "me.pub"), "--name", "bad name!"]
    assert CliRunner().invoke(app, named).exit_code == USAGE
    assert CliRunner().invoke(app, ["keys", "trust", str(keys / "me.key")]).exit_code == FAILED
    listed = json.loads(CliRunner().invoke(app, ["keys", "list", "--json"]).stdout)
    assert [key["name"] for key in listed["trusted"]] == ["me"]
    (keys / "me.pub").rename(keys / "other.pub")  # trusted by another name
    assert " yes" in CliRunner().invoke(app, ["keys", "list"]).stdout
    (keys / "other.pub").unlink()
    told = CliRunner().invoke(app, ["keys", "list"]).stdout
    assert f"me ({listed['signs_id']})" in told
    monkeypatch.setenv(signing.VARIABLE, str(lab.artifacts / "keys"))
    inside = CliRunner().invoke(app, ["keys", "new", "x", "--artifacts", str(lab.artifacts)])
    assert inside.exit_code == USAGE


# --- a champion from before there was a key


def test_an_unsigned_champion_is_promoted_again_to_sign_it(
    lab: Lab,
) -> None:
    folder = lab.workspace.champion_folder
    before = read_champion(folder)
    assert before is not None
    words = ["promote", before.model, "--why", "to sign it", "--json"]
    untouched = (folder / POINTER_FILE).read_bytes()
    assert invoke(lab, *words).exit_code == FAILED  # judged as any other
    with pytest.raises(ChampionError, match="keys new NAME"):
        champion_scorer(required(lab))
    new_key("lab")
    with pytest.raises(ChampionError, match=rf"phasewatch promote {before.model}"):
        champion_scorer(required(lab))
    # what is kept with it has to be whole
    path = checkpoint_copy_path(folder, before)
    for kept in (path.with_name("training.parquet"), path.parent / read_header(path)["sidecar"]):
        content = kept.read_bytes()
        spoiled(kept)
        assert invoke(lab, *words).exit_code == FAILED
        kept.write_bytes(content)
    assert invoke(lab, *words, "--dry-run").exit_code == OK
    assert (folder / POINTER_FILE).read_bytes() == untouched
    told = invoke(lab, *words)
    assert told.exit_code == OK, (told.output, told.exception)
    after = read_champion(folder, require_signature=True)
    assert after is not None
    assert (after.number, after.previous) == (before.number + 1, before.previous)
    assert (after.checkpoints, after.evidence) == (before.checkpoints, before.evidence)
    assert after.why == "to sign it"
    assert champion_scorer(required(lab)).rule is not None
    assert links(lab, required(lab))["champion"] == {"holds"}
    told = invoke(lab, "predict", lab.store.added[0].episode_id, "--require-signature")
    assert told.exit_code == OK, told.output
    problems = json.loads(invoke(lab, "doctor", "--json").stdout)["problems"]
    assert not [each for each in problems if POINTER_FILE in each["problem"]]
    assert not json.loads(invoke(lab, *words).stdout)["promoted"]  # once


def test_a_kept_checkpoint_that_is_not_signed_is_signed_too(lab: Lab) -> None:
    """The history is signed, but the checkpoint was trained before there was a key."""
    folder = lab.workspace.champion_folder
    champion = read_champion(folder)
    assert champion is not None
    new_key("lab")
    put_in_use(folder, champion, replaces=champion)
    with pytest.raises(CheckpointError, match=rf"phasewatch promote {champion.model}"):
        champion_scorer(required(lab))
    status = required(lab).status(required(lab).stages["champion"], "")
    assert status.code == "signature"
    trial = promote(lab.project, GBT, by="me", why="")
    assert (trial.only_signs, trial.promoted is not None) == (True, True)
    assert champion_scorer(required(lab)).rule is not None
    restore(lab.project)  # from the checkpoint that it was copied from, which nobody signed
    assert champion_scorer(required(lab)).rule is not None


# --- one edit of the history


def edited(lab: Lab, change: Callable[[dict[str, Any]], Any]) -> None:
    path = lab.workspace.champion_folder / POINTER_FILE
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "checkpoint": lambda d: d["history"][-1]["checkpoints"].update(time="0" * 64),
    "former entry": lambda d: d["history"][0].update(why="because"),
    "rule": lambda d: d["history"][-1]["alarm_rules"].update(time="0" * 64),
    "dropped": lambda d: d["history"].pop(),
    "dropped first": lambda d: d["history"].pop(0),
    "reordered": lambda d: d["history"].reverse(),
    "repeated": lambda d: d["history"].append(d["history"][-1]),
    "seal": lambda d: d.pop("seal"),
    "schema": lambda d: d.update(schema="phasewatch.champion/1"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_one_edit_of_the_history_swaps_no_model_silently(lab: Lab, edit: str) -> None:
    folder = lab.workspace.champion_folder
    assert read_champion(folder) is not None
    edited(lab, EDITS[edit])
    with pytest.raises(ChampionError, match=POINTER_FILE):
        champion_scorer(lab.project)
    for words in (["champion"], ["doctor"]):
        told = invoke(lab, *words)
        assert told.exit_code == FAILED
        assert POINTER_FILE in told.output
    told = CliRunner().invoke(app, ["inspect", "--verify", str(lab.artifacts / "checkpoints")])
    assert told.exit_code == FAILED
    assert POINTER_FILE in told.output


def resealed(lab: Lab, change: Callable[[dict[str, Any]], Any]) -> None:
    """An insider who knows the format: every hash is right again."""
    path = lab.workspace.champion_folder / POINTER_FILE
    document = json.loads(path.read_text())
    change(document)
    follows = "0" * 64
    for row in document["history"]:
        row["follows"] = follows
        signature = row.pop("signature", None)
        entry = {k: v for k, v in row.items() if k not in ("follows", "seal")}
        row["seal"] = follows = fingerprint({"follows": follows, "entry": entry})
        if signature:
            row["signature"] = signature
    signature = document.pop("signature", None)
    document.pop("seal")
    content = sealed(document, None)
    if signature:
        content = content.replace(
            b"\n}\n", b',\n "signature": ' + json.dumps(signature).encode() + b"\n}\n"
        )
    path.write_bytes(content)


def test_an_insider_with_right_hashes_is_told_by_the_signature(lab: Lab) -> None:
    def swap(document: dict[str, Any]) -> None:
        document["history"][-1]["checkpoints"]["host"] = "0" * 64

    folder = lab.workspace.champion_folder
    champion = read_champion(folder)
    assert champion is not None
    new_key("lab")
    put_in_use(folder, champion, replaces=champion)
    assert read_pointer(folder).signed.by == "lab"
    resealed(lab, swap)
    with pytest.raises(ChampionError):
        read_champion(folder)
    # without its signatures it can be read, and the commands say that nobody stands for it
    document = json.loads((folder / POINTER_FILE).read_text())
    for row in document["history"]:
        row.pop("signature", None)
    document.pop("signature", None)
    (folder / POINTER_FILE).write_text(json.dumps(document))
    resealed(lab, swap)
    assert read_champion(folder) is not None
    with pytest.raises(ChampionError, match="signatures are required"):
        read_champion(folder, require_signature=True)
    for words in (["champion"], ["doctor"]):
        assert "not signed" in invoke(lab, *words).output
    told = CliRunner().invoke(app, ["inspect", "--verify", str(lab.artifacts / "checkpoints")])
    assert "not signed" in told.output
    assert told.exit_code == FAILED


# --- what is required


def required(lab: Lab) -> Project:
    return Project(lab.workspace.model_copy(update={"require_signatures": True}))


def test_nothing_unsigned_is_used_where_signatures_are_required(lab: Lab) -> None:
    project = required(lab)
    with pytest.raises(ChampionError, match="signatures are required"):
        champion_scorer(project)
    path = checkpoint_path(lab.workspace.checkpoint_folder(RECIPE), GBT)
    with pytest.raises(CheckpointError, match="signatures are required"):
        scorer_of(project, path)
    with pytest.raises(BundleError, match="not signed") as refused:
        load_bundle(lab.artifacts / BUNDLE, require_signature=True)
    assert str(signing.keys_folder()) in str(refused.value)  # a device has no `phasewatch keys`
    assert live(["check", str(lab.artifacts / BUNDLE), "--require-signature"]) == FAILED
    codes = {s.code for s in project.statuses(project.stages["ingest"])}
    assert codes == {"signature"}
    with pytest.raises(StageError, match="keys new NAME"):
        project.make(project.stages["ingest"], next(iter(project.listing.batches)))
    told = invoke(lab, "predict", lab.store.added[0].episode_id, "--require-signature")
    assert told.exit_code == FAILED


def test_doctor_tells_one_reason_once(lab: Lab, tmp_path: Path) -> None:
    config = tmp_path / "required.yaml"
    config.write_text("resources: {workspace: {config: {require_signatures: true}}}\n")
    document = json.loads(invoke(lab, "doctor", "--json", "--config", str(config)).stdout)
    lines = [line for lines in document["not_current"].values() for line in lines]
    assert sum("not signed" in line for line in lines) == len(
        [kind for kind, each in document["not_current"].items() if "not signed" in " ".join(each)]
    )
    (stale,) = [each for each in document["problems"] if each["problem"] == "not current"]
    assert stale["remedy"].startswith("phasewatch keys new NAME, then: phasewatch run")


@pytest.fixture(scope="module")
def signed_lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, signed by a key that lies beside."""

    def make(root: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(signing.VARIABLE, str(root / "keys"))
            new_key("lab")
            made_artifacts(root)

    return once(tmp_path_factory, "trust-signed", make)


@pytest.fixture
def signs(signed_lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    root = Path(shutil.copytree(signed_lab, tmp_path / "signed"))
    monkeypatch.setenv(signing.VARIABLE, str(root / "keys"))
    return opened(root)


def test_what_is_made_where_a_key_is_is_signed_and_used(signs: Lab) -> None:
    project = required(signs)
    for stage in ("ingest", "datasets", f"checkpoints/{GBT.name}", f"alarm_rules/{GBT.name}"):
        keys = project.listing.batches if stage == "ingest" else [RECIPE]
        assert {project.status(project.stages[stage], key).code for key in keys} == {"current"}
    assert champion_scorer(project).rule is not None
    path = checkpoint_path(signs.workspace.checkpoint_folder(RECIPE), GBT)
    assert scorer_of(project, path).rule is not None
    assert load_bundle(signs.artifacts / BUNDLE, require_signature=True).rule is not None
    told = invoke(signs, "predict", signs.store.added[0].episode_id, "--require-signature")
    assert told.exit_code == OK, told.output


def test_a_signature_that_does_not_hold_is_never_let_pass(signs: Lab) -> None:
    """Also where none is required: every hash is right, but the signer signed something else."""
    path = checkpoint_path(signs.workspace.checkpoint_folder(RECIPE), GBT)
    header = json.loads(path.read_text())
    header["train_meta"]["val_macro_f1"] = 0.99
    header["artifact_id"] = artifact_id(header)
    path.write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match="is invalid"):
        read_header(path)
    head_path = signs.artifacts / BUNDLE / "bundle.json"
    head = json.loads(head_path.read_text())
    head["recipe"] = "host"
    head["id"] = bundle_id(head)
    head_path.write_text(json.dumps(head))
    with pytest.raises(BundleError, match="is invalid"):
        load_bundle(head_path.parent)


# --- the chain


def links(lab: Lab, project: Project | None = None) -> dict[str, set[str]]:
    """State by link, of the bundle."""
    chain = ChainVerifier(project or lab.project)
    chain.bundle(lab.artifacts / BUNDLE)
    states: dict[str, set[str]] = {}
    for link in chain.links:
        states.setdefault(link.name, set()).add(link.state)
    return states


LINKS = {
    # link -> a file of it
    "episodes": "store/episodes/*/*.tar.zst",
    "validation index": "artifacts/batches/*/validation_index/index*.parquet",
    "shards": "artifacts/batches/*/tensor_shards/series-*.npy",
    "dataset": "artifacts/datasets/*/windows*.parquet",
    "checkpoint": "artifacts/checkpoints/*/gbt_realistic*.ubj",
    "alarm rule": "artifacts/alarm_rules/*/*/rule*.json",
    "bundle": "artifacts/bundle/model*",
    "champion": "artifacts/champion/champion.json",
}
MANIFESTS = {
    "shards": "artifacts/batches/*/feature_shards/manifest.json",
    "dataset": "artifacts/datasets/*/manifest.json",
    "alarm rule": "artifacts/alarm_rules/*/*/manifest.json",
    "checkpoint": "artifacts/checkpoints/*/gbt_realistic.ckpt.json",
    "bundle": "artifacts/bundle/bundle.json",
}


def test_the_whole_chain_holds(lab: Lab, signs: Lab) -> None:
    assert links(lab) == {name: {"holds"} for name in LINKS}
    assert links(signs, required(signs)) == {name: {"holds"} for name in LINKS}
    told = invoke(lab, "verify", str(lab.artifacts / BUNDLE), "--json")
    assert told.exit_code == OK, told.output
    header = checkpoint_path(lab.workspace.checkpoint_folder(RECIPE), GBT)
    told = invoke(lab, "verify", str(header), "--json")
    found = {link["name"] for link in json.loads(told.stdout)["links"]}
    assert (told.exit_code, found) == (OK, LINKS.keys() - {"bundle"})


@pytest.mark.parametrize(
    ("link", "pattern"), [*LINKS.items(), *MANIFESTS.items()], ids=lambda each: each[-25:]
)
def test_one_byte_of_a_link_names_that_link(lab: Lab, link: str, pattern: str) -> None:
    spoiled(sorted(lab.artifacts.parent.glob(pattern))[0])
    states = links(lab)
    assert "broken" in states[link], states
    assert {name for name, found in states.items() if "broken" in found} == {link}
    told = invoke(lab, "verify", str(lab.artifacts / BUNDLE))
    assert told.exit_code == FAILED


@pytest.mark.parametrize("changed", [{"recipe": None}, {"recipe": 5}, {"dataset_version": None}])
def test_a_checkpoint_that_does_not_say_what_trained_it_is_damaged(
    lab: Lab, changed: dict[str, Any]
) -> None:
    path = checkpoint_path(lab.workspace.checkpoint_folder(RECIPE), GBT)
    forge(path, train_meta=read_header(path)["train_meta"] | changed)
    told = invoke(lab, "verify", str(path), "--json")
    states = {link["name"]: link["state"] for link in json.loads(told.stdout)["links"]}
    assert (told.exit_code, states) == (FAILED, {"checkpoint": "broken"})
    stage = lab.project.stages[f"checkpoints/{GBT.name}"]
    assert lab.project.status(stage, RECIPE).state == "damaged"


def test_an_unsigned_link_is_named_where_signatures_are_required(lab: Lab) -> None:
    states = links(lab, required(lab))
    assert set.union(*states.values()) <= {"holds", "not trusted"}
    assert states["bundle"] == states["dataset"] == states["shards"] == {"not trusted"}
    words = ["verify", str(lab.artifacts / BUNDLE), "--require-signature"]
    told = invoke(lab, *words)
    assert told.exit_code == FAILED
    failing = [link for link in json.loads(invoke(lab, *words, "--json").stdout)["links"]
               if link["state"] != "holds"]  # fmt: skip
    assert told.stdout.count("not signed") == len(failing)  # each once
    assert "keys new NAME" in told.stdout


def test_every_file_that_is_kept_with_the_champion_is_a_link(lab: Lab) -> None:
    champion = read_champion(lab.workspace.champion_folder)
    assert champion is not None
    kept = sorted(checkpoint_copy_path(lab.workspace.champion_folder, champion).parent.iterdir())
    used = [path for path in kept if not path.name.startswith("likeness")]  # promoted without
    assert {REFERENCE_FILE, "training.parquet"} < {path.name for path in used}
    for path in used:
        content = path.read_bytes()
        spoiled(path)
        assert links(lab)["champion"] == {"broken"}, path
        path.write_bytes(content)
    assert links(lab)["champion"] == {"holds"}


def test_a_broken_dataset_hides_no_other_link(lab: Lab) -> None:
    before = links(lab)
    spoiled(next((lab.artifacts / "datasets" / RECIPE).glob("windows*.parquet")))
    assert links(lab) == before | {"dataset": {"broken"}}
    spoiled(lab.artifacts / "datasets" / RECIPE / "manifest.json")
    states = links(lab)
    assert (states["dataset"], states["shards"]) == ({"broken"}, {"not checked"})


def test_archives_are_gone_only_if_they_are(lab: Lab) -> None:
    index = next(lab.artifacts.glob("batches/*/validation_index/index*.parquet"))
    content = index.read_bytes()
    spoiled(index)
    assert "not checked" in links(lab)["episodes"]
    assert not {"gone", "broken"} & links(lab)["episodes"]
    index.write_bytes(content)
    first, second, *_ = sorted(lab.artifacts.parent.glob("store/episodes/*/*.tar.zst"))
    first.unlink()
    assert "gone" in links(lab)["episodes"]
    assert "broken" not in links(lab)["episodes"]
    spoiled(second)
    assert "broken" in links(lab)["episodes"]


def test_an_unsigned_link_that_was_changed_is_broken(lab: Lab) -> None:
    manifest = read_manifest(lab.artifacts / "datasets" / RECIPE)
    assert manifest is not None
    write_manifest(replace(manifest, facts=manifest.facts | {"excluded_by_hand": ["x"]}))
    assert links(lab, required(lab))["dataset"] == {"broken"}


# --- what was damaged is made again by the command that the message gives


REBUILT = (
    "batches/*/tensor_shards/series-*.npy",
    "batches/*/feature_shards/features-*.npy",
    "batches/*/validation_index/index*.parquet",
    "batches/*/tensor_shards/manifest.json",
    "datasets/*/windows*.parquet",
    "datasets/*/manifest.json",
    "checkpoints/*/gbt_realistic*.ubj",
    "checkpoints/*/gbt_realistic.ckpt.json",
    "alarm_rules/*/*/rule*.json",
    "alarm_rules/*/*/manifest.json",
    "likeness/*/*/likeness*",
    "likeness/*/*/episodes*.parquet",
    "predictions/*/*/predictions*.parquet",
)


@pytest.mark.parametrize("pattern", REBUILT)
def test_a_stage_makes_what_was_damaged_again(lab: Lab, pattern: str) -> None:
    """What the remedies run: ``phasewatch run`` makes what is not current."""
    path = sorted(lab.artifacts.glob(pattern))[0]
    content = path.read_bytes()
    spoiled(path)
    project = lab.project
    found = [
        (project.stages[status.stage], status)
        for stage in project.stages.values()
        for status in project.statuses(stage, verify=True)
        if status.state == "damaged" and status.stage != "champion"
    ]
    assert found, "not noticed"
    for stage, status in found:
        assert str(path) in status.message
        assert re.search(r"(phasewatch run|dagster job execute) .*", status.remedy)
        made = lab.project.make(stage, status.key)
        assert not made.reused
        assert lab.project.status(stage, status.key, verify=True).current
    (again,) = {*lab.artifacts.glob(pattern)} & {path} or {sorted(lab.artifacts.glob(pattern))[0]}
    if path.suffix in (".npy", ".parquet", ".ubj"):
        assert again.read_bytes() == content


def test_the_champions_copies_are_made_again(lab: Lab) -> None:
    champion = read_champion(lab.workspace.champion_folder)
    assert champion is not None
    folder = checkpoint_copy_path(lab.workspace.champion_folder, champion).parent
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        spoiled(path)
        used = not path.name.startswith("likeness")  # this champion was promoted without
        if used and path.name != REFERENCE_FILE:  # drift makes it again by itself
            told = invoke(lab, "champion")
            assert "phasewatch champion" in told.output, (path, told.output)
            assert "--restore" in told.output
        told = invoke(lab, "champion", "--restore")
        assert told.exit_code == OK, (path, told.output)
        assert path.read_bytes() == content or not used or path.name == REFERENCE_FILE
        assert lab.project.status(lab.project.stages["champion"], "", verify=True).current
        assert champion_scorer(lab.project).rule is not None


def spoiled(path: Path) -> None:
    """One bit in the middle is another."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# --- the log of decisions


def decision(n: int, **changes: Any) -> LiveDetection:
    return LiveDetection.model_validate(
        {
            "v": 1, "type": "live_detection", "at": 1.0 * n, "origin": "o", "host": "pi",
            "model": "gbt_realistic", "bundle": "b", "session": "s", "window": n,
            "start": 5.0 * n, "end": 5.0 * n + 10, "source": "live", "phase": "clean",
            "probabilities": {"clean": 1.0}, "filtered": "clean", "filtered_probabilities": None,
            "confidence": 1.0, "score": 0.0, "threshold": 0.5, "alarm": "raised",
            "alarm_id": f"a{n}", "unlike": None, "coverage": {}, "latency_ms": 1.0,
        }
        | changes
    )  # fmt: skip


def written(folder: Path, first: int = 0, n: int = 12, **options: Any) -> DecisionLog:
    """A log with decisions and an answer after each third."""
    log = DecisionLog(folder, **options)
    for i in range(first, first + n):
        log.note(decision(i))
        asyncio.run(log.flush())
        if i % 3 == 0:
            asyncio.run(log.answer(f"a{i}", "pi", True, "seen"))
    log.close()
    return log


def faults(folder: Path) -> list[tuple[str, str]]:
    return [(fault.where, fault.kind) for fault in read_chain(folder).faults]


@pytest.fixture
def one_day(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("hub.decisions.time.strftime", lambda *_: "2026-11-02")
    return "2026-11-02.jsonl"


def test_the_chain_goes_on_over_days_files_and_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.decisions.MAX_FILE_BYTES", 3000)
    for first, day in enumerate(("2026-11-02", "2026-11-03", "2026-11-01")):  # a clock that steps
        monkeypatch.setattr("hub.decisions.time.strftime", lambda *_, day=day: day)
        written(tmp_path, 12 * first)
    names = [path.name for path in log_files(tmp_path)]
    assert names[:3] == ["2026-11-02.jsonl", "2026-11-02.0001.jsonl", "2026-11-02.0002.jsonl"]
    assert {name[:10] for name in names} == {"2026-11-02", "2026-11-03"}
    chain = read_chain(tmp_path)
    assert (chain.faults, chain.count, chain.before) == ([], 3 * 16, 0)
    records: list[Any] = []
    read_chain(tmp_path, lambda _, record: records.append(record))
    decisions = [record for record in records if isinstance(record, DecisionRecord)]
    assert [record.event["window"] for record in decisions] == [*range(36)]


CHANGES: dict[str, tuple[Callable[[list[bytes]], Any], list[str]]] = {
    # what is done -> and what is named: line and kind
    "changed": (
        lambda lines: lines.__setitem__(5, lines[5].replace(b'"pi"', b'"po"')), ["6 changed"]
    ),
    "changed last": (
        lambda lines: lines.__setitem__(15, lines[15].replace(b'"pi"', b'"po"')), ["16 changed"]
    ),
    "hash changed": (
        lambda lines: lines.__setitem__(
            5, lines[5].replace(json.loads(lines[5])["hash"].encode(), b"0" * 64)
        ),
        ["6 changed"],
    ),
    "last not readable": (lambda lines: lines.__setitem__(15, b"{}\n"), ["16 unreadable"]),
    "dropped": (lambda lines: lines.pop(5), ["6 dropped", "head_count"]),
    "dropped at the end": (lambda lines: lines.pop(), ["head"]),
    "dropped first": (lambda lines: lines.pop(0), ["1 dropped", "head_count"]),
    "swapped": (lambda lines: lines.insert(5, lines.pop(6)), ["6 moved", "7 moved"]),
    "swapped at the end": (lambda lines: lines.insert(14, lines.pop()), ["15 moved", "16 moved"]),
    "moved forward": (lambda lines: lines.insert(11, lines.pop(2)), ["12 moved"]),
    "moved back": (lambda lines: lines.insert(2, lines.pop(11)), ["3 moved"]),
    "moved to the end": (lambda lines: lines.append(lines.pop(2)), ["16 moved"]),
    "moved as a block": (
        lambda lines: lines.__setitem__(slice(2, 10), lines[6:10] + lines[2:6]),
        ["11 moved", "3 moved", "7 moved"],
    ),
    "repeated": (lambda lines: lines.insert(5, lines[4]), ["6 repeated"]),
    "repeated elsewhere": (lambda lines: lines.insert(9, lines[4]), ["10 repeated"]),
    "another line": (lambda lines: lines.insert(5, b"{}\n"), ["6 unreadable"]),
    "an older form": (lambda lines: lines.insert(5, OLD), ["6 changed"]),
    "chained anew": (lambda lines: lines.__setitem__(
        5, chain_record(AnswerRecord(at=0, alarm_id="a", host="b", verdict=False),
                   json.loads(lines[4])["hash"])[0]), ["7 dropped"]),
}  # fmt: skip
OLD = AnswerRecord(at=0.0, alarm_id="a1", host="pi", verdict=False).model_dump_json(
    exclude_none=True
).encode() + b"\n"  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_done_to_the_log_is_named(tmp_path: Path, one_day: str, name: str) -> None:
    written(tmp_path)
    assert faults(tmp_path) == []
    change, named = CHANGES[name]
    lines = (tmp_path / one_day).read_bytes().splitlines(keepends=True)
    change(lines)
    (tmp_path / one_day).write_bytes(b"".join(lines))
    found = [
        f"{where.rpartition(':')[2]} {kind}" if ":" in where else kind
        for where, kind in faults(tmp_path)
    ]
    assert sorted(found) == named


def test_a_head_that_is_gone_or_was_changed_is_named_as_such(tmp_path: Path, one_day: str) -> None:
    written(tmp_path)
    head = tmp_path / "head.json"
    content = head.read_bytes()
    assert re.fullmatch(
        rb'\{\n "count": 16,\n "hash": "[0-9a-f]{64}",\n "seal": "[0-9a-f]{64}"\n\}\n', content
    )
    head.write_bytes(content.replace(b'"count": 16', b'"count": 15'))
    assert faults(tmp_path) == [("head.json", "head_changed")]
    head.write_bytes(b'{"count": "16", "hash": 1}')
    assert faults(tmp_path) == [("head.json", "head_changed")]
    written(tmp_path, 12, 0)  # a hub starts all the same
    head.unlink()
    assert faults(tmp_path) == [("head.json", "head_missing")]
    head.write_bytes(content)
    lines = (tmp_path / one_day).read_bytes().splitlines(keepends=True)
    (tmp_path / one_day).write_bytes(b"".join(lines[:1] + lines[2:]))
    counted = read_chain(tmp_path).faults[-1]
    assert counted.line == "head.json: counts 16 lines, the log has 15"


def test_a_line_that_a_crash_cut_off_is_no_fault_unless_it_was_acknowledged(
    tmp_path: Path, one_day: str
) -> None:
    written(tmp_path)
    path, head = tmp_path / one_day, (tmp_path / "head.json").read_bytes()
    whole = path.read_bytes()
    more, _ = chain_record(AnswerRecord(at=0, alarm_id="a", host="b", verdict=True), "0" * 64)
    for kept in (1, len(more) // 2, len(more) - 1):
        path.write_bytes(whole + more[:kept])
        assert (faults(tmp_path), read_chain(tmp_path).torn) == ([], f"{one_day}:17")
    path.write_bytes(whole[:-1])
    assert faults(tmp_path) == [(one_day, "head")]
    path.write_bytes(whole)
    (tmp_path / "head.json").write_bytes(head)
    assert faults(tmp_path) == []


def test_a_head_that_cannot_be_written_makes_no_line_twice(
    tmp_path: Path, one_day: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = DecisionLog(tmp_path)
    with monkeypatch.context() as full:

        def refuse(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "no space left")

        full.setattr("hub.decisions.sealed", refuse)
        asyncio.run(log.answer("a", "pi", True, ""))
    asyncio.run(log.answer("b", "pi", True, ""))
    log.close()
    assert faults(tmp_path) == []
    assert len((tmp_path / one_day).read_bytes().splitlines()) == 2


def test_lines_that_were_gone_at_a_start_are_said_for_ever(tmp_path: Path, one_day: str) -> None:
    written(tmp_path)
    path = tmp_path / one_day
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    written(tmp_path, 12, 3)
    assert [kind for _, kind in faults(tmp_path)] == ["gap"]


def test_a_log_from_before_lines_were_chained_goes_on(tmp_path: Path, one_day: str) -> None:
    (tmp_path / "2026-11-01.jsonl").write_bytes(4 * OLD)
    written(tmp_path)
    chain = read_chain(tmp_path)
    assert (chain.faults, chain.before, chain.count) == ([], 4, 16)
    (tmp_path / "2026-11-01.jsonl").write_bytes(3 * OLD)
    assert (f"{one_day}:1", "dropped") in faults(tmp_path)


def test_the_head_is_signed_where_a_key_is(tmp_path: Path, one_day: str) -> None:
    new_key("hub")
    written(tmp_path)
    assert read_chain(tmp_path).signed.by == "hub"
    # an insider writes the log anew, and the head without the key
    other = DecisionLog(tmp_path / "other")
    other.note(decision(99))
    asyncio.run(other.flush())
    other.close()
    signature = json.loads((tmp_path / "head.json").read_text())["signature"]
    head = json.loads((tmp_path / "other" / "head.json").read_text())
    (tmp_path / one_day).write_bytes((tmp_path / "other" / one_day).read_bytes())
    forged = sealed({"count": head["count"], "hash": head["hash"]}, "log").decode()
    value = json.loads(forged)["signature"]["value"]
    (tmp_path / "head.json").write_text(forged.replace(value, signature["value"]))
    assert faults(tmp_path) == [("head.json", "head_changed")]


def test_the_command_verifies(lab: Lab, one_day: str) -> None:
    folder = lab.workspace.decisions_folder
    shutil.rmtree(folder)
    written(folder)
    where = ["--artifacts", str(lab.artifacts)]
    told = CliRunner().invoke(app, ["log", "verify", "--json", *where])
    assert told.exit_code == OK, (told.output, told.exception)
    assert json.loads(told.stdout)["records"] == 16
    unsigned = CliRunner().invoke(app, ["log", "verify", "--require-signature", *where])
    assert unsigned.exit_code == FAILED
    lines = (folder / one_day).read_bytes().splitlines(keepends=True)
    (folder / one_day).write_bytes(b"".join(lines[:3] + lines[4:]))
    told = CliRunner().invoke(app, ["log", "verify", "--json", *where])
    found = json.loads(told.stdout)["faults"]
    assert (told.exit_code, found[0]["where"]) == (FAILED, f"{one_day}:4")


def test_ten_thousand_decisions_come_out_identically(lab: Lab) -> None:
    """Every window of every recording, as many scorers saw them."""
    bundle = load_bundle(lab.artifacts / BUNDLE)
    made: list[dict[str, Any]] = []
    for added in lab.store.added:
        members = read_episode(added.path, added.episode_id, {}).members
        source = ReplaySource(members, 0.0)
        scorer = LiveScorer(
            bundle, added.host_id, "s", origin_ns=source.origin_ns(), replay_of=added.episode_id
        )
        while (rows := source.read()) is not None:
            made += [event for name, lines in rows for event in scorer.push(name, lines)]
        made += scorer.close()
    folder = lab.workspace.decisions_folder
    shutil.rmtree(folder)
    log = DecisionLog(folder, windows=True)
    for n in range(10_000):
        log.note(LiveDetection.model_validate(made[n % len(made)] | {"session": f"s{n}"}))
        if n % 500 == 499:
            asyncio.run(log.flush())
    log.close()
    words = ["log", "replay", str(lab.artifacts / BUNDLE), "--json"]
    document = json.loads(invoke(lab, *words).stdout)
    assert (document["identical"], document["different"]) == (10_000, [])
    assert document["left_out"] == {}
    # a decision that was not made from these rows
    shutil.rmtree(folder)
    log = DecisionLog(folder, windows=True)
    for n in range(10):
        log.note(LiveDetection.model_validate(made[n] | {"session": f"s{n}"}))
    other = made[3] | {"probabilities": made[3]["probabilities"] | {"clean": 0.123456}}
    log.note(LiveDetection.model_validate(other))
    log.note(LiveDetection.model_validate(made[3] | {"replay_of": "01M7ZVV20HFQWZ385HM9KXP5BJ"}))
    live_ = made[4] | {"source": "live", "replay_of": None}
    log.note(LiveDetection.model_validate(live_))
    asyncio.run(log.flush())
    log.close()
    told = invoke(lab, *words)
    document = json.loads(told.stdout)
    assert (told.exit_code, document["identical"]) == (FAILED, 11)
    assert [where.rpartition(": ")[2] for where in document["different"]] == ["probabilities"]
    assert document["left_out"] == {"rows are not in the store": 1}
    assert document["unverified"] == []
    # every line is in a count, and one that was changed in none but its own
    (path,) = log_files(folder)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[7] = lines[7].replace(b'"score":', b'"score":1')
    path.write_bytes(b"".join([*lines[:9], lines[8], *lines[9:]]))
    told = invoke(lab, *words)
    document = json.loads(told.stdout)
    assert told.exit_code == FAILED
    assert document["unverified"] == [f"{path.name}:8", f"{path.name}:10"]
    counts = document["identical"] + len(document["different"]) + len(document["unverified"])
    assert counts + sum(document["left_out"].values()) == len(lines) + 1
    assert document["identical"] == 10
    assert "phasewatch log verify --artifacts" in invoke(lab, *words[:-1]).stdout
