"""`deepfabric-trainer preview`: which tokens of a row are trained."""

from rich.console import Console

from deepfabric_trainer.cli.load import load_conversations, load_tokenizer
from deepfabric_trainer.encode import ConversationEncoder
from deepfabric_trainer.errors import ConfigError
from deepfabric_trainer.preview import print_example


def preview(rows: str, tokenizer: str, row: int, train_on: str, full: bool) -> int:
    """Print the examples that one row gives.

    Returns:
        `int`: 0.

    Raises:
        ConfigError: If there is no such row.
    """
    conversations = load_conversations(rows)
    if not 0 <= row < len(conversations):
        raise ConfigError(f"--row is {row}", expected=f"a row between 0 and {len(conversations) - 1}")
    encoder = ConversationEncoder(load_tokenizer(tokenizer), train_on=train_on)
    console = Console()
    examples = encoder.encode(conversations[row])
    for number, example in enumerate(examples, start=1):
        if len(examples) > 1:
            console.rule(f"example {number} of {len(examples)}: the template rewrites history")
        print_example(example, encoder.tokenizer, console, full=full)
    return 0
