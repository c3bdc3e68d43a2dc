"""Which assistant turns of a conversation are trained."""

from collections.abc import Sequence

from deepfabric_trainer.encode.regions import TrainOn
from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.schema import Message


def select_turns(messages: Sequence[Message], train_on: TrainOn) -> list[int]:
    """Return the indices of the assistant messages to train, ascending; empty when there are none."""
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if train_on is TrainOn.LAST_ASSISTANT:
        return turns[-1:]
    if train_on is TrainOn.TOOL_CALLS:
        return [index for index in turns if messages[index].get("tool_calls")]
    return turns


def require_turns(messages: Sequence[Message], train_on: TrainOn) -> None:
    """Require that there is something to train.

    Raises:
        DataFormatError: If no turn is selected, unless every token is trained anyway.
    """
    if train_on is TrainOn.ALL or select_turns(messages, train_on):
        return
    if any(message["role"] == "assistant" for message in messages):
        raise DataFormatError(
            'no turn makes a call, and train_on="tool_calls" trains nothing else',
            fix='remove the row, or train on "assistant"',
            path="messages",
        )
    raise DataFormatError(
        "the conversation has no assistant turn, so there is nothing to train",
        expected="at least one message of role 'assistant'",
        fix="add the answer, or remove the row from the training data",
        path="messages",
    )
