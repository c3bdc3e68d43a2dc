"""Control tokens in text: the tokenizer takes them for the chat template's own."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deepfabric_trainer.processing import tokenizer_of
from deepfabric_trainer.schema import Message
from deepfabric_trainer.validate.broken import Broken
from deepfabric_trainer.validate.report import Rule, Severity

WELL_KNOWN_TOKENS = (
    # ChatML: Qwen, SmolLM, Hermes, and many more
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    # Llama 3
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    "<|python_tag|>",
    # Llama 2 and Mistral
    *("</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]"),
    # Gemma
    *("<start_of_turn>", "<end_of_turn>"),
    # Phi, GLM
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|end|>"),
    # DeepSeek
    *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
    # Command R, Granite, gpt-oss
    *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|start_of_role|>", "<|end_of_role|>"),
    *("<|start|>", "<|channel|>", "<|message|>", "<|call|>", "<|return|>"),
)
"""Control tokens of the common model families, for who checks rows before the model is chosen."""
_REASONING_TAGS = frozenset({"<think>", "</think>"})
"""Tags that datasets put into the assistant's text on purpose; templates look for them there."""


class ControlTokens:
    """The texts that only the chat template may write.

    Args:
        texts (`Iterable[str]`): The tokens as text.
    """

    def __init__(self, texts: Sequence[str] = WELL_KNOWN_TOKENS) -> None:
        self.texts = tuple(dict.fromkeys(text for text in texts if text.strip()))
        self._beginnings = tuple({text[0] for text in self.texts})

    def are_in(self, text: str) -> bool:
        """Tell whether a text holds one of them."""
        return any(first in text for first in self._beginnings) and any(token in text for token in self.texts)

    def check_messages(self, messages: Sequence[Message]) -> Iterator[Broken]:
        """Check the text of every message, and the arguments of its calls."""
        for index, message in enumerate(messages):
            path, owner = f"messages[{index}]", f"the {message['role']} message"
            wanted = _REASONING_TAGS if message["role"] == "assistant" else frozenset()
            yield from self._check_text(message["content"], f"{path}.content", owner, wanted)
            if message.get("reasoning_content"):
                yield from self._check_text(message["reasoning_content"], f"{path}.reasoning_content", owner)
            for number, call in enumerate(message.get("tool_calls", ())):
                function = call["function"]
                place = f"{path}.tool_calls[{number}].function.arguments"
                yield from self.check_value(function["arguments"], place, f"the call of {function['name']!r}")

    def check_value(self, value: Any, path: str, owner: str) -> Iterator[Broken]:
        """Check every text inside a JSON value.

        Args:
            value (`Any`): The value.
            path (`str`): Where it stands in the row.
            owner (`str`): Whose it is, in words.
        """
        for inside, text in texts_in(value):
            yield from self._check_text(text, f"{path}{inside}", owner)

    def _check_text(self, text: str, path: str, owner: str, wanted: frozenset[str] = frozenset()) -> Iterator[Broken]:
        if not self.are_in(text):
            return
        inside = [token for token in self.texts if token in text and token not in wanted]
        if inside:
            yield Broken(
                path,
                Rule.CONTROL_TOKEN,
                f"{owner} holds the control token{'s' if len(inside) > 1 else ''} {', '.join(map(repr, inside[:5]))}",
                "remove it or write it differently: the tokenizer would take it for the chat template's own",
                Severity.WARNING,
            )


def control_tokens_of(processing_class: Any) -> ControlTokens:
    """Return the control tokens of a tokenizer: the special ones, and the added ones that its chat template writes.

    Added tokens of other kinds (runs of spaces, HTML tags, words) are text like any other.

    Args:
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): The tokenizer, or a processor around one.
    """
    tokenizer = tokenizer_of(processing_class)
    templates = str(getattr(processing_class, "chat_template", "")) + str(getattr(tokenizer, "chat_template", ""))
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    chosen = [token.content for token in added if token.special or _is_written(token.content, templates)]
    return ControlTokens([*chosen, *tokenizer.all_special_tokens])


def _is_written(token: str, templates: str) -> bool:
    return token[:1] in "<[" and token[-1:] in ">]" and token in templates


def texts_in(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Give every text inside a JSON value, names included, with its path; a name has the path of its value."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield f"{path}.{key}", str(key)
            yield from texts_in(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from texts_in(item, f"{path}[{index}]")
