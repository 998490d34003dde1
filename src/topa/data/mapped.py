"""Features of Tideos as one file that is mapped, not read: processes of a machine share it."""

from __future__ import annotations

from collections.abc import Sequence

from topa.features.encoder import Encoder
from topa.features.store import TideoFeatures, encode_tideos, read_features, write_features
from topa.runs import cache_dir, digest
from topa.tideo.schema import Tideo

_PARTS = ("texts", "text_offsets", "frame_offsets", "frames")


def map_tideos(tideos: Sequence[Tideo], encoder: Encoder) -> TideoFeatures:
    """Return the features of Tideos out of a mapped file of the cache, made if it is not there.

    A step then touches only the rows it needs, and the system may drop the others from memory.

    Raises:
        DataError: There are no Tideos.
    """
    frames = [frame.texts for tideo in tideos for frame in tideo.frames]
    shape = ",".join(str(len(tideo.frames)) for tideo in tideos)
    sizes = ",".join(str(len(texts)) for texts in frames)
    texts = (text for group in frames for text in group)
    key = digest(encoder.fingerprint, shape, sizes, *texts)
    path = cache_dir("features") / f"mapped-{key}.safetensors"
    if not path.is_file():
        made = encode_tideos(tideos, encoder)
        write_features(path, {name: getattr(made, name) for name in _PARTS}, made.fingerprint)
        del made
    parts = read_features(path, encoder.fingerprint)
    return TideoFeatures(**{name: parts[name] for name in _PARTS}, fingerprint=encoder.fingerprint)
