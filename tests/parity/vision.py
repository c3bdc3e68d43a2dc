"""A tiny model that sees, its processor, and rows with pictures."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.fixtures.tiny import tiny_tokenizer

_SIDE, _PATCH = 16, 8
_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = ("red", "green", "blue", "white")


def seeing_processor() -> Any:
    """Return a processor of pictures and texts."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {"height": _SIDE, "width": _SIDE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": _SIDE}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )


def seeing_model(tokenizer: Any, folder: Path) -> Any:
    """Return a random Llava of two layers that see and two that speak, for the tokenizer of its processor."""
    tokenizer = seeing_processor().tokenizer
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_SIZES, image_size=_SIDE, patch_size=_PATCH),
        text_config=LlamaConfig(**_SIZES, vocab_size=len(tokenizer), initializer_range=0.2),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config)


def rows_with_pictures() -> Dataset:
    """Return conversations about one picture each."""
    rows: list[dict[str, Any]] = [
        {
            "messages": [{"role": "user", "content": "Which colour?"}, {"role": "assistant", "content": word}],
            "images": [Picture.new("RGB", (_SIDE, _SIDE), word)],
        }
        for word in WORDS
    ]
    message = {"role": Value("string"), "content": Value("string")}
    return Dataset.from_list(rows, features=Features({"messages": List(message), "images": List(Image())}))
