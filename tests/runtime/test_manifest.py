"""Manifests with quality by group, and those that were written before there were groups."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest
from edgec_runtime.errors import ManifestInvalid
from edgec_runtime.manifest import GroupQuality, Quality, parse
from figures import manifest

GROUPED = Quality("cosine", 1.0, 0.99, 0.03, 40, "de", {"de": GroupQuality(1.0, 0.97, 0.03, 10)})


def text_of(values: dict[str, object]) -> str:
    """The text of such a manifest, sealed."""
    plain = json.dumps({**values, "digest": ""}, indent=1, ensure_ascii=False) + "\n"
    sealed = {**values, "digest": hashlib.sha256(plain.encode()).hexdigest()}
    return json.dumps(sealed, indent=1, ensure_ascii=False) + "\n"


def test_groups_come_back() -> None:
    written = manifest(quality=GROUPED)
    read = parse(written.to_text(), "manifest.json")
    assert read == written
    assert read.quality is not None
    assert isinstance(read.quality.groups["de"], GroupQuality)
    assert written.to_text() == text_of(dataclasses.asdict(written))


def older() -> dict[str, object]:
    """What stood in a manifest before quality had groups."""
    values = dataclasses.asdict(manifest())
    for later in ("group", "groups"):
        del values["quality"][later]
    return values


def test_a_manifest_from_before_there_were_groups() -> None:
    read = parse(text_of(older()), "manifest.json")
    assert read.quality == Quality("cosine", 1.0, 0.996, 0.004, 50)
    assert read == dataclasses.replace(manifest(), digest=read.digest)
    assert parse(read.sealed().to_text(), "manifest.json").quality == read.quality, "written anew it has them"


def test_it_is_checked_as_strictly() -> None:
    good = text_of(older())
    assert good.count('"drop": 0.004') == 1
    for bad in (
        good.replace('"drop": 0.004', '"drop": 0.003'),
        good.replace(' "format": 1', '  "format": 1'),
        text_of(dict(sorted(older().items()))),
        text_of({**older(), "quality": {**older()["quality"], "colour": 1}}),  # type: ignore[dict-item]
    ):
        with pytest.raises(ManifestInvalid):
            parse(bad, "manifest.json")


@pytest.mark.parametrize("groups", [{"de": 1}, {"de": {"before": 1.0, "after": 1.0, "drop": 0.0}}, []])
def test_groups_of_another_shape_are_refused(groups: object) -> None:
    values = dataclasses.asdict(manifest(quality=GROUPED))
    values["quality"]["groups"] = groups
    with pytest.raises(ManifestInvalid, match=r"quality\.groups"):
        parse(text_of(values), "manifest.json")
