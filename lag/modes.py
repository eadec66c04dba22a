"""`MODES`: one row per way to bring past logs back. Read a column and see what differs.

Nobody outside this file asks for a mode's name; who wants to is missing a column.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lag.actions import split_at_action
from lag.records import Log

BLANK = "\n\n"  # ends every log, and joins the responses of one


def nothing(log: Log) -> str:
    return ""


def last_response(log: Log) -> str:
    return log.replies[-1] + BLANK


def all_responses(log: Log) -> str:
    return BLANK.join(log.replies) + BLANK


def earlier_responses(log: Log) -> str:
    return "".join(reply + BLANK for reply in log.replies[:-1])


def last_action(log: Log) -> str:
    return split_at_action(log.replies[-1])[1] + BLANK


def up_to_action(log: Log) -> str:
    return earlier_responses(log) + split_at_action(log.replies[-1])[0]


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to bring past logs back into a prompt.

    Source: LAG (arXiv 2505.14398), sections on encoding and the token-subset ablation;
    Block-Attention (arXiv 2409.15355) for `log_kv_last_as_context`; Dynamic Cheatsheet
    (arXiv 2504.07952) for `log_cheatsheet`; ACE (arXiv 2510.04618) for
    `log_playbook`.
    """

    name: str
    keep: Callable[[Log], str] | None = None  # the words of a log that come back
    after: Callable[[Log], str] = nothing  # the text they are encoded after (KV modes)
    enters: Literal["", "text", "kv", "sheet"] = ""  # how they enter the prompt
    playbook: bool = False  # whether the sheet lives on as entries that are edited

    @property
    def hides(self) -> bool:
        """Whether a log is encoded behind text that does not come back with it."""
        return self.enters == "kv" and self.after is not nothing


# fmt: off
MODES = {mode.name: mode for mode in (
    Mode("base"),
    Mode("log_text",               last_response, enters="text"),
    Mode("log_text_all",           all_responses, enters="text"),
    Mode("log_kv",                 last_response, earlier_responses, enters="kv"),
    Mode("log_kv_all",             all_responses, nothing,           enters="kv"),
    Mode("log_kv_last_action",     last_action,   up_to_action,      enters="kv"),
    Mode("log_kv_last_as_context", last_response, nothing,           enters="kv"),
    Mode("log_cheatsheet",         last_response, enters="sheet"),
    Mode("log_playbook",           last_response, enters="sheet", playbook=True),
)}
# fmt: on


DEFAULT_MODE = "log_kv"
