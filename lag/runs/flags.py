"""The rows of `RunConfig` as flags: parsers, what is refused, the README's table."""

import argparse
from collections.abc import Sequence
from typing import Any

from lag import cli
from lag.modes import MODES
from lag.runs.config import (
    DEFAULTS,
    FLAGS,
    KV_MODES,
    PROVIDERS,
    REQUIRED,
    TEXT_MODES,
    RunConfig,
    spelling,
)
from lag.solvers import SOLVERS
from lag.tasks import SPLITS

# Flags of older run.json files, and what they are called now.
RENAMED = {"concurrency": "batch_size"}


def shown_default(name: str, default: Any) -> str:
    """A default as a reader is told it; empty for switches and where nothing is the default."""
    if default is REQUIRED or default is None or default is False:
        return FLAGS[name].usual
    return FLAGS[name].usual if default == DEFAULTS[name] and FLAGS[name].usual else str(default)


def add_flag(parser: Any, name: str, default: Any) -> argparse.Action:
    """Give a parser one of the rows."""
    flag, shown = FLAGS[name], shown_default(name, default)
    spellings = [*filter(None, [flag.short]), spelling(name)]
    options: dict[str, Any] = {"help": flag.help + (f" ({shown})" if shown else "")}
    if flag.is_switch:
        return parser.add_argument(*spellings, action="store_true", **options)
    if default is REQUIRED:
        options["required"] = True
    else:
        options["default"] = default
    options |= {"choices": flag.choices} if flag.choices else {"metavar": flag.metavar}
    return parser.add_argument(*spellings, type=flag.kind, **options)


def add_flags(parser: Any, *names: str, **defaults: Any) -> None:
    """Give a script the rows that it reads, with its own defaults where they differ."""
    for name in names:
        add_flag(parser, name, defaults.get(name, FLAGS[name].default))


def make_parser(description: str | None, **defaults: Any) -> cli.Parser:
    """The parser of all settings; `--help` shows those that everyone uses."""
    parser = cli.Parser(description=description)
    parser.add_argument("--help-all", action=cli.HelpAll, help="show every flag and exit")
    groups: dict[str, Any] = {}
    for name, flag in FLAGS.items():
        if flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group)
        action = add_flag(groups[flag.group], name, defaults.get(name, flag.default))
        if not flag.everyday:
            parser.hidden[name], action.help = action.help or "", argparse.SUPPRESS
    return parser


def parse(parser: cli.Parser, argv: Sequence[str] | None) -> RunConfig:
    """The settings that a command line and its `--config` ask for.

    Raises:
        ValueError: flags that contradict each other, or that nothing would read.
    """
    given = vars(cli.parse_with_config(parser, argv, RENAMED))
    config = RunConfig(**{name: value for name, value in given.items() if value is not None})
    check(config)
    return config


def check(config: RunConfig) -> None:
    """Refuse what cannot be done before anything is loaded.

    Raises:
        ValueError: names the flags and what to give instead.
    """
    check_command(config)
    configs = [one.filled() for one in config.parted()]
    for one in configs:
        check_provider(one)
        check_run(one)
    check_read(configs)


def check_one(config: RunConfig) -> None:
    """As `check`, for what makes one run only.

    Raises:
        ValueError: as `check`; or several modes or solvers.
    """
    check(config)
    if "," in config.mode + config.solver:
        said = f"-m {config.mode} --solver {config.solver}"
        raise ValueError(f"{said}: this makes one run; give one mode and one solver")


def check_command(config: RunConfig) -> None:
    splits = (config.split or SPLITS[0]).split(",")
    if set(splits) - {*SPLITS} or len(splits) > len({*splits}):
        raise ValueError(f"--split {config.split}: expected train, test or train,test")
    lists = (config.mode, config.solver, config.order_seed)
    several = any("," in text for text in lists)
    if config.as_log and several:
        raise ValueError("--as-log goes with --merge, one mode, one solver and one order")
    if config.as_log and config.samples > 1 and not config.pick:
        raise ValueError(
            f"--as-log of --samples {config.samples}: give --pick best, one log of each question, "
            "or --pick all"
        )
    if config.run and several:
        raise ValueError("--run names one run; give one mode, one solver and one order with it")
    if config.limit and config.ids:
        raise ValueError("--limit and --ids exclude each other")


def check_provider(config: RunConfig) -> None:
    """Refuse what the provider cannot do."""
    provider = config.plays
    for name, able in (("layout", provider.layouts), ("prefill", provider.prefills)):
        if getattr(config, name) not in able:
            raise ValueError(
                f"--{name} {getattr(config, name)}: --provider {provider.name} can only do "
                f"{' or '.join(able)}"
            )
    if provider.kv:
        return
    if config.mode in KV_MODES:
        raise ValueError(
            f"--provider {provider.name}: {config.mode} needs keys and values in this process, "
            f"which no such server takes; give -m one of {', '.join(TEXT_MODES)}, or use --provider "
            f"{' or '.join(name for name, one in PROVIDERS.items() if one.kv)}"
        )
    budgets = [name for name in ("log_tokens", "trace_tokens") if getattr(config, name)]
    if budgets and not config.tokenizer:
        raise ValueError(
            f"{spelling(budgets[0])} counts tokens, and a server's are not known here; "
            "give --tokenizer, a folder or hub name of the served model"
        )


def check_run(config: RunConfig) -> None:
    solver, mode, task = SOLVERS[config.solver], MODES[config.mode], config.task
    needs = solver.max_steps == 1 or solver.records
    if solver.documents_from != "none" and needs and not task.num_docs:
        raise ValueError(
            f"--solver {solver.name}: {task.name} is asked without documents; "
            "use --solver react or direct"
        )
    if config.samples > 1 and not config.temperature:
        raise ValueError(
            f"--samples {config.samples} at --temperature 0 are all the same; give a --temperature"
        )
    if mode.enters == "kv" and config.layout == "user":
        raise ValueError(f"--layout user holds text only; {mode.name} needs paper or system-first")
    if config.log_control == "wrong-context" and not mode.hides:
        hiding = ", ".join(name for name, mode in MODES.items() if mode.hides)
        raise ValueError(f"--log-control wrong-context is for modes that hide text: {hiding}")
    if config.grow and config.log_control == "wrong-context":
        raise ValueError("--log-control wrong-context needs logs that stay; leave out --grow")
    if config.kv == "encode" and config.kv_disk is not None:
        raise ValueError("--kv encode stores nothing; leave out --kv-disk")


def check_read(configs: Sequence[RunConfig]) -> None:
    """Refuse a flag that none of the runs would read; one that some read is not in vain.

    configs: filled, one per run.
    """
    for name, flag in FLAGS.items():
        given = [c for c in configs if getattr(c, name) not in (None, c.default(name))]
        reasons = [flag.why_unread(config) for config in configs]
        if given and all(reasons):
            value = "" if flag.is_switch else f" {getattr(given[0], name)}"
            raise ValueError(f"{spelling(name)}{value}{reasons[0]}")


def flag_table() -> str:
    """The README's table: flags that everyone uses, each with its default; the rest by group."""
    lines = ["| flag | what it says | default |", "| --- | --- | --- |"]
    for name, flag in FLAGS.items():
        if flag.everyday:
            typed = f"{flag.short}, {spelling(name)}" if flag.short else spelling(name)
            default = "required" if flag.default is REQUIRED else shown_default(name, flag.default)
            typed += f" {flag.metavar}" if flag.metavar else ""
            lines.append(f"| `{typed}` | {flag.help} | {default} |")
    rest: dict[str, list[str]] = {}
    for name, flag in FLAGS.items():
        if not flag.everyday:
            rest.setdefault(flag.group, []).append(f"`{spelling(name)}`")
    lines += [f"| {group} | {' '.join(names)} | |" for group, names in rest.items()]
    return "\n".join(lines) + "\n"
