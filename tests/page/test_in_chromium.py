"""The page as a browser shows it: what it asks for, what its figures say, and how it fits a phone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from reports import LAYERS, report

from edgec.page import write_page

PHONE, DESKTOP = 390, 1100

# Numbers of a report that the page has no figure for: how the measuring was done, and what another figure says better.
NOT_SHOWN = (
    r"/recipe/.*",
    r"/(schema|bench/settings/threads)",
    r"/bundles/\d+/verified/max_abs",
    r"/bench/bundles/[01]/bytes",
    r"/bench/bundles/\d+/shapes/\d+/(batch|tokens)",
    r"/bench/bundles/\d+/schedules/\w+/p\d+_ms",
)
UNITS = {
    "MB": (1e6, 1),
    "MiB": (1,),
    "ms": (1,),
    "×": (1,),
    "%": (0.01,),
    "dB": (1,),
    "M": (1e6,),
    "/s": (1,),
    "s": (1,),
}

FIGURES = (
    """[...document.querySelectorAll('data[data-key]')].map(e => [e.dataset.key, e.dataset.value, e.textContent])"""
)
BARS = """[...document.querySelectorAll('figure')].map(figure =>
    [...figure.querySelectorAll('g[data-key]')].map(bar => {
        const box = bar.firstElementChild.getBBox();
        return [bar.dataset.key, Number(bar.dataset.value), box.width, box.height];
    }))"""
TEXTS = """[...document.querySelectorAll('svg.chart')].map(svg => {
    const outer = svg.getBoundingClientRect();
    return [...svg.querySelectorAll('text')].map(text => {
        const box = text.getBoundingClientRect();
        return [text.textContent, box.left - outer.left, box.top - outer.top, box.right - outer.left,
                box.bottom - outer.top, outer.width, outer.height];
    });
})"""
WORDS = "p, h2, td, th, figcaption, span, a, summary, pre, svg.chart text"
COLOURS = (
    f"[...document.querySelectorAll('{WORDS}')]"
    + """.map(e => {
    let behind = e;
    while (behind && getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
    const style = getComputedStyle(e);
    return [e.textContent.slice(0, 40), e instanceof SVGElement ? style.fill : style.color,
            behind ? getComputedStyle(behind).backgroundColor : 'none'];
})"""
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About one build."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_page([(Path("build/made-up"), report())], out)
    return out


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About three builds, one of which was not measured; one has a layer with a long name."""
    out = tmp_path_factory.mktemp("pages") / "report.html"
    unmeasured = report(bench=None, measured=None, device="qemu://cortex-a72", budget=[])
    deep = report()
    deep["sensitivity"]["layers"][0]["layer"] = "model." + 20 * "deep." + "dense"
    write_page([(Path("build/one"), deep), (Path("build/two"), report()), (Path("build/three"), unmeasured)], out)
    return out


def test_it_renders_and_asks_for_nothing(browser: Browser, page: Path) -> None:
    browser.open(page, width=DESKTOP)
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.complaints() == []
    assert browser.evaluate("document.title") == "edgec report: made-up"
    headings = browser.evaluate("[...document.querySelectorAll('h2')].map(e => e.textContent)")
    assert headings == [
        *("What was asked", "Budget", "What ships", "Speed", "Quality", "Where int8 runs", "Error along the depth"),
        *("Sensitivity", "Put back", "Other CPUs", "Choices by measurement", "How it was made"),
        *("Machine and versions", "To repeat it"),
    ]
    assert browser.evaluate("document.querySelector('pre.command').textContent") == report()["command"]
    drawn = browser.evaluate("[...document.querySelectorAll('svg.chart')].map(e => e.getBoundingClientRect().height)")
    assert len(drawn) == 10 and min(drawn) > 50
    assert browser.evaluate("document.scripts.length") == 0


def test_a_request_would_be_seen(browser: Browser, page: Path, tmp_path: Path) -> None:
    """Without its policy and with an image from elsewhere, the page does ask."""
    text = re.sub(r"<meta http-equiv=.*?>", "", page.read_text())
    leaking = tmp_path / "leaking.html"
    leaking.write_text(text.replace("</main>", '<img src="http://example.invalid/x.png"></main>'))
    browser.open(leaking, width=DESKTOP)
    assert "http://example.invalid/x.png" in browser.requests()


@pytest.mark.parametrize("count", [1, 3])
def test_figures_are_those_of_the_report(browser: Browser, page: Path, several: Path, count: int) -> None:
    browser.open(page if count == 1 else several, width=DESKTOP)
    reports = [report()] if count == 1 else [report(), report(), report(bench=None, budget=[])]
    shown = browser.evaluate(FIGURES)
    assert len(shown) > 200
    for key, value, text in shown:
        expected = lookup(reports, key)
        assert json.loads(value) == expected, key
        assert says(text, expected), f"{key} is {expected}, shown as {text!r}"
    skipped = re.compile(rf"/\d+({'|'.join(NOT_SHOWN)})")
    wanted = {key for key in leaves(reports) if not skipped.fullmatch(key)}
    assert wanted - {key for key, _, _ in shown} == set()


def test_bars_are_as_long_as_their_figures_are_large(browser: Browser, page: Path) -> None:
    browser.open(page, width=DESKTOP)
    charts = [bars for bars in browser.evaluate(BARS) if bars]
    assert len(charts) == 7
    for bars in charts:
        side = 3 if "/audit/layers/" in bars[0][0] else 2
        scales = [bar[side] / bar[1] for bar in bars]
        assert max(scales) == pytest.approx(min(scales), rel=1e-3), bars[0][0]
        assert all(lookup([report()], key) == value for key, value, *_ in bars)


def test_the_line_along_the_depth(browser: Browser, page: Path) -> None:
    """Its points are as far above the axis as the ratios say; the module without error is a gap."""
    browser.open(page, width=DESKTOP)
    paths = browser.evaluate(
        "[...document.querySelectorAll('svg.chart[aria-label^=Signal] path')].map(e => e.getAttribute('d'))"
    )
    ratios = [tensor["snr_db"] for tensor in report()["bundles"][0]["tensors"]]
    lines = [[float(y) for y in re.findall(r"[ML] \S+ (\S+)", d)] for d in paths if d.count("L") == len(LAYERS) - 2]
    drawn = lines[0]
    assert ratios[0] is None and len(drawn) == len(ratios) - 1
    scale = (drawn[1] - drawn[0]) / (ratios[2] - ratios[1])
    assert scale < 0
    for y, ratio in zip(drawn, ratios[1:], strict=True):
        assert y == pytest.approx(drawn[0] + scale * (ratio - ratios[1]), abs=0.01)


@pytest.mark.parametrize("which", ["page", "several"])
def test_it_fits_a_phone(browser: Browser, which: str, request: pytest.FixtureRequest) -> None:
    browser.open(request.getfixturevalue(which), width=PHONE)
    browser.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") == PHONE
    assert browser.evaluate("innerWidth") == PHONE
    scrolling = browser.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
    )
    assert scrolling > 0  # wide tables do, in their own boxes
    browser.evaluate("document.querySelector('main').insertAdjacentHTML('beforeend', '<p style=width:900px>wide')")
    assert browser.evaluate("document.documentElement.scrollWidth") > PHONE


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_text_of_charts_can_be_read(browser: Browser, several: Path, width: int) -> None:
    """Nothing is cut, nothing covers another text, and letters are no smaller than 11 px."""
    browser.open(several, width=width)
    for texts in browser.evaluate(TEXTS):
        for text, left, top, right, bottom, outer_width, outer_height in texts:
            assert left >= -1 and right <= outer_width + 1, f"{text!r} is cut"
            assert top >= -1 and bottom <= outer_height + 1, f"{text!r} is cut"
        for index, (text, left, top, right, bottom, *_) in enumerate(texts):
            for other, left2, top2, right2, bottom2, *_ in texts[:index]:
                apart = right <= left2 + 1 or right2 <= left + 1 or bottom <= top2 + 2 or bottom2 <= top + 2
                assert apart, f"{text!r} covers {other!r}"
    sizes = browser.evaluate(
        "[...document.querySelectorAll('svg.chart text')].map(e => parseFloat(getComputedStyle(e).fontSize) "
        "* e.ownerSVGElement.getBoundingClientRect().width / e.ownerSVGElement.viewBox.baseVal.width)"
    )
    assert min(sizes) >= 11


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_stands_out(browser: Browser, page: Path, dark: bool) -> None:
    """Contrast of at least 4.5 (WCAG 2.2, success criterion 1.4.3), in light and in dark."""
    browser.open(page, width=DESKTOP, dark=dark)
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(background) < 0.05) == dark
    found = browser.evaluate(COLOURS)
    assert len(found) > 300
    for text, colour, behind in found:
        bright, dim = sorted((luminance(colour), luminance(behind)), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, f"{text!r}: {colour} on {behind}"


def test_charts_follow_the_colour_scheme(browser: Browser, page: Path) -> None:
    fills = "[...new Set([...document.querySelectorAll('g[data-key] path')].map(e => getComputedStyle(e).fill))]"
    browser.open(page, width=DESKTOP)
    light = browser.evaluate(fills)
    browser.open(page, width=DESKTOP, dark=True)
    dark = browser.evaluate(fills)
    assert len(light) == len(dark) == 4 and not set(light) & set(dark)


def test_names_are_text_and_never_markup(browser: Browser, tmp_path: Path) -> None:
    name = "<script>window.broken = true</script><img src=x onerror='window.broken=true'>\"'&$x^2$\x07"
    data = report(command=name, device=name)
    data["recipe"] |= {"summary": name, "passes": [{name: {name: name}}]}
    data["recipe"]["data"]["evaluate"]["group_column"] = name
    data["source"]["model"] = name
    data["machine"]["cpu"] = name
    data["versions"][name] = name
    for bundle in data["bundles"]:
        bundle["target"] = name
        bundle["quality"] |= {"metric": name, "group": name, "groups": {name: bundle["quality"]["groups"]["de"]}}
        bundle["audit"]["layers"][0]["layer"] = bundle["tensors"][1]["module"] = name
    for member in ("layer", "reason", "to"):
        data["put_back"][0][member] = name
    data["sensitivity"]["layers"][0]["layer"] = name
    data["bench"]["warnings"] = [name]
    write_page([(Path("build") / name.replace("/", ""), data)], tmp_path / "report.html")
    browser.open(tmp_path / "report.html", width=PHONE)
    assert browser.evaluate("window.broken") is None
    drawn = browser.evaluate("[...document.querySelectorAll('svg.chart text')].map(e => e.textContent)")
    assert any(text.endswith("$x^2$\N{REPLACEMENT CHARACTER}") for text in drawn)
    assert browser.evaluate("document.querySelectorAll('script, img').length") == 0
    assert browser.evaluate("document.querySelector('pre.command').textContent") == name
    assert browser.evaluate("document.documentElement.scrollWidth") == PHONE
    assert browser.complaints() == []


def lookup(data: Any, pointer: str) -> Any:
    """RFC 6901."""
    for token in pointer.split("/")[1:]:
        token = token.replace("~1", "/").replace("~0", "~")
        data = data[int(token)] if isinstance(data, list) else data[token]
    return data


def leaves(data: Any, pointer: str = "") -> Iterator[str]:
    """The pointers of all numbers."""
    if isinstance(data, dict | list):
        for name, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from leaves(value, f"{pointer}/{str(name).replace('~', '~0').replace('/', '~1')}")
    elif isinstance(data, int | float) and not isinstance(data, bool):
        yield pointer


def says(text: str, value: float) -> bool:
    """Whether a text such as "24.0 MB" is `value`, rounded to the digits that it has."""
    found = re.fullmatch(r"(-?[\d.]+(?:e[+-]\d+)?)\s?(.*)", text)
    assert found, text
    number, unit = Decimal(found[1]), found[2]
    step = float(Decimal(1).scaleb(int(number.as_tuple().exponent)))
    scales = UNITS[unit] if unit else (1,)
    return any(abs(float(number) * scale - value) <= 0.5001 * step * scale for scale in scales)


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)" (WCAG 2.2)."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
