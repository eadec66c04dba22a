"""What is not made yet is told at once, as commands that work when they are pasted."""

import shlex
from pathlib import Path

import pytest
import small
import warm

import agentic
from lag.files import write_json
from lag.paths import Paths

ROOT = Path(__file__).resolve().parents[2]


def hint(argv):
    with pytest.raises(FileNotFoundError) as error:
        agentic.main(argv)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_missing_step_is_named_with_the_flags_that_were_given(tmp_path):
    """Four errors came one after the other, and their commands were about another folder."""
    data = tmp_path / "my data"
    argv = ["-d", "hotpotqa", "-m", "base,log_kv", "--split", "test", "--data", str(data)]
    said = hint([*argv, "--model", "some/model", "--dtype", "float32", "--embedder", "e"])
    folder, quoted = data / "hotpotqa", shlex.quote(str(data))
    files = ["dev_test.json", "dev_train.json", "embeds/doc.npy", "preds/log.json"]
    places = f"-d hotpotqa --data {quoted}"
    model = f"--data {quoted} --model some/model --embedder e --dtype float32"
    base = f"python agentic.py -m base -d hotpotqa --split train {model}"
    steps = [f"python dataset.py {places}", f"python embed.py {places} --embedder e", base]
    steps.append(f"{base} --merge --as-log")
    assert said == (
        f"{', '.join(str(folder / name) for name in files)} not found: no logs to reuse; "
        f"run: {' && '.join(steps)}"
    )


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ("-m base", ["dataset.py", "embed.py"]),
        ("-m base --retriever bm25", ["dataset.py"]),
        ("-m base --solver direct", ["dataset.py"]),
        ("-m base --num-docs 0", ["dataset.py"]),
        ("-m log_text --solver direct", ["dataset.py", "embed.py", "agentic.py", "agentic.py"]),
    ],
)
def test_only_what_the_run_needs_is_asked_for(tmp_path, flags, steps):
    said = hint([*flags.split(), "-d", "musique", "--data", str(tmp_path)])
    commands = said.partition("; run: ")[2].split(" && ")
    assert [command.split()[1] for command in commands] == steps


def test_a_log_store_of_one_s_own_is_not_to_be_made(small_data, embedder_folder):
    flags = [
        "-m",
        "log_text",
        "-d",
        "wikihop",
        "--data",
        str(small_data),
        "--log-store",
        "/no.json",
    ]
    assert "/no.json not found" in hint([*flags, "--embedder", str(embedder_folder)])


def test_the_commands_work_when_they_are_pasted(tmp_path, embedder_folder, tiny_folder):
    """From two files to a run with logs, by the words of the first complaint."""
    data = tmp_path / "data"
    Paths(data, "wikihop").folder.mkdir(parents=True)
    paths = Paths(data, "wikihop")
    write_json(paths.docs, small.documents())
    small.write_split(paths, small.questions(), 10)
    argv = ["-m", "log_text", "-d", "wikihop", "--split", "test", "--data", str(data), "--device",
            "cpu", "--model", str(tiny_folder), "--embedder", str(embedder_folder),
            "--max-new-tokens", "4"]  # fmt: skip
    for pasted in hint(argv).partition("; run: ")[2].split(" && "):
        python, *words = shlex.split(pasted)
        assert python == "python"
        done = warm.run_script(*words)
        assert done.returncode == 0, done.stderr
    assert agentic.main([*argv, "--limit", "1", "--max-steps", "1"]) == 0
