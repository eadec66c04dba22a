"""`TASKS`: one row per data set. Read a column and see what differs.

A row of `dev.json` keeps the fields of its source; what a run needs of it is a `Question`. Nobody
outside this file asks for a data set's name; who wants to is missing a column. A data set of the
user's own brings its row along, in `task.json`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lag import cli, prompts
from lag.files import read_json
from lag.json_checks import Row, clip, lists_of, mapping, records_of, text_of, texts_of, unique
from lag.metrics import SCORERS
from lag.paths import Paths
from lag.prompts import Prompt
from lag.records import Document, Question

MODEL = "Qwen/Qwen2.5-7B-Instruct"
EMBEDDER = "Snowflake/snowflake-arctic-embed-m-v1.5"
MINIWIKI = "data/miniwiki"  # its models come with it
SPLITS = ("train", "test")
GROUPS = ("type", "hops", "level", "category")
HOPS = re.compile(r"(\d)hop\d?__")  # MuSiQue's ids begin so: 2hop__, 3hop1__
ID_FIELDS = ("id", "_id", "question_id", "Record ID", "qid")


def id_of(row: Row) -> str:
    """The row's own name.

    Raises:
        ValueError: none of the usual fields is there.
    """
    for field in ID_FIELDS:
        if row.get(field) is not None:
            return text_of(row, field)
    raise ValueError(f"has no id; expected one of {', '.join(ID_FIELDS)}; run dataset.py --from")


def groups_of(row: Row) -> dict[str, str]:
    """What scores are broken down by, as far as the row says it."""
    groups = {name: str(row[name]) for name in GROUPS if row.get(name) not in (None, "")}
    if structure := HOPS.match(id_of(row)):
        groups = {"type": structure[0][:-2], "hops": structure[1], **groups}
    elif "hops" not in groups and row.get("question_decomposition"):
        groups["hops"] = str(len(row["question_decomposition"]))
    return groups


def subquestions_of(row: Row) -> tuple[str, ...]:
    """The gold decomposition in words that stand alone: `#1` becomes the first answer."""
    parts = records_of(row, "question_decomposition")
    answers = [str(part.get("answer", "")) for part in parts]

    def answer(mark: re.Match[str]) -> str:
        step = int(mark[1]) if len(mark[1]) < 3 else 0
        return answers[step - 1] if 0 < step <= len(answers) else mark[0]

    questions = [re.sub(r"#(\d+)", answer, text_of(part, "question")) for part in parts]
    triples = [" | ".join(map(str, triple)) for triple in lists_of(row, "evidences", 3)]
    return unique([*questions, *triples])


def evidence_of(row: Row) -> tuple[str, ...]:
    """Ids of the supporting documents; their titles where the ids are not known."""
    if "supporting_ids" in row:
        return texts_of(row, "supporting_ids")
    parts = records_of(row, "question_decomposition")
    ids = [text_of(part, "document_id") for part in parts if "document_id" in part]
    titles = [str(fact[0]) for fact in lists_of(row, "supporting_facts", 1)]
    return unique(ids or titles)


def load_qa(row: Row) -> Question:
    """A row whose answer is a short text.

    Raises:
        ValueError: a field is missing or of another kind; names it.
    """
    return Question(
        id=id_of(row),
        text=text_of(row, "question"),
        answers=unique([text_of(row, "answer"), *filter(None, texts_of(row, "answer_aliases"))]),
        supporting_ids=evidence_of(row),
        groups=groups_of(row),
        subquestions=subquestions_of(row),
        paragraphs=texts_of(row, "paragraph_ids"),
    )


def options_of(row: Row) -> tuple[str, ...]:
    """The options of a multiple-choice row, whatever the field is called.

    Raises:
        ValueError: fewer than two, or more than there are letters.
    """
    field = "choices" if "choices" in row else "options"
    options = texts_of(row, field)
    if not 2 <= len(options) <= 26:
        raise ValueError(f"field '{field}' holds {len(options)} options; expected 2 to 26")
    return options


def gold_index(row: Row, options: Sequence[str], gold: str) -> int:
    """Which option is right.

    gold: what `answer` holds first of all, `letter` or `text`; "A" can be an option's text too.

    Raises:
        ValueError: the answer names no option, or `answer_index` names another one.
    """
    answer = text_of(row, "answer").strip()
    texts = [option.strip() for option in options]
    letters = [prompts.letter(n) for n in range(len(options))]
    named = [names for names in (letters, texts) if answer in names]
    if not named:
        raise ValueError("field 'answer' names none of the options; expected a letter or a text")
    names, stated = named[0 if gold == "letter" else -1], row.get("answer_index")
    if stated is None:
        return names.index(answer)
    if type(stated) is not int or not 0 <= stated < len(options) or names[stated] != answer:
        raise ValueError(f"field 'answer_index' holds {clip(stated)}; 'answer' says otherwise")
    return stated


def load_choice(gold: str, row: Row) -> Question:
    """A row whose answer is an option: `letter` or `text` says how it is given."""
    options = options_of(row)
    index = gold_index(row, options, gold)
    return Question(
        id=id_of(row),
        text=text_of(row, "question"),
        answers=(prompts.letter(index), options[index]),
        options=options,
        groups=groups_of(row),
        subquestions=subquestions_of(row),
    )


def qa(question: Question, documents: Sequence[Document] | None, previous: str) -> Prompt:
    if documents is None:
        return prompts.direct_prompt(question.text)
    return prompts.qa_prompt(question.text, documents)


def choice(question: Question, documents: Sequence[Document] | None, previous: str) -> Prompt:
    return prompts.choice_prompt(question.text, question.options, previous)


@dataclass(frozen=True, slots=True)
class Task:
    """One data set: how its rows are read, asked and scored, and its default limits.

    load: a row of `dev.json` -> Question.
    prompt: question, documents so far (None: closed book), previous reply -> Prompt.
    num_docs, num_logs: how many enter with each query.
    carries_reply: whether a step sees the reply before it.
    trace_steps: how many earlier steps a step sees, unless `--trace-steps` says so.
    gated: its authors ask that examples are not shown in plain text.
    like: of a user's own the row of `TASKS` whose rows and prompts it has, else "".
    """

    name: str
    load: Callable[[Row], Question]
    prompt: Callable[[Question, Sequence[Document] | None, str], Prompt]
    query_tag: str
    scorer: str
    max_steps: int
    num_docs: int
    num_logs: int = 3
    carries_reply: bool = False
    trace_steps: int = 0
    gated: bool = False
    model: str = MODEL
    embedder: str = EMBEDDER
    like: str = ""


LETTER, TEXT = partial(load_choice, "letter"), partial(load_choice, "text")


# fmt: off
TASKS = {task.name: task for task in (
    Task("musique",  load_qa, qa,     "keywords",    "musique",  max_steps=8, num_docs=2),
    Task("wikihop",  load_qa, qa,     "keywords",    "2wiki",    max_steps=8, num_docs=2),
    Task("hotpotqa", load_qa, qa,     "keywords",    "hotpotqa", max_steps=8, num_docs=2),
    Task("miniwiki", load_qa, qa,     "keywords",    "hotpotqa", max_steps=8, num_docs=2, trace_steps=8, model=f"{MINIWIKI}/model", embedder=f"{MINIWIKI}/embedder"),
    Task("gpqa",     TEXT,    choice, "subquestion", "choice",   max_steps=3, num_docs=0, carries_reply=True, gated=True),
    Task("strategyqa",    TEXT, choice, "subquestion", "choice", max_steps=3, num_docs=0, carries_reply=True),
    Task("commonsenseqa", TEXT, choice, "subquestion", "choice", max_steps=3, num_docs=0, carries_reply=True),
    Task("truthfulqa",    TEXT, choice, "subquestion", "choice", max_steps=3, num_docs=0, carries_reply=True),
    Task("mmlupro",  LETTER,  choice, "subquestion", "choice",   max_steps=3, num_docs=0, carries_reply=True),
)}
# fmt: on


# --- data sets of the user's own ------------------------------------------------------------------
NAME = re.compile(r"\w[\w.-]{0,99}")  # becomes a folder's, and stands in commands unquoted


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 1000


def is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


# The fields of task.json: what each may hold, and how that is said. Lists, as a value may be one.
OWN: dict[str, tuple[Callable[[Any], bool], str]] = {
    "like": (lambda value: value in [*TASKS], f"one of {', '.join(TASKS)}"),
    "scorer": (lambda value: value in [*SCORERS], f"one of {', '.join(SCORERS)}"),
    "max_steps": (lambda value: is_count(value) and value > 0, "a number from 1 to 1000"),
    "num_docs": (is_count, "a number from 0 to 1000"),
    "num_logs": (is_count, "a number from 0 to 1000"),
    "gated": (lambda value: isinstance(value, bool), "true or false"),
    "model": (is_name, "a folder or a hub name"),
    "embedder": (is_name, "a folder or a hub name"),
}


def own_row(task: Task) -> Row:
    """What task.json says of a data set."""
    return {field: getattr(task, field) for field in OWN}


def read_own(paths: Paths) -> Task:
    """The data set that a task.json tells of; what it leaves out is as in the row that it is like.

    Raises:
        ValueError: names the file, the field, what it holds and what was expected.
    """
    row = read_json(paths.task)
    if not isinstance(row, dict) or "like" not in row:
        found = f"holds {clip(row)}" if not isinstance(row, dict) else "has no field 'like'"
        raise ValueError(
            f'{paths.task} {found}; expected {{"like": one of {", ".join(TASKS)}, ..}}'
        )
    for field, value in row.items():
        if field not in OWN:
            raise ValueError(f"{paths.task}: {cli.unknown(clip(field), OWN, 'field')}")
        fits, expected = OWN[field]
        if not fits(value):
            raise ValueError(refusal(paths, field, value, expected))
    like = TASKS[row["like"]]
    task = replace(like, name=paths.dataset, **row)
    if (task.scorer == "choice") != (like.scorer == "choice"):
        others = "choice" if like.scorer == "choice" else "another than choice"
        raise ValueError(refusal(paths, "scorer", task.scorer, f"{others}, as {like.name} has"))
    if task.num_docs and not like.num_docs:
        none = f"0: {like.name}, which it is like, shows no documents"
        raise ValueError(refusal(paths, "num_docs", task.num_docs, none))
    return task


def refusal(paths: Paths, field: str, value: Any, expected: str) -> str:
    return f"{paths.task}: field '{field}' holds {clip(value)}; expected {expected}"


def find_task(paths: Paths) -> Task | None:
    """The row of a data set, in the table or in its own task.json; None if there is neither.

    Raises:
        ValueError: its task.json is wrong, or has the name of a row of the table.
    """
    if not NAME.fullmatch(paths.dataset) or not paths.task.is_file():
        return TASKS.get(paths.dataset)
    if paths.dataset in TASKS:
        raise ValueError(
            f"{paths.task}: {paths.dataset} is a data set of the toolkit; give yours another name"
        )
    return read_own(paths)


def names_below(root: Path) -> list[str]:
    """Every data set that can be named: the table's, and those with a task.json below a folder."""
    own = (path.parent.name for path in Path(root).glob("*/task.json"))
    return [*TASKS, *sorted(name for name in own if NAME.fullmatch(name) and name not in TASKS)]


def task_of(paths: Paths) -> Task:
    """The row of a data set.

    Raises:
        ValueError: there is none, with all that there are and how one is made; or as `find_task`.
    """
    if task := find_task(paths):
        return task
    raise ValueError(
        f"{cli.unknown(paths.dataset, names_below(paths.root), 'data set')}; one of your own is made "
        f"by: python dataset.py {paths.flags} --like musique --from FILE"
    )


# --- data files -----------------------------------------------------------------------------------
def load_rows(path: Path, rows: Any, task: Task) -> list[Question]:
    """Questions of a list of rows.

    Raises:
        ValueError: names the file, the row (from 1) and the field; also for an id that repeats.
    """
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} holds {clip(rows)}; expected a list of objects")
    questions, seen = [], {}
    for number, row in enumerate(rows, 1):
        try:
            question = task.load(row)
        except ValueError as error:
            raise ValueError(f"{path} row {number}: {error}") from error
        if (first := seen.setdefault(question.id, number)) != number:
            raise ValueError(
                f"{path} row {number}: id '{question.id}' is row {first}'s; ids differ"
            )
        questions.append(question)
    return questions


def read_questions(paths: Paths, task: Task, split: str = "") -> list[Question]:
    """The questions of a split in file order.

    split: `train`, `test`, `train,test`, or "" for all of `dev.json`.

    Raises:
        FileNotFoundError: tells the command that makes the file.
        ValueError: an unknown split or a wrong row.
    """
    names = split.split(",") if split else [""]
    unknown = [name for name in names if split and name not in SPLITS]
    if unknown:
        raise ValueError(f"split '{split}' is unknown; expected train, test or train,test")
    advice = f"run: python dataset.py {paths.flags}{' --from FILE' * bool(task.like)}"
    files = [paths.questions(name) for name in names]
    return [q for path in files for q in load_rows(path, read_json(path, advice), task)]


def read_documents(paths: Paths) -> dict[str, Document]:
    """The corpus by document id, in file order.

    Raises:
        FileNotFoundError: the data set has no corpus; tells the command that makes one.
        ValueError: names the file, the document and the field.
    """
    advice = f"run: python dataset.py {paths.flags} --from FILE --docs FILE"
    rows = read_json(paths.docs, advice)
    if not isinstance(rows, dict):
        raise ValueError(f"{paths.docs} holds {clip(rows)}; expected {{id: {{title, content}}}}")
    documents = {}
    for id, row in rows.items():
        for field in ("title", "content"):
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                raise ValueError(f"{paths.docs} document '{id}': field '{field}' is not a text")
        documents[id] = Document(id, row["title"], row["content"])
    return documents


def kept_documents(folder: Path) -> dict[str, Document]:
    """What a run kept of the documents that a server found and the corpus lacks."""
    return {
        id: Document(id, str(row.get("title")), str(row.get("content")))
        for path in folder.glob("documents-*.json")
        for id, row in mapping(read_json(path)).items()
    }
