import doctest

import pytest

from deepfabric_trainer import redaction
from deepfabric_trainer.redaction import REDACTED, names_a_secret, redacted, redacted_command, without_secrets


@pytest.mark.parametrize(
    "name",
    ["hub_token", "push_to_hub_token", "api_key", "wandbApiKey", "PASSWORD", "aws-secret-access-key", "--token"],
)
def test_names_of_secrets(name):
    assert names_a_secret(name)


@pytest.mark.parametrize(
    "name", ["eos_token", "pad_token", "max_new_tokens", "num_tokens", "monkey", "keyboard", "tokenizer", "author"]
)
def test_names_of_other_things(name):
    assert not names_a_secret(name)


@pytest.mark.parametrize(
    "text",
    [
        "hf_abcdefghijkl",
        "use sk-abcdefgh1234",
        "https://ann:S3cret@host/",
        "Authorization: Bearer S3cretS3cret",
        "api_key=S3cret",
        'token: "S3cret"',
        '{"token": "S3cret", "size": 3}',
        "{'api_key': 'S3cret'}",
        "?access_token=S3cret&x=1",
        "no answer from https://host/?api_key=S3cret",
        "size: token=S3cret",
    ],
)
def test_values_of_secrets(text):
    hidden = without_secrets(text)
    assert REDACTED in hidden
    assert not any(secret in hidden for secret in ("hf_abc", "sk-abc", "S3cret"))


def test_settings_keep_their_kind():
    assert redacted("kwargs", {"token": "abc", "size": 3, "paths": ["a", "b"]}) == {
        "token": REDACTED,
        "size": 3,
        "paths": ["a", "b"],
    }
    assert redacted("hub_token", None) is None


def test_command_line():
    words = ["train.py", "--hub_token", "abc", "--api-key=def", "--eos_token", "<eos>", "--lr", "1e-4"]
    assert redacted_command(words) == [
        "train.py",
        "--hub_token",
        REDACTED,
        f"--api-key={REDACTED}",
        "--eos_token",
        "<eos>",
        "--lr",
        "1e-4",
    ]


def test_other_text_stays_as_it_is():
    text = "RuntimeError: at https://host/a?b=c, eos_token: '<eos>', {'max_tokens': 3}, key = , token=''"
    assert without_secrets(text) == text


def test_the_docstring():
    tested = doctest.testmod(redaction)
    assert (tested.failed, tested.attempted) == (0, 1)
