"""Cross-fitting: of several adapters, each question is answered by one that was not trained on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lag.files import files_digest, read_json
from lag.paths import ADAPTER_FACTS, ADAPTER_FILES, adapters_in
from lag.records import Question


@dataclass(frozen=True, slots=True)
class Fitted:
    """One of several adapters.

    digest: over its files; stands in the rows that it answers. taught: ids of the questions whose
    rows, or whose logs, stood in its examples.
    """

    folder: Path
    digest: str
    taught: frozenset[str]

    @classmethod
    def read(cls, folder: Path) -> "Fitted":
        """
        Raises:
            ValueError: it does not say what it was trained on.
        """
        path = folder / ADAPTER_FACTS
        known = read_json(path) if path.is_file() else {}
        if "questions" not in known:
            raise ValueError(
                f"{path} names no questions that the adapter was trained on; expected what train.py "
                "sft wrote: without them it cannot be cross-fitted"
            )
        return cls(folder, files_digest(folder, ADAPTER_FILES, 16), frozenset(known["questions"]))


def several(folder: Path | None) -> list[Fitted]:
    """The adapters of a folder of several; none where it is one, or no adapter is given."""
    found = adapters_in(folder) if folder else []
    return [] if found == [folder] else [Fitted.read(one) for one in found]


def owners(questions: Sequence[Question], adapters: Sequence[Fitted]) -> dict[str, Fitted]:
    """By question the first adapter that was not trained on it; empty without adapters.

    Raises:
        ValueError: every adapter was trained on some question.
    """
    found = {}
    for question in questions if adapters else ():
        free = [one for one in adapters if question.id not in one.taught]
        if not free:
            raise ValueError(
                f"--adapter {adapters[0].folder.parent}: every adapter there was trained on question "
                f"{question.id!r}; give --ids, or an adapter that was not"
            )
        found[question.id] = free[0]
    return found
