import logging
import warnings
from dataclasses import replace

import datasets
import pytest

from benchmarks.catalogue import make_rows, make_tools
from benchmarks.training import ModelSize, Run, check_same_steps, difference, fitted_tokenizer, quiet

_RUN = Run(
    seconds=[1.0], cpu_seconds=2.0, losses=[4.0, 2.0], tokens=9, computed_tokens=9, laid_out_tokens=12, examples=[1, 2]
)


def test_runs_of_the_same_steps_are_compared() -> None:
    assert difference([4.0, 2.0], [4.0, 1.5]) == 0.25
    check_same_steps(_RUN, replace(_RUN, losses=[4.0, 2.0001]))


def test_other_losses_or_examples_are_no_comparison() -> None:
    with pytest.raises(RuntimeError, match=r"differ by 5\.0e-04"):
        check_same_steps(_RUN, replace(_RUN, losses=[4.0, 2.001]))
    with pytest.raises(RuntimeError, match="different examples, or in another order"):
        check_same_steps(_RUN, replace(_RUN, examples=[2, 1]))


def test_a_fitted_tokenizer_is_small_and_a_model_has_its_vocabulary_at_least() -> None:
    rows = make_rows(4, catalogue=make_tools(3), tools_per_row=3)
    tokenizer = fitted_tokenizer(rows, 400)
    assert len(tokenizer) == 400
    text = tokenizer.apply_chat_template(rows[0]["messages"], tools=rows[0]["tools"], tokenize=False)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert ModelSize(1, 32, 0).build(tokenizer).config.vocab_size == 400
    models = [ModelSize(1, 32, 500).build(tokenizer, seed) for seed in (1, 1, 2)]
    same, again, other = (model.get_input_embeddings().weight for model in models)
    assert same.shape == (500, 32)
    assert same.equal(again)
    assert not same.equal(other)


def test_quiet_puts_everything_back() -> None:
    level = logging.getLogger("deepfabric_trainer").level
    caches, bars = datasets.is_caching_enabled(), datasets.is_progress_bar_enabled()
    with quiet():
        warnings.warn("not heard", stacklevel=1)
        assert not datasets.is_caching_enabled()
    assert (datasets.is_caching_enabled(), datasets.is_progress_bar_enabled()) == (caches, bars)
    assert logging.getLogger("deepfabric_trainer").level == level
