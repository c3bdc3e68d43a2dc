"""Which messages of a conversation are trained, and with which weight."""

from collections.abc import Sequence

from deepfabric_trainer.encode.regions import TrainOn
from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.schema import Message


def select_turns(messages: Sequence[Message], train_on: TrainOn) -> list[int]:
    """Return the indices of the assistant messages to train, ascending; empty when there are none.

    A message's own `train`, or else a `weight` of 0 or more, goes before what `train_on` says.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    last = turns[-1] if turns else None
    return [
        index for index in turns if _wanted(messages[index], _is_selected(messages[index], index == last, train_on))
    ]


def untrained_messages(messages: Sequence[Message]) -> list[int]:
    """Return the indices of the messages, of any role, that say of themselves that they are not trained."""
    return [index for index, message in enumerate(messages) if not _wanted(message, True)]


def require_turns(messages: Sequence[Message], train_on: TrainOn) -> None:
    """Require that there is something to train, and nothing that cannot be.

    Raises:
        DataFormatError: If no turn is selected, unless every token is trained anyway; or if a message that is not the
            assistant's asks to be trained.
    """
    for index, message in enumerate(messages):
        if message["role"] != "assistant" and (message.get("train") or message.get("weight")):
            if train_on is TrainOn.ALL and message.get("weight", 1.0) == 1.0:
                continue
            raise DataFormatError(
                f"a message of role {message['role']!r} asks to be trained",
                expected="`train` and `weight` on assistant messages: the others are the model's input",
                fix='remove the key, or train on every token (`train_on="all"`)',
                path=f"messages[{index}]",
            )
    if train_on is TrainOn.ALL or select_turns(messages, train_on):
        return
    if any(message["role"] == "assistant" for message in messages):
        found = (
            f'no turn is left to train with train_on="{train_on.value}" and the messages\' own `train` and `weight`'
        )
        if train_on is TrainOn.TOOL_CALLS and not any(message.get("tool_calls") for message in messages):
            found = 'no turn makes a call, and train_on="tool_calls" trains nothing else'
        raise DataFormatError(
            found,
            fix='remove the row, or train on "assistant"',
            path="messages",
        )
    raise DataFormatError(
        "the conversation has no assistant turn, so there is nothing to train",
        expected="at least one message of role 'assistant'",
        fix="add the answer, or remove the row from the training data",
        path="messages",
    )


def _is_selected(message: Message, is_last: bool, train_on: TrainOn) -> bool:
    if train_on is TrainOn.LAST_ASSISTANT:
        return is_last
    return train_on is not TrainOn.TOOL_CALLS or bool(message.get("tool_calls"))


def _wanted(message: Message, selected: bool) -> bool:
    if "train" in message:
        selected = message["train"]
    elif "weight" in message:
        selected = message["weight"] > 0
    return selected and message.get("weight", 1.0) > 0
