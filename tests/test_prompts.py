"""Every prompt has a golden file. To change one on purpose: `python tests/test_prompts.py`."""

from pathlib import Path

import pytest

from lag import prompts
from lag.prompts import Note, Prompt
from lag.records import Document

GOLDEN = Path(__file__).parent / "golden"
DOCS = [
    Document("1", "Ada Lovelace", "Ada Lovelace was a mathematician."),
    Document("2", "Byron", "Lord Byron was her father."),
]
NOTES = [Note("a", "First log.\n\n"), Note("b", "Second log.\n\n")]
QUESTION = "Who was the father of Ada Lovelace?"


def qa() -> Prompt:
    return prompts.qa_prompt(QUESTION, DOCS)


CASES = {
    "qa": qa(),
    "qa_without_documents": prompts.qa_prompt(QUESTION, []),
    "direct": prompts.direct_prompt(QUESTION),
    "qa_with_steps": prompts.with_steps(qa(), [("father", "Not yet.\n"), ("Ada", "<ans>x</ans>")]),
    "qa_folded": prompts.folded(qa()),
    "qa_user_layout": prompts.with_notes(qa(), NOTES, "user", prompts.LOGS_HEADER),
    "qa_user_layout_sheet": prompts.with_notes(qa(), NOTES[:1], "user", prompts.SHEET_HEADER),
    "choice": prompts.choice_prompt("2 + 2?", ["3", "4"], ""),
    "choice_second_step": prompts.choice_prompt("2 + 2?", ["3", "4"], "It is even."),
    "curator": prompts.curator_prompt("New?", [("Old?", "It was so."), ("Older?", "Not.")]),
    "curator_carried": prompts.curator_prompt("New?", [("Old?", "It was so.")], "Be brief."),
}


def shown(prompt: Prompt) -> str:
    parts = {"system": prompt.system, "user": prompt.user, "prefill": prompt.prefill}
    return "".join(f"=== {name} ===\n{text}\n" for name, text in parts.items())


@pytest.mark.parametrize("name", CASES)
def test_prompt_is_the_golden_one(name):
    """A changed character of a prompt changes every number; it must not happen unseen."""
    assert shown(CASES[name]) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_every_golden_file_has_its_prompt():
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)


@pytest.mark.parametrize("layout", ["paper", "system-first", "user"])
def test_without_notes_a_prompt_is_untouched(layout):
    assert prompts.with_notes(qa(), [], layout, prompts.LOGS_HEADER) == qa()


@pytest.mark.parametrize("layout", ["paper", "system-first"])
def test_notes_stand_outside_the_turns_in_their_order(layout):
    placed = prompts.with_notes(qa(), NOTES, layout, prompts.LOGS_HEADER)
    assert placed.notes == tuple(NOTES)
    assert placed.user == qa().user


def test_documents_are_only_appended():
    """What does not depend on a later document stays a prefix, so that it can be reused."""
    one, two = prompts.qa_prompt(QUESTION, DOCS[:1]).user, qa().user
    shared = one.removesuffix(f"\n\nQuestion: {QUESTION}")
    assert two.startswith(shared) and two.endswith(f"\n\nQuestion: {QUESTION}")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for case, prompt in CASES.items():
        (GOLDEN / f"{case}.txt").write_text(shown(prompt), encoding="utf-8")
