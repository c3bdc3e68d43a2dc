"""Rows in every form that `SFTTrainer` takes and renders right."""

from typing import Any

WORDS = ("one", "two words", "three words now", "four words are here", "five", "six of them", "seven", "eight in all")
TEXTS = [{"text": f"{words}: {words} and {words}."} for words in WORDS]
QUESTIONS = [{"prompt": f"Say {words} and nothing else. ", "completion": words} for words in WORDS]
CHATS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"Say {words}."},
            {"role": "assistant", "content": words},
            *(
                [{"role": "user", "content": "Again."}, {"role": "assistant", "content": words}]
                if " " in words
                else []
            ),
        ]
    }
    for words in WORDS
]
ASKED_CHATS = [
    {"prompt": row["messages"][:2], "completion": row["messages"][2:3], "source": number}
    for number, row in enumerate(CHATS)
]
SHAREGPT = [
    {"conversations": [{"from": turn["role"], "value": turn["content"]} for turn in row["messages"]]} for row in CHATS
]
UNREAD_CHATS = [{"conversations": chat["messages"], **text} for chat, text in zip(CHATS, TEXTS, strict=True)]
"""Conversations under a name that TRL does not read, beside the text that it reads."""
NUMBERED_CHATS = [{**row, "number": number} for number, row in enumerate(CHATS)]
SAID = [{"said": row["text"]} for row in TEXTS]
LONG_CHATS = [
    {"messages": [{"role": "user", "content": "Count. " * 20}, {"role": "assistant", "content": f"{words} " * 8}]}
    for words in WORDS
]
TOKENS = [{"input_ids": [10 + number, 20, 30, 40, 50 + number][: 3 + number % 3]} for number in range(8)]
LABELLED = [{**row, "labels": [-100, *row["input_ids"][1:]]} for row in TOKENS]
MASKED = [{**row, "completion_mask": [0, 0, *([1] * (len(row["input_ids"]) - 2))]} for row in TOKENS]
ASSISTED = [{**row, "assistant_masks": [0, *([1] * (len(row["input_ids"]) - 1))]} for row in TOKENS]
