"""Serve the retrieval index of a data set over HTTP, so that many workers share one; or print what
starts vLLM with the KV of a data set's logs.

python serve.py -d wikihop                                  # the vectors that embed.py made
python serve.py -d wikihop --retriever bm25 --port 9000     # words only, no model
python agentic.py -d wikihop -m base --retriever http --retriever-url http://127.0.0.1:8000

python -m vllm.entrypoints.openai.api_server --model M --dtype float32 \\
    --kv-transfer-config "$(python serve.py --vllm-config -d wikihop --model M --dtype float32)"
python agentic.py -d wikihop -m log_kv --provider vllm --base-url http://127.0.0.1:8000/v1 --model M

vLLM is started in this folder, with the python of an environment of its own that has xxhash too.

GET /api/search?query=WORDS&k=3                {"topk": [{"text": "Title | body", ..}]}
POST /retrieve {"queries": [..], "topk": 3}    {"result": [[{"document": {..}, "score": ..}]]}
"""

import argparse
import json
import logging
from collections.abc import Sequence
from typing import Any

from lag import cli
from lag.modes import DEFAULT_MODE, MODES
from lag.paths import Paths
from lag.retrieval.retrievers import DEFAULT_RETRIEVER, LOCAL, RETRIEVERS
from lag.runs.config import FLAGS, spelling
from lag.runs.flags import add_flags
from lag.tasks import read_documents, task_of

logger = logging.getLogger("lag.serve")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    add_flags(parser, "dataset", "data", "embedder", "device", "trust_remote_code")
    parser.add_argument(
        "--retriever",
        choices=LOCAL,
        default=DEFAULT_RETRIEVER,
        help="how documents are found (%(default)s)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 lets other machines ask (%(default)s)",
    )
    parser.add_argument(
        "--port", type=cli.at_least(0), default=8000, help="0 takes a free one (%(default)s)"
    )
    parser.add_argument(
        "--vllm-config",
        action="store_true",
        help="serve nothing; load the model once and print the settings for vLLM's --kv-transfer-config",
    )
    add_flags(parser, "model", "dtype", "kv_memory")
    add_flags(parser, "verbose")
    args = parser.parse_args(argv)
    model = [name for name in ("model", "dtype", "kv_memory") if given(args, name)]
    if model and not args.vllm_config:
        parser.error(f"{spelling(model[0])} goes with --vllm-config: retrieval has no model")
    return args


def given(args: argparse.Namespace, name: str) -> bool:
    return getattr(args, name) != FLAGS[name].default


def vllm_config(args: argparse.Namespace) -> dict[str, Any]:
    """Write what an engine needs beside the KV of a data set, and say how to start it.

    Raises:
        ValueError: the model cannot be loaded, or its keys cannot be moved; names the reason.
    """
    from lag.engine.transfer_config import transfer_config
    from lag.kv_store import serving
    from lag.model.llm import LLM

    paths = Paths(args.data, args.dataset)
    name = args.model or task_of(paths).model
    checkpoint = serving.checkpoint_folder(name)
    llm = LLM.load(name, args.dtype, args.device, args.trust_remote_code, max_new_tokens=1)
    store = llm.open_store(paths.kv, MODES[DEFAULT_MODE])
    serving.save(store, llm.kv.rotator, llm.kv.max_log_tokens, checkpoint)
    logger.info("start vLLM with --model %s --dtype %s", name, store.fingerprint["dtype"])
    return transfer_config(paths.kv, store.fingerprint["digest"], args.kv_memory)


def make_server(args: argparse.Namespace) -> Any:
    """A server that is bound but not yet answering.

    Raises:
        FileNotFoundError, ValueError: the index is not there; tells the command that makes it.
    """
    from lag.retrieval.http_server import Search, SearchServer

    paths = Paths(args.data, args.dataset)
    task = task_of(paths)
    documents = read_documents(paths)

    def embedder() -> Any:
        from lag.retrieval.embedder import Embedder

        device = None if args.device in ("auto", "map") else args.device
        name = args.embedder or task.embedder
        return Embedder.load(name, device, args.trust_remote_code)

    ranking = RETRIEVERS[args.retriever](paths, documents, embedder, "")
    about = {"dataset": args.dataset, "retriever": args.retriever, "documents": len(documents)}
    try:
        return SearchServer(Search(documents, ranking, about), args.host, args.port)
    except (OSError, OverflowError, UnicodeError) as error:  # taken; beyond 65535; no host's name
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"--host {args.host} --port {args.port}: {reason}; give another --port, or 0"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    cli.set_up_logging(args.verbose)
    if args.vllm_config:
        print(json.dumps(vllm_config(args)))
        return 0
    server = make_server(args)
    cli.print_summary({**server.search.about, "url": server.url})
    try:
        server.serve_forever()
    finally:
        server.server_close()
    return 0


if __name__ == "__main__":
    cli.guarded(main, resumes=False)
