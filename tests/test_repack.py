"""An episode is the same episode, whichever program packed it."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import make_members, pack, ulid
from repack import has, outcome, pairs, repacked, unpacked

from episodes.format import ARCHIVE_SUFFIX

ID = ulid(1_780_000_000_000)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / f"{ID}{ARCHIVE_SUFFIX}"
    path.write_bytes(pack(ID, make_members("lab-a", ID, duration_s=20.0)))
    return path


@pytest.mark.parametrize(("packer", "compressor"), pairs(), ids=" + ".join)
def test_a_repacked_episode_has_the_same_verdict_and_bits(
    packer: str, compressor: str, original: Path, tmp_path: Path
) -> None:
    if not (has(packer) and has(compressor)):
        pytest.skip("this machine lacks the program")
    above = tmp_path / "files"
    above.mkdir()
    name = unpacked(original, above)
    path = repacked(above, name, packer, compressor, tmp_path / "out")
    assert path.read_bytes() != original.read_bytes()
    expected = outcome(original)
    assert expected[0] == "accepted"
    assert outcome(path) == expected
