"""What commit b141616 made is never misread: it is named stale or refused, with a remedy.

Every later part keeps this promise for its predecessor. The archive holds a store, an artifacts
folder and a Dagster home, made by that commit's own labs: recipe ``sample`` trained, gbt champion,
one batch scored. ``keep_artifacts`` makes such an archive. Inputs relative to the machine's past
came since, so no checkpoint of that commit loads.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from builders import StoreBuilder
from lab import RECIPE, TINY, Lab, dagster_at, failure, materialized

import phasewatch
from champion.history import load_checkpoint_copy, read_champion
from features.registry import LAYOUT
from models.checkpoint import ContractMismatchError, checkpoint_path
from models.registry import VARIANTS
from stages.project import Project
from stages.stage import Stage
from stages.status import StageError

ARCHIVE = Path(__file__).parent / "data" / "b141616.tar.zst"
CODES = {
    "ingest": "contract",
    "champion": "contract",
    "checkpoints": "contract",
    "held_out_predictions": "inputs",  # there are more models now
    **dict.fromkeys(("datasets", "eval_reports", "comparisons"), "format"),
}
"""Stage whose artifacts are stale since -> the reason; the others have moved."""


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Lab]:
    content = zstandard.ZstdDecompressor().stream_reader(ARCHIVE.open("rb"))
    with tarfile.open(fileobj=content, mode="r|") as archive:
        archive.extractall(tmp_path, filter="data")
    with dagster_at(tmp_path / "home") as instance:
        store = StoreBuilder.reopen(tmp_path / "store")
        yield Lab(store, tmp_path / "artifacts", instance, TINY)


def test_nothing_of_it_is_current_and_all_of_it_has_a_remedy(old: Lab) -> None:
    project = old.project
    for stage in project.stages.values():
        name = stage.name.split("/")[0]
        for status in project.statuses(stage, verify=True):
            if name == "drift":  # nothing is compared with a champion that does not load
                assert status.code == "no_champion"
                continue
            assert not status.current, status
            if status.key in ("", RECIPE, *project.listing.batches) and status.code != "not_made":
                assert status.code == CODES.get(name, "format"), status
            if status.available:
                assert status.remedy.startswith(("Run: ", "Retrain ")), status
    statuses = [project.status(stage, RECIPE) for stage in of_recipe(project)]
    made = {status.stage.split("/")[0] for status in statuses if status.code != "not_made"}
    assert made == CODES.keys() - {"ingest", "champion"}


def of_recipe(project: Project) -> list[Stage]:
    return [stage for stage in project.stages.values() if stage.partition == "recipe"]


def test_every_checkpoint_is_refused_with_the_whole_difference(old: Lab) -> None:
    project = old.project
    folder = project.workspace.checkpoint_folder(RECIPE)
    then = [variant for variant in VARIANTS if checkpoint_path(folder, variant).exists()]
    assert len(then) == 16
    for variant in then:
        with pytest.raises(ContractMismatchError) as refused:
            project.checkpoint(variant, RECIPE)
        lines = refused.value.differences
        assert "section relative is new" in lines
        assert len(lines) == len(LAYOUT.channels) + 2  # absolute, relative, golden vectors
    champion = read_champion(project.workspace.champion_folder)
    assert champion is not None
    with pytest.raises(ContractMismatchError):
        load_checkpoint_copy(project.workspace.champion_folder, champion, project.workspace.layout)


def test_a_run_makes_it_again_once(old: Lab) -> None:
    batches = list(old.project.listing.batches)
    for job, keys in (("ingest", batches), ("retrain", [RECIPE])):
        for key in keys:
            result = old.execute(job, key)
            assert result.success, failure(result)
            reused = {asset: facts["reused"] for asset, facts in materialized(result).items()}
            assert [asset for asset, again in reused.items() if again] in ([], ["drift"])
            stages = [s for s in old.project.stages.values() if s.job == job]
            assert reused.keys() == {output.name for s in stages for output in s.outputs}
    assert old.project.due("ingest") == []
    assert {due.key for due in old.project.due("retrain")} == {"host", "time"}


def test_its_champion_scores_nothing(old: Lab) -> None:
    old.ingest()
    refused = failure(old.execute("score", next(iter(old.project.listing.batches))))
    assert "section relative is new" in refused
    assert "Retrain gbt_realistic" in refused


def test_python_names_the_command(old: Lab) -> None:
    for read in (
        lambda: phasewatch.read_report(old.project, RECIPE, "gbt"),
        lambda: phasewatch.open_windows(old.project, RECIPE, "gbt", split="test"),
        lambda: phasewatch.find_misclassified(old.project, RECIPE, "cnn"),
    ):
        with pytest.raises(StageError, match=f"Run: phasewatch run --recipe {RECIPE}"):
            read()
