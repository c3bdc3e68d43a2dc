import pickle

import pytest

from deepfabric_trainer import errors

KINDS = [errors.ConfigError, errors.DataFormatError, errors.RowTooLongError, errors.TemplateError]


@pytest.mark.parametrize("kind", KINDS)
def test_each_error_is_ours_and_a_value_error(kind: type[errors.DeepFabricTrainerError]) -> None:
    assert issubclass(kind, errors.DeepFabricTrainerError)
    assert issubclass(kind, ValueError)


def test_a_save_that_fails_is_ours_and_an_error_of_the_system() -> None:
    error = pickle.loads(pickle.dumps(errors.CheckpointError("the disk is full", fix="free space", where="out")))
    assert isinstance(error, errors.DeepFabricTrainerError)
    assert isinstance(error, OSError)
    assert str(error) == "out: the disk is full. To fix it: free space."


def test_the_message_says_where_what_was_expected_and_how_to_fix_it() -> None:
    error = errors.DataFormatError(
        "the role is None", expected="a role", fix="name the role", where="row 3", path="messages[1].role"
    )
    assert str(error) == "row 3, `messages[1].role`: the role is None. Expected a role. To fix it: name the role."


def test_a_message_without_place_is_just_the_finding() -> None:
    assert str(errors.ConfigError("max_length is 0.")) == "max_length is 0."


@pytest.mark.parametrize("kind", KINDS)
def test_errors_cross_process_borders(kind: type[errors.DeepFabricTrainerError]) -> None:
    error = kind("found", expected="expected", fix="fix", where="row 1", path="messages")
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is kind
    assert str(copied) == str(error)
    assert (copied.found, copied.where, copied.path) == ("found", "row 1", "messages")


def test_at_names_the_place_and_keeps_the_rest() -> None:
    error = errors.TemplateError("dropped", fix="another template", path="tools[0]").at("row 7")
    assert isinstance(error, errors.TemplateError)
    assert str(error) == "row 7, `tools[0]`: dropped. To fix it: another template."
