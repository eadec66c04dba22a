"""Serve the retrieval index of a data set over HTTP, so that many workers share one.

python serve.py -d wikihop                                  # the vectors that embed.py made
python serve.py -d wikihop --retriever bm25 --port 9000     # words only, no model
python agentic.py -d wikihop -m base --retriever http --retriever-url http://127.0.0.1:8000

GET /api/search?query=WORDS&k=3                {"topk": [{"text": "Title | body", ..}]}
POST /retrieve {"queries": [..], "topk": 3}    {"result": [[{"document": {..}, "score": ..}]]}
"""

import argparse
from collections.abc import Sequence
from typing import Any

from lag import cli
from lag.paths import Paths
from lag.retrieval.retrievers import DEFAULT_RETRIEVER, LOCAL, RETRIEVERS
from lag.runs.flags import add_flags
from lag.tasks import read_documents, task_of


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
    add_flags(parser, "verbose")
    return parser.parse_args(argv)


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
    server = make_server(args)
    cli.print_summary({**server.search.about, "url": server.url})
    try:
        server.serve_forever()
    finally:
        server.server_close()
    return 0


if __name__ == "__main__":
    cli.guarded(main, resumes=False)
