"""A playbook: entries with ids and counts that a model changes by small edits (`log_playbook`).

It lives on from question to question. An entry *helped* if a reply names it and the question ends
answered, and did *harm* if it ends unanswered; gold answers decide nothing. The texts stand apart
from `prompts`, whose digest is in every run: theirs is only in those that use them.
Source: agentic context engineering, delta edits instead of rewriting (arXiv 2510.04618).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lag.files import digest_of
from lag.modes import BLANK, Mode
from lag.prompts import Prompt
from lag.records import ASIDE, Log, Question, Trace
from lag.step_prompt import Entered

MOST_ENTRIES = 30
MOST_CHARACTERS = 300  # of an entry

HEADING = "Lessons from earlier questions, up to [p{last}]; where you use one, name it in brackets:"
EDITOR_RULES = """\
Below are the entries of a playbook with the times that each helped (+) and did harm (-), and earlier \
questions with what was replied to them, the most related last. Replies may be wrong.
Improve the playbook for questions like the new one by three small edits at most:
<add>a fact or a method worth keeping, in one or two sentences</add>
<change id="p1">better words for this entry</change>
<remove id="p1"></remove>
Do not answer the new question. If nothing is worth an edit, write <keep></keep>."""

LINE = re.compile(r"\[p(\d+)\] \(\+(\d+) -(\d+)\) (.+)")
LAST = re.compile(r"up to \[p(\d+)\]")
EDIT = re.compile(
    r"<(add|change|remove)\b([^<>]{0,40})>(.*?)(?=</?(?:add|change|remove)\b|\Z)", re.S | re.I
)
NAMED = re.compile(r"\[p(\d+)\]")
EDITS = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """One lesson. helped, harmed: questions that named it and ended answered, or did not."""

    id: int
    text: str
    helped: int = 0
    harmed: int = 0

    def __str__(self) -> str:
        return f"[p{self.id}] (+{self.helped} -{self.harmed}) {self.text}"


@dataclass(frozen=True, slots=True)
class Playbook:
    """Entries by id. last: the highest id that was ever given away; none is given twice."""

    entries: dict[int, Entry]
    last: int = 0

    @classmethod
    def parse(cls, sheet: str) -> "Playbook":
        """The playbook that a sheet is the text of; what is no entry is left out."""
        found = [LINE.fullmatch(line) for line in sheet.splitlines()]
        entries = [Entry(int(m[1]), m[4], int(m[2]), int(m[3])) for m in found if m]
        last = LAST.search(sheet)
        return cls({one.id: one for one in entries}, int(last[1]) if last else 0)

    def __str__(self) -> str:
        """As it stands in a prompt and in a row; "" without entries that were ever there."""
        if not self.last:
            return ""
        return "\n".join([HEADING.format(last=self.last), *map(str, self.entries.values())])

    def edited(self, reply: str) -> "Playbook":
        """With the edits of a reply; what is no edit, or names no entry, changes nothing."""
        entries, last = dict(self.entries), self.last
        for kind, head, body in EDIT.findall(reply)[:EDITS]:
            text = " ".join(body.split())[:MOST_CHARACTERS]
            named = re.search(r"p(\d+)", head)
            id = int(named[1]) if named else 0
            if kind.lower() == "add" and text:
                last += 1
                entries[last] = Entry(last, text)
            elif kind.lower() == "change" and text and id in entries:
                entries[id] = replace(entries[id], text=text)
            elif kind.lower() == "remove":
                entries.pop(id, None)
        while len(entries) > MOST_ENTRIES:
            del entries[worst(entries)]
        return Playbook(entries, last)

    def counted(self, trace: Trace) -> "Playbook":
        """With what a question that has ended says of the entries that its replies name."""
        replies = (step.reply for step in trace.steps if step.action not in ASIDE)
        named = {int(id) for reply in replies for id in NAMED.findall(reply)}
        helped, harmed = trace.status == "answered", trace.status == "unanswered"
        entries = {
            id: replace(one, helped=one.helped + helped, harmed=one.harmed + harmed)
            if id in named
            else one
            for id, one in self.entries.items()
        }
        return Playbook(entries, self.last)


def worst(entries: Mapping[int, Entry]) -> int:
    """The entry that helped least for the harm it did; of equals the oldest."""
    return min(entries, key=lambda id: (entries[id].helped - entries[id].harmed, id))


def editor(
    question: Question, sheet: str, logs: Mapping[str, Log], max_new_tokens: int, held: Entered
) -> Prompt:
    """Ask for edits of a playbook from logs; as `step_prompt.curator`."""
    entries = sheet.partition("\n")[2] or "No entries yet."
    pairs = [
        f"Question: {logs[note.id].question}\nReply: {note.keep.removesuffix(BLANK)}"
        for note in held.notes
    ]
    blocks = [EDITOR_RULES, f"The entries:\n{entries}", *pairs, f"New question: {question.text}"]
    return Prompt("\n\n".join(blocks), max_new_tokens=max_new_tokens)


def edited(sheet: str, reply: str) -> str:
    """The sheet after a reply's edits."""
    return str(Playbook.parse(sheet).edited(reply))


def sheet_after(mode: Mode, trace: Trace) -> str | None:
    """The sheet that a question hands on; None where it had none."""
    if not mode.playbook or trace.sheet is None:
        return trace.sheet
    return str(Playbook.parse(trace.sheet).counted(trace))


def digest() -> str:
    """A digest over texts and bounds: part of what identifies a run that uses them."""
    return digest_of([HEADING, EDITOR_RULES, MOST_ENTRIES, MOST_CHARACTERS, EDITS], 16)
