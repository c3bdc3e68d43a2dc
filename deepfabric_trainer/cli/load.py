"""Loading what the commands work on, with errors that name the option to mend."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from deepfabric_trainer.errors import ConfigError, DataFormatError, HubError
from deepfabric_trainer.hub import wanted
from deepfabric_trainer.rows import JSON_ENDINGS, load_rows, read_rows
from deepfabric_trainer.schema import conversation_key


def load_conversations(name_or_path: str) -> Sequence[Mapping[str, Any]]:
    """Load rows for `check` and `preview`; JSON is read as it stands, so that nothing is mended on the way.

    Raises:
        ConfigError: If there is no such file or dataset.
        DataFormatError: If a file cannot be read, or no row has a conversation.
    """
    is_json = Path(name_or_path).suffix.lower() in JSON_ENDINGS
    rows: Any = read_rows(name_or_path) if is_json else load_rows(name_or_path)
    if not len(rows):
        raise DataFormatError("there are no rows", expected="at least one row", where=name_or_path)
    if all(conversation_key(row) is None for row in rows):
        columns = ", ".join(f"`{name}`" for name in rows[0])
        raise DataFormatError(
            f"no row has `messages`, only {columns}",
            expected="rows with a list of messages",
            fix="rename the column that holds the conversation to `messages`",
            where=name_or_path,
        )
    return rows  # type: ignore[no-any-return]


def load_tokenizer(name_or_path: str) -> Any:
    """Load a tokenizer.

    Raises:
        ConfigError: If there is none of this name; a `HubError`, if the Hub was not reached.
    """
    try:
        with wanted("the tokenizer", name_or_path):
            return AutoTokenizer.from_pretrained(name_or_path)
    except HubError:
        raise
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"cannot load the tokenizer {name_or_path!r}: {reason}",
            expected="a folder with a tokenizer, or its name on the Hub",
        ) from error
