"""The authors' memory.pkl as a memory of topa."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from topa.errors import DataError
from topa.features.memory import Memory
from topa.features.pickles import load_tensors

__all__ = ["read_memory", "write_memory"]

MEMORY_ROWS = 1_000_000  # the authors' code uses no more
_UNIT_TOLERANCE = 1e-3


def read_memory(path: str | Path, width: int) -> Tensor:
    """Return memory.pkl as float32 [n, d].

    Args:
        path: The file.
        width: d, what the projector takes.

    Raises:
        DataError: It is damaged, hostile, or of another width than the projector.
    """
    rows = load_tensors(path)
    if not isinstance(rows, Tensor) or rows.ndim != 2 or rows.shape[1] != width:
        shape = tuple(rows.shape) if isinstance(rows, Tensor) else f"{len(rows)} named tensors"
        raise DataError(
            f"a memory of width {width} is needed, got {shape}",
            where=path,
            mend="Give the memory.pkl of the encoder that the checkpoint was trained with.",
        )
    return rows[:MEMORY_ROWS].float()


def write_memory(rows: Tensor, folder: Path, fingerprint: str, notes: list[str]) -> int:
    """Write rows as a memory of topa and return how many; rows without direction are left out.

    Args:
        rows: [n, d] float32.
        folder: Folder to write.
        fingerprint: Of the encoder; empty if it is not known.
        notes: Is told what was changed.
    """
    norms = rows.norm(dim=-1)
    usable = norms.isfinite() & (norms > 0)
    places = usable.nonzero().flatten().tolist()
    rows, norms = rows[usable], norms[usable]
    if dropped := len(usable) - len(rows):
        notes.append(f"{dropped} rows of the memory are zero or not finite, and left out")
    if bool(((norms - 1).abs() > _UNIT_TOLERANCE).any()):
        rows = rows / norms[:, None]
        notes.append("the rows of the memory were not of unit length, and are now")
    # The authors' file has no captions; what is shown of a row is where it came from.
    Memory(rows, [f"memory.pkl, row {place}" for place in places], fingerprint).save(folder)
    return len(rows)
