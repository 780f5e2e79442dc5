"""A profile's table as files: CSV, JSON, and Parquet where pyarrow is there."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scheduler.profile_row import Row
from scheduler.record import write_whole

if TYPE_CHECKING:
    import pandas as pd

NULLABLE: Mapping[Any, str] = {float | None: "Float64", int | None: "Int64", bool | None: "boolean"}
"""pandas' kinds for what may be missing."""


def frame(rows: Sequence[Row]) -> "pd.DataFrame":
    """One row a cell, each column of one kind whatever is missing; what is unavailable and the notes as text."""
    import pandas as pd

    kinds = {name: field.annotation for name, field in Row.model_fields.items()}
    table = pd.DataFrame([_flat(row) for row in rows], columns=list(kinds))
    return table.astype({name: NULLABLE[kind] for name, kind in kinds.items() if kind in NULLABLE})


def write(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """``profile.csv``, ``profile.json``, ``profile.parquet`` (where pyarrow is installed) in that folder.

    Raises:
        DiskFull, RecordError: they cannot be written.
    """
    paths = [folder / "profile.csv", folder / "profile.json"]
    lines = io.StringIO(newline="")
    table = csv.DictWriter(lines, list(Row.model_fields))
    table.writeheader()
    table.writerows(_flat(row) for row in rows)
    write_whole(paths[0], lines.getvalue().encode())
    write_whole(paths[1], json.dumps([row.model_dump() for row in rows], indent=2).encode() + b"\n")
    if find_spec("pyarrow") is not None:
        paths.append(folder / "profile.parquet")
        write_whole(paths[2], frame(rows).to_parquet(None, engine="pyarrow", index=False))

    return paths


def _flat(row: Row) -> dict[str, Any]:
    told = row.model_dump()
    told["unavailable"] = "; ".join(f"{name}: {why}" for name, why in row.unavailable.items())
    told["notes"] = "; ".join(row.notes)
    return told
