"""A `python` for the commands of a shell that need not load the libraries first: a server forks them.

Only the libraries are there before: the repository's own modules are imported anew by each command,
from where the command finds them.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path

LIBRARIES = (
    *("torch", "transformers.modeling_utils", "transformers.models.auto.modeling_auto"),
    *("transformers.models.llama.modeling_llama", "transformers.generation.utils"),
    *("sentence_transformers", "faiss", "safetensors.torch"),
)
CALL = """#!{python} -SEs
import json, os, socket, sys
asked = sys.argv[1:]
if not asked or asked[0].startswith("-") and asked[0] != "-m":
    os.execv({python!r}, [{python!r}, *asked])
with socket.socket(socket.AF_UNIX) as server:
    server.connect("\\0" + {address!r})
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(json.dumps([__file__, asked, os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(16)))
"""


@contextlib.contextmanager
def warm_python(path: Path, *flags: str, **env: str) -> Iterator[Path]:
    """Put such a `python` at `path`, as long as the block lasts; one that is there becomes the server.

    flags, env: of the server, which has what libraries read when they are loaded.
    """
    python = Path(sys.executable)
    if path.exists():
        python = path.rename(path.with_name("cold-python"))
    address = f"warm-{uuid.uuid4().hex}"  # no path: it might be too long
    command = [str(python), *flags, __file__, address]
    with subprocess.Popen(
        command, env=os.environ | env, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout.readline() == "ready\n"
        path.write_text(CALL.format(python=str(python), address=address))
        path.chmod(0o755)
        try:
            yield path
        finally:
            server.kill()


def serve(address: str) -> None:
    """Fork for every command."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collector that looks at them would copy their pages
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{address}")
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if not os.fork():
                break
            connection.close()
    with connection:
        _, ends, *_ = socket.recv_fds(connection, 1, 3)
        with connection.makefile("rb") as sent:
            asked = json.load(sent)
        if command := os.fork():
            _, status = os.waitpid(command, 0)
            connection.sendall(b"%d" % os.waitstatus_to_exitcode(status))
            os._exit(0)
    try:
        become(ends, *asked)
        code = 0
    except SystemExit as end:
        assert end.code is None or isinstance(end.code, int), end.code
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    # to take all libraries down takes as long as to load them
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


def become(
    ends: list[int], python: str, asked: list[str], folder: str, env: dict[str, str]
) -> None:
    for stream, end in enumerate(ends):
        os.dup2(end, stream)
        os.close(end)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(end, mode) for end, mode in enumerate("rww"))
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.executable = python
    if asked[0] == "-m":
        sys.argv, sys.path[0] = asked[1:], folder
        runpy.run_module(asked[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = asked, str(Path(asked[0]).resolve().parent)
        runpy.run_path(asked[0], run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])
