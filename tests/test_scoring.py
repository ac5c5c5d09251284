"""Scores of every task: against transformers' own outputs and the published metrics, in torch and in bundles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import edgec_runtime
import numpy as np
import pytest
import squad_rules
import torch
import transformers
from float_bundles import write_float_bundle
from seqeval import metrics as seqeval
from sklearn import metrics as sklearn_metrics
from tiny_models import LABELS, SENTENCES, WORDS, tiny

from edgec.data.examples import Answer, Example, Labelled, Question, Tagged
from edgec.errors import DataError, UserError
from edgec.evaluation import bundle_quality, evaluate
from edgec.models import load_model
from edgec.models.torch_model import torch_model
from edgec.recipe import EvaluationData
from edgec.scoring import score
from edgec.state import ModelState

TAGS = LABELS["token-classification"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scoring")


@pytest.fixture(scope="module")
def tagger(folder: Path) -> ModelState:
    return load_model(tiny("bert", "token-classification", folder / "tagger"))


@pytest.fixture(scope="module")
def tagger_bundle(folder: Path, tagger: ModelState) -> Path:
    return write_float_bundle(tagger, folder / "tagger-bundle", [SENTENCES[0]])


@pytest.fixture(scope="module")
def sentences() -> list[list[str]]:
    random = np.random.default_rng(0)
    words = [*WORDS, "e-mail", "(of", "Bern,", "\x07"]  # the tokenizer drops the last
    return [[str(word) for word in random.choice(words, random.integers(1, 40))] for _ in range(40)]


@pytest.fixture(scope="module")
def predicted(folder: Path, tagger: ModelState, sentences: list[list[str]]) -> list[list[str]]:
    """One sentence at a time through transformers, the label of each word's first token."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tagger")
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder / "tagger").eval()
    found = []
    for words in sentences:
        encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        with torch.inference_mode():
            best = model(**encoded).logits[0].argmax(-1).tolist()
        first = {word: token for token, word in reversed(list(enumerate(encoded.word_ids()))) if word is not None}
        found.append([TAGS[best[first[i]]] if i in first else "O" for i in range(len(words))])
    return found


def noisy(predicted: list[list[str]], labels: Sequence[str]) -> list[list[str]]:
    """About two thirds of what the model says."""
    random = np.random.default_rng(1)
    return [[tag if random.random() < 0.6 else str(random.choice(labels)) for tag in tags] for tags in predicted]


def conll(path: Path, sentences: list[list[str]], tags: list[list[str]]) -> Path:
    rows = zip(sentences, tags, strict=True)
    path.write_text("\n".join("".join(f"{w} {t}\n" for w, t in zip(*row, strict=True)) for row in rows))
    return path


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_spans(
    tmp_path: Path,
    tagger: ModelState,
    tagger_bundle: Path,
    sentences: list[list[str]],
    predicted: list[list[str]],
) -> None:
    expected = noisy(predicted, TAGS)
    flat = [[tag for tags in side for tag in tags] for side in (expected, predicted)]
    reference = {
        "span_f1": seqeval.f1_score(expected, predicted),
        "span_macro_f1": seqeval.f1_score(expected, predicted, average="macro"),
        "accuracy": sklearn_metrics.accuracy_score(*flat),
    }
    rows = [Tagged(tuple(words), tuple(tags)) for words, tags in zip(sentences, expected, strict=True)]
    found = score(torch_model(tagger), rows, where="rows")
    assert list(found) == list(reference)
    assert found == pytest.approx(reference)
    assert 0.2 < found["span_f1"] < 0.9
    files = {name: conll(tmp_path / f"{name}.conll", sentences[part], expected[part])
             for name, part in (("a", slice(0, 15)), ("b", slice(15, None)))}  # fmt: skip
    told = [evaluate(model, files, group_by=["file"]) for model in (tagger_bundle, tagger)]
    assert told[0] == told[1], "torch and the bundle say the same"
    # Reading repairs I- tags, which changes no span, and the accuracy by as many words.
    assert told[0].repaired > 10
    assert {name: told[0].metrics[name] for name in ("span_f1", "span_macro_f1")} == pytest.approx(
        {name: reference[name] for name in ("span_f1", "span_macro_f1")}
    )
    a = told[0].groups["file"]["a"]
    assert a["n"] == 15 and a["span_f1"] == pytest.approx(seqeval.f1_score(expected[:15], predicted[:15]))


def test_tags_of_words(folder: Path, sentences: list[list[str]], predicted: list[list[str]]) -> None:
    names = dict(enumerate(("NOUN", "VERB", "ADJ", "DET", "X")))
    plain = load_model(tiny("bert", "token-classification", folder / "pos", id2label=names, label2id=None))
    said = [[names[TAGS.index(tag)] for tag in tags] for tags in predicted]
    for tags, words in zip(said, sentences, strict=True):
        tags[:] = ["NOUN" if word == "\x07" else tag for tag, word in zip(tags, words, strict=True)]
    expected = noisy(said, list(names.values()))
    rows = [Tagged(tuple(words), tuple(tags)) for words, tags in zip(sentences, expected, strict=True)]
    flat = [[tag for tags in side for tag in tags] for side in (expected, said)]
    found = score(torch_model(plain), rows, where="rows")
    assert found == {
        "accuracy": pytest.approx(sklearn_metrics.accuracy_score(*flat)),
        "macro_f1": pytest.approx(sklearn_metrics.f1_score(*flat, average="macro")),
    }
    assert next(iter(found)) == "accuracy"


def test_many_sentences_run_together(tagger: ModelState, sentences: list[list[str]]) -> None:
    model = torch_model(tagger)
    calls: list[int] = []
    run = model.runner.engine.run

    class Counting:
        def run(self, feeds: Any) -> Any:
            calls.append(len(feeds["input_ids"]))
            return run(feeds)

    model.runner.engine = Counting()
    rows = [Tagged(tuple(words), ("O",) * len(words)) for words in sentences * 10]
    score(model, rows, where="rows")
    assert sum(calls) >= 400 and len(calls) < 60


def test_an_unknown_tag_is_named(tmp_path: Path, tagger: ModelState, tagger_bundle: Path) -> None:
    path = conll(tmp_path / "d.conll", [["a"], ["b"]], [["O"], ["B-MISC"]])
    for model in (tagger, tagger_bundle):
        with pytest.raises(DataError, match=r"d\.conll:3: the model has no label 'B-MISC'"):
            evaluate(model, path)
        with pytest.raises(DataError, match=r"d\.conll:3: "):
            evaluate(model, {"x": conll(tmp_path / "ok.conll", [["a"]], [["O"]]), "y": path})


@pytest.fixture(scope="module")
def reader(folder: Path) -> ModelState:
    return load_model(tiny("bert", "question-answering", folder / "reader"))


@pytest.fixture(scope="module")
def questions(reader: ModelState) -> list[Question]:
    """Answers that are, or overlap with, what the model says; and some without."""
    model = torch_model(reader)
    random = np.random.default_rng(2)
    rows = []
    for i in range(30):
        # In a short context there are few answers that "there is none" has to beat.
        context = " ".join(str(word) for word in random.choice(WORDS, random.integers(10, 90) if i % 4 else 1))
        said = model.answer(SENTENCES[i % 6], context)
        near = context[max(0, said.start - 8) : said.end]
        texts = [[], [context[:9]], [said.text], [context[-9:], near]][i % 4]
        answers = tuple(Answer(text, context.index(text)) for text in texts)
        rows.append(Question(str(i), SENTENCES[i % 6], context, answers, {"side": "ab"[i % 2]}))
    return rows


def squad(path: Path, questions: list[Question]) -> Path:
    data = [
        {
            "title": question.groups["side"],
            "paragraphs": [
                {
                    "context": question.context,
                    "qas": [
                        {
                            "id": question.id,
                            "question": question.question,
                            "answers": [{"text": a.text, "answer_start": a.start} for a in question.answers],
                        }
                    ],
                }
            ],
        }
        for question in questions
    ]
    path.write_text(json.dumps({"data": data}))
    return path


@pytest.mark.parametrize("null", [False, True])
def test_answers(tmp_path: Path, folder: Path, reader: ModelState, questions: list[Question], null: bool) -> None:
    model = torch_model(reader)
    said = [model.answer(question.question, question.context) for question in questions]
    texts = ["" if null and answer.null_score > answer.score else answer.text for answer in said]
    golds = [[answer.text for answer in question.answers] for question in questions]
    reference = squad_rules.evaluate(golds, texts)
    found = score(model, questions, where="rows", null_answers=null)
    names = {
        "f1": "f1",
        "exact_match": "exact",
        "f1_answerable": "HasAns_f1",
        "exact_match_answerable": "HasAns_exact",
        "f1_unanswerable": "NoAns_f1",
    }
    assert {name: 100 * found[name] for name in names} == pytest.approx(
        {name: reference[published] for name, published in names.items()}
    )
    assert found["always_null_f1"] == pytest.approx(8 / 30)
    assert (found["f1_unanswerable"] > 0) == null
    assert 0.1 < found["f1_answerable"] < 0.95
    bundle = write_float_bundle(reader, folder / f"reader-{null}", [{"question": "who", "context": "Ada walked"}])
    path = squad(tmp_path / "d.json", questions)
    told = [evaluate(each, path, group_by=["title"], null_answers=null) for each in (bundle, reader)]
    assert told[0] == told[1] and told[0].metrics == pytest.approx(found)
    half = score(model, questions[::2], where="rows", null_answers=null)
    assert told[0].groups["title"]["a"] == pytest.approx({**half, "n": 15})


def test_several_labels(tmp_path: Path, folder: Path) -> None:
    state = load_model(tiny("bert", "text-classification", folder / "m", problem_type="multi_label_classification"))
    bundle = write_float_bundle(state, folder / "several", [SENTENCES[0]])
    names = LABELS["text-classification"]
    texts = [f"{a} {b}" for a in SENTENCES for b in SENTENCES]
    with edgec_runtime.load(bundle) as model:
        predicted = model.probabilities(texts) > 0.5
    random = np.random.default_rng(0)
    expected = predicted ^ (random.random(predicted.shape) < 0.3)
    expected[:2] = False
    assert (expected.sum(axis=1) == 0).any() and (expected.sum(axis=1) > 1).any()
    cells = [";".join(names[i] for i in np.flatnonzero(row)) for row in expected]
    path = tmp_path / "d.tsv"
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{cell}\n" for text, cell in zip(texts, cells, strict=True)))
    told = [evaluate(each, path, label_separator=";") for each in (bundle, state)]
    assert told[0] == told[1]
    assert told[0].metrics == pytest.approx(
        {
            "accuracy": sklearn_metrics.accuracy_score(expected, predicted),
            "macro_f1": sklearn_metrics.f1_score(expected, predicted, average="macro"),
            "micro_f1": sklearn_metrics.f1_score(expected, predicted, average="micro"),
        }
    )
    lists = tmp_path / "d.jsonl"
    rows = [{"text": t, "label": c.split(";") if c else []} for t, c in zip(texts, cells, strict=True)]
    lists.write_text("\n".join(map(json.dumps, rows)))
    assert evaluate(bundle, lists) == told[0]
    single = replace(state, spec=replace(state.spec, multi_label=False))
    with pytest.raises(DataError, match=r"d\.tsv:\d+: the row has [02] labels, and the model gives one"):
        evaluate(single, path, label_separator=";")


def test_rows_that_do_not_fit(tagger: ModelState, reader: ModelState) -> None:
    rows: dict[str, Labelled] = {
        "example": Example("a", label="x"),
        "tagged": Tagged(("a",), ("O",)),
        "question": Question("1", "who", "a", ()),
    }
    for state, fitting in (tagger, "tagged"), (reader, "question"):
        for name, row in rows.items():
            if name != fitting:
                with pytest.raises(DataError, match=f"rows: {state.spec.task} is not scored on such rows"):
                    score(torch_model(state), [rows[fitting], row], where="rows")
        with pytest.raises(DataError, match="rows: there are no rows"):
            score(torch_model(state), [], where="rows")


def test_quality_of_tagging_bundles(
    tmp_path: Path, folder: Path, tagger_bundle: Path, sentences: list[list[str]], predicted: list[list[str]]
) -> None:
    from edgec.data.load import read_sample

    other = load_model(tiny("bert", "token-classification", folder / "other", seed=1))
    worse = write_float_bundle(other, folder / "other-bundle", [SENTENCES[0]])
    expected = noisy(predicted, TAGS)
    files = {
        "a": conll(tmp_path / "a.conll", sentences[:20], expected[:20]),
        "b": conll(tmp_path / "b.conll", sentences[20:], expected[20:]),
    }
    asked = EvaluationData({name: path.name for name, path in files.items()}, paths=files, group_column="file")
    found = bundle_quality(tagger_bundle, worse, asked, read_sample(asked))
    assert (found.metric, found.n, set(found.groups)) == ("span_f1", 40, {"a", "b"})
    assert found.before == evaluate(tagger_bundle, files).metrics["span_f1"]
    assert found.after == evaluate(worse, files).metrics["span_f1"] < found.before
    part = replace(asked, metric="accuracy", first_row=5, rows=10, group_column=None)
    assert bundle_quality(tagger_bundle, worse, part, read_sample(part)).n == 10
    alike = replace(asked, metric="cosine")
    assert bundle_quality(tagger_bundle, tagger_bundle, alike, read_sample(alike)).metric == "cosine"
    none = replace(asked, metric="macro_f1")
    with pytest.raises(DataError, match=r"a\.conll, b\.conll: these rows have no macro_f1"):
        bundle_quality(tagger_bundle, worse, none, read_sample(none))


def test_a_format_that_the_task_is_not_scored_on(tmp_path: Path, tagger_bundle: Path) -> None:
    (tmp_path / "d.csv").write_text("text,label\na,O\n")
    with pytest.raises(UserError, match=r"d\.csv: token-classification is not scored on the format csv"):
        evaluate(tagger_bundle, tmp_path / "d.csv")
