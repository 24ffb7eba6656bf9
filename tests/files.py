"""Files of saved models, changed as somebody else might."""

import json
from pathlib import Path
from typing import Any


def change(file: Path, **values: Any) -> None:
    """Set fields of a file of JSON."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
