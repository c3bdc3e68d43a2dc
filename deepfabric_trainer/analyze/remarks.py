"""What stands out in a dataset, in the words of a colleague who has looked at many."""

from collections.abc import Iterator, Sequence

from deepfabric_trainer.analyze.report import DatasetReport, TokenReport, copies_of, count_of, share_of

_MUCH = 0.5
_LITTLE_TRAINED = 0.1
_MUCH_SHARED = 0.3
_LONG = 4096


def remarks_on(report: DatasetReport) -> list[str]:
    """Return one remark for each thing that a person should look at, the most important first.

    Args:
        report (`DatasetReport`): What was counted.
    """
    if not report.rows:
        return ["There are no rows."]
    remarks = [*_on_rows(report), *_on_turns(report), *_on_tools(report)]
    return remarks if report.tokens is None else [*remarks, *_on_tokens(report.tokens, report.rows)]


def _on_rows(report: DatasetReport) -> Iterator[str]:
    if report.rejected_rows:
        count = len(report.rejected_rows)
        yield (
            f"{count_of(count, 'row')} of {report.rows:,} cannot be trained on, the first is row "
            f"{report.rejected_rows[0]}. `deepfabric-trainer check` says why and how to mend them."
        )
    if report.conflicting_prompts:
        count, first = len(report.conflicting_prompts), report.conflicting_prompts[0]
        yield (
            f"{count_of(count, 'prompt')} {'is' if count == 1 else 'are'} answered in different ways, such as in rows "
            f"{_listed(first)}. The model cannot learn both: keep the right one, unless either is."
        )
    if report.copies:
        original, copy = report.duplicate_rows[0][:2]
        yield (
            f"{copies_of(report.copies)}, such as row {copy} of row {original}. Leave copies out: they weigh "
            "double, and a split by chance puts them on both sides."
        )


def _on_turns(report: DatasetReport) -> Iterator[str]:
    with_call, without_call = report.turns_with_call, report.turns_without_call
    if with_call and not without_call:
        yield (
            "Every turn calls a tool. A model that never sees an answer without a call learns to call always: add "
            "rows that need none."
        )
    if without_call and not with_call:
        yield "No turn calls a tool. If the model is to call tools, add rows in which it does."


def _on_tools(report: DatasetReport) -> Iterator[str]:
    offering = [catalogue for catalogue in report.catalogues if catalogue.tools]
    single = sum(catalogue.rows for catalogue in offering if catalogue.tools == 1)
    rows = sum(catalogue.rows for catalogue in offering)
    if rows and single > _MUCH * rows:
        yield (
            f"{share_of(single, rows)} of the rows with tools offer just one: there is nothing to choose, so choosing "
            "is not learned. Offer others beside it (`num_distractors`)."
        )
    never, tools = report.tools_never_called, len(report.rows_by_tool)
    if report.turns_with_call and len(never) > _MUCH * tools:
        yield (
            f"{len(never):,} of {tools:,} tools are offered and never called, such as {_listed(never)}. The model "
            "learns to pass them over."
        )
    calls = sum(report.calls_by_tool.values())
    name, most = next(iter(report.calls_by_tool.items()), ("", 0))
    if len(report.calls_by_tool) > 2 and most > _MUCH * calls:
        yield f"{share_of(most, calls)} of the calls are of {name}. A model may learn to call it whatever is asked."


def _on_tokens(tokens: TokenReport, rows: int) -> Iterator[str]:
    if tokens.rows_over[_LONG]:
        (row, length), over = tokens.longest_rows[0], tokens.rows_over[_LONG]
        yield (
            f"{count_of(over, 'row')} {'has' if over == 1 else 'have'} more than {_LONG:,} tokens, row {row} has "
            f"{length:,}. A batch needs memory for its longest row: set `max_tokens_per_batch`, or `max_length`."
        )
    if tokens.trained < _LITTLE_TRAINED * tokens.tokens:
        shared = f"{share_of(tokens.shared, 1)} of all tokens repeat others: `batching='auto'` computes them once."
        yield (
            f"{share_of(tokens.trained, tokens.tokens)} of the tokens are trained, the others are context. "
            + (shared if tokens.shared > _MUCH_SHARED else "Little of it is shared, so each step pays for it.")
        )
    if tokens.examples > 1.5 * rows:
        yield (
            f"{rows:,} rows make {tokens.examples:,} examples, because the chat template rewrites the history of a "
            "conversation: an epoch has that many."
        )


def _listed(values: Sequence[object]) -> str:
    items = [str(value) for value in values[:3]]
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
