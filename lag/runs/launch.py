"""Several workers that share the questions of some runs: started, followed, restarted, merged.

A worker is the same command that a user would type, in a process of its own that outlives us. What
it does is read from its files only, so that a second launcher goes on where a killed one was.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lag import cli, files
from lag.paths import Paths
from lag.runs.config import RunConfig
from lag.runs.share import array_script, ranges
from lag.runs.tally import ScoredRun, View

TICK = 0.25  # seconds between two looks at the workers
LOOK = 1.0  # seconds between two looks at their files
PATIENCE = 20.0  # seconds that a worker has to end after Ctrl-C
TAIL_LINES, TAIL_CHARACTERS = 10, 1500  # of a log, shown when its worker failed
HELD = "is being written by"  # what a worker says that is not needed
LITERAL = re.compile(r"\bexecute\(.*\btrain=(True|False)\)")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done.

    flags: of agentic.py, as typed.
    devices: what CUDA_VISIBLE_DEVICES is for each worker in turn; none: it stays as it is.
    restarts: how often one share may be begun again after its worker died.
    """

    script: Path
    flags: tuple[str, ...]
    configs: tuple[RunConfig, ...]
    workers: int
    shares: int
    devices: tuple[str, ...] = ()
    restarts: int = 2
    merging: tuple[str, ...] = ()

    @property
    def paths(self) -> Paths:
        return Paths(self.configs[0].data, self.configs[0].dataset)

    @property
    def folder(self) -> Path:
        """Of the logs of the workers."""
        return self.paths.preds / "workers"

    @property
    def name(self) -> str:
        return self.configs[0].name

    def log(self, share: int) -> Path:
        return self.folder / f"{self.name}-{share}-of-{self.shares}.log"

    def logs(self) -> Iterator[tuple[int, int, Path]]:
        """The logs of workers of the same runs: share, of how many, where."""
        for path in self.folder.glob("*.log"):
            if found := re.fullmatch(re.escape(self.name) + r"-(\d+)-of-(\d+)\.log", path.name):
                yield int(found[1]), int(found[2]), path

    def command(self, *more: str) -> list[str]:
        return [sys.executable, str(self.script), *self.flags, *more]

    def environment(self, slot: int) -> dict[str, str]:
        """Of the worker in a slot; without a device of its own it takes its part of the cores."""
        known = dict(os.environ)
        if self.devices:
            return known | {"CUDA_VISIBLE_DEVICES": self.devices[slot % len(self.devices)]}
        threads = max(1, (os.cpu_count() or 1) // self.workers)
        return {"OMP_NUM_THREADS": str(threads)} | known


def is_train(script: Path) -> bool:
    """What the literal in the last call of agentic.py says, which users edit."""
    found = LITERAL.findall(script.read_text(encoding="utf-8"))
    return found[-1:] != ["False"]


def devices_here(config: RunConfig) -> tuple[str, ...]:
    """The GPUs that workers of these flags may take one each of."""
    if config.provider != "hf" or config.device != "auto":
        return ()
    if (told := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(name for name in told.split(",") if name not in ("", "-1"))
    found = (re.fullmatch(r"nvidia(\d+)", path.name) for path in Path("/dev").glob("nvidia*"))
    return tuple(str(n) for n in sorted(int(match[1]) for match in found if match))


# --- workers --------------------------------------------------------------------------------------
@dataclass(slots=True)
class Worker:
    """A process that answers one share; its words go to a log."""

    share: int
    slot: int
    process: subprocess.Popen[bytes]
    log: Path
    offset: int

    @classmethod
    def start(cls, plan: Plan, share: int, slot: int) -> "Worker | None":
        """Start it in a session of its own, so that it outlives us and the terminal.

        It inherits the lock of its log, which is held from now until it ends, while it loads and
        between two runs, too. None: another launcher has just started this share.
        """
        log = plan.log(share)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            if not files.try_lock(file.fileno()):
                return None
            process = subprocess.Popen(
                plan.command("-p", str(share), "--num-partitions", str(plan.shares)),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=plan.environment(slot),
                start_new_session=True,
            )
            return cls(share, slot, process, log, file.tell())

    def said(self) -> str:
        """The end of what this process wrote, bounded."""
        with open(self.log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self.offset, size - TAIL_CHARACTERS))
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join(f"  | {line}" for line in lines[-TAIL_LINES:])


class Launcher:
    """Keeps the workers of a plan going until every share has ended."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.runs = [ScoredRun.of(config, plan.shares) for config in plan.configs]
        self.workers: list[Worker] = []
        self.tries: Counter[int] = Counter()
        self.failed: dict[int, int] = {}
        self.look()
        self.todo = self.open_shares()
        self.waiting: set[int] = set()
        self.view = View(self.runs)

    def look(self) -> None:
        """Read what came since in the files of the runs."""
        for run in self.runs:
            run.scan()
        self.looked = time.monotonic()

    def open_shares(self) -> list[int]:
        """The shares with a question that has no finished row made with these flags."""
        shares = range(self.plan.shares)
        if not all(run.is_same for run in self.runs):
            return [*shares]
        return [share for share in shares if not all(run.is_complete(share) for run in self.runs)]

    def held(self) -> set[int]:
        """The shares that processes of others work on; all, if those were cut otherwise."""
        ours = {worker.share for worker in self.workers}
        holders = [pair for run in self.runs for pair in run.holders().items()]
        started = [(share, of) for share, of, log in self.plan.logs() if files.is_held(log)]
        if any(of not in (0, self.plan.shares) for _, of in [*holders, *started]):
            return set(range(self.plan.shares))
        return {share for share, _ in [*holders, *started]} - ours

    def run(self) -> dict[str, Any]:
        """Work until every share has ended; Ctrl-C ends the workers, too."""
        try:
            while self.todo or self.workers:
                self.collect()
                if time.monotonic() - self.looked >= LOOK:
                    self.look()
                    self.view.show(len(self.workers))
                self.fill()
                time.sleep(TICK)
        except BaseException:
            self.stop()
            raise
        self.look()
        self.view.show(0, last=True)
        return {"workers": self.plan.workers, "partitions": self.plan.shares,
                "restarts": sum(self.tries.values()), "died": sorted(self.failed)}  # fmt: skip

    def fill(self) -> None:
        """Give each free slot the next share that nobody works on."""
        free = sorted(set(range(self.plan.workers)) - {worker.slot for worker in self.workers})
        if not (free and self.todo):
            return
        if not self.waiting or time.monotonic() - self.looked >= LOOK:
            self.look()
        held = self.held()
        for share in sorted(held & set(self.todo) - self.waiting):
            self.view.say(f"partition {share} is at work in another process; waiting for it")
        self.waiting |= held
        if ended := self.waiting - held:  # what others finished need not be started
            left = set(self.open_shares())
            self.todo = [share for share in self.todo if share not in ended or share in left]
            self.waiting -= ended
        ready = [share for share in self.todo if share not in held]
        for slot, share in zip(free, ready, strict=False):
            if worker := Worker.start(self.plan, share, slot):
                self.todo.remove(share)
                self.workers.append(worker)

    def collect(self) -> None:
        """See which workers have ended, and how."""
        for worker in list(self.workers):
            code = worker.process.poll()
            if code is not None:
                self.workers.remove(worker)
                if code not in (0, 1):  # 1: every question has a row, some of them failed
                    self.ended_badly(worker, code)

    def ended_badly(self, worker: Worker, code: int) -> None:
        """Begin its share again if the process died; a refusal would only be repeated."""
        said = worker.said()
        if code == 2 and HELD in said:
            self.todo.append(worker.share)
            return
        again = code not in (2, 130) and self.tries[worker.share] < self.plan.restarts
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        what = "it is started again" if again else "it is given up"
        self.view.say(f"worker {worker.share} {how}; {what}; its log is {worker.log}\n{said}")
        if again:
            self.tries[worker.share] += 1
            self.todo.append(worker.share)
        else:
            self.failed[worker.share] = code

    def stop(self) -> None:
        """Ask every worker to end as Ctrl-C does; who does not is killed. Rows are safe."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            for worker in self.workers:
                with contextlib.suppress(ProcessLookupError):
                    worker.process.send_signal(number)
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline and self.workers:
                self.workers = [w for w in self.workers if w.process.poll() is None]
                time.sleep(0.05)


def merge(plan: Plan) -> tuple[int, dict[str, Any]]:
    """Merge the runs; the exit code and the summary of the command that did."""
    done = subprocess.run(
        plan.command("--merge", *plan.merging), stdout=subprocess.PIPE, text=True, check=False
    )
    lines = done.stdout.splitlines()
    return done.returncode, json.loads(lines[-1]) if lines and not done.returncode else {}


def launch(plan: Plan) -> int:
    """Run the plan, merge what there is, print the summary."""
    files.check_shared(plan.paths.folder)
    launcher = Launcher(plan)
    devices = f" on devices {','.join(plan.devices)}" if plan.devices else ""
    print(
        f"{plan.configs[0].dataset} {', '.join(run.name for run in launcher.runs)}: "
        f"{plan.workers} workers{devices}, {plan.shares} partitions, {len(launcher.todo)} to do; "
        f"their logs: {plan.folder}",
        flush=True,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    summary = launcher.run()
    refused = launcher.failed and not any(run.rows for run in launcher.runs)
    code, merged = (2, {}) if refused else merge(plan)
    cli.print_summary({**summary, "merged": merged})
    incomplete = launcher.view.done < launcher.view.total
    return code or int(bool(launcher.failed) or incomplete)


# --- Slurm ----------------------------------------------------------------------------------------
def write_sbatch(plan: Plan, dry_run: bool) -> int:
    """Write the script of a job array and say how to start it, or only print it.

    Raises:
        ValueError: every share is complete.
    """
    todo, config = Launcher(plan).todo, plan.configs[0]
    if not todo:
        raise ValueError(f"{plan.name}: nothing is left to do; merge with agentic.py --merge")
    options = {
        "job-name": f"lag-{config.dataset}-{plan.name}",
        "array": f"{ranges(todo)}%{plan.workers}",
        "output": f"{plan.folder.absolute()}/{plan.name}-%a.log",
        "open-mode": "append",
    }
    if config.provider == "hf" and config.device != "cpu":
        options["gres"] = "gpu:1"
    script = array_script(options, plan.command("--num-partitions", str(plan.shares)))
    if dry_run:
        print(script, end="")
        return 0
    path = plan.folder / f"{plan.name}.sbatch"
    files.write_text(path, script)
    print(f"sbatch {shlex.quote(str(path))}    # your cluster's options before the file")
    print(f"python launch.py --status {plan.paths.flags}    # how far it is")
    print(f"{shlex.join(plan.command('--merge', *plan.merging))}    # when it is done")
    return 0
