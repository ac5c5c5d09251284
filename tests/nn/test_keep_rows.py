"""Fewer rows of embeddings and output layers: the right ones, tied as before, in every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, tiny
from torch import nn

from edgec.errors import UserError
from edgec.models import load_model
from edgec.nn.vocabulary import keep_rows, tables

ROWS = [0, 1, 2, 3, 4, 9, 12, 60, 61, 100]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_and_scores_of_every_family(family: str, tied: bool, tmp_path: Path) -> None:
    before = load_model(tiny(family, "fill-mask", tmp_path / "m", tie_word_embeddings=tied)).parts["encoder"]
    after = load_model(tmp_path / "m").parts["encoder"]
    keep_rows(after, ROWS)
    new = torch.tensor([[5, 7, 2, 9, 5], [8, 0, 3, 4, 6]], dtype=torch.int32)
    old = torch.tensor(ROWS, dtype=torch.int32)[new.long()]
    mask = torch.ones_like(new)
    with torch.inference_mode():
        for was, now in zip(before.states(old, mask), after.states(new, mask), strict=True):  # type: ignore[operator]
            assert torch.equal(was, now)
        (expected,), (scores,) = before(old, mask), after(new, mask)
    assert scores.shape == (2, 5, len(ROWS))
    # A product with fewer rows may add up in another order.
    torch.testing.assert_close(scores, expected[..., ROWS], rtol=1e-5, atol=1e-6)
    table, output = tables(after)["input"], tables(after)["output"]
    assert (output.weight is table.weight) == tied == after.model.config.tie_word_embeddings
    assert torch.equal(output.weight, tables(before)["output"].weight[ROWS])
    assert after.model.config.vocab_size == len(ROWS)
    assert after.state_dict().keys() == before.state_dict().keys()
    with torch.no_grad():  # what was shared is shared
        output.bias += 1
        (shifted,) = after(new, mask)
    torch.testing.assert_close(shifted, scores + 1)


def test_ids_of_the_configuration_follow(tmp_path: Path) -> None:
    part = load_model(tiny("roberta", "fill-mask", tmp_path / "m", unk_token_id=4, mask_token_id=12)).parts["encoder"]
    keep_rows(part, [1, 2, 12, 30])
    config = part.model.config
    assert (config.pad_token_id, config.eos_token_id, config.mask_token_id) == (0, 1, 2)
    assert (config.bos_token_id, config.unk_token_id) == (None, None)
    assert tables(part)["input"].padding_idx == 0
    embeddings = part.model.roberta.embeddings.word_embeddings(torch.tensor([0, 3]))
    embeddings.sum().backward()
    assert tables(part)["input"].weight.grad[:, 0].tolist() == [0, 0, 0, 1]  # the row of the padding does not learn


def test_a_table_that_is_wrapped_is_refused(tmp_path: Path) -> None:
    class Adapted(nn.Embedding):
        pass

    part = load_model(tiny("bert", "feature-extraction", tmp_path / "m")).parts["encoder"]
    part.model.embeddings.word_embeddings = Adapted(147, 32)
    with pytest.raises(UserError, match="the input embeddings are a Adapted, whose rows cannot be picked"):
        tables(part)
