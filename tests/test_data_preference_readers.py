"""Preference data: every published form gives the same records; what no pair is, is counted or named."""

import json
import logging
from pathlib import Path

import pytest

from data.errors import UserError
from data.preference_readers import (
    parse_transcript,
    read_preferences,
    read_prompts,
    transcript,
    write_preferences,
)
from data.schema import Preference


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: 2 + 2?\n\nAssistant:"
MESSAGES = [user("Hi"), assistant("Hello."), user("2 + 2?")]

FORMS = {
    "HH-RLHF": {"chosen": DIALOGUE + " 4.", "rejected": DIALOGUE + " 5."},
    "TRL conversational": {
        "prompt": MESSAGES,
        "chosen": [assistant("4.")],
        "rejected": [assistant("5.")],
    },
    "TRL conversational, implicit": {
        "chosen": [*MESSAGES, assistant("4.")],
        "rejected": [*MESSAGES, assistant("5.")],
    },
    "UltraFeedback": {  # the first message again as `prompt`
        "prompt": "Hi",
        "chosen": [*MESSAGES, assistant("4.")],
        "rejected": [*MESSAGES, assistant("5.")],
        "score_chosen": 8.0,
    },
    "TRL": {"prompt": DIALOGUE, "chosen": " 4.", "rejected": " 5."},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pair(tmp_path: Path, form: str) -> None:
    (pair,) = read_preferences(write(tmp_path / "pairs.jsonl", FORMS[form]))
    assert (pair.prompt, pair.chosen, pair.rejected) == (DIALOGUE, " 4.", " 5.")
    assert pair.chosen_ends and pair.rejected_ends and pair.prefix == ""


def test_a_prompt_that_is_not_given_is_what_both_begin_with(tmp_path: Path) -> None:
    row = {"chosen": "The sky is blue.", "rejected": "The sky is black."}
    (pair,) = read_preferences(write(tmp_path / "pairs.jsonl", row))
    assert (pair.prompt, pair.chosen, pair.rejected) == ("The sky is", " blue.", " black.")


def test_messages_are_rendered_by_the_models_own_template(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", FORMS["HH-RLHF"])
    (pair,) = read_preferences(path, render=lambda ms: "|".join(m["content"] for m in ms) + "\n")
    assert (pair.prompt, pair.chosen) == ("Hi|Hello.|2 + 2?\n", "4.")


@pytest.mark.parametrize(("prefer", "chosen"), [("better", " B"), ("safer", " A")])
def test_safe_rlhf_has_two_orders(tmp_path: Path, prefer: str, chosen: str) -> None:
    row = {"prompt": "P", "response_0": "A", "response_1": "B"}
    row |= {"better_response_id": 1, "safer_response_id": 0, "is_response_0_safe": True}
    (pair,) = read_preferences(write(tmp_path / "pairs.jsonl", row), prefer=prefer)
    assert pair.prompt == "\n\nHuman: P\n\nAssistant:"
    assert (pair.chosen, {pair.chosen, pair.rejected}) == (chosen, {" A", " B"})


def test_rows_that_are_no_pair_are_left_out_and_counted(tmp_path: Path, caplog) -> None:
    equal = {"chosen": DIALOGUE + " 4.", "rejected": DIALOGUE + " 4."}
    other = {"chosen": DIALOGUE + " 4.", "rejected": DIALOGUE.replace("Hi", "Ho") + " 5."}
    path = write(tmp_path / "pairs.jsonl", equal, FORMS["HH-RLHF"], other)
    with caplog.at_level(logging.WARNING):
        assert len(read_preferences(path)) == 1
    assert "'equal responses': 1" in caplog.text and "'two prompts': 1" in caplog.text
    with pytest.raises(UserError, match="no pair of two different responses"):
        read_preferences(write(tmp_path / "none.jsonl", equal, other))


def test_a_transcript_is_cut_into_messages_and_put_together_again() -> None:
    messages = parse_transcript(DIALOGUE + " 4,\n\nor IV.")
    assert messages == [*MESSAGES, assistant("4,\n\nor IV.")]
    assert transcript(messages[:-1]) == DIALOGUE


def test_pairs_are_written_and_read_back_equal(tmp_path: Path) -> None:
    pairs = [
        Preference("P\n", "a", "b", id="x", source="s"),
        Preference("P\n", "c\n", "d", id="y", prefix="q\n", chosen_ends=False),
    ]
    write_preferences(tmp_path / "pairs.jsonl", pairs)
    assert read_preferences(tmp_path / "pairs.jsonl") == pairs


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "a"}, "no field 'rejected'"),
        ({"prompt": "p", "chosen": " ", "rejected": ""}, "both responses are empty"),
        ({"chosen": "yes", "rejected": "no"}, "no field 'prompt'"),
        ({"chosen": [user("a")], "rejected": [user("b")]}, "end with the assistant's message"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "nothing stands before"),
        ({"chosen": [{"role": "user"}], "rejected": []}, r"'chosen\[0\]' must be an object"),
        (
            {"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 2},
            "must be 0 or 1, got 2",
        ),
    ],
)
def test_a_broken_row_is_named_with_its_line(tmp_path: Path, row: dict, message: str) -> None:
    path = write(tmp_path / "pairs.jsonl", FORMS["TRL"], row)
    with pytest.raises(UserError, match=message) as info:
        read_preferences(path)
    assert f"{path}:2" in str(info.value)


def test_prompts_are_read_once_each_from_any_form(tmp_path: Path) -> None:
    rows = [FORMS["HH-RLHF"], {"prompt": "P"}, {"prompt": MESSAGES}, {"prompt": "Q", "id": "7"}]
    problems = read_prompts(write(tmp_path / "prompts.jsonl", *rows))
    assert [p.text for p in problems] == [DIALOGUE, "P", "Q"]  # the messages are the first row's
    assert problems[2].id == "prompts/7" and {p.answer for p in problems} == {""}
    assert len(read_prompts(tmp_path / "prompts.jsonl", limit=2)) == 2
    with pytest.raises(UserError, match="no field 'prompt'"):
        read_prompts(write(tmp_path / "other.jsonl", {"text": "P"}))
