import json
from pathlib import Path

from far_cue import Run
from far_cue.run import RESULT


def write_result(run: Run, output: Path, **values: object) -> None:
    """What a run leaves, with these values."""
    run.folder(output).mkdir(parents=True, exist_ok=True)
    result = {"fingerprint": run.fingerprint(), "target_accuracy": 50.0, **values}
    (run.folder(output) / RESULT).write_text(json.dumps(result))
