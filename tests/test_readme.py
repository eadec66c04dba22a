"""What the README says is so: every block runs, every table is the result files', nothing is missing.

A block of commands is tagged behind its language. `ci`: run in order in a fresh clone. `long`: as
those, in `make stress`. `network`: run against a hub and a model server on this machine.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import stub_hub
import warm
from stub_endpoint import Stub
from warm_shell import warm_python

import samples
from lag.runs.config import FLAGS, spelling

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "benchmarks/README.md")
TAGS = ("ci", "long", "network")
SHOWN = ("text", "bibtex", "json")  # languages of blocks that are no commands
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
SERVER = "http://localhost:8000/v1"
SERVED = {
    "Qwen/Qwen2.5-7B-Instruct": "model",
    "Snowflake/snowflake-arctic-embed-m-v1.5": "embedder",
}


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: what stands behind its opening marks, its text, its line."""

    info: str
    code: str
    line: int

    @property
    def tag(self) -> str:
        language, *rest = self.info.split() or [""]
        if language in SHOWN and not rest:
            return "shown"
        return rest[0] if language == "bash" and len(rest) == 1 and rest[0] in TAGS else ""


def blocks(text: str) -> list[Block]:
    return [Block(m[1], m[2], text[: m.start()].count("\n") + 1) for m in FENCE.finditer(text)]


def blocks_of(page: str, *tags: str) -> list[Block]:
    found = blocks((ROOT / page).read_text(encoding="utf-8"))
    return [block for block in found if block.tag in tags]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_tagged(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count("\n```") == 2 * len(blocks(text))
    assert not [(page, block.line) for block in blocks(text) if not block.tag]


@pytest.mark.parametrize("info", ["", "bash", "bash soon", "bash ci long", "sh ci", "text ci"])
def test_a_block_without_a_tag_is_noticed(info):
    (block,) = blocks(f"words\n\n```{info}\nls\n```\n")
    assert not block.tag and block.line == 3


def tracked() -> list[Path]:
    """What a fresh clone of the working tree would hold."""
    listing = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git working tree")
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def clone(folder: Path) -> Path:
    """A fresh clone with an environment as `make install` leaves it."""
    for path in tracked():
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    venv.create(folder / ".venv", symlinks=True)
    (packages,) = (folder / ".venv").glob("lib/*/site-packages")
    (packages / "locked.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (folder / ".venv" / ".installed").touch()
    return folder


def execute(folder: Path, page: str, block: Block, **environment: str) -> None:
    """Run a block as a user who has activated the environment does."""
    path = f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        cwd=folder,
        env={**os.environ, **ONE_THREAD, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (
        f"{page}:{block.line}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    )


def test_the_blocks_of_a_fresh_clone_run_in_order(tmp_path):
    """`agentic.py -m log_kv -d miniwiki --split test` failed there: no logs to reuse.

    On some questions of the world only; on all of them, and with a cold Python, in `make stress`.
    """
    folder = clone(tmp_path / "clone")
    with warm_python(folder / ".venv" / "bin" / "python", **ONE_THREAD):
        for page in PAGES:
            assert blocks_of(page, "ci")
            for block in blocks_of(page, "ci"):
                execute(folder, page, block, SAMPLE="40")
    for page in PAGES:
        assert (folder / page).read_bytes() == (ROOT / page).read_bytes(), (
            "tables are not up to date"
        )


@pytest.mark.stress
def test_the_long_blocks_run_in_order(tmp_path):
    folder = clone(tmp_path / "clone")
    for page in PAGES:
        for block in blocks_of(page, "ci", "long"):
            execute(folder, page, block)


def world_rows(count: int) -> Iterator[dict]:
    """Questions of the shipped world, which the shipped model answers soon, as 2WikiMultiHopQA's."""
    data = ROOT / "data" / "miniwiki"
    documents = json.loads((data / "dev_docs.json").read_text())
    for row in json.loads((data / "dev.json").read_text())[:count]:
        titles = [documents[id]["title"] for id in row["paragraph_ids"]]
        support = [documents[id]["title"] for id in row["supporting_ids"]]
        yield {
            "_id": row["id"],
            "question": row["question"],
            "answer": row["answer"],
            "type": "compositional",
            "supporting_facts": {"title": support, "sent_id": [0] * len(support)},
            "context": {
                "title": titles,
                "content": [[documents[id]["content"]] for id in row["paragraph_ids"]],
            },
            "evidences": {"fact": [titles[0]], "relation": ["knows"], "entity": [row["answer"]]},
        }


def fill_hub(folder: Path) -> None:
    """A data set, and the shipped models under the names of the default ones."""
    for name, part in SERVED.items():
        shutil.copytree(ROOT / "data" / "miniwiki" / part, folder / name)
    parquet = folder / "ohjoonhee" / "2WikiMultihopQA" / "data" / "validation-0.parquet"
    samples.write(parquet, list(world_rows(12)))


def test_the_blocks_that_need_a_network_run_against_servers_of_this_machine(tmp_path):
    folder = clone(tmp_path / "clone")
    fill_hub(tmp_path / "hub")
    with stub_hub.serve(tmp_path / "hub") as hub, Stub(lambda body: "<ans>x</ans>") as server:
        online = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_ENDPOINT": hub}
        online |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        with warm_python(folder / ".venv" / "bin" / "python", **ONE_THREAD, **online):
            for block in blocks_of("README.md", "network"):
                here = Block(block.info, block.code.replace(SERVER, server.url), block.line)
                execute(folder, "README.md", here, **online)
        assert server.bodies, "no block asks a model server"


# A path in a sentence or a link, and a flag; what users' own files and others' tools have is none of ours.
NAMED = re.compile(
    r"`((?:lag|benchmarks|tests|samples|examples)/[\w./-]*|[\w-]+\.(?:py|md|toml))`|\]\((?!http)([^)]+)\)"
)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
OWN_FILES = {"report.html", "table.md"}
LINES, WIDTH = 280, 180  # of prose: a table's row is as long as its cells


@pytest.mark.parametrize("page", [*PAGES, "MIGRATING.md", "CHANGELOG.md"])
def test_every_path_that_a_page_names_is_there(page):
    text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    text = text.partition("### Removed")[0] if page == "CHANGELOG.md" else text
    named = {one or other for one, other in NAMED.findall(text)} - OWN_FILES
    places = (ROOT, (ROOT / page).parent)
    assert named and all(any(leads(place, link) for place in places) for link in named), named


def leads(place: Path, link: str) -> bool:
    """Whether a path is there, seen from a folder, and has the heading that stands behind its #."""
    path, _, heading = link.partition("#")
    if not heading:
        return (place / path).exists()
    lines = (
        (place / path).read_text(encoding="utf-8").splitlines() if (place / path).is_file() else ()
    )
    titles = (line.lstrip("# ").lower() for line in lines if line.startswith("#"))
    return heading in {re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles}


def spelled_flags() -> set[str]:
    """Every flag of the scripts, and of the programs that commands in the README call."""
    sources = [
        *ROOT.glob("*.py"),
        *(ROOT / "lag").rglob("*.py"),
        *(ROOT / "benchmarks").glob("*.py"),
    ]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    return {*re.findall(r'"(--[a-z][a-z-]*)"', text), *map(spelling, FLAGS), "--help"}


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LINES
    assert not [line for line in lines if len(line) > WIDTH and not line.startswith("|")]


def test_no_page_names_a_flag_that_is_gone():
    """`--kv auto` and `--concurrency` went; sentences about them stayed for a while."""
    pages = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "MIGRATING.md")]
    before, _, rest = "".join(pages).partition("## For users of the multi-hop toolkits")
    ours = before + "".join(cell for line in rest.splitlines() for cell in line.split("|")[2::2])
    assert {*FLAG.findall(ours)} <= spelled_flags()


def test_the_lines_from_python_are_those_of_the_example():
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## From Python")[2]
    core = next(block for block in blocks(text) if block.tag == "shown")
    example = (ROOT / "examples" / "kv_in_twenty_lines.py").read_text(encoding="utf-8")
    places = [
        re.search(rf"^ +{re.escape(line)}(  # .*)?$", example, re.M)
        for line in core.code.splitlines()
    ]
    assert len(places) == 5 and all(places)
    assert sorted(places, key=lambda found: found.start()) == places


def compare_tables():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import tables

    texts = [path.read_text(encoding="utf-8") for path in tables.FILES]
    filled = [tables.filled(text) for text in texts]
    assert filled == texts, "run: python benchmarks/tables.py --write"
    placed = {place[2] for text in texts for place in tables.PLACE.finditer(text)}
    assert placed == {*tables.TABLES}, placed


def test_every_table_is_what_the_result_files_hold():
    process = warm.start(compare_tables)
    process.join()
    assert process.exitcode == 0
