import pytest

from deepfabric_trainer.callbacks._report.text import (
    REDACTED,
    cut,
    names_a_secret,
    redacted,
    redacted_command,
    visible,
    without_secrets,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b\x1b[31m", "a␀b␛[31m"),
        ("one\ntwo\tthree", "one\ntwo\tthree"),
        ("\u202eevil\u2066", "⟨U+202E⟩evil⟨U+2066⟩"),
        ("zero\u200bwidth\u2028line", "zero⟨U+200B⟩width⟨U+2028⟩line"),
        ("half \ud800", "half \\ud800"),
        ("می\u200cخواهم 東京 👩\u200d🚀", "می\u200cخواهم 東京 👩\u200d🚀"),
    ],
)
def test_what_cannot_be_seen_is_shown(text, shown):
    assert visible(text) == shown


def test_cut_counts_what_is_left_out():
    assert (cut("abcdef", 4).text, cut("abcdef", 4).left_out) == ("abcd", 2)
    assert cut("abc", 4).left_out == 0


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
