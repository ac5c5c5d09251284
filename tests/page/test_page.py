"""The page as a file: what it is made of, what it refuses, and the command that writes it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from reports import LAYERS, report

from edgec.cli.main import invoke
from edgec.errors import SystemFailure, UserError
from edgec.page import read_report, write_page
from edgec.page.charts import blocks
from edgec.page.figures import At, Sentence
from edgec.page.outcome import headline


def page_of(folder: Path, data: dict[str, Any]) -> str:
    """The text of the page, without markup."""
    write_page([(folder / "build", data)], folder / "page.html")
    body = (folder / "page.html").read_text(encoding="utf-8").partition("<body>")[2]
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"</?(data|b|span)\b[^>]*>", "", body)).split())


def words(sentence: Sentence) -> str:
    return "".join(part if isinstance(part, str) else part.text for part in sentence)


def small(**changes: Any) -> dict[str, Any]:
    """A report with few charts."""
    data = report(bench=None, measured=None, sensitivity=None, put_back=[], **changes)
    for bundle in data["bundles"]:
        bundle |= {"audit": None, "tensors": None}
    return data


def build(folder: Path, data: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(data if isinstance(data, str) else json.dumps(data))
    return folder


def test_the_headline_tells_what_came_out() -> None:
    data = report(original=None)
    data["bench"]["bundles"][1]["shapes"][1] |= {
        "unstable": False,
        "p50_ms": 6.482,
        "ratio": {"median": 2.487, "p10": 2.4, "p90": 2.6},
    }
    data["bench"]["bundles"][0]["shapes"][1]["p50_ms"] = 16.04
    data["bundles"][0]["bytes"], data["bundles"][1]["bytes"] = 24_046_378, 23_000_000
    data["baseline"]["bytes"] = 90_832_874
    for bundle, drop in zip(data["bundles"], (0.0062, 0.0075), strict=True):
        bundle["quality"]["drop"] = drop
    begins = (
        "int8 x86_64-vnni answers 2.49× as fast as fp32 (6.48 ms instead of 16.0 ms at 1 × 128 tokens), "
        "in 24.0 MB instead of 90.8 MB; spearman falls by at most 0.0075; "
    )
    assert words(headline(At(data))) == f"{begins}the budget is missed: size_mb of x86_64-vnni is 26.54 (limit 25)."
    data["bench"]["bundles"][1]["shapes"][1]["unstable"] = True
    assert words(headline(At(data))).startswith("int8 x86_64-vnni answers 2.49× (unstable) as fast as fp32")
    data["bench"]["bundles"][1]["shapes"][1]["unstable"] = False
    data["fell_back"] = ["x86_64-vnni"]
    assert words(headline(At(data))).endswith("is 26.54 (limit 25); fp32 ships for x86_64-vnni.")
    del data["budget"][1]
    ends = "what was judged keeps the budget (not judged: speedup for arm64)."
    assert words(headline(At(data))) == begins + ends
    del data["budget"][1]
    assert words(headline(At(data))) == f"{begins}the budget is met."
    for verdict in data["budget"]:
        verdict["met"] = None
    assert words(headline(At(data))).endswith(
        "the budget could not be judged (not judged: accuracy_drop for x86_64-vnni)."
    )
    data |= {"bench": None, "measured": None, "budget": []}
    said = (
        "The bundles take at most 24.0 MB instead of 90.8 MB; their speed was not measured; spearman falls by at most "
    )
    assert words(headline(At(data))) == f"{said}0.0075; no budget was set."


def test_what_the_passes_cost_is_told_apart(tmp_path: Path) -> None:
    data = report()
    assert "; before prune its weights were 133.4 MB, and spearman 0.8765 where fp32 now has 0.8543; " in words(
        headline(At(data))
    )
    said = page_of(tmp_path, data)
    assert "What the passes cost in float" in said and "What they cost by group" in said
    data["original"] |= {"quality": None, "reason": "the model had other labels then"}
    assert "before prune its weights were 133.4 MB; the budget" in words(headline(At(data)))
    assert "quality: the model had other labels then" in page_of(tmp_path, data)


def test_what_is_missing_is_explained(tmp_path: Path) -> None:
    data = report(bench=None, measured=None, budget=[], calibration=None, sensitivity=None, choices=None, put_back=[])
    data["original"] = None
    for bundle in data["bundles"]:
        bundle |= {"quality": None, "audit": None, "tensors": None, "spread": None}
    said = page_of(tmp_path, data)
    for reason in (
        "The recipe sets no budget.",
        "Speed was not measured: local fits no target.",
        "Quality was not judged: the recipe names no data.evaluate.",
        "The bundles were not audited.",
        "The int8 bundles were not compared with float tensor by tensor.",
        "Layers were not ranked: accuracy_drop was not measured.",
        "No layer was put back: accuracy_drop was not measured.",
        "What other CPUs would answer was not emulated.",
        "No form of the graph was chosen by measurement; all are the defaults.",
        "No pass was calibrated on texts.",
    ):
        assert reason in said
    data["device"] = "qemu://cortex-a72"
    assert "Speed was not measured: qemu://cortex-a72 is emulated" in page_of(tmp_path, data)


@pytest.mark.parametrize(
    ("budget", "met", "reason"),
    [
        ({"accuracy_drop": 0.01, "put_back": "float"}, True, "the budget was met at once."),
        ({"accuracy_drop": 0.01, "put_back": "none"}, False, "the budget says put_back: none."),
        ({"accuracy_drop": None, "put_back": "float"}, None, "the budget sets no accuracy_drop."),
        ({"accuracy_drop": 0.01, "put_back": "float"}, False, "is missed, and no layer was found that would help."),
    ],
)
def test_why_no_layer_was_put_back(tmp_path: Path, budget: dict[str, Any], met: bool | None, reason: str) -> None:
    data = small()
    data["recipe"]["budget"] = budget
    data["budget"][0]["met"] = met
    assert re.search(rf"No layer was put back: (\S+ )?{re.escape(reason)}", page_of(tmp_path, data))


def test_a_report_of_schema_1_has_a_page(tmp_path: Path) -> None:
    data = report(schema=1)
    for name in ("original", "calibration", "sensitivity", "put_back", "put_back_steps", "choices"):
        del data[name]
    del data["bench"]["bundles"][2]
    for bundle in data["bundles"]:
        for name in ("audit", "tensors", "spread"):
            del bundle[name]
        del bundle["quality"]["group"], bundle["quality"]["groups"]
    said = page_of(tmp_path, data)
    assert "A report of schema 1 tells nothing of coverage" in said and "data.evaluate has no group_column" in said
    assert "plain export" not in said and "calibrated" not in said.lower().replace("calibrated on calibrate.txt", "")


def test_the_worst_group_is_marked(tmp_path: Path) -> None:
    data = report()
    groups = data["bundles"][0]["quality"]["groups"]
    groups["en"]["drop"] = 0.0199
    data["bundles"][0]["quality"] |= {"drop": 0.0199, "group": "en"}
    write_page([(tmp_path, data)], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    table = page[page.index("x86_64-vnni by language") :].partition("</table>")[0]
    (row,) = [row for row in table.split("<tr>") if "worst" in row]
    assert row.startswith("<td>en</td>") and "0.0199" in row


def test_bundles_that_agree_are_told_together(tmp_path: Path) -> None:
    data = report()
    assert "Layers of x86_64-vnni, arm64" not in page_of(tmp_path, data)
    data["bundles"][1]["audit"]["layers"] = data["bundles"][0]["audit"]["layers"]
    assert "Layers of x86_64-vnni, arm64" in page_of(tmp_path, data)


def test_builds_are_compared(tmp_path: Path) -> None:
    other = small()
    other["machine"]["cpu"] = "Another CPU"
    other["bundles"][0]["quality"]["metric"] = "cosine"
    pair = [(tmp_path / "a" / "same", small()), (tmp_path / "b" / "same", other)]
    write_page(pair, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "measured on different machines" in page and "different metrics (cosine, spearman)" in page
    assert page.index("Side by side") < page.index("What was asked")
    assert page.count(f"<h1>{tmp_path}/a/same</h1>") == 1  # two of one name go by their paths


def test_the_page_is_small(tmp_path: Path) -> None:
    """Of a model of 24 blocks, with three targets that all differ."""
    data = report()
    layers = [f"model.encoder.layer.{block}.{layer}" for block in range(24) for layer in LAYERS[1:9]]
    bundles = []
    for number in range(3):
        bundle = json.loads(json.dumps(data["bundles"][0]))
        bundle["audit"]["layers"] = [
            {"layer": layer, "int8": 75_497_472 + number, "float": 0, "weight_only": 0} for layer in layers
        ]
        bundle["tensors"] = [{"module": layer, "snr_db": 20.25 + number, "cosine": 0.99} for layer in layers]
        bundles.append(bundle)
    data["bundles"] = bundles
    write_page([(tmp_path, data)], tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 1_000_000


def test_the_page_is_always_the_same(tmp_path: Path) -> None:
    for name in ("one.html", "two.html"):
        write_page([(tmp_path, small())], tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_colours_are_the_pages_own(tmp_path: Path) -> None:
    write_page([(tmp_path, report())], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "var(--int8)" in drawn and not re.search(r"#[0-9a-fA-F]{6}\b(?!-)", drawn.replace("href", ""))
    used = set(re.findall(r"var\((--[\w-]+)\)", page))
    light, dark = (set(re.findall(r"(--[\w-]+):", block)) for block in re.findall(r":root \{(.*?)\}", page, re.DOTALL))
    assert used <= light == dark


def test_blocks_of_a_model() -> None:
    assert blocks(LAYERS) == [(1, "0"), (5, "1"), (9, "2")]
    assert blocks(["embeddings", "h.0.a", "h.0.1.b", "h.1.a", "head2"]) == [(1, "0"), (3, "1")]


def test_a_missing_member_is_told_by_its_pointer() -> None:
    at = At({"a": [{"b/c": None}]})
    assert at["a"][0]["b/c"].key == "/a/0/b~1c" and not at["a"][0]["b/c"]
    assert at.get("z").get("y").value is None
    with pytest.raises(KeyError, match="/a/1"):
        at["a"][1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "holds no report.json"),
        ("{", "report.json is no JSON"),
        ('{"schema": NaN}', "NaN is no JSON value"),
        (b"\xff\xfe", "report.json is no JSON"),
        ("[]", "has no schema"),
        ('{"schema": true}', "has no schema"),
        ('{"schema": 3}', "has schema 3; this edgec reads up to 2"),
        ('{"schema": 0}', "has schema 0, which no edgec wrote"),
        ('{"schema": 2}', "is damaged: /recipe is missing"),
    ],
)
def test_what_is_no_report_is_refused(
    tmp_path: Path, content: str | bytes | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "build"
    folder.mkdir()
    if content is not None:
        (folder / "report.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(tmp_path.rglob("*"))
    assert invoke(["report", str(folder)]) == 2
    told = capsys.readouterr().err
    assert said in told and str(folder) in told and "hint: " in told
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("pointer", ["bundles/0/bytes", "bundles/1/quality/drop", "bench/bundles/0/shapes", "source"])
def test_a_report_that_lacks_a_member_is_refused(tmp_path: Path, pointer: str) -> None:
    data = report()
    *path, last = pointer.split("/")
    inside: Any = data
    for name in path:
        inside = inside[int(name)] if name.isdigit() else inside[name]
    del inside[last]
    with pytest.raises(UserError, match=f"/{pointer}"):
        write_page([(tmp_path, data)], tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_a_page_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "page.html"
    out.write_text("old")

    def fails(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(SystemFailure, match=r"no space left while writing .*page\.html"):
        write_page([(tmp_path, small())], out)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"] and out.read_text() == "old"


def test_half_a_surrogate_pair_does_no_harm(tmp_path: Path) -> None:
    data = small(command="edgec \ud800")
    assert "edgec ?" in page_of(tmp_path, data)


def test_the_command_writes_page_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = build(tmp_path / "one", small()), build(tmp_path / "two", small(device="elsewhere"))
    assert invoke(["report", str(one), "--json", str(tmp_path / "all.json")]) == 0
    assert str(one / "report.html") in capsys.readouterr().err
    assert "<h1>one</h1>" in (one / "report.html").read_text()
    assert json.loads((tmp_path / "all.json").read_text()) == {"builds": [{"path": str(one), "report": small()}]}
    monkeypatch.chdir(tmp_path)
    assert invoke(["report", "one", "two"]) == 0
    assert "<h1>2 builds</h1>" in (tmp_path / "report.html").read_text()
    assert invoke(["report", "one", "--out", "new/page.html"]) == 0
    assert (tmp_path / "new/page.html").read_text() == (one / "report.html").read_text().replace(str(one), "one")
    assert invoke(["report", "one", "--out", "-"]) == 2
    assert not Path("-").exists()
    assert read_report(two)["device"] == "elsewhere"


def test_no_command_waits_for_matplotlib() -> None:
    script = "import sys, edgec.cli.main, edgec.page; print(sorted({'matplotlib', 'jinja2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_how_the_passes_learned_is_drawn(tmp_path: Path) -> None:
    data = small()
    learned = {"steps": 40, "rows": 7, "losses": {"20": 0.9, "40": 0.31}, "best_step": None, "stopped_early": False}
    scored = {**learned, "scores": {"20": {"span_f1": 0.7, "recall": 0.6}, "40": {"span_f1": 0.5, "recall": 0.4}}}
    data["passes"] = [
        {"name": "finetune", "options": {}, "report": {**scored, "best_step": 20, "stopped_early": True}},
        {"name": "align", "options": {}, "report": {"left_alone": {}, "phases": {"1": learned}}},
        *data["passes"],
    ]
    shown = page_of(tmp_path, data)
    assert "How it learned" in shown
    assert "of which the weights of step 20 were kept" in shown and "finetune: 40 steps on 7 rows" in shown
    assert shown.count("ended early by patience") == 1 and "align, phases, 1: 40 steps" in shown
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("loss by step. 20: 0.9; 40: 0.31") == 2 and "span_f1 by step. 20: 0.7000; 40: 0.5000" in page
    assert "How it learned" not in page_of(tmp_path, small())
