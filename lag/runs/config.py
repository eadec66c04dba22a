# ruff: noqa: RUF009 - the rows are calls on purpose
"""`RunConfig`: the settings of a run, one row per flag. Read a row and see what the flag does.

The parsers of all scripts, the checks, `run.json`, run names, the comparison of runs and the
README's table of flags are made from these rows: a new flag is one row.
"""

import argparse
import itertools
import shlex
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lag import cli
from lag.files import digest_of, files_digest
from lag.logs.controls import CONTROLS
from lag.logs.growing import EVICT, KEEP
from lag.modes import DEFAULT_MODE, MODES, Mode
from lag.paths import ADAPTER_FILES, KV_DTYPES, Paths, adapters_in
from lag.retrieval.retrievers import DEFAULT_RETRIEVER, RETRIEVERS
from lag.solvers import DEFAULT_SOLVER, SOLVERS, limits
from lag.tasks import NAME, TASKS, Task, find_task, task_of


@dataclass(frozen=True, slots=True)
class Provider:
    """Who generates.

    layouts, prefills: what it can do, the default first.
    kv: whether keys and values can be given to it. served: whether it is a server.
    """

    name: str
    layouts: tuple[str, ...]
    prefills: tuple[str, ...]
    kv: bool
    served: bool


# fmt: off
PROVIDERS = {provider.name: provider for provider in (
    Provider("hf",     ("paper", "system-first", "user"), ("turn", "folded"),         kv=True,  served=False),
    Provider("openai", ("user",),                         ("folded", "turn", "auto"), kv=False, served=True),
    Provider("vllm",   ("paper", "user"),                 ("turn", "folded"),         kv=True,  served=True),
)}
# fmt: on


DEFAULT_PROVIDER = "hf"
KV_MODES = [mode.name for mode in MODES.values() if mode.enters == "kv"]
TEXT_MODES = [mode.name for mode in MODES.values() if mode.enters != "kv"]


def by_every_run(config: "RunConfig") -> str:
    """Nothing speaks against it."""
    return ""


def by_process(config: "RunConfig") -> str:
    here = " or ".join(name for name, one in PROVIDERS.items() if not one.served)
    return f" is for --provider {here}; leave it out" if config.plays.served else ""


def by_server(config: "RunConfig") -> str:
    there = " or ".join(name for name, one in PROVIDERS.items() if one.served)
    return "" if config.plays.served else f" is for --provider {there}; leave it out"


def by_several_steps(config: "RunConfig") -> str:
    one = SOLVERS[config.solver].max_steps == 1
    return f": --solver {config.solver} takes one step; leave it out" if one else ""


def by_recording(config: "RunConfig") -> str:
    able = " or ".join(name for name, solver in SOLVERS.items() if solver.records)
    return "" if SOLVERS[config.solver].records else f" is for --solver {able}; leave it out"


def by_showing_steps(config: "RunConfig") -> str:
    own = f": --solver {config.solver} shows what it recorded; leave it out"
    return own if SOLVERS[config.solver].records else by_several_steps(config)


def by_shown_steps(config: "RunConfig") -> str:
    shown = " bounds the steps of --trace-steps; give both"
    return by_several_steps(config) or ("" if config.trace_steps else shown)


def by_retrieved_logs(config: "RunConfig") -> str:
    every = ": with --num-logs all no log is searched for; leave it out"
    return every if config.num_logs == "all" else ""


def by_greedy(config: "RunConfig") -> str:
    drawn = f": --temperature {config.temperature:g} draws its replies; leave it out"
    return by_several_steps(config) or (drawn if config.temperature else "")


def by_search(config: "RunConfig") -> str:
    if SOLVERS[config.solver].documents_from == "searched":
        return ""
    return f": --solver {config.solver} searches no documents; leave it out"


def by_found_documents(config: "RunConfig") -> str:
    none = ": with --num-docs 0, as here, no documents are searched for; leave it out"
    return by_search(config) or ("" if config.num_docs else none)


def by_http(config: "RunConfig") -> str:
    here = "" if config.retriever == "http" else " is for --retriever http; leave it out"
    return by_found_documents(config) or here


def by_samples(config: "RunConfig") -> str:
    some = config.as_log and config.samples > 1
    return "" if some else " goes with --as-log of a run with --samples; give both"


def by_playbook(config: "RunConfig") -> str:
    always = f": {config.mode} always lives on; leave it out"
    return always if MODES[config.mode].playbook else ""


def by_growing(config: "RunConfig") -> str:
    return "" if config.grow else " goes with --grow; give both"


def by_novel(config: "RunConfig") -> str:
    other = f": --keep {config.keep} asks for no similarity; leave it out"
    return by_growing(config) or ("" if config.keep == "novel" else other)


def by_full(config: "RunConfig") -> str:
    return by_growing(config) or ("" if config.log_limit else " goes with --log-limit; give both")


def by_merge(config: "RunConfig") -> str:
    return "" if config.merge else " goes with --merge; give both"


@dataclass(frozen=True, slots=True)
class Flag:
    """How a setting is typed and explained, and what it means to a run.

    kind: makes a value of a word, or complains; without `kind` and `choices` it is a switch.
    usual: the default in words, where the value does not say it.
    settled: the default that solver, data set or provider give, where the flag itself has none.
    of: the modes that read it. unread: why else a run does not read it; empty if it does.
    identity: it could change a row. named: how it is spelled in a run's name, where it differs
        from its default, or where `spelled` says so.
    stands_for: what identity and name say instead of the value.
    compared: a difference to the baseline may explain a result.
    recorded: `run.json` keeps it among the flags. everyday: `--help` shows it.
    """

    group: str
    help: str
    kind: Callable[[str], Any] | None = None
    metavar: str | None = None
    default: Any = None
    choices: tuple[str, ...] | None = None
    short: str = ""
    usual: str = ""
    settled: Callable[["RunConfig"], Any] | None = None
    of: Literal["", "logs", "kv"] = ""
    unread: Callable[["RunConfig"], str] = by_every_run
    identity: bool = False
    named: str = ""
    spelled: Callable[["RunConfig"], Any] = lambda config: False
    stands_for: Callable[[Any], Any] | None = None
    compared: bool = True
    recorded: bool = True
    everyday: bool = False

    @property
    def is_switch(self) -> bool:
        return self.kind is None and self.choices is None

    def told(self, value: Any) -> Any:
        return self.stands_for(value) if self.stands_for else value

    def counts(self, mode: Mode) -> bool:
        """Whether runs of this mode are other runs if the flag is another one."""
        return {"": True, "logs": bool(mode.enters), "kv": mode.enters == "kv"}[self.of]

    def why_unread(self, config: "RunConfig") -> str:
        """Why nothing in this run reads it, or an empty text. Flags of logs may idle in `base`."""
        if self.of == "kv" and config.mode not in KV_MODES:
            return f" is for logs that enter as KV; give -m one of {', '.join(KV_MODES)}"
        return self.unread(config)


REQUIRED = object()


def row(group: str, help: str, *columns: Any, **named: Any) -> Any:
    """A field of the record, with its flag."""
    named.setdefault("identity", bool(named.get("named")))
    flag = Flag(group, help, *columns, **named)
    default = MISSING if flag.default is REQUIRED else False if flag.is_switch else flag.default
    return field(default=default, metadata={"flag": flag})


def plain_name(text: str) -> str:
    """An argparse type: a name that can be a folder's."""
    if text.strip(". ") == "" or not text.isprintable() or {"/", "\\"} & {*text}:
        raise argparse.ArgumentTypeError(
            f"'{text}': expected a plain name, which becomes a folder's, without / or \\"
        )
    return text


def data_set(text: str) -> str:
    """An argparse type: a name that a data set can have; whether it is there, `--data` decides."""
    if not NAME.fullmatch(text):
        expected = "expected letters, digits, and _ . - inside, which becomes a folder's name"
        raise argparse.ArgumentTypeError(f"'{text}' names no data set; {expected}")
    return text


def names(table: Mapping[str, Any], what: str) -> Callable[[str], str]:
    """An argparse type: names of the table between commas."""
    check = cli.list_of(table, what)
    return lambda text: ",".join(check(text))


def adapter_folder(text: str) -> Path:
    """An argparse type: a folder with the files of an adapter, or with folders of several."""
    absent = [name for name in ADAPTER_FILES if not (Path(text) / name).is_file()]
    if absent and not adapters_in(Path(text)):
        raise argparse.ArgumentTypeError(
            f"'{text}': no {absent[0]} there; expected a folder that train.py sft or peft wrote"
        )
    return Path(text)


def adapter_digest(folder: Path | None) -> str | None:
    """A digest of what decides the replies of an adapter, or of several."""
    if not folder:
        return None
    found = [files_digest(one, ADAPTER_FILES, 16) for one in adapters_in(folder)]
    return found[0] if len(found) == 1 else digest_of(found, 16)


def number_or_all(text: str) -> int | str:
    """An argparse type: a number of at least 0, or the word all."""
    return text if text == "all" else number(0)(text)


def numbers(text: str) -> str:
    """An argparse type: numbers of at least 0 between commas, each once."""
    found = [str(number(0)(piece)) for piece in text.split(",")]
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"'{text}': expected numbers, each once")
    return ",".join(found)


number, real = cli.at_least, partial(cli.at_least, kind=float)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The settings of one run; before `runs` has parted them, of all runs of a command.

    mode, solver, split: one name each; before that, names between commas.
    The order of the rows is that of the pieces of a run's name.
    """

    # fmt: off
    mode: str = row("what to run", f"how past logs come back, a comma list runs several: {', '.join(MODES)}", names(MODES, "mode"), "MODE", DEFAULT_MODE, short="-m", identity=True, compared=False, everyday=True)
    dataset: str = row("what to run", f"data set: {', '.join(TASKS)}, or one of your own (dataset.py --like)", data_set, "NAME", REQUIRED, short="-d", identity=True, compared=False, everyday=True)
    partition: int | None = row("what to run", "which share of the questions, from 0", number(0), "I", short="-p", usual="what Slurm, srun or torchrun say, else 0", settled=lambda c: 0, recorded=False, everyday=True)
    num_partitions: int | None = row("what to run", "how many shares there are, one process each", number(1), "N", usual="what they say, else 1", settled=lambda c: 1, everyday=True)
    split: str | None = row("what to run", "train (seen), test (unseen) or train,test", str, "SPLIT", usual="what the last line of agentic.py says", identity=True, compared=False, everyday=True)
    data: Path = row("what to run", "folder of all data sets", Path, "DIR", Path("data"))

    model: str = row("the model", "model folder or hub name", str, "NAME", usual="the data set's", settled=lambda c: c.task.model, identity=True, everyday=True)
    gguf: str | None = row("the model", "which GGUF file of the model's folder or repository; a --model that ends in .gguf names one itself", str, "NAME", unread=by_process, identity=True)
    adapter: Path | None = row("the model", "folder of an adapter that train.py sft made of the model; of several in it, each question gets one that was not trained on it", adapter_folder, "DIR", unread=by_process, named="adapter-{:.8}", stands_for=adapter_digest, everyday=True)
    embedder: str = row("the model", "sentence-transformers folder or hub name", str, "NAME", usual="the data set's", settled=lambda c: c.task.embedder, everyday=True)
    dtype: str = row("the model", "auto is the checkpoint's own on a GPU and float32 on a CPU", choices=("auto", "float32", "bfloat16", "float16"), default="auto", unread=by_process)
    device: str = row("the model", "auto, cpu, cuda, cuda:1 ..., or map to spread one model over all GPUs", str, "NAME", "auto")
    trust_remote_code: bool = row("the model", "let a hub model run code of its own")
    batch_size: int = row("the model", "how many questions, or texts, are worked on at once", number(1), "N", 8, everyday=True)
    draft: str = row("the model", "what replies are guessed from, to be checked several tokens at a time, which changes none: logs (their full traces, earlier replies and the prompt), the prompt, or off", choices=("logs", "prompt", "off"), default="logs", unread=by_process)

    provider: str = row("a server", "a model in this process, any OpenAI-compatible server, or vLLM with KV of logs (serve.py --vllm-config)", choices=tuple(PROVIDERS), default=DEFAULT_PROVIDER, named="{}")
    base_url: str | None = row("a server", "where the server's API begins; a key is read from OPENAI_API_KEY alone", str, "URL", usual="the environment's OPENAI_BASE_URL", unread=by_server)
    timeout: float = row("a server", "seconds that the server has for a reply", real(0.01), "S", 120.0, unread=by_server)
    tokenizer: str | None = row("a server", "the served model's tokenizer, folder or hub name: lets prompts be counted and shortened before they are sent", str, "NAME", usual="with vllm --model", unread=by_server)

    solver: str = row("the loop", f"how a question is answered, a comma list runs several: {', '.join(SOLVERS)}", names(SOLVERS, "solver"), "NAME", DEFAULT_SOLVER, named="{}")
    retriever: str = row("the loop", "how documents are found; logs are always found by the embedder", choices=tuple(RETRIEVERS), default=DEFAULT_RETRIEVER, named="{}", unread=by_found_documents)
    retriever_url: str | None = row("the loop", "server of --retriever http", str, "URL", usual="the environment's RETRIEVER_URL", unread=by_http)
    num_docs: int = row("the loop", "documents that each query adds", number(0), "N", usual="rag 4, exsearch 5, else the data set's: QA 2", settled=lambda c: c.limits["num_docs"], named="d{}", unread=by_search, everyday=True)
    max_steps: int = row("the loop", "calls per question", number(1), "N", usual="exsearch 8, else the data set's: QA 8, multiple choice 3", settled=lambda c: c.limits["max_steps"], named="s{}", unread=by_several_steps, everyday=True)
    select_docs: bool = row("the loop", "the model chooses which documents of a search it reads, one call more per search", named="select-docs", unread=by_recording)
    max_new_tokens: int = row("the loop", "longest reply in tokens", number(1), "N", 1024, identity=True)
    temperature: float = row("the loop", "0 takes the likeliest token", real(0), "T", 0.0, named="temperature{}")
    samples: int = row("the loop", "rows per question, each drawn anew at --temperature", number(1), "K", 1, named="samples{}")
    seed: int = row("the loop", "seed of everything that is drawn", int, "N", 1234, named="seed{}", compared=False)
    trace_steps: int = row("the loop", "show the last N queries and replies of the question in its prompt", number(0), "N", usual="the data set's: miniwiki 8, else 0", settled=lambda c: c.limits["trace_steps"], named="earlier{}", unread=by_showing_steps)
    trace_tokens: int = row("the loop", "at most so many tokens of them, whole steps only; 0: what fits", number(0), "N", 0, named="earlier-tokens{}", unread=by_shown_steps)
    format_retries: int = row("the loop", "ask again, with a reminder of the format, up to N times where a reply holds no answer and no query", number(0), "N", 0, named="retries{}")
    answer_fallback: bool = row("the loop", "take 'The answer is: X' as an answer where a reply holds no tag; the summary says how often", named="answer-fallback")
    stop_repeats: bool = row("the loop", "end a question, unanswered, whose reply is the one before again", named="stop-repeats", unread=by_greedy)
    prefill: str = row("the loop", "what begins a reply stands in the model's turn, or at the end of the user's; auto asks a server which it can do", choices=("turn", "folded", "auto"), usual="turn, with openai folded", settled=lambda c: c.plays.prefills[0], named="{}")

    layout: str = row("the logs", "where logs stand: before the chat, after its system block, or, text only, in the user's turn", choices=("paper", "system-first", "user"), usual="paper, with openai user", settled=lambda c: c.plays.layouts[0], named="{}", compared=False)
    num_logs: int | str = row("the logs", "logs that each query adds; all: every log that fits into half of a prompt, or into --log-tokens, the oldest first", number_or_all, "N", usual="the data set's: 3", settled=lambda c: c.task.num_logs, of="logs", named="l{}", everyday=True)
    log_order: str = row("the logs", "order of the logs in the prompt", choices=("similar-last", "similar-first", "entered"), default="similar-last", unread=by_retrieved_logs, of="logs", named="{}")
    log_limit: int = row("the logs", "use only the first N logs of the store, with --grow hold at most N; 0 means all", number(0), "N", 0, of="logs", named="first{}")
    log_tokens: int = row("the logs", "at most so many tokens of logs in a prompt; 0: what fits", number(0), "N", 0, of="logs", named="tokens{}")
    min_similarity: float = row("the logs", "below this cosine no log enters; -1: all do", real(-1, most=1), "X", -1.0, unread=by_retrieved_logs, of="logs", named="min{}")
    log_control: str = row("the logs", "logs drawn at random, those of another question, or (KV) encoded after another log's hidden text", choices=CONTROLS, default="none", of="logs", named="{}")
    sheet: str = row("the logs", "cheatsheet: written anew per question, or living on from one to the next", choices=("fresh", "carried"), default="fresh", unread=by_playbook, of="logs", named="{}")
    exclude_self: bool = row("the logs", "a question may not retrieve its own log", of="logs", named="exclude-self")
    log_store: Path | None = row("the logs", "predictions file whose traces are the logs", Path, "FILE", usual="preds/log.json", of="logs", named="from-{}", stands_for=lambda path: path.stem, identity=False)

    grow: bool | str = row("the logs", "each finished trace becomes a log: questions come as a stream, through the splits in the order given, and begin with no log, or with those of --log-store", of="logs", identity=True)
    grow_every: int = row("the logs", "new logs can be retrieved after every N questions", number(1), "N", 16, unread=by_growing, of="logs", named="grow{}", spelled=lambda c: c.grow)
    order_seed: str = row("the logs", "seed of the order of a split's questions, a comma list runs several; 0 is the file's order", numbers, "N[,N]", "1", unread=by_growing, of="logs", named="o{}", spelled=lambda c: c.grow)
    keep: str = row("the logs", "which traces become logs: all, those that end answered, or those that no log is like", choices=KEEP, default="all", unread=by_growing, of="logs", named="{}")
    novel_below: float = row("the logs", "--keep novel: a trace becomes a log if its cosine to every log is below this", real(-1, most=1), "X", 0.95, unread=by_novel, of="logs", named="below{}")
    evict: str = row("the logs", "which log goes where --log-limit is reached: the oldest, the one that entered the fewest questions, or the one most like the new one", choices=EVICT, default=EVICT[0], unread=by_full, of="logs", named="{}")

    kv_dtype: str = row("keys and values", "how stored KV keeps its numbers: auto as the model has them, or in fewer bits (see store_log_kv.py --compare)", choices=KV_DTYPES, default="auto", of="kv", named="{}")
    sink: int = row("keys and values", "encode every log behind the first N tokens of a chat, which stand once in front of a prompt's logs", number(0), "N", 0, unread=by_process, of="kv", named="sink{}")
    recompute: int = row("keys and values", "compute the first K tokens of every log again where it stands, seeing all that stands before", number(0), "K", 0, unread=by_process, of="kv", named="recompute{}")
    kv: str = row("keys and values", "a log's KV is kept in a file and read again, or encoded by every run and not stored", choices=("store", "encode"), default="store", unread=by_process, of="kv")
    kv_memory: int = row("keys and values", "how much KV is held in memory for logs that come again, such as 500MB or 8GiB; the longest unused goes first", cli.size, "SIZE", 2 << 30, usual="2GiB", unread=by_process, of="kv")
    kv_disk: int | None = row("keys and values", "how much KV the data set may keep on disk; the longest unused files of other runs go first", cli.size, "SIZE", usual="no bound", of="kv")

    limit: int | None = row("the run", "only the first N questions of the split", number(1), "N", everyday=True)
    ids: str | None = row("the run", "only these questions", str, "ID[,ID]")
    run: str | None = row("the run", "name of the run's folder", plain_name, "NAME", usual="the mode and what differs from the defaults", everyday=True)
    stop_after: int = row("the run", "stop the run after N failures of one kind in a row; 0: never", number(0), "N", 5)
    config: Path | None = row("the run", "JSON file with flags, such as a run.json; the command line wins", Path, "FILE", recorded=False)
    verbose: bool = row("the run", "log prompts and replies too, and show tracebacks", short="-v", recorded=False, everyday=True)
    ablate: str | None = row("the run", "answer again, with that run's settings, what it turned from right to wrong, once without each log that entered", plain_name, "RUN", recorded=False)
    merge: bool = row("merging", "merge the parts of a run into preds.json, and do nothing else", recorded=False, everyday=True)
    as_log: bool = row("merging", "make the merged run the log store, preds/log.json", recorded=False, unread=by_merge, everyday=True)
    pick: str | None = row("merging", "of several samples: best makes one log of each question, the first with its most frequent answer; all makes a log of each", choices=("best", "all"), recorded=False, unread=by_samples)
    export_batches: int | None = row("merging", "also write the finished run as batch files of B questions, as multi-hop toolkits do", number(1), "B", recorded=False, unread=by_merge)
    export_to: Path = row("merging", "folder of these files", Path, "DIR", Path("preds"), recorded=False)
    # fmt: on

    @property
    def task(self) -> Task:
        """Raises ValueError: there is no such data set."""
        return task_of(Paths(self.data, self.dataset))

    @property
    def plays(self) -> Provider:
        return PROVIDERS[self.provider]

    @property
    def limits(self) -> dict[str, int]:
        return limits(SOLVERS[self.solver], self.task)

    @property
    def scope(self) -> dict[str, Any]:
        """Which questions of the split are asked for."""
        return {"limit": self.limit, "ids": self.ids}

    def default(self, name: str) -> Any:
        """What a setting is in this run if nobody gives it."""
        settled = FLAGS[name].settled
        return settled(self) if settled else DEFAULTS[name]

    def filled(self) -> "RunConfig":
        """The same with the defaults that solver, data set and provider give."""
        unset = [
            name for name, flag in FLAGS.items() if flag.settled and getattr(self, name) is None
        ]
        return replace(self, **{name: self.default(name) for name in unset})

    def settled(self) -> "RunConfig":
        """Filled, and what could change a row but is not read here is at its default."""
        config = self.filled()
        idle = [name for name, flag in FLAGS.items() if flag.identity and flag.unread(config)]
        return replace(config, **{name: config.default(name) for name in idle})

    def parted(self, train: bool = True) -> list["RunConfig"]:
        """One record per order, split, solver and mode; `train` is the split where none is given.

        A mode without logs has one order; a store that grows knows all splits of its stream.
        """
        split = self.split or ("train" if train else "test")
        lists = (self.order_seed, split, self.solver, self.mode)
        names = ("order_seed", "split", "solver", "mode")
        every = itertools.product(*(text.split(",") for text in lists))
        found = [replace(self, grow=self.grow and split, **dict(zip(names, one))) for one in every]
        first = self.order_seed.split(",")[0]
        return [one for one in found if MODES[one.mode].enters or one.order_seed == first]

    def runs(self, train: bool = True) -> list["RunConfig"]:
        """The settings of every run that is asked for."""
        return [config.settled() for config in self.parted(train)]

    @property
    def name(self) -> str:
        """The name given, or the mode and what differs from the defaults: `log_kv_l5`."""
        pieces, mode = [self.mode], MODES[self.mode]
        for name, flag in FLAGS.items():
            value = getattr(self, name)
            differs = value != self.default(name) or flag.spelled(self)
            if flag.named and flag.counts(mode) and differs:
                pieces.append(flag.named.format(flag.told(value)))
        return self.run or "_".join(pieces)

    def identity(self) -> dict[str, Any]:
        """The settings that could change a row of this run."""
        mode = MODES[self.mode]
        names = [name for name, flag in FLAGS.items() if flag.identity and flag.counts(mode)]
        return {name: FLAGS[name].told(getattr(self, name)) for name in names}

    def recorded(self) -> dict[str, Any]:
        """The flags as `--config` reads them; those of one process are left out.

        Of a store that grows they are those of its whole stream.
        """
        stream = {"grow": True, "split": self.grow} if self.grow else {}
        flags = {name: getattr(self, name) for name, flag in FLAGS.items() if flag.recorded}
        flags |= stream
        return {name: str(v) if isinstance(v, Path) else v for name, v in flags.items()}

    def taken_by(self, record: type) -> dict[str, Any]:
        """The settings that another record has fields for."""
        names = FLAGS.keys() & {one.name for one in fields(record)}
        return {name: getattr(self, name) for name in names}

    def typed(self, *names: str) -> str:
        """The named settings as they would be typed, where they are not at their defaults."""
        given = {name: getattr(self, name) for name in names}
        return "".join(
            f" {spelling(name)}" + ("" if value is True else f" {shlex.quote(str(value))}")
            for name, value in given.items()
            if value not in (None, self.default(name))
        )

    def differences(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
        """What differs between an older identity of this run and its own, as `name: old -> new`.

        A flag that the older one does not know was at its default.
        """
        old = {name: self.default(name) for name in self.identity()} | {**old}
        every = [*old, *(name for name in new if name not in old)]
        pairs = [(name, old.get(name), new.get(name)) for name in every]
        return [f"{name}: {before} -> {after}" for name, before, after in pairs if before != after]


def spelling(name: str) -> str:
    return "--" + name.replace("_", "-")


FLAGS: dict[str, Flag] = {one.name: one.metadata["flag"] for one in fields(RunConfig)}
DEFAULTS = {one.name: one.default for one in fields(RunConfig)}
IDENTITY = tuple(name for name, flag in FLAGS.items() if flag.identity)
# What every mode reads and may explain a difference to the baseline.
COMPARED = tuple(name for name in IDENTITY if FLAGS[name].compared and not FLAGS[name].of)


def with_defaults(meta: Mapping[str, Any], data: Path = DEFAULTS["data"]) -> dict[str, Any]:
    """What a run says of itself; a setting that an older toolkit did not know is at its default.

    Runs that others made say what they say.

    data: folder of all data sets.
    """
    said = {name: value for name, value in meta.items() if value is not None}
    if "model_digest" not in said or not find_task(Paths(data, str(said.get("dataset")))):
        return said
    own = [name for name in IDENTITY if not FLAGS[name].stands_for]
    known = {"data": data} | {name: said[name] for name in own if name in said}
    try:
        return RunConfig(**known).settled().identity() | said
    except KeyError:  # a solver, mode or provider that this toolkit does not have
        return said
