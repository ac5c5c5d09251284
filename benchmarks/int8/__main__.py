"""all-MiniLM-L6-v2 in int8: edgec's bundle against the tools of the field, one thread, interleaved.

Ids in, embedding out; mean pooling and normalisation are everybody's own work. Every tool runs in an environment and
in processes of its own, all on the same core in turn; ratios are medians over rounds against the fastest float form of
stock onnxruntime in the same round. What cannot be installed or run stands in the result with its error.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edgec_runtime.integrity import read_manifest

from edgec.devices.sysroot import cache_folder
from edgec.models.source import locate

from . import bert_base, contenders, environments, fresh, quality, result, speed, subjects
from .contenders import EDGEC, REFERENCE, Contender
from .environments import PeerFailed
from .subjects import Subject
from .workers import Worker, cold_start, imports

SHAPES = ((1, 16), (1, 64), (1, 128), (1, 256), (8, 128))
BERT_BASE_SHAPES = ((1, 16), (1, 128))
END_TO_END_THREADS = 2

Ready = dict[Contender, Path]
"""Who can be measured, and the interpreter of each."""


def main() -> None:
    options = arguments()
    cache = options.cache or cache_folder() / "peers"
    with environments.only_one(cache):
        run(options, cache)


def run(options: argparse.Namespace, cache: Path) -> None:
    chosen = contenders.choose(options.only or options.peers)
    clock = result.Clock()
    found = result.start(options.build / "bundles" / options.target, options.rounds)

    ready, failures = install(chosen, cache)
    minilm = minilm_subject(options, cache)
    prepared = prepare(minilm, ready, failures)
    base = bert_base.make(minilm, cache)
    base_prepared = prepare(base, ready, failures)
    found["environments"] = {one: environments.versions(environments.python(one, cache)) for one in names(ready)}
    found["failures"] = failures
    clock.lap("set-up")
    if not options.setup:
        fewer = max(3, options.rounds // 2)
        sentences = quality.held_out_sentences(options.data)
        found["peers"], found["shapes"] = one_thread(minilm, prepared, sentences, options.rounds)
        clock.lap("speed and quality")
        found["end_to_end"] = end_to_end(minilm, prepared, sentences, fewer)
        clock.lap("end to end")
        found["fresh"] = cold(minilm, prepared, fewer)
        clock.lap("cold starts")
        found["bert_base"] = one_thread_speed(base, base_prepared, fewer)
        clock.lap("BERT-base")
    found["seconds"] = clock.laps
    print(result.summary(found))
    if options.out and not options.setup:
        options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if options.plot:
            plot(options.out, options.plot, cache)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.int8", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build", type=Path, default=Path("build/minilm-int8"), help="what `make demo` wrote")
    parser.add_argument("--target", default="x86_64-vnni", help="the bundle of the build that fits this machine")
    parser.add_argument("--data", type=Path, help="folder with stsb/stsb-en-dev.csv")
    parser.add_argument("--peers", default="all", help="names with commas between, or all")
    parser.add_argument("--only", metavar="PEER", help="this one, beside the baseline and the reference")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--setup", action="store_true", help="install and convert, measure nothing")
    parser.add_argument("--cache", type=Path, help="default: ~/.cache/edgec/peers (about 12 GB)")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    parser.add_argument("--plot", type=Path, help="draw the result here (.svg or .png); needs --out")
    options = parser.parse_args()
    if options.data is None and not options.setup:
        parser.error("--data is missing: the folder with stsb/stsb-en-dev.csv")
    if options.plot and not options.out:
        parser.error("--plot draws what --out wrote")
    return options


def names(ready: Ready) -> list[str]:
    return sorted({one.environment for one in ready})


def install(chosen: tuple[Contender, ...], cache: Path) -> tuple[Ready, dict[str, str]]:
    ready: Ready = {}
    failures: dict[str, str] = {}
    for contender in chosen:
        try:
            ready[contender] = environments.python(contender.environment, cache)
        except PeerFailed as error:
            failures[contender.name] = f"install: {error}"
    return ready, failures


def minilm_subject(options: argparse.Namespace, cache: Path) -> Subject:
    manifest = read_manifest(options.build / "bundles" / options.target)
    source = locate(manifest.source.model).folder
    texts = subjects.calibration_texts(options.build)
    return Subject("minilm", source, options.build, options.target, texts, cache / "models" / "minilm")


def prepare(subject: Subject, ready: Ready, failures: dict[str, str]) -> Ready:
    """Those who have their form of the subject. Who fails comes into `failures`."""
    subjects.require_unpadded_ids(subject)
    subjects.export_floats(subject)
    prepared: Ready = {}
    for contender, interpreter in ready.items():
        if subject.name not in contender.models:
            continue
        try:
            if not contender.given:
                subjects.prepare_peer(subject, contender, interpreter)
            prepared[contender] = interpreter
        except PeerFailed as error:
            failures[f"{contender.name} ({subject.name})"] = str(error)
    return prepared


def start(
    stack: ExitStack, subject: Subject, prepared: Ready, threads: int
) -> tuple[dict[str, Worker], dict[str, Any]]:
    """A loaded worker for each, all on the same cores: the last ones, since the first has the interrupts. Beside them
    what loading told: {"load_ms"} or {"error"}.

    Raises SystemExit where edgec or the reference is missing: without them nothing can be said.
    """
    cores = set(sorted(os.sched_getaffinity(0))[-threads:])
    workers: dict[str, Worker] = {}
    told: dict[str, Any] = {}
    for contender, interpreter in prepared.items():
        folder = subject.of(contender).resolve()
        worker = stack.enter_context(Worker(contender, interpreter, folder, threads=threads, cores=cores))
        try:
            told[contender.name] = {"load_ms": worker.load()}
            workers[contender.name] = worker
        except PeerFailed as error:
            told[contender.name] = {"error": str(error)}
            if contender in (EDGEC, REFERENCE):
                raise SystemExit(f"{contender.name}: {error}") from None
    return workers, told


def one_thread(
    subject: Subject, prepared: Ready, sentences: list[str], rounds: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Facts and quality of everybody, and the speed at each shape."""
    with ExitStack() as stack:
        workers, told = start(stack, subject, prepared, threads=1)
        rows = quality.token_ids(subject.source / "tokenizer.json", sentences)
        reference = quality.embed(workers[REFERENCE.name], rows)
        for contender in prepared:
            one = told[contender.name]
            one |= {"title": contender.title, "size_mb": subjects.size_mb(subject, contender)}
            if contender.name in workers:
                print(f"quality: {contender.title}", file=sys.stderr)
                try:
                    one |= quality.measure(workers[contender.name], rows, reference)
                except PeerFailed as error:
                    one["error"] = str(error)
                    del workers[contender.name]
        return told, [speed.measure_shape(workers, shape, rounds) for shape in SHAPES]


def one_thread_speed(subject: Subject, prepared: Ready, rounds: int) -> dict[str, Any]:
    with ExitStack() as stack:
        workers, told = start(stack, subject, prepared, threads=1)
        return {"loaded": told, "shapes": [speed.measure_shape(workers, shape, rounds) for shape in BERT_BASE_SHAPES]}


def end_to_end(subject: Subject, prepared: Ready, sentences: list[str], rounds: int) -> dict[str, Any]:
    """The sentences as texts, two threads; how many times faster edgec is in the same round."""
    print("end to end", file=sys.stderr)
    taking_part = {one: interpreter for one, interpreter in prepared.items() if one.texts or one == REFERENCE}
    with ExitStack() as stack:
        workers, _ = start(stack, subject, taking_part, threads=END_TO_END_THREADS)
        rows = quality.token_ids(subject.source / "tokenizer.json", sentences)
        reference = quality.embed(workers.pop(REFERENCE.name), rows)
        answers = {name: quality.against_texts(one, sentences, reference) for name, one in workers.items()}
        series, failures = speed.take_turns(speed.text_calls(workers, sentences), rounds)
    peers = {name: speed.summarise({name: one, EDGEC.name: series[EDGEC.name]}, name) for name, one in series.items()}
    return {
        "texts": len(sentences),
        "threads": END_TO_END_THREADS,
        "peers": {
            name: {"ms": speed.spread(series[name].calls), "cosine": answers[name], "edgec_faster": one[EDGEC.name]}
            for name, one in peers.items()
        },
        "failures": failures,
    }


def cold(subject: Subject, prepared: Ready, rounds: int) -> dict[str, Any]:
    floats = {one.name for one in contenders.FLOAT_FORMS}
    starts = {
        contender.name: lambda c=contender, i=interpreter: cold_start(c, i, subject.of(c).resolve(), fresh.TEXT)
        for contender, interpreter in prepared.items()
        if contender.name not in floats - {"fp32-plain"}
    }
    lean = prepared[EDGEC]
    return fresh.measure(starts, lambda: imports(lean), rounds)


def plot(found: Path, out: Path, cache: Path) -> None:
    drawing = Path(__file__).parent / "plot.py"
    subprocess.run([str(environments.python("plot", cache)), str(drawing), str(found), str(out)], check=True)


if __name__ == "__main__":
    main()
