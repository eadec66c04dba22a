"""The gold replies that the embedded model learns from: what they say, and what they may know."""

import itertools
import random
import re

import pytest
from test_world import read

from lag import prompts
from lag.actions import Answer, Search, parse
from lag.logs import playbook
from lag.miniwiki.curriculum import annealing
from lag.miniwiki.gold_agent import (
    EDITS,
    FORMATS,
    MOST_ON_SHEET,
    NO_FACTS,
    UNKNOWN,
    GoldAgent,
    RolloutModel,
    carried,
    make_examples,
    spoiled,
    stated,
    write_edits,
    write_sheet,
)
from lag.miniwiki.world import NAMES, RELATIONS, Chain, Fact, generate
from lag.modes import BLANK, MODES
from lag.prompts import Note
from lag.records import Document, Log, Question
from lag.step_prompt import Entered
from lag.tasks import load_qa
from lag.train.examples import Format

SENTENCE = re.compile(r"(?:(\w+) alias )?(\w+)'s (\w+) is (\w+)\.")
BESIDE = re.compile(r"(\w+) alias (\w+)")
QUERY = re.compile(r"(?:the (\w+) )?(\w+(?: alias \w+)?)'s (\w+)")


@pytest.fixture(scope="module")
def world():
    return generate(77, articles=400, questions=300)


@pytest.fixture(scope="module")
def examples(world, embed):
    return list(make_examples(world, embed))


@pytest.fixture(scope="module")
def rollouts(world, embed):
    """Of each train question without logs: its trace, and what was asked and said."""
    model = RolloutModel.of(world, embed)
    agent = model.agent(Format("base", "paper"))
    return [model.rollout(question, agent) for question in map(load_qa, world.train)]


def is_curated(example) -> bool:
    return example.prompt.user.startswith((prompts.CURATOR_RULES, playbook.EDITOR_RULES))


# --- formats --------------------------------------------------------------------------------------
def test_formats_cover_every_mode_and_begin_with_base():
    assert {format.mode for format in FORMATS} == {*MODES}
    assert FORMATS[0] == Format("base", "paper", FORMATS[0].share)
    assert len({format.name for format in FORMATS}) == len(FORMATS)
    carried = {format.mode for format in FORMATS if format.carried}
    assert carried >= {name for name, mode in MODES.items() if mode.playbook}


def shares(formats) -> dict[str, float]:
    """By how logs enter: what part of the examples is drawn of these formats."""
    found = dict.fromkeys(("text", "kv"), 0.0)
    for format in formats:
        enters = MODES[format.mode].enters
        if enters in found:
            found[enters] += format.share
    return found


def test_logs_enter_as_text_at_least_as_often_as_as_kv():
    """A model that has seen fewer texts reads them worse, and KV would win for that."""
    found = shares(FORMATS)
    assert found["text"] >= found["kv"] - 1e-9 > 0


def test_the_annealing_keeps_the_balance_of_text_and_kv():
    found = shares(annealing(FORMATS))
    assert found["text"] >= found["kv"] - 1e-9


# --- what a note carries --------------------------------------------------------------------------
HIDDEN = (
    "Bara's mayor's home's river: Bara's mayor is Alan. Coris's rival: Coris's rival is Dalno. "
    "<keywords>Alan's home</keywords>\n\n"
)
KEPT = (
    "Alan's home's river: Alan's home is Elbo. Elbo's river: Elbo's river is Fenca. "
    "<ans>Fenca</ans>\n\n"
)
HOME, RIVER = Fact("home", "Alan", "Elbo"), Fact("river", "Elbo", "Fenca")


def test_kv_carries_the_hidden_fact_that_led_to_the_kept_words():
    note = Note("x", KEPT, HIDDEN, kv=True)
    assert carried(note) == (HOME, RIVER, Fact("mayor", "Bara", "Alan"))


def test_text_carries_what_it_says():
    assert carried(Note("x", KEPT)) == (HOME, RIVER)


def test_kv_carries_nothing_of_a_foreign_context():
    """Else the model would learn to take a stranger's facts, and the control would be trained."""
    foreign = "Ilva's mayor's home: Ilva's mayor is Jasan. <keywords>Jasan's home</keywords>\n\n"
    assert carried(Note("x", KEPT, foreign, kv=True)) == (HOME, RIVER)


def test_a_second_name_of_the_kept_subject_leads_to_what_was_hidden():
    kept = "Alan alias Quinra's home: Alan alias Quinra's home is Elbo. <ans>Elbo</ans>\n\n"
    facts = carried(Note("x", kept, HIDDEN, kv=True))
    assert facts[0] == Fact("name", "Alan", "Quinra", "person")
    assert facts[-1] == Fact("mayor", "Bara", "Alan")


def test_an_answer_alone_carries_the_fact_that_it_was_encoded_after():
    after = "Bara's mayor is Alan. Alan's home is Elbo. "
    assert carried(Note("x", "<ans>Elbo</ans>\n\n", after, kv=True)) == (HOME,)
    assert carried(Note("x", "<ans>Elbo</ans>\n\n")) == ()


def test_an_answer_alone_carries_nothing_of_a_foreign_context():
    after = "Ilva's mayor is Jasan. "
    assert carried(Note("x", "<ans>Elbo</ans>\n\n", after, kv=True)) == ()


def test_a_search_that_failed_carries_nothing():
    after = "Bara's mayor is Alan. Alan's home is unknown. "
    assert carried(Note("x", f"<ans>{UNKNOWN}</ans>\n\n", after, kv=True)) == ()
    kept = f"Alan's home: Alan's home is unknown. <ans>{UNKNOWN}</ans>\n\n"
    assert carried(Note("x", kept)) == ()


# --- replies --------------------------------------------------------------------------------------
def asked(chain: Chain, notes=(), documents=(), layout="paper", steps=()):
    """The real prompt of a step."""
    prompt = prompts.qa_prompt(chain.text, documents)
    prompt = prompts.with_steps(prompt, steps)
    return prompts.with_notes(prompt, notes, layout, prompts.LOGS_HEADER)


def gold_and_article():
    world = generate(3, articles=100, questions=20)
    article = next(a for a in world.articles if {"mayor"} <= {f.noun for f in a.facts})
    fact = next(f for f in article.facts if f.noun == "mayor")
    return GoldAgent(world), Document(article.id, article.title, article.content), fact


def test_hidden_words_are_known_as_kv_only():
    gold, _, _ = gold_and_article()
    chain = Chain("Bara", ("mayor", "home"))
    reply = gold.reply(asked(chain, [Note("x", KEPT, HIDDEN, kv=True)]), chain)
    assert reply == (
        "Bara's mayor's home: Bara's mayor is Alan. Alan's home: Alan's home is Elbo. <ans>Elbo</ans>"
    )
    reply = gold.reply(asked(chain, [Note("x", KEPT)]), chain)
    assert reply == (
        "Bara's mayor's home: Bara's mayor is unknown. <keywords>Bara's mayor</keywords>"
    )


@pytest.mark.parametrize(
    ("layout", "kv", "steps"),
    [
        ("paper", False, ()),
        ("paper", True, ()),
        ("system-first", False, ()),
        ("user", False, ()),
        ("user", False, (("Coris's river", "Coris's river is Ulva."),)),
    ],
)
def test_a_document_is_believed_before_a_log(layout, kv, steps):
    """A log may be wrong; a model that was taught to repeat it could not distrust one."""
    gold, document, fact = gold_and_article()
    chain = Chain(fact.subject, ("mayor",))
    wrong = f"{fact.subject}'s mayor is Zanvin. <ans>Zanvin</ans>\n\n"
    reply = gold.reply(asked(chain, [Note("x", wrong, "", kv)], [document], layout, steps), chain)
    assert reply.endswith(f"<ans>{fact.object}</ans>")


def test_each_line_says_what_is_left_of_the_question():
    """What comes next is copied from there; a log of the same fact goes on otherwise."""
    gold, document, fact = gold_and_article()
    chain = Chain("Ulva", ("rival", "mayor", "home"), "Bara")
    known = [("Ulva's rival", f"Ulva's rival is {fact.subject}.")]
    reply = gold.reply(asked(chain, documents=[document], steps=known), chain)
    home = f"{fact.object}'s home"
    assert reply.startswith(f"{fact.subject}'s mayor's home: {fact.subject}'s mayor is ")
    assert f" {home}: " in reply and reply.endswith(f"{home}</keywords>")
    reply = gold.reply(asked(chain, documents=[document]), chain)
    assert reply.startswith("Ulva alias Bara's rival's mayor's home: Ulva alias Bara's rival is ")


def test_a_search_that_fails_is_worded_again_and_then_given_up():
    """By the steps that a prompt shows, the query that has just failed is the last reply's.

    A wording is asked twice, as the second time it digs deeper; nothing is asked for ever.
    """
    gold, document, _ = gold_and_article()
    chain = Chain("Bara", ("mayor",))
    plain, with_kind = "Bara's mayor", "the city Bara's mayor"
    steps, query = [], chain.text
    for wanted in (plain, plain, with_kind, with_kind):
        reply = gold.reply(asked(chain, documents=[document], steps=steps), chain)
        assert reply == f"Bara's mayor: Bara's mayor is unknown. <keywords>{wanted}</keywords>"
        steps.append((query, reply))
        query = wanted
    reply = gold.reply(asked(chain, documents=[document], steps=steps), chain)
    assert reply == f"Bara's mayor: Bara's mayor is unknown. <ans>{UNKNOWN}</ans>"


def test_other_words_are_the_kind_and_come_before_giving_up(rollouts):
    given_up = 0
    for trace, said in rollouts:
        actions = [parse(reply, "keywords") for _, reply in said]
        queries = [action.query for action in actions if isinstance(action, Search)]
        wordings = [query for query, _ in itertools.groupby(queries)]
        assert len(set(wordings)) == len(wordings), "never back to words that have failed"
        assert max(queries.count(query) for query in wordings or [""]) <= 2
        asked = [QUERY.fullmatch(query).groups() for query in wordings]
        for before, (kind, name, noun) in itertools.pairwise(asked):
            again = before[1:] == (name, noun)
            assert (kind == RELATIONS[noun].subject) if again else not kind
        failed = trace.pred == UNKNOWN
        assert not failed or asked[-1][0]
        given_up += failed
    assert given_up > 10


def test_a_step_says_only_what_is_new(rollouts):
    """Else the last response would hold every fact, and KV behind the others could carry no more."""
    several = 0
    for trace, said in rollouts:
        replies = [{f for f in stated(reply) if f.noun != "name"} for _, reply in said]
        for before, now in itertools.combinations(replies, 2):
            assert not before & now, trace.id
        several += sum(map(bool, replies)) > 1
    assert several > len(rollouts) / 2


def held(example) -> tuple[set[tuple], set[tuple]]:
    """What a prompt says, in words or as KV: facts, and second names with the first ones."""
    user, notes = example.prompt.user, example.prompt.notes
    words = user + "".join(note.keep + note.after for note in notes)
    facts, names = set(), set()
    for second, own, noun, object in SENTENCE.findall(words):
        facts |= {(noun, name, object) for name in (own, second) if name}
    for block in user.split(BLANK):
        title, _, content = block.partition("\n")
        if re.match(r"\[\d+\] ", title):
            told = read(content)
            facts |= {(*key, object) for key, object in told.facts.items()}
            names |= {(second, first) for (_, second), first in told.names.items()}
    return facts, names | set(BESIDE.findall(words))


def test_a_reply_says_only_what_its_prompt_holds(examples):
    """The agent may not know more than its prompt: names that it brings in would be guesses."""
    concluded = 0
    for example in examples:
        if is_curated(example):
            continue
        facts, names = held(example)
        for second, own, noun, object in SENTENCE.findall(example.reply):
            assert not second or (second, own) in names, example
            if object != UNKNOWN:
                assert facts & {(noun, own, object), (noun, second, object)}, example
                concluded += bool(second) and (noun, second, object) not in facts
    assert concluded > 20


def test_a_second_name_is_said_beside_the_first(examples):
    """The model gets from one name to the other in words, and from there to the fact."""
    found = unknown = 0
    for example in examples:
        if is_curated(example):
            continue
        for second, own, noun, object in SENTENCE.findall(example.reply):
            if second and object == UNKNOWN:
                unknown += 1
                action = parse(example.reply, "keywords")
                both = f"{second} alias {own}'s {noun}"
                assert isinstance(action, Answer) or action.query.endswith(both)
            elif second:
                found += 1
    assert min(found, unknown) > 20


def test_an_answer_is_the_object_of_the_last_fact(examples):
    for example in examples:
        action = None if is_curated(example) else parse(example.reply, "keywords")
        if isinstance(action, Answer):
            facts = SENTENCE.findall(example.reply)
            assert not facts or facts[-1][3] == action.text
            assert facts or action.text in (UNKNOWN, *re.findall(r"\w+", example.prompt.user))


# --- logs -----------------------------------------------------------------------------------------
def test_no_log_stands_behind_another_log_s_hidden_text(examples):
    """`wrong-context` must stay untrained, or the control would control nothing.

    Hidden and kept words together are the log's own replies, the same in every mode.
    """
    whole: dict[str, set[str]] = {}
    kept: list[tuple[str, str]] = []
    for example in examples:
        mode = MODES[example.format.mode]
        for note in example.prompt.notes:
            if mode.enters == "sheet":
                continue
            assert note.kv == (mode.enters == "kv")
            assert bool(note.after) <= mode.hides
            if mode.hides or mode.name in ("log_kv_all", "log_text_all"):
                whole.setdefault(note.id, set()).add(note.after + note.keep)
            else:
                kept.append((note.id, note.keep))
    assert len(whole) > 100
    assert all(len(texts) == 1 for texts in whole.values())
    assert all(text.endswith(keep) for id, keep in kept for text in whole.get(id, ()))


def test_a_spoiled_log_differs_in_one_object(rollouts):
    rng, changed = random.Random(1), 0
    for trace, _ in rollouts:
        log = Log.of(trace)
        wrong = spoiled(log, rng, ["Nobody"])
        assert (wrong.id, wrong.question) == (log.id, log.question)
        before = [re.findall(r"\w+|\W", reply) for reply in log.replies]
        after = [re.findall(r"\w+|\W", reply) for reply in wrong.replies]
        words = [
            (a, b) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True)
        ]
        swapped = {pair for pair in words if pair[0] != pair[1]}
        assert len(swapped) <= 1
        facts = [fact for reply in log.replies for fact in stated(reply)]
        if swapped:
            ((right, _),) = swapped
            assert right in {fact.object for fact in facts}
            assert not [1 for a, b in words if a == right == b], "everywhere"
        assert bool(swapped) == bool(facts)
        changed += bool(swapped)
    assert changed > 100


def test_some_logs_are_strange(examples):
    """Without logs that do not fit, the model would never learn that a log can be of no use."""
    notes = [
        n for e in examples if MODES[e.format.mode].enters in ("text", "kv") for n in e.prompt.notes
    ]
    strange = sum(note.similarity == 0.0 for note in notes)
    assert 0.05 < strange / len(notes) < 0.35


# --- sheets ---------------------------------------------------------------------------------------
def sentences(count: int, first: int = 0) -> list[str]:
    return [f"{NAMES[n]}'s home is {NAMES[n + 1]}." for n in range(first, first + count)]


def test_a_sheet_holds_what_replies_state_the_most_related_last():
    pairs = [
        ("a?", " ".join(sentences(2))),
        ("b?", f"{sentences(1)[0]} Bara's home is unknown."),
    ]
    sheet = write_sheet(prompts.curator_prompt("q?", pairs).user)
    assert sheet == " ".join([sentences(2)[1], sentences(1)[0]])
    nothing = [("a?", "Bara's home is unknown. <ans>unknown</ans>")]
    assert write_sheet(prompts.curator_prompt("q?", nothing).user) == NO_FACTS


def test_a_carried_sheet_goes_on_and_loses_the_oldest():
    old, new = sentences(MOST_ON_SHEET), sentences(3, MOST_ON_SHEET - 1)
    sheet = write_sheet(prompts.curator_prompt("q?", [("a?", " ".join(new))], " ".join(old)).user)
    assert sheet == " ".join([*old[:-1], *new][-MOST_ON_SHEET:])


def edits(entries: str, *replies: str) -> str:
    logs = {f"{n}": Log(f"{n}", "a?", (reply,)) for n, reply in enumerate(replies)}
    notes = [Note(id, log.replies[-1] + BLANK) for id, log in logs.items()]
    sheet = f"{playbook.HEADING.format(last=9)}\n{entries}" if entries else ""
    return write_edits(
        playbook.editor(Question("q", "q?"), sheet, logs, 9, Entered([], notes)).user
    )


def test_a_playbook_gets_what_the_most_related_replies_state_and_no_entry_does():
    a, b, c = sentences(3)
    assert edits("", f"{a} {b} {c}") == f"<add>{b}</add><add>{c}</add>"
    assert EDITS == 2
    assert edits(f"[p1] (+1 -0) {c}", f"{a} {c}") == f"<add>{a}</add>"
    assert edits(f"[p1] (+1 -0) {c}", c) == "<keep></keep>"
    assert edits("", "Bara's home is unknown.") == "<keep></keep>"


def test_sheets_that_live_on_are_among_the_examples(examples):
    seen = {(e.format.mode, e.format.carried): [] for e in examples}
    for example in examples:
        seen[example.format.mode, example.format.carried].append(example.prompt.user)
    goes_on = "The cheatsheet so far:\n"
    assert any(goes_on in user for user in seen["log_cheatsheet", True])
    assert not any(goes_on in user for user in seen["log_cheatsheet", False])
    assert any(re.search(r"^\[p\d+\] \(", user, re.M) for user in seen["log_playbook", True])
