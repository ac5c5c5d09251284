"""Scores of torch models and of bundles, against scikit-learn and scipy on transformers' own outputs."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import edgec_runtime
import numpy as np
import pytest
import torch
import transformers
import typer
from float_bundles import write_float_bundle
from scipy import stats
from sklearn import metrics as sklearn_metrics
from sklearn.metrics.pairwise import cosine_similarity
from tiny_models import LABELS, SENTENCES, tiny

from edgec.cli.evaluate import evaluate as evaluate_command
from edgec.cli.run import run as run_command
from edgec.data.metrics import cosines
from edgec.errors import DataError, ModelError, UserError
from edgec.evaluation import evaluate, quality
from edgec.models import load_model
from edgec.models.requests import requests_for
from edgec.models.torch_model import torch_model
from edgec.state import ModelState

TEXTS = [f"{a} {b}" for a in SENTENCES for b in SENTENCES]
NAMES = LABELS["text-classification"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("bert", "text-classification", tmp_path_factory.mktemp("c") / "model")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("bert", "feature-extraction", tmp_path_factory.mktemp("e") / "model")


@pytest.fixture(scope="module")
def classifier_bundle(classifier: Path) -> Path:
    return write_float_bundle(load_model(classifier), classifier.parent / "bundle", [SENTENCES[0]])


@pytest.fixture(scope="module")
def embedder_bundle(embedder: Path) -> Path:
    state = load_model(embedder, task="feature-extraction")
    return write_float_bundle(state, embedder.parent / "bundle", [SENTENCES[0]])


def logits(folder: Path, texts: list[Any]) -> np.ndarray:
    """One text at a time through transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        pair = text if isinstance(text, tuple) else (text,)
        with torch.inference_mode():
            encoded = tokenizer(*pair, return_tensors="pt", truncation=True, max_length=64)
            rows.append(model(**encoded).logits[0].numpy())
    return np.stack(rows)


def write_csv(path: Path, header: list[str], rows: list[tuple[Any, ...]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def labelled(folder: Path, classifier: Path) -> tuple[Path, list[str], list[str]]:
    """A file in which about two labels of three are what the model says; the labels, and what it says."""
    predicted = [NAMES[i] for i in logits(classifier, TEXTS).argmax(axis=1)]
    random = np.random.default_rng(0)
    expected = [p if random.random() < 0.6 else NAMES[random.integers(3)] for p in predicted]
    sides = ["odd", "even"] * (len(TEXTS) // 2)
    rows = list(zip(TEXTS, expected, sides, strict=True))
    return write_csv(folder / "data.csv", ["text", "label", "side"], rows), expected, predicted


def test_classification(tmp_path: Path, classifier: Path, classifier_bundle: Path) -> None:
    data, expected, predicted = labelled(tmp_path, classifier)
    found = evaluate(classifier_bundle, data, group_by=["side"])
    assert found.metrics["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(expected, predicted))
    assert found.metrics["macro_f1"] == pytest.approx(sklearn_metrics.f1_score(expected, predicted, average="macro"))
    assert 0.3 < found.metrics["accuracy"] < 0.95
    assert (found.n, found.skipped) == (len(TEXTS), 0)
    odd = found.groups["side"]["odd"]
    assert odd["n"] == len(TEXTS) / 2
    assert odd["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(expected[::2], predicted[::2]))
    assert set(found.groups["side"]) == {"odd", "even"}
    assert evaluate(classifier_bundle, data, rows=5).metrics["accuracy"] == pytest.approx(
        sklearn_metrics.accuracy_score(expected[:5], predicted[:5])
    )
    assert evaluate(str(classifier), data, group_by=["side"]) == found, "torch and the bundle say the same"
    json.dumps(found.to_dict(), allow_nan=False)


def test_pairs_are_classified_as_pairs(tmp_path: Path, classifier: Path) -> None:
    pairs = [(a, b) for a in SENTENCES for b in SENTENCES]
    predicted = [NAMES[i] for i in logits(classifier, pairs).argmax(axis=1)]
    rows = [(*pair, label) for pair, label in zip(pairs, predicted, strict=True)]
    data = write_csv(tmp_path / "pairs.csv", ["a", "b", "label"], rows)
    assert evaluate(classifier, data, text="a", text_pair="b").metrics["accuracy"] == 1.0
    assert evaluate(classifier, data, text="a").metrics["accuracy"] < 1.0


def test_labels_go_by_name_in_any_case_or_by_number(tmp_path: Path, classifier_bundle: Path) -> None:
    rows = [(text, NAMES[i % 3]) for i, text in enumerate(TEXTS)]
    by_name = evaluate(classifier_bundle, write_csv(tmp_path / "n.csv", ["text", "label"], rows))
    for spell in (str.upper, lambda name: NAMES.index(name)):
        data = write_csv(tmp_path / "s.csv", ["text", "label"], [(text, spell(name)) for text, name in rows])
        assert evaluate(classifier_bundle, data) == by_name


@pytest.mark.parametrize(("label", "more"), [("angry", "neutral"), ("3", "0"), ("-1", "0"), ("1", "neutral")])
def test_an_unknown_label_is_named(tmp_path: Path, classifier_bundle: Path, label: str, more: str) -> None:
    data = write_csv(tmp_path / "d.csv", ["text", "label"], [("a", more), ("b", label)])
    with pytest.raises(DataError, match=rf"d\.csv:3: the model has no label '{label}'") as caught:
        evaluate(classifier_bundle, data)
    assert "negative, neutral, positive" in caught.value.hint


def similarity_file(folder: Path) -> tuple[Path, list[tuple[str, str, float]]]:
    random = np.random.default_rng(1)
    rows = [(a, b, float(random.integers(0, 11)) / 2) for a in SENTENCES for b in SENTENCES]
    return write_csv(folder / "sts.csv", ["sentence1", "sentence2", "score"], rows), rows


def test_similarity(tmp_path: Path, embedder: Path, embedder_bundle: Path) -> None:
    data, rows = similarity_file(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedder)
    model = transformers.AutoModel.from_pretrained(embedder).eval()
    with torch.inference_mode():  # mean pooling of single, unpadded texts
        vectors = [
            model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).double().numpy()
            for text in SENTENCES
        ]
    # Every sentence with itself is a tie at 1, which rounding errors would break.
    similarities = cosine_similarity(vectors).round(6).ravel()  # in the order of the rows
    reference = stats.spearmanr(similarities, [score for *_, score in rows]).statistic
    columns = {"text": "sentence1", "text_pair": "sentence2"}
    found = evaluate(embedder_bundle, data, **columns)
    assert found.metrics["spearman"] == pytest.approx(reference, abs=1e-9)
    state = load_model(embedder, task="feature-extraction")
    assert evaluate(state, data, **columns).metrics["spearman"] == pytest.approx(found.metrics["spearman"], abs=1e-9)


def test_a_group_without_a_correlation_has_none(tmp_path: Path, embedder_bundle: Path) -> None:
    rows = [("a river", "a house", 1, "x"), ("old", "new", 2, "x"), ("red", "green", 3, "y")]
    data = write_csv(tmp_path / "d.csv", ["a", "b", "score", "g"], rows)
    found = evaluate(embedder_bundle, data, text="a", text_pair="b", group_by=["g"])
    assert found.groups["g"]["y"] == {"spearman": None, "pearson": None, "n": 1}
    assert found.groups["g"]["x"]["spearman"] in (1.0, -1.0)
    constant = write_csv(tmp_path / "c.csv", ["a", "b", "score"], [("a", "b", 1), ("c", "d", 1)])
    with pytest.raises(DataError, match="no correlation"):
        evaluate(embedder_bundle, constant, text="a", text_pair="b")


def test_refusals(tmp_path: Path, embedder_bundle: Path, classifier: Path) -> None:
    data, _ = similarity_file(tmp_path)
    with pytest.raises(UserError, match="no second text"):
        evaluate(embedder_bundle, data, text="sentence1")
    texts = write_csv(tmp_path / "texts.csv", ["text", "label"], [("a", "b")])
    with pytest.raises(DataError, match="no column 'score'") as refused:
        evaluate(embedder_bundle, texts)
    assert "the model is one for feature-extraction" in refused.value.hint
    with pytest.raises(DataError, match="is not a number"):
        evaluate(embedder_bundle, data, text="sentence1", text_pair="sentence2", label="sentence1")
    with pytest.raises(DataError, match="no column 'label'"):
        evaluate(classifier, data, text="sentence1")
    tagger = load_model(tiny("bert", "token-classification", tmp_path / "tagger"))
    with pytest.raises(UserError, match="token-classification is not scored on the format csv") as caught:
        evaluate(tagger, data, text="sentence1")
    assert "conll, conllu" in caught.value.hint
    masks = load_model(tiny("bert", "fill-mask", tmp_path / "masks"))
    with pytest.raises(UserError, match="does not score fill-mask"):
        evaluate(masks, data, text="sentence1")


def test_a_revision_is_for_a_hub_id(tmp_path: Path, classifier: Path, classifier_bundle: Path) -> None:
    data = write_csv(tmp_path / "rows.csv", ["text", "label"], [("a text", "negative")])
    for model, told in [(classifier_bundle, UserError), (classifier, ModelError)]:
        with pytest.raises(told, match=r"revision 'main' was given, but .* is not a hub id"):
            evaluate(model, data, revision="main")


def test_malformed_rows_are_counted(tmp_path: Path, classifier_bundle: Path) -> None:
    data = tmp_path / "d.tsv"
    data.write_text("text\tlabel\ngood\tneutral\nbad\nold\tpositive\n")
    with pytest.raises(DataError, match=":3: "):
        evaluate(classifier_bundle, data)
    found = evaluate(classifier_bundle, data, on_error="skip")
    assert (found.n, found.skipped) == (2, 1)


def test_progress_reaches_the_number_of_texts(tmp_path: Path, classifier_bundle: Path) -> None:
    data = write_csv(tmp_path / "d.csv", ["text", "label"], [(str(i), "neutral") for i in range(150)])
    seen: list[int] = []
    totals: list[int] = []

    def progress(label: str, total: int) -> Any:
        totals.append(total)
        return seen.append

    evaluate(classifier_bundle, data, progress=progress)
    assert totals == [150] and seen[-1] == 150 and seen == sorted(seen) and len(seen) > 1


def perturbed(state: ModelState, scale: float) -> ModelState:
    """The same model with its last weights moved."""
    import copy

    part = copy.deepcopy(state.parts["encoder"])
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in list(part.parameters())[-4:]:
            weight += scale * torch.randn_like(weight)
    return replace(state, parts={"encoder": part})


@pytest.mark.parametrize(
    "task",
    ["feature-extraction", "text-classification", "token-classification", "question-answering", "fill-mask"],
)
def test_quality_is_the_mean_cosine_of_the_outputs(tmp_path: Path, task: str) -> None:
    state = load_model(tiny("bert", task, tmp_path / "m"), task=task)
    reference, candidate = torch_model(state), torch_model(perturbed(state, 0.3))
    texts = [*SENTENCES[:3], (SENTENCES[3], SENTENCES[4])]
    same = quality(reference, reference, task, texts)
    assert same.after == pytest.approx(1, abs=1e-6) and same.drop == pytest.approx(0, abs=1e-6)
    found = quality(reference, candidate, task, texts)
    requests = requests_for(task, texts)
    figures = []
    for a, b in zip(reference.raw(requests), candidate.raw(requests), strict=True):
        rows = [row for n in a for row in zip(np.atleast_2d(a[n]), np.atleast_2d(b[n]), strict=True)]
        figures.append(np.mean([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in rows]))
    assert found.after == pytest.approx(np.mean(figures), abs=1e-6)
    assert found.after < 0.9999 and found.drop == pytest.approx(1 - found.after)
    assert (found.metric, found.before, found.n) == ("cosine", 1.0, len(requests))


def test_quality_of_a_bundle_against_torch(embedder: Path, embedder_bundle: Path) -> None:
    state = load_model(embedder, task="feature-extraction")
    with edgec_runtime.load(embedder_bundle) as bundle:
        assert quality(torch_model(state), bundle, "feature-extraction", list(SENTENCES)).drop < 1e-6
        vectors = bundle.embed(list(SENTENCES))
    assert cosines(vectors, torch_model(state).embed(list(SENTENCES))).min() > 1 - 1e-6


def test_requests_take_the_form_of_the_task() -> None:
    pair = ("who walked", "Ada walked")
    assert requests_for("feature-extraction", ["a", pair]) == ["a", *pair]
    assert requests_for("text-classification", ["a", pair]) == ["a", pair]
    assert requests_for("question-answering", ["a", pair]) == [
        {"question": "a", "context": "a"},
        {"question": "who walked", "context": "Ada walked"},
    ]
    masked = requests_for("fill-mask", ["one two three", "", "has a <mask>"], mask_token="<mask>")
    assert masked == ["one <mask> three", "<mask>", "has a <mask>"]
    with pytest.raises(DataError, match="no text"):
        requests_for("fill-mask", [])


def test_the_command_prints_json_alone(tmp_path: Path, classifier_bundle: Path, capsys: Any) -> None:
    rows = [("a river", "neutral", "de"), ("a house", "positive", "en")]
    data = write_csv(tmp_path / "d.csv", ["words", "label", "lang"], rows)
    written = tmp_path / "figures.json"
    evaluate_command(str(classifier_bundle), [str(data)], text="words", group_by=["lang"], json=written)
    printed = json.loads(capsys.readouterr().out)
    assert list(printed) == ["metrics", "groups", "n", "skipped", "repaired"]
    assert printed["n"] == 2 and set(printed["groups"]["lang"]) == {"de", "en"}
    assert json.loads(written.read_text()) == printed


def test_the_run_command_is_the_runtimes(classifier_bundle: Path, capsys: Any) -> None:
    with pytest.raises(typer.Exit) as stop:
        run_command(classifier_bundle, ["a river", "-5 degrees"], pair="--x")
    assert stop.value.exit_code == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["a river", "-5 degrees"]
    with edgec_runtime.load(classifier_bundle) as model:
        labels = model.classify([("a river", "--x"), ("-5 degrees", "--x")])
    assert [line["label"] for line in lines] == [label.label for label in labels]


def test_the_command_takes_several_files(tmp_path: Path, classifier_bundle: Path, capsys: Any) -> None:
    files = {
        name: write_csv(tmp_path / f"{name}=.csv", ["text", "label"], [(text, NAMES[i % 3]) for i, text in rows])
        for name, rows in (("de", list(enumerate(TEXTS[:20]))), ("en", list(enumerate(TEXTS[20:30]))))
    }
    given = [f"{name}={path}" for name, path in files.items()]
    evaluate_command(str(classifier_bundle), given, group_by=["file"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["n"] == 30
    for name, path in files.items():
        evaluate_command(str(classifier_bundle), [str(path)])  # a file whose name has "=" is no NAME=FILE
        alone = json.loads(capsys.readouterr().out)
        assert printed["groups"]["file"][name] == {**alone["metrics"], "n": alone["n"]}
    evaluate_command(str(classifier_bundle), given, rows=6, first_row=5)
    held = json.loads(capsys.readouterr().out)
    assert held["n"] == 6, "three of each"
    whole = [evaluate(classifier_bundle, path, rows=3, first_row=5).metrics["accuracy"] for path in files.values()]
    assert held["metrics"]["accuracy"] == pytest.approx(np.mean(whole))
