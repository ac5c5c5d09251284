"""Who is measured: each a script of peers/, in an environment of peers/ENVIRONMENT.txt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Contender:
    """title: as in tables and plots. environment: the stem of its requirements. script: the stem of its script.

    given: its folder is made here, from what edgec exports, instead of by the script's own `prepare`. texts: it has a
    tokenizer and takes part end to end. models: the subjects that it is measured on.
    """

    name: str
    title: str
    environment: str
    script: str
    given: bool = False
    texts: bool = False
    models: tuple[str, ...] = ("minilm",)

    @property
    def path(self) -> Path:
        return PEERS / f"{self.script}.py"


BOTH = ("minilm", "bert-base")
EDGEC = Contender("edgec", "edgec", "edgec", "edgec_bundle", given=True, texts=True, models=BOTH)
REFERENCE = Contender("torch", "torch fp32, eager", "torchao", "torch_eager")
"""Its embeddings are what every cosine is taken against."""

# The baseline of each shape is whichever of these was fastest there.
FLOAT_FORMS = (
    Contender("fp32-plain", "ORT fp32, defaults", "ort", "ort_graph", given=True, models=BOTH),
    Contender("fp32-unfused", "ORT fp32, SkipLayerNormFusion off", "ort", "ort_graph", given=True, models=BOTH),
    Contender("fp32-eager", "ORT fp32, eager attention, fusion off", "ort", "ort_graph", given=True, models=BOTH),
    Contender("fp32-traced", "ORT fp32, older exporter, fusion off", "ort", "ort_graph", given=True, models=BOTH),
    Contender("fp32-bundle", "ORT fp32, edgec's baseline bundle", "ort", "ort_graph", given=True, models=BOTH),
)

OTHERS = (
    Contender("openvino", "OpenVINO + NNCF int8", "openvino", "openvino_nncf", models=BOTH),
    Contender("ctranslate2", "CTranslate2 int8", "ctranslate2", "ct2"),
    Contender("ort-dynamic", "ORT quantize_dynamic", "ort", "ort_dynamic", models=BOTH),
    Contender("ort-static", "ORT quantize_static, products only", "ort", "ort_static"),
    Contender("ort-static-all", "ORT quantize_static, defaults", "ort", "ort_static_all"),
    Contender("optimum", "optimum-onnx avx512_vnni", "optimum", "optimum_vnni"),
    Contender("olive", "Olive dynamic int8", "olive", "olive_dynamic"),
    Contender("st-onnx", "sentence-transformers ONNX int8", "sentence-transformers", "sentence_onnx", texts=True),
    Contender("st-torch", "sentence-transformers torch", "sentence-transformers", "sentence_torch", texts=True),
    Contender("torchao", "torchao dynamic int8, compiled", "torchao", "torchao_dynamic"),
    REFERENCE,
)

ALL = (EDGEC, *FLOAT_FORMS, *OTHERS)


def choose(names: str) -> tuple[Contender, ...]:
    """The contenders of "all", or of names with commas between.

    edgec, the baseline and the reference always take part. Raises SystemExit for an unknown name.
    """
    asked = {one.name for one in ALL} if names == "all" else set(names.split(","))
    unknown = asked - {one.name for one in ALL}
    if unknown:
        raise SystemExit(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(one.name for one in ALL)}")
    needed = {one.name for one in (EDGEC, *FLOAT_FORMS, REFERENCE)}
    return tuple(one for one in ALL if one.name in asked | needed)
