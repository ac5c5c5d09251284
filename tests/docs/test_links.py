"""Every link of the documentation leads somewhere, and every file that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import PAGES, ROOT, anchors, name, prose

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(r"`((?:\.ci|benchmarks|docs|edgec|edgec_runtime|recipes|runtime|targets|tests)/[\w./-]*)`")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{name(page)} links to {link}"
        assert target.is_relative_to(ROOT), f"{name(page)} links out of the project: {link}"
        if anchor:
            assert anchor in anchors(target), f"{name(page)} links to {link}; there are {sorted(anchors(target))}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page: Path) -> None:
    for path in _PATH.findall(prose(page)):
        if "NAME" in path:  # stands for any
            continue
        assert any((base / path).exists() for base in (ROOT, ROOT / "runtime")), f"{name(page)} names {path}"


def test_every_page_is_reached_from_the_readme() -> None:
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        links = (link.partition("#")[0] for link in _LINK.findall(prose(page)))
        waiting += [(page.parent / link).resolve() for link in links if link.endswith(".md") and "://" not in link]
    assert sorted(map(name, set(PAGES) - seen)) == []
