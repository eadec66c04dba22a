"""The settings that start an engine with log KV: what `--kv-transfer-config` is given."""

from pathlib import Path
from typing import Any

from lag.engine.startup import MEMORY, WAITING


def transfer_config(
    root: Path, fingerprint: str, memory: int = MEMORY, waiting: int = WAITING
) -> dict[str, Any]:
    """
    root: of all models' KV of a data set. fingerprint: digest of the one that is served.
    memory, waiting: bytes of spans that are held, and of loads that wait to be written.
    """
    extra = {"root": str(Path(root).resolve()), "fingerprint": fingerprint}
    return {
        "kv_connector": "LagConnector",
        "kv_connector_module_path": "lag.engine.connector",
        "kv_role": "kv_consumer",
        "kv_load_failure_policy": "fail",
        "kv_connector_extra_config": extra | {"memory": memory, "waiting": waiting},
    }
