"""What we rely on in the models, caches, tokenizers and chat templates of transformers."""

import inspect
from importlib.metadata import version
from typing import Any

import pytest
import torch
from packaging.version import Version
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import chat_template_utils

from tests.collators.models import make_model
from tests.contract.seams.seam import Seam
from tests.fixtures.tiny import enable_checkpointing

BOUNDED, COMPILING, DIRECT = (f"deepfabric_trainer/template/{name}.py" for name in ("bounded", "compiling", "direct"))
TREE, CACHE = "collators/tree_attention.py", "deepfabric_trainer/generate/cache.py"
IDS = torch.tensor([[4, 5, 6, 7]])


@Seam(
    "transformers",
    "chat_template_utils._cached_compile_jinja_template, a template with a sandboxed environment",
    BOUNDED,
    "deepfabric_trainer/template/watch.py",
    private=("_cached_compile_jinja_template",),
)
def test_compiled_templates() -> None:
    source = "{% generation %}{{ value | tojson }}{% endgeneration %}"
    template = chat_template_utils._cached_compile_jinja_template(source)
    environment = template.environment
    assert environment.parse(source).body
    assert environment.filters["tojson"]({"a": "ü"}) == '{"a": "ü"}'
    assert environment.overlay().from_string("{{ value.a }}").render(value={"a": 1}) == "1"
    assert not environment.is_safe_attribute([], "__class__", list)
    assert {"namespace", "raise_exception", "strftime_now"} <= set(environment.globals)
    assert template.render(value=[1]) == "[1]"


@Seam(
    "transformers",
    "chat_template_utils._compile_jinja_template, by which apply_chat_template comes to a template",
    BOUNDED,
    private=("_compile_jinja_template",),
)
def test_who_compiles_templates(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given, compile_template = [], chat_template_utils._compile_jinja_template

    def noted(source: str) -> Any:
        given.append(source)
        return compile_template("other")

    monkeypatch.setattr(chat_template_utils, "_compile_jinja_template", noted)
    said = [{"role": "user", "content": "Hi"}]
    assert tiny_tokenizer.apply_chat_template(said, tokenize=False, chat_template="one") == "other"
    assert given == ["one"]


@Seam(
    "transformers",
    "chat_template_utils._alias_reasoning_fields, since 5.21, and _plain_template_data, since 5.23",
    COMPILING,
    private=("_plain_template_data", "_alias_reasoning_fields"),
)
def test_what_templates_are_given() -> None:
    installed = Version(version("transformers"))
    added, rebuilt = (
        getattr(chat_template_utils, name, None) for name in ("_alias_reasoning_fields", "_plain_template_data")
    )
    assert (added is not None, rebuilt is not None) == (installed >= Version("5.21"), installed >= Version("5.23"))
    row = {"role": "assistant", "reasoning_content": "why"}
    if added is not None:
        assert added([row])[0]["thinking"] == "why"
    if rebuilt is not None:
        assert rebuilt([row]) == [row]


@Seam("transformers", "apply_chat_template and get_chat_template of PreTrainedTokenizerBase", DIRECT)
def test_apply_chat_template(tiny_tokenizer: Any) -> None:
    parameters = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    assert {"conversation", "tools", "chat_template", "add_generation_prompt", "tokenize"} <= set(parameters)
    assert type(tiny_tokenizer).get_chat_template is PreTrainedTokenizerBase.get_chat_template
    said = [{"role": "user", "content": "Hi"}]
    text = tiny_tokenizer.apply_chat_template(
        said, tokenize=False, add_generation_prompt=True, chat_template="{{ x }}", x=7
    )
    assert text == "7"


@Seam(
    "transformers",
    "PreTrainedTokenizerFast._decode, which comes to the backend's decode",
    "deepfabric_trainer/encode/labels.py",
    private=("_decode",),
)
def test_decoding(tiny_tokenizer: Any) -> None:
    assert type(tiny_tokenizer)._decode is PreTrainedTokenizerFast._decode
    assert type(tiny_tokenizer).decode is PreTrainedTokenizerBase.decode
    ids = tiny_tokenizer.encode("<|im_start|>Köln , 7 .")
    expected = tiny_tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert tiny_tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False) == expected


@Seam(
    "transformers",
    "AttentionInterface and the `_attn_implementation` of configs, to which keywords of the model are passed",
    TREE,
    "collators/support.py",
    "deepfabric_trainer/generate/plain.py",
    "deepfabric_trainer/generate/shared_attention.py",
    private=("_attn_implementation", "_attn_implementation_internal"),
)
def test_attention_functions() -> None:
    seen = []

    def noted(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        seen.append((query.shape, key.shape, kwargs["prefix_tree"], {"dropout", "scaling"} <= set(kwargs)))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    name = "a seam of the tests"
    AttentionInterface.register(name, noted)
    AttentionMaskInterface.register(name, sdpa_mask)
    model = make_model("llama")
    expected = model(IDS, attention_mask=torch.ones_like(IDS)).logits
    assert model.config._attn_implementation == "sdpa"
    model.config._attn_implementation_internal = name
    assert model.config._attn_implementation == name
    found = model(IDS, attention_mask=torch.ones_like(IDS), prefix_tree="tree").logits
    torch.testing.assert_close(found, expected)
    assert seen == [((1, 4, 4, 8), (1, 2, 4, 8), "tree", True)] * 2


@Seam("transformers", "masks of four dimensions, which models take as they are", "collators/masks.py")
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_masks_of_four_dimensions(family: str) -> None:
    model = make_model(family)
    mask = torch.eye(4, dtype=torch.bool)[None, None]
    alone = model(IDS[:, 2:3], position_ids=torch.tensor([[2]])).logits
    torch.testing.assert_close(model(IDS, attention_mask=mask).logits[:, 2:3], alone)


@Seam(
    "transformers",
    "DynamicCache.layers, and what a DynamicLayer holds",
    CACHE,
    "deepfabric_trainer/generate/batches.py",
)
def test_caches() -> None:
    model = make_model("llama")
    cache = DynamicCache()
    model(IDS, past_key_values=cache)
    assert [layer.keys.shape for layer in cache.layers] == [(1, 2, 4, 8)] * 2
    assert {type(layer) for layer in DynamicCache(config=model.config).layers} == {DynamicLayer}
    assert issubclass(DynamicSlidingWindowLayer, DynamicLayer)
    layer = DynamicLayer()
    layer.lazy_initialization(cache.layers[0].keys, cache.layers[0].values)
    assert layer.is_initialized
    assert (layer.dtype, layer.device) == (torch.float32, torch.device("cpu"))
    keys, values = layer.update(cache.layers[0].keys, cache.layers[0].values)
    assert keys.shape == values.shape == (1, 2, 4, 8)
    assert layer.get_seq_length() == 4
    cache.batch_select_indices(torch.tensor([0, 0]))
    assert cache.layers[1].values.shape == (2, 2, 4, 8)


@Seam(
    "transformers",
    "PreTrainedModel._supports_attention_backend, and an attention layer's `layer_idx`",
    "deepfabric_trainer/generate/shared_attention.py",
    private=("_supports_attention_backend",),
)
def test_models_that_take_any_attention() -> None:
    assert PreTrainedModel._supports_attention_backend is False
    model = make_model("llama")
    assert model._supports_attention_backend is True
    assert [layer.self_attn.layer_idx for layer in model.base_model.layers] == [0, 1]


@Seam(
    "transformers",
    "PreTrainedModel._is_stateful and the parameters of rotary embeddings",
    "deepfabric_trainer/generate/plain.py",
    private=("_is_stateful",),
)
def test_what_models_say_of_themselves() -> None:
    assert PreTrainedModel._is_stateful is False
    model = make_model("llama")
    assert model.config.rope_parameters["rope_type"] == "default"
    assert model.config.get_text_config(decoder=True) is model.config
    assert {"position_ids", "logits_to_keep"} <= set(inspect.signature(type(model).forward).parameters)


@Seam(
    "transformers",
    "base_model, called by forward with attention_mask, whose last_hidden_state the head reads",
    "deepfabric_trainer/head.py",
    "deepfabric_trainer/laid_out.py",
)
def test_the_backbone() -> None:
    model, seen = make_model("llama"), []

    def note(module: Any, args: Any, kwargs: Any) -> Any:
        seen.append(kwargs["attention_mask"])
        return args, {**kwargs, "attention_mask": None}

    def cut(module: Any, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, :2]
        return output

    handles = [model.base_model.register_forward_pre_hook(note, with_kwargs=True)]
    handles.append(model.base_model.register_forward_hook(cut))
    mask = torch.ones_like(IDS)
    assert model(IDS, attention_mask=mask).logits.shape[1] == 2
    assert seen[0] is mask
    for handle in handles:
        handle.remove()


@Seam(
    "transformers",
    "`gradient_checkpointing` of modules, set when it is enabled",
    "deepfabric_trainer/generate/mode.py",
)
def test_checkpointing() -> None:
    model = make_model("llama")
    enable_checkpointing(model)
    assert any(getattr(module, "gradient_checkpointing", False) is True for module in model.modules())
    assert callable(torch.nn.Module().__call__)
