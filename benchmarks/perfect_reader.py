"""How much the embedded worlds leave to gain: the scripted agent, which misreads nothing, in the model's place.

make worlds
python benchmarks/perfect_reader.py data data/worlds/2011 data/worlds/2012

It has the same unseen questions, documents, retrieval, limits and logs: those that the shipped model
left on the train questions, its errors included. Of logs as KV it knows what their words say and
what led to the name that these begin with. Its gain is therefore the most that a model which reads
better could show there, in each mode. Writes perfect_reader.json.
"""

from collections.abc import Mapping
from typing import Any

import measure  # first: it finds the toolkit
from worlds import NAME, SEED, Measured, Pooled, Values, places

from lag import cli
from lag.agent.agent import LoopSettings
from lag.files import write_json
from lag.logs.controls import foreign_context, random_logs, shuffled_logs
from lag.miniwiki.embedder import mean_vector
from lag.miniwiki.gold_agent import RolloutModel, WordRanking
from lag.miniwiki.shipped_models import read
from lag.miniwiki.tokenizer import word_pieces
from lag.tasks import TASKS
from lag.train.examples import Format

MODES = ("base", "log_text", "log_text_all", "log_kv", "log_kv_last_as_context")
CONTROLS = ("random", "shuffled", "wrong-context")  # of log_kv
PAIRS = (
    *((run, "base") for run in ("log_text", "log_text_all", "log_kv")),
    *((f"log_kv_{control}", "base") for control in CONTROLS),
    *(
        ("log_kv", other)
        for other in ("log_kv_wrong-context", "log_kv_last_as_context", "log_text")
    ),
)


def agents(world: Measured) -> tuple[RolloutModel, dict[str, LoopSettings]]:
    """The scripted agent of a world, and its settings by run."""
    weights = read(measure.ROOT / "data" / NAME, "embedder")["embedding.weight"]
    embed = mean_vector(weights, word_pieces())
    model, store = RolloutModel.of(world.world, embed), {log.id: log for log in world.logs}
    ranking = WordRanking(list(store), [log.key for log in store.values()], embed)

    def agent(mode: str) -> LoopSettings:
        settings = model.agent(Format(mode, "paper"), store=store, logs=ranking)
        settings.max_steps = TASKS[NAME].max_steps
        return settings

    found = {mode: agent(mode) for mode in MODES}
    found |= {f"log_kv_{control}": agent("log_kv") for control in CONTROLS}
    found["log_kv_random"].control = random_logs(list(store), SEED)
    questions = list(world.questions.values())
    found["log_kv_shuffled"].control = shuffled_logs(ranking, questions, SEED)
    found["log_kv_wrong-context"].foreign_context = foreign_context(store, SEED)
    return model, found


def answered(world: Measured) -> dict[str, Values]:
    """EM and steps by run and question."""
    model, settings = agents(world)
    found: dict[str, Values] = {run: {} for run in settings}
    for run, agent in settings.items():
        for id, question in world.questions.items():
            trace, _ = model.rollout(question, agent)
            right = trace.pred is not None and trace.pred in question.answers
            found[run][id] = {"em": float(right), "steps": float(len(trace.steps))}
    return found


def gathered(worlds: Mapping[str, Measured]) -> dict[str, Any]:
    """Levels and differences over all worlds, and EM by where what is hard to find stood."""
    pooled = Pooled.of(worlds, answered)
    return {
        "worlds": [*worlds],
        "questions": len(pooled.ids),
        "runs": {
            run: {what: pooled.level(run, what) for what in ("em", "steps")} for run in pooled.runs
        },
        "pairs": {f"{a} - {b}": pooled.change(a, b) for a, b in PAIRS},
        "by_place": pooled.grouped(places(pooled, worlds)),
    }


def main() -> None:
    args = measure.parse_worlds(__doc__, "perfect_reader.json")
    found = [Measured(data) for data in args.data]
    result = gathered({str(world.world.seed): world for world in found})
    for run, row in result["runs"].items():
        print(f"{run:24} EM {100 * row['em']['value']:.1f}, {row['steps']['value']:.2f} steps")
    made = {"benchmark": "perfect_reader", "made_by": measure.made_by()}
    write_json(args.out, {**result, **made})


if __name__ == "__main__":
    cli.guarded(main, resumes=False)
