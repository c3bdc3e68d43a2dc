"""What was done to a row that a user must know of, in words; for rows of which nobody makes an account."""

from collections.abc import Iterator

from deepfabric_trainer.encode import Context
from deepfabric_trainer.prepare.rows import PreparedRow


def remarks(prepared: PreparedRow) -> Iterator[str]:
    """Give a sentence for each kind of repair, loss or broken rule of a row that is trained on."""
    encoded = prepared.encoded
    if encoded is None:
        return
    yield from sorted(str(repair) for repair in encoded.repairs)
    yield from sorted({f"{finding.rule}: {finding.rule.meaning}" for finding in prepared.findings})
    contexts = {context for example in encoded.examples for context in example.contexts} - {Context.EXACT}
    yield from sorted(f"a trained turn stands behind {context}" for context in contexts)
    said = [
        (encoded.dropped_messages, "it is longer than `max_length`, so its oldest exchanges were dropped"),
        (encoded.shortened_results, "tool results were cut to `max_tool_result_length`"),
        (any(example.unstopped_turns for example in encoded.examples), "a trained turn ends without a stop token"),
        (any(example.lost_reasoning for example in encoded.examples), "the chat template leaves out reasoning"),
        (encoded.dropped_reasoning, "the `reasoning` column is not trained"),
        (encoded.leaves_no_choice, "the tool strategy leaves no tool that would be a wrong one"),
    ]
    yield from (sentence for is_so, sentence in said if is_so)
