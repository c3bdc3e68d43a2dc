"""What can go wrong, as one tree of exceptions.

```
Exception
└── DeepFabricTrainerError
    ├── ConfigError        (also a ValueError)  a setting, or a combination of settings, that cannot work
    │   └── HubError       (also an OSError)    something of the Hub, which was not reached
    ├── DataFormatError    (also a ValueError)  a row, a message or a tool that is not what it should be
    │   └── RowTooLongError                     a row that does not fit into `max_length`
    ├── TemplateError      (also a ValueError)  a chat template that drops or changes what must be trained
    └── CheckpointError    (also an OSError)    a checkpoint or a model that cannot be written
```

A message says what was found and where, what was expected, and the edit that fixes it.
"""

from typing import Any, Self

from deepfabric_trainer.visible import visible


class DeepFabricTrainerError(Exception):
    """Base of every error this library raises on purpose.

    Args:
        found (`str`): What was found, as a sentence without its full stop.
        expected (`str`, *optional*): What was expected instead.
        fix (`str`, *optional*): The edit that mends it.
        where (`str`, *optional*): The place, such as `"row 12"` or `"rows.jsonl, line 3"`.
        path (`str`, *optional*): The field inside the row, such as `"messages[2].tool_calls[0].function.arguments"`.
    """

    def __init__(self, found: str, *, expected: str = "", fix: str = "", where: str = "", path: str = "") -> None:
        self.found = found
        self.expected = expected
        self.fix = fix
        self.where = where
        self.path = path
        super().__init__(self._message())

    def _message(self) -> str:
        place = ", ".join(part for part in (self.where, f"`{self.path}`" if self.path else "") if part)
        sentences = [f"{place}: {self.found}" if place else self.found]
        if self.expected:
            sentences.append(f"Expected {self.expected}")
        if self.fix:
            sentences.append(f"To fix it: {self.fix}")
        # What was found may be a stranger's text, and the message may reach a terminal.
        return visible(". ".join(sentence.rstrip(".") for sentence in sentences) + ".")

    def at(self, where: str) -> Self:
        """Return the same error with its place named, for callers that know the row's number."""
        return type(self)(self.found, expected=self.expected, fix=self.fix, where=where, path=self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.found, self.expected, self.fix, self.where, self.path)


class ConfigError(DeepFabricTrainerError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class HubError(ConfigError, OSError):
    """Something that is wanted from the Hub, or to be pushed to it, while the Hub is not reached."""


class DataFormatError(DeepFabricTrainerError, ValueError):
    """A row, a message or a tool that is not what it should be."""


class RowTooLongError(DataFormatError):
    """A row that does not fit into `max_length`, however many of its oldest exchanges are dropped."""


class TemplateError(DeepFabricTrainerError, ValueError):
    """A chat template that drops or changes what must be trained."""


class CheckpointError(DeepFabricTrainerError, OSError):
    """A checkpoint, or a model, that cannot be written."""


def _rebuild(
    kind: type[DeepFabricTrainerError], found: str, expected: str, fix: str, where: str, path: str
) -> DeepFabricTrainerError:
    return kind(found, expected=expected, fix=fix, where=where, path=path)
