"""What comes back of a log, and what it is encoded after: every word of both columns."""

import pytest

from lag.modes import MODES
from lag.records import Log

FIRST, SECOND = "I must find Ada. <keywords>ada</keywords>", "Ada was here."
LAST = "So it is she. <ans>Ada</ans>"
LOG = Log("a", "Who?", (FIRST, SECOND, LAST))
BEFORE = f"{FIRST}\n\n{SECOND}\n\n"

# by mode: what is kept, what it is encoded after
COLUMNS = {
    "log_text": (f"{LAST}\n\n", ""),
    "log_text_all": (f"{BEFORE}{LAST}\n\n", ""),
    "log_kv": (f"{LAST}\n\n", BEFORE),
    "log_kv_all": (f"{BEFORE}{LAST}\n\n", ""),
    "log_kv_last_action": ("<ans>Ada</ans>\n\n", f"{BEFORE}So it is she. "),
    "log_kv_last_as_context": (f"{LAST}\n\n", ""),
    "log_cheatsheet": (f"{LAST}\n\n", ""),
    "log_playbook": (f"{LAST}\n\n", ""),
}


@pytest.mark.parametrize("mode", [mode for mode in MODES.values() if mode.keep])
def test_every_mode_keeps_and_hides_the_words_that_its_row_says(mode):
    """`up_to_action` may not forget the replies before the last one."""
    assert (mode.keep(LOG), mode.after(LOG)) == COLUMNS[mode.name]


@pytest.mark.parametrize("mode", [mode for mode in MODES.values() if mode.keep])
def test_a_log_of_one_reply_hides_at_most_its_own_beginning(mode):
    log = Log("a", "Who?", (LAST,))
    assert mode.after(log) in ("", "So it is she. ") and mode.keep(log)
