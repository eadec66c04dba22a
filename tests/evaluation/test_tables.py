"""The table of all runs as a file: what programs and papers read is what was found."""

import csv
import html
import io
import itertools
import json
import re

import evaldata
import pytest
from test_evaluate import questions, refused, write_solvers

import evaluate
from lag.evaluation.columns import COLUMNS, TABLES
from lag.evaluation.intervals import ONE_SIDED
from lag.evaluation.tables import FORMATS
from lag.paths import Paths


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """Every solver with and without logs, on ten questions."""
    paths = Paths(tmp_path_factory.mktemp("data"), "wikihop")
    evaldata.write_dataset(paths, evaldata.qa_rows(14), 4, documents=20)
    write_solvers(paths)
    return paths


def table(paths, suffix):
    """The file, and the results as JSON by the run's name."""
    path, out = paths.root / f"table{suffix}", paths.root / "out"
    flags = ["-d", paths.dataset, "--data", paths.root, "--table", path, "--outdir", out]
    assert evaluate.main([*map(str, flags)]) == 0
    results = [json.loads(found.read_text()) for found in out.iterdir()]
    return path.read_text(), {found["meta"]["run"]: found for found in results}


def test_formats_are_those_that_the_command_takes():
    assert tuple(FORMATS) == evaluate.TABLES


def test_programs_read_every_number_as_it_is(solved):
    text, results = table(solved, ".csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["run"] for row in rows][-2:] == ["base_rag", "log_text_rag"] and len(rows) == 8
    for row in rows:
        found = results[row["run"]]
        assert float(row["EM"]) == found["metrics"]["em"]
        assert float(row["answer rate"]) == found["metrics"]["answer_rate"]
        assert float(row["prefilled tokens"]) == found["cost"]["prefilled_tokens"]
        assert float(row["seconds"]) == found["cost"]["seconds"]["all"]
        assert row["solver"] == found["meta"]["solver"] and row["split"] == "test"
    gained = results["log_text_rag"]["comparison"]["differences"]["em"]
    assert float(rows[-1]["EM difference"]) == gained["value"] == 0.5
    assert float(rows[-1]["EM difference low"]) == gained["interval"]["low"]
    assert float(rows[-1]["EM difference high"]) == gained["interval"]["high"]
    assert rows[-1]["steps difference"] == "0.0" and rows[-1]["steps difference low"] == ""
    assert rows[0]["from"] == rows[0]["EM difference"] == ""


def test_people_read_percent_with_intervals(solved):
    text, results = table(solved, ".md")
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1 and len(lines) == 2 + 8
    row = dict(zip(lines[0], lines[-1], strict=True))
    found = results["log_text_rag"]["comparison"]["differences"]["em"]["interval"]
    assert row["EM difference"] == f"+50.0 [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"
    assert (row["run"], row["from"], row["steps"]) == ("log_text_rag", "base_rag", "2.00")
    assert row["prefilled tokens"] == "160"


def test_latex_has_as_many_cells_in_every_row_and_no_bare_specials(solved):
    text, _ = table(solved, ".tex")
    head, *rows = (line for line in text.splitlines() if line.endswith(r"\\"))
    sides = re.search(r"\\begin{tabular}{([lr]+)}", text)[1]
    assert {len(line.split("&")) for line in (head, *rows)} == {len(sides)} and len(rows) == 8
    assert r"log\_text\_rag" in text
    assert not re.search(r"(?<!\\)_", text.split(r"\toprule")[1])


@pytest.mark.parametrize("suffix", evaluate.TABLES)
def test_a_runs_name_breaks_no_table(tmp_path, suffix):
    paths = Paths(tmp_path, "wikihop")
    evaldata.write_dataset(paths, evaldata.qa_rows(4), 1)
    name = "a,b|c&d\\e~f"
    rows = [evaldata.traced(q, "x") for q in questions(paths)]
    evaldata.write_run(paths, "test", name, rows, mode="base")
    text, _ = table(paths, suffix)
    if suffix == ".csv":
        assert next(csv.DictReader(io.StringIO(text)))["run"] == name
    else:
        spelled = {".md": r"a,b\|c&d\e~f", ".tex": r"a,b|c\&d\textbackslash{}e\textasciitilde{}f"}
        assert spelled[suffix] in text


def test_multiple_choice_has_accuracy_only(tmp_path):
    paths = Paths(tmp_path, "mmlupro")
    evaldata.write_dataset(paths, evaldata.choice_rows(12), 4)
    rows = [evaldata.traced(q, q.answers[0]) for q in questions(paths)]
    evaldata.write_run(paths, "test", "base", rows)
    text, _ = table(paths, ".md")
    assert "| accuracy | accuracy difference |" in text and "F1" not in text and "EM" not in text


@pytest.mark.parametrize(
    ("name", "message"), [("t.txt", "ends in .csv, .md, .tex"), ("x.csv", "is a folder")]
)
def test_a_table_that_cannot_be_written_is_refused(tmp_path, name, message):
    (tmp_path / "x.csv").mkdir()
    out = tmp_path / "out"
    said = refused("-d", "wikihop", "--table", tmp_path / name, "--outdir", out)
    assert message in said and not out.exists()


# --- every output -------------------------------------------------------------------------------


def outputs(paths, capsys):
    """What each output shows of the runs on a data set, by its name."""
    report = paths.root / "r.html"
    flags = ["-d", paths.dataset, "--data", paths.root, "--outdir", paths.root / "out"]
    shown = {suffix: table(paths, suffix)[0] for suffix in evaluate.TABLES}
    capsys.readouterr()
    assert evaluate.main([*map(str, [*flags, "--report", report])]) == 0
    shown["terminal"] = capsys.readouterr().out
    shown["report"] = report.read_text().split('id="traces"')[0]
    shown["json"] = "".join(found.read_text() for found in (paths.root / "out").iterdir())
    return {name: html.unescape(text).replace("\\", "") for name, text in shown.items()}


def headings(shown):
    """The headings of every table, by output; of the terminal without those over the runs."""
    corners = [re.escape(kind.corner) for kind in TABLES]
    lines = shown["terminal"].splitlines()
    over = [line for line, rule in itertools.pairwise(lines) if rule.startswith("-----")]
    titles = "|".join(kind.title for kind in TABLES)
    heads = re.findall(rf"<h3>(?:{titles})</h3>.*?<thead>(.*?)</thead>", shown["report"])
    return {
        "csv": next(csv.reader(io.StringIO(shown[".csv"]))),
        "md": shown[".md"].splitlines()[2].strip("| ").split(" | "),
        "tex": next(x for x in shown[".tex"].splitlines() if x.startswith("solver")).split(" & "),
        "terminal": [re.sub(f"^({'|'.join(corners)})", "", line).split("  ") for line in over],
        "report": [re.findall(r"<th[^>]*>(.*?)</th>", head)[1:] for head in heads],
    }


def test_every_output_shows_what_the_table_of_columns_says(solved, capsys):
    """A list of its own, anywhere, and a new metric is more than one row."""
    found = headings(outputs(solved, capsys))
    shown = [c for c in COLUMNS if not c.if_any]  # no run has an adapter; see test_trained_runs
    paper = [c.name for c in shown if "paper" in c.tables.split()]
    ends = ("", " low", " high", " note")
    machine = [c for c in shown if "csv" in c.tables.split()]
    assert found["csv"] == [f"{c.name}{e}" for c in machine for e in ends[: 4 if c.bounded else 1]]
    assert found["md"] == paper and [x.strip(" \\") for x in found["tex"]] == paper
    own = [[c.short or c.name for c in shown if k.name in c.tables.split()] for k in TABLES]
    assert [[x.strip() for x in line if x.strip()] for line in found["terminal"]] == own
    assert found["report"] == own
    assert {t for c in COLUMNS for t in c.tables.split()} == {k.name for k in TABLES} | {
        "paper",
        "csv",
    }


def test_drafts_are_shown_where_a_run_has_any(tmp_path, capsys):
    """Of ten tokens of a reply six were checked and only four asked for one by one."""
    paths = Paths(tmp_path, "wikihop")
    evaldata.write_dataset(paths, evaldata.qa_rows(6), 2, documents=8)
    names = ("drafted tokens", "accepted tokens", "tokens per forward")
    for mode, counts in (("base", {}), ("log_kv", dict(drafted_tokens=8, accepted_tokens=6))):
        steps = [evaldata.step("<ans>x</ans>", **counts)] * 2
        rows = [evaldata.traced(q, "x", steps) for q in questions(paths)]
        evaldata.write_run(paths, "test", mode, rows)
    base, drafted = csv.DictReader(io.StringIO(table(paths, ".csv")[0]))
    assert [base[name] for name in names] == ["", "", ""]
    assert [float(drafted[name]) for name in names] == [16, 12, 2.5]
    shown = headings(outputs(paths, capsys))
    assert {"drafted", "accepted", "per forward"} <= {*shown["report"][2]}
    assert "accepted" in shown["terminal"][2] and "accepted" not in shown["md"]


def one_cluster_of(paths, share):
    """Twelve questions, none answered right, of which so many share a sub-question."""
    rows = evaldata.qa_rows(13)
    for n, row in enumerate(rows):
        row["evidences"] = [[f"s{'hared' if 0 < n <= share else n}", "r", "o"]]
    evaldata.write_dataset(paths, rows, 1, documents=14)
    evaldata.write_run(paths, "test", "base", [evaldata.traced(q, "x") for q in questions(paths)])


def test_an_interval_is_withheld_with_its_reason_in_every_output(tmp_path, capsys):
    """The defect: 334 of 700 questions are one cluster, and their EM had an interval."""
    paths = Paths(tmp_path, "wikihop")
    one_cluster_of(paths, 4)
    for name, text in outputs(paths, capsys).items():
        assert "withheld: 33 % of the questions are one cluster" in text, name
    found = json.loads(next((tmp_path / "out").iterdir()).read_text())
    assert found["intervals"]["em"] is None and found["interval_notes"]["em"][0].startswith("with")


@pytest.mark.parametrize("share", [3, 12])
def test_other_intervals_are_not_withheld(tmp_path, capsys, share):
    paths = Paths(tmp_path, "wikihop")
    one_cluster_of(paths, share)
    for name, text in outputs(paths, capsys).items():
        assert "withheld" not in text, name
        assert ("one cluster" in text) == (share == 12), name


def compared_runs(paths, better):
    """base wrong, log_text right where told; no two questions share anything."""
    rows = evaldata.qa_rows(31)
    for n, row in enumerate(rows):
        row["evidences"] = [[f"s{n}", "r", "o"]]
    evaldata.write_dataset(paths, rows, 1, documents=32)
    asked = questions(paths)
    base = [evaldata.traced(q, q.answers[0] if n == 0 else "x") for n, q in enumerate(asked)]
    made = [evaldata.traced(q, q.answers[0] if n in better else "x") for n, q in enumerate(asked)]
    evaldata.write_run(paths, "test", "base", base)
    evaldata.write_run(paths, "test", "log_text", made)


def test_a_bound_of_zero_from_changes_one_way_is_marked_in_every_output(tmp_path, capsys):
    """The defect: +1 -0 of 30 reads [+0.0, ..], as if no harm were possible."""
    paths = Paths(tmp_path, "wikihop")
    compared_runs(paths, {0, 7})
    for name, text in outputs(paths, capsys).items():
        assert ONE_SIDED in text, name
        assert name in (".csv", "json") or "[+0.0*, +10.0]" in text, name


def test_changes_both_ways_are_not_marked(tmp_path, capsys):
    paths = Paths(tmp_path, "wikihop")
    compared_runs(paths, {5, 7})
    for name, text in outputs(paths, capsys).items():
        assert ONE_SIDED not in text and "0.0*" not in text, name


def test_none_of_all_has_its_exact_interval_in_every_output(tmp_path, capsys):
    """26.5 is what tables of Clopper and Pearson say of none of 12."""
    paths = Paths(tmp_path, "wikihop")
    one_cluster_of(paths, 0)
    for name, text in outputs(paths, capsys).items():
        if name not in (".csv", "json"):
            assert "[0.0, 26.5]" in text, name
        assert "exact interval over 12 clusters" in text, name
