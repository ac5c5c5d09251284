"""The rules of SQuAD 2.0 as its evaluate-v2.0.py publishes them, step by step, in percent."""

from __future__ import annotations

import collections
import re
import string


def normalize_answer(s: str) -> str:
    def remove_articles(text: str) -> str:
        return re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text)

    def white_space_fix(text: str) -> str:
        return " ".join(text.split())

    def remove_punc(text: str) -> str:
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(s.lower())))


def get_tokens(s: str) -> list[str]:
    return normalize_answer(s).split() if s else []


def compute_exact(a_gold: str, a_pred: str) -> int:
    return int(normalize_answer(a_gold) == normalize_answer(a_pred))


def compute_f1(a_gold: str, a_pred: str) -> float:
    gold_toks, pred_toks = get_tokens(a_gold), get_tokens(a_pred)
    common = collections.Counter(gold_toks) & collections.Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision, recall = 1.0 * num_same / len(pred_toks), 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def evaluate(golds: list[list[str]], predictions: list[str]) -> dict[str, float]:
    exact, f1 = [], []
    for answers, prediction in zip(golds, predictions, strict=True):
        gold_answers = [a for a in answers if normalize_answer(a)]
        if not gold_answers:
            gold_answers = [""]
        exact.append(max(compute_exact(a, prediction) for a in gold_answers))
        f1.append(max(compute_f1(a, prediction) for a in gold_answers))
    has_answer = [bool(answers) for answers in golds]

    def percent(values: list[float], kept: list[bool]) -> float:
        chosen = [value for value, keep in zip(values, kept, strict=True) if keep]
        return 100.0 * sum(chosen) / len(chosen)

    every, without = [True] * len(golds), [not has for has in has_answer]
    return {
        "exact": percent(exact, every),
        "f1": percent(f1, every),
        "HasAns_exact": percent(exact, has_answer),
        "HasAns_f1": percent(f1, has_answer),
        "NoAns_exact": percent(exact, without),
        "NoAns_f1": percent(f1, without),
    }
