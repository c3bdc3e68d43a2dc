"""The Hub, when it is not reached: what was wanted from it is named, and what was to be pushed is not lost."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from deepfabric_trainer.errors import HubError

logger = logging.getLogger(__name__)

_UNREACHED = (httpx.TransportError, ConnectionError, TimeoutError, LocalEntryNotFoundError)


@contextmanager
def wanted(what: str, name: object, *, by: str = "from_pretrained") -> Iterator[None]:
    """Load something by its name, and say so where it is neither on this machine nor within reach.

    Args:
        what (`str`): Such as `"the model"`.
        name (`object`): Its name. What is no text is loaded already, and errors are none of the Hub's.
        by (`str`, *optional*, defaults to `"from_pretrained"`): The function that loads it: errors that did not come
            through it are about something else.

    Raises:
        HubError: If the Hub was not reached. Other errors pass as they are.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        reason = why_unreached(error) if isinstance(name, str) else None
        functions = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
        if reason is None or by not in functions:
            raise
        raise HubError(
            f"{what} {name!r} is not on this machine, and the Hub was not reached ({reason})",
            fix="give the path of a local copy, or fetch it where there is a connection (`hf download`, with "
            "`--repo-type dataset` for a dataset) and take the cache along (`HF_HOME`); `HF_HUB_OFFLINE=1` then saves "
            "the attempts to connect",
        ) from error


class HubPushes:
    """What a `transformers.Trainer` does with the Hub, with a word for each push that fails.

    It stands before the trainer among the bases of a class. What is pushed is on disk before in any case.
    """

    args: Any
    push_in_progress: Any

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Make the repository as the parent does.

        Raises:
            HubError: If the Hub is not reached. Nothing has been trained then.
        """
        try:
            super().init_hf_repo(*args, **kwargs)  # type: ignore[misc]
        except Exception as error:
            reason = why_unreached(error)
            if reason is None:
                raise
            name = self.args.hub_model_id or self.args.output_dir
            raise HubError(
                f"there is no pushing to {name!r}: the Hub was not reached ({reason})",
                fix="train with `push_to_hub=False`, and call `trainer.push_to_hub()` or `hf upload` when there is a "
                "connection",
            ) from error

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Save the model and push it as the parent does.

        Raises:
            HubError: If the Hub is not reached; it says where the model is.
        """
        try:
            return super().push_to_hub(*args, **kwargs)  # type: ignore[misc]
        except HubError:
            raise
        except Exception as error:
            reason = why_unreached(error)
            if reason is None:
                error.add_note(f"the model is saved in {self.args.output_dir}")
                raise
            name = getattr(self, "hub_model_id", None) or "NAME"
            raise HubError(
                f"the Hub was not reached ({reason}), and nothing was pushed; the model is saved in "
                f"{self.args.output_dir}",
                fix=f"push it when there is a connection: `hf upload {name} {self.args.output_dir}`",
            ) from error

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._tell_of_failed_pushes()
        super()._push_from_checkpoint(checkpoint_folder)  # type: ignore[misc]

    def _finish_current_push(self) -> None:
        super()._finish_current_push()  # type: ignore[misc]
        self._tell_of_failed_pushes()

    def _tell_of_failed_pushes(self) -> None:
        """Say which uploads in the background have failed since the last time, of which the parent keeps silent."""
        pushing = getattr(self, "push_in_progress", None)
        if pushing is None:
            return
        failed = [job for job in pushing.jobs if job.done() and not job.cancelled() and job.exception() is not None]
        for job in failed:
            pushing.jobs.remove(job)
        if failed:
            error = failed[0].exception()
            logger.warning(
                "a checkpoint was not pushed to the Hub (%s: %s); it is in %s, and the run goes on",
                type(error).__name__,
                error,
                self.args.output_dir,
            )


def why_unreached(error: BaseException) -> str | None:
    """Return why the Hub was not reached, in few words; `None` where an error is about something else."""
    found = next((cause for cause in _causes(error) if isinstance(cause, _UNREACHED)), None)
    if found is None:
        return None
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    return f"{constants.ENDPOINT}: {type(found).__name__}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Give an error and those that it came of, the first cause first."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    yield from reversed(chain)
