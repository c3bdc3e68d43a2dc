import pytest
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from deepfabric_trainer.adapters import adapters_of, has_virtual_tokens
from tests.fixtures.tiny import tiny_model, tiny_tokenizer


@pytest.mark.parametrize(
    ("config", "puts_tokens"),
    [
        (LoraConfig(task_type="CAUSAL_LM"), False),
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), True),
        (PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_adapters_that_put_tokens_before_rows_are_known(config: object, puts_tokens: bool) -> None:
    model = tiny_model(tiny_tokenizer())
    assert not adapters_of(model)
    assert not has_virtual_tokens(model)
    adapted = get_peft_model(model, config)
    assert [type(adapter) for adapter in adapters_of(adapted)] == [type(config)]
    assert has_virtual_tokens(adapted) is puts_tokens
