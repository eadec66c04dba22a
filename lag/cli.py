"""What every script shares: flags of one spelling, one way to fail, one progress line.

Nothing heavy is imported here, so that `--help` answers at once.
"""

import argparse
import difflib
import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from lag.files import DiskFull, read_json, told

# The extra of pyproject.toml that brings a module.
EXTRAS = {
    "datasets": "hub",
    "pyarrow": "hub",
    "matplotlib": "plot",
    "gguf": "gguf",
    "peft": "train",
}
PLAIN_EVERY = 10.0  # seconds between progress lines where there is no terminal


def nearest(name: str, table: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, table, 1)
    return f"; did you mean {near[0]}?" if near else ""


def unknown(name: str, table: Iterable[str], what: str) -> str:
    """What is said of a name that is not in a table: all that are, and the nearest."""
    hint = nearest(name, table) or ";"
    return f"unknown {what} '{name}'{hint} expected one of: {', '.join(table)}"


def one_of(table: Iterable[str], what: str) -> Callable[[str], str]:
    """An argparse type: a name of the table, or one line that lists them and the nearest."""

    def check(name: str) -> str:
        if name in table:
            return name
        raise argparse.ArgumentTypeError(unknown(name, table, what))

    return check


def list_of(table: Iterable[str], what: str) -> Callable[[str], list[str]]:
    """An argparse type: a comma list of names of the table, each once."""
    check = one_of(table, what)

    def check_all(text: str) -> list[str]:
        names = [check(name.strip()) for name in text.split(",")]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            said = f"'{text}': {what} {twice} is given twice; give each once"
            raise argparse.ArgumentTypeError(said)
        return names

    return check_all


def at_least(least: float, kind: type = int, most: float = math.inf) -> Callable[[str], float]:
    """An argparse type: a number from `least` to `most`."""
    expected = f"at least {least}" + (f" and at most {most}" if most < math.inf else "")

    def check(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"'{text}': expected a number of {expected}")
        return value

    return check


SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b|b)?", re.IGNORECASE)


def size(text: str) -> int:
    """An argparse type: bytes, such as 500MB, 2GiB or a plain number."""
    found = SIZE.fullmatch(text.strip())
    if not found:
        expected = "expected a size such as 500MB, 2GiB or a number of bytes"
        raise argparse.ArgumentTypeError(f"'{text}': {expected}")
    number, unit, binary = found.groups()
    power = "kmgt".index(unit.lower()) + 1 if unit else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


SPLITS = {"train": "seen", "test": "unseen"}


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line; the usage of twenty flags would hide it.

    hidden: the help of flags that `--help` leaves out, by the flags' names.
    """

    def __init__(self, *args: Any, **options: Any):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **options)
        self.hidden: dict[str, str] = {}

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see --help\n")


class HelpAll(argparse.Action):
    """Prints the help of every flag, also of those that `--help` leaves out."""

    def __init__(self, **options: Any):
        super().__init__(**options | {"dest": argparse.SUPPRESS, "nargs": 0})

    def __call__(self, parser: Parser, *unused: object) -> NoReturn:
        for action in parser._actions:
            action.help = parser.hidden.get(action.dest, action.help)
        parser.print_help()
        parser.exit()


def set_up_logging(verbose: bool = False) -> None:
    """Log to stderr; other libraries only warn, and draw no bars between our lines."""
    for library in ("HF_HUB", "HF_DATASETS"):  # transformers goes by the first
        os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("lag").setLevel(logging.DEBUG if verbose else logging.INFO)


def explained(error: Exception) -> str:
    """What a user reads of it; what the system refused names the file and what to look at."""
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get((error.name or "").split(".")[0])
        what = f"'.[{extra}]'" if extra else "-r requirements.txt"
        return f"{error.name} is not installed; run: pip install {what}"
    error = told(error) if isinstance(error, OSError) else error
    if isinstance(error, DiskFull):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return (
            f"{error.filename}: {error.strerror}; expected a place that can be read and written, "
            "check the path, its permissions and the space left"
        )
    return str(error)


def guarded(main: Callable[[], int | None], resumes: bool = True) -> None:
    """Run a script's main: what a user can cause is one line and exit code 2.

    resumes: whether the script, stopped and repeated, goes on where it was.
    """
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # who read our output, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141  # as the shell has it for SIGPIPE
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if "-v" in sys.argv or "--verbose" in sys.argv:
            raise
        line = " ".join(explained(error).split())
        print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        kept = "what is finished is kept, the same command goes on"
        print(
            f"interrupted; {kept if resumes else 'the same command begins anew'}", file=sys.stderr
        )
        code = 130
    sys.exit(code)


def read_config(path: Path) -> dict[str, Any]:
    """Flags from a JSON file; a run's `run.json` is one.

    Raises:
        ValueError: not a JSON object; names the file.
    """
    config = read_json(path, "check --config")
    if not isinstance(config, dict):
        raise ValueError(f"--config {path}: expected a JSON object whose keys are flags")
    provenance = config.get("provenance", {})
    flags = provenance.get("flags", config) if isinstance(provenance, dict) else None
    if not isinstance(flags, dict):
        expected = "expected flags below provenance.flags, as in a run.json"
        raise ValueError(f"--config {path}: {expected}")
    return {key.replace("-", "_"): value for key, value in flags.items()}


def parse_with_config(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """Parse flags; `--config FILE` types some first, so that the command line wins.

    renamed: flags that older files have, and what they are called now.

    Raises:
        ValueError: the file has a key that is no flag, or a switch that is neither on nor off.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config", type=Path)
    path = first.parse_known_args(given)[0].config
    return parser.parse_args([*typed_flags(parser, path, renamed), *given] if path else given)


def typed_flags(
    parser: argparse.ArgumentParser, path: Path, renamed: Mapping[str, str]
) -> Iterator[str]:
    """The flags of a file as they would be typed; what is null or off is not."""
    actions = {action.dest: action for action in parser._actions}
    config = read_config(path)
    for old in renamed.keys() & config.keys():
        value = config.pop(old)
        config |= {} if value is None else {renamed[old]: value}
    for key, value in config.items():
        if key not in actions:
            hint = nearest(key, actions)
            raise ValueError(f"--config {path}: '{key}' is not a flag of this script{hint}")
        action = actions[key]
        if action.nargs == 0 and not isinstance(value, bool):
            raise ValueError(f"--config {path}: '{key}' is {value!r}; expected true or false")
        if value is not None and value is not False:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            yield action.option_strings[-1] + ("" if value is True else f"={text}")


class Progress:
    """A bar on a terminal; elsewhere a plain line at once, now and then, and at the end."""

    def __init__(
        self,
        total: int,
        what: str,
        done: int = 0,
        tokens: Callable[[], int] | None = None,
        enough: int = 3,
        clock: Callable[[], float] = time.monotonic,
    ):
        """
        tokens: how many were written so far, of what has not ended too: what ends first was begun
            long before, so that its number says little of how fast it goes.
        enough: the time left is told once so many have ended.
        """
        from tqdm import tqdm

        self.total, self.what, self.done, self.first = total, what, done, done
        self.work, self.enough, self.clock = tokens or self.ended, enough, clock
        self.start = self.printed = clock()
        self.before, self.work_ended = self.work(), 0
        self.plain = not sys.stderr.isatty()
        shown = "{desc}: {n_fmt}/{total_fmt} |{bar}|{postfix}"  # its own estimate is not ours
        self.bar = tqdm(
            total=total, initial=done, desc=what, disable=self.plain, bar_format=shown, leave=True
        )
        if self.plain and done < total:
            print(f"{what}: {done}/{total}, the first is under way", file=sys.stderr)

    def ended(self) -> int:
        return self.done - self.first

    def update(self, num_tokens: int = 1, **shown: object) -> None:
        """One more is done, of so many tokens; show the given figures behind the bar."""
        self.done += 1
        self.work_ended += num_tokens
        now = self.clock()
        text = ", ".join([*(f"{name} {value}" for name, value in shown.items()), *self.left(now)])
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update()
        if self.plain and (now - self.printed > PLAIN_EVERY or self.done == self.total):
            self.printed = now
            print(f"{self.what}: {self.done}/{self.total}, {text}", file=sys.stderr)

    def left(self, now: float) -> list[str]:
        """How long the rest takes, if it is like what has ended; nothing while few have."""
        ended, work = self.ended(), self.work() - self.before
        if ended < self.enough or self.done >= self.total or not work:
            return []
        whole = self.work_ended / ended * (self.total - self.first)
        return [f"about {duration((now - self.start) * max(whole / work - 1, 0))} left"]

    def close(self) -> None:
        self.bar.close()


def duration(seconds: float) -> str:
    """Seconds up to two minutes, minutes up to two hours, then hours."""
    for unit, size in (("s", 1), ("min", 60)):
        if seconds < 120 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"


def print_summary(summary: dict[str, Any]) -> None:
    """The last line of standard output: one JSON object."""
    print(json.dumps(summary), flush=True)
