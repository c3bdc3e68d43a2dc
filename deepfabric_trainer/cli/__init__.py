"""The command line: `deepfabric-trainer train | check | analyze | preview`.

Each command imports what it needs when it runs.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from deepfabric_trainer.errors import DeepFabricTrainerError

_USAGE_ERROR = 2
_INTERRUPTED = 130
"""What shells call the end by SIGINT; that by SIGTERM is 143."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments; those of the process when not given.

    Returns:
        `int`: The exit code: 0 when all is well, 1 when `check` found broken rows, `preview` could show none or
        `train` was stopped by what the watch over its health found, 2 when the command could not be run as it was
        given, 130 after SIGINT; `train` exits with 143 after SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["train"]:  # its options are those of the config, parsed by TRL's parser
        from deepfabric_trainer.cli.train import train

        return _guarded(lambda: train(arguments[1:]))
    parsed = _parser().parse_args(arguments)
    if parsed.command == "check":
        from deepfabric_trainer.cli.check import check

        return _guarded(lambda: check(parsed.rows, parsed.tokenizer, parsed.most, parsed.output))
    if parsed.command == "analyze":
        from deepfabric_trainer.cli.analyze import analyze

        return _guarded(lambda: analyze(parsed.rows, parsed.tokenizer, as_json=parsed.json))
    from deepfabric_trainer.cli.preview import preview

    return _guarded(
        lambda: preview(
            parsed.rows,
            parsed.tokenizer,
            first=parsed.row,
            count=parsed.count,
            train_on=parsed.train_on,
            full=parsed.full,
            html=parsed.html,
        )
    )


def _guarded(command: Callable[[], int]) -> int:
    """Run a command; one of our errors becomes one line and the exit code of wrong usage."""
    try:
        return command()
    except DeepFabricTrainerError as error:
        print(f"deepfabric-trainer: {error}", file=sys.stderr)
        return _USAGE_ERROR
    except KeyboardInterrupt as interruption:
        print(f"deepfabric-trainer: {interruption}".removesuffix(": "), file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # somebody read enough of the output, `head` say
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deepfabric-trainer", description="Fine-tune language models to call tools, and check the data for it."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="train | check | analyze | preview")
    commands.add_parser("train", help="train a model (`train --help` lists the options)", add_help=False)

    check = commands.add_parser("check", help="print the rows that are broken and why; exit code 1 if there are any")
    _add_data(check)
    check.add_argument("--tokenizer", help="also encode every row with this tokenizer's chat template")
    check.add_argument("--most", type=int, default=50, help="findings to print (default: 50)")
    check.add_argument("--output", metavar="FINDINGS", help="also write every finding to this JSON Lines file")

    analyze = commands.add_parser("analyze", help="print what is in a dataset: turns, tools, duplicates, tokens")
    _add_data(analyze)
    analyze.add_argument("--tokenizer", help="also count tokens, with this tokenizer's chat template")
    analyze.add_argument("--json", action="store_true", help="print one JSON object")

    preview = commands.add_parser("preview", help="show which tokens are trained")
    _add_data(preview)
    preview.add_argument("--tokenizer", required=True, help="a tokenizer's folder or its name on the Hub")
    preview.add_argument("--row", type=int, default=0, help="the first row to show, counted from 0 (default: 0)")
    preview.add_argument(
        "--rows",
        dest="count",
        metavar="N",
        type=int,
        default=1,
        help="how many rows to show from there on (default: 1)",
    )
    preview.add_argument(
        "--train-on",
        default="assistant",
        choices=["assistant", "last_assistant", "tool_calls", "all"],
        help="which messages are trained (default: assistant)",
    )
    preview.add_argument("--full", action="store_true", help="show untrained text whole, instead of its ends")
    preview.add_argument("--html", metavar="PAGE", help="also write a page with every token, to open in a browser")
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rows", metavar="ROWS", help="a .jsonl, .json or .parquet file, or a dataset on the Hub")
