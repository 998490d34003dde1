"""Encoding videos on a Ray cluster: actors decode, actors encode, the driver fills the store."""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from topa.errors import ConfigError
from topa.features.decoding import DecodingPool
from topa.features.encoder import load_encoder
from topa.features.extraction import Extraction, entry_of, pending_sources
from topa.features.index import Entry
from topa.features.sources import DecodedVideo, Failure, Sampling, Source
from topa.features.writer import StoreWriter

__all__ = ["extract_with_ray"]

_VIDEOS_PER_BLOCK = 16
_VIDEOS_PER_FORWARD = 4


class _Decoder:
    """Reads videos in a process of its own below the actor, which a bad file cannot end.

    Args:
        sampling: Which frames.
    """

    def __init__(self, sampling: Sampling):
        self._pool = DecodingPool(sampling, workers=1)  # ends with the actor

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, list[bytes]]]:
        """Yield one pickled `DecodedVideo` or `Failure` after the other."""
        pairs = zip(batch["id"], batch["path"], strict=True)
        sources = [Source(str(name), Path(str(path))) for name, path in pairs]
        for found in self._pool.decode(sources):
            yield {"found": [pickle.dumps(found)]}


class _Encoder:
    """Encodes the frames of decoded videos; one for each GPU, or for some cores.

    Args:
        name: Of the encoder.
        device: Where it runs.
    """

    def __init__(self, name: str, device: str):
        self._encoder = load_encoder(name, device=device)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        """Return (entry, features) or a failure for each video, pickled."""
        found: list[DecodedVideo | Failure] = [pickle.loads(data) for data in batch["found"]]
        videos = [item for item in found if isinstance(item, DecodedVideo)]
        images = [image for video in videos for image in video.images]
        features = self._encoder.encode_frames(images)
        rows = iter(features.split([len(video.images) for video in videos]))
        results = [
            item if isinstance(item, Failure) else (entry_of(item), next(rows).numpy())
            for item in found
        ]
        return {"result": [pickle.dumps(result) for result in results]}


def extract_with_ray(
    sources: Sequence[Source],
    encoder: str,
    writer: StoreWriter,
    sampling: Sampling,
    device: str = "cpu",
    *,
    decoders: int | None = None,
    encoders: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Extraction:
    """Do what `extract_videos` does with the actors of a Ray cluster (Ray Data).

    The store is the checkpoint: what is in it is skipped, so a job whose driver died goes on
    where it was. Ray gives the work of an actor that is lost to another. The cluster is the
    one that Ray finds (`RAY_ADDRESS`), else one on this machine; paths must mean the same on
    all of its machines.

    Args:
        sources: The videos; those in the store already are skipped.
        encoder: Name of the encoder, as `load_encoder` takes it.
        writer: Of the store, in this process.
        sampling: Which frames.
        device: Where encoders run; each takes a whole GPU where this is "cuda".
        decoders: Decoding actors of one core; by default all cores that encoders leave.
        encoders: Encoding actors; by default one for each GPU, else one for every two cores.
        progress: Called with the number of videos done and that of all.

    Raises:
        ConfigError: Ray is not installed, or the cluster has too few cores or GPUs.
    """
    try:
        import ray.data  # noqa: F401 - told now rather than after the list has been read
    except ImportError:
        raise ConfigError(
            "Ray is not installed",
            where="--engine ray",
            mend="Install it with: pip install -e '.[scale]'",
        ) from None
    begun = time.monotonic()
    todo, failures = pending_sources(sources, writer)
    result = Extraction(len(sources), skipped=len(sources) - len(todo) - len(failures))
    result.failures = failures
    if todo:
        actors = plan_actors(_connect(), device, decoders, encoders)
        rows = _run_pipeline(todo, encoder, sampling, device, actors)
        given = {source.id: str(source.path) for source in todo}
        for row in rows:
            # It comes twice where an actor was lost after it had handed it over.
            _take(pickle.loads(row["result"]), given, writer, result)
            if progress is not None:
                progress(result.skipped + result.encoded + len(result.failures), len(sources))
    writer.flush()
    result.seconds = time.monotonic() - begun
    return result


@dataclass(frozen=True)
class Actors:
    """How many actors decode and encode, and the cores that each asks for."""

    decoders: int
    encoders: int
    cores: float


def plan_actors(
    resources: Mapping[str, float],
    device: str,
    decoders: int | None = None,
    encoders: int | None = None,
) -> Actors:
    """Return the actors that a cluster can run all at once; none of them would ever wait.

    On a single core the two actors of a job share it.

    Args:
        resources: CPU and GPU of the cluster, as `ray.cluster_resources()` gives them.
        device: As `extract_with_ray`.
        decoders: As `extract_with_ray`.
        encoders: As `extract_with_ray`.

    Raises:
        ConfigError: The cluster has too few cores or GPUs.
    """
    cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if device.startswith("cuda"):
        if not gpus:
            raise ConfigError(
                "the cluster has no GPU", where=f"--device {device}", mend="Use --device cpu."
            )
        encoders = encoders or max(1, min(gpus, cores - 1))
    encoders = encoders or max(1, cores // 2)
    decoders = decoders or max(1, cores - encoders)
    if decoders + encoders > max(cores, 2):
        raise ConfigError(
            f"{decoders} decoding and {encoders} encoding actors of a core each need more"
            f" than the {cores} cores of the cluster",
            where="--engine ray",
            mend=f"Pass --workers {max(1, cores - encoders)}, or none.",
        )
    return Actors(decoders, encoders, 1.0 if decoders + encoders <= cores else 0.5)


def _connect() -> dict[str, float]:
    """Join the cluster that Ray finds, or start one on this machine; return its resources."""
    import ray

    if not ray.is_initialized():
        # Ray would run the actors of its own cluster at the lowest priority: where a machine
        # does anything else, they would hardly begin. The other engine takes no such step back.
        os.environ.setdefault("RAY_worker_niceness", "0")
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    return dict(ray.cluster_resources())


def _run_pipeline(
    sources: Sequence[Source], encoder: str, sampling: Sampling, device: str, actors: Actors
) -> Iterator[dict[str, bytes]]:
    """Yield what `_Encoder` returns for each video, as the cluster gets done with it."""
    import ray
    from ray.data import ActorPoolStrategy

    # The store's own progress is shown instead.
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    items = [{"id": item.id, "path": str(item.path.resolve())} for item in sources]
    rows = (
        ray.data.from_items(items, override_num_blocks=-(-len(items) // _VIDEOS_PER_BLOCK))
        .map_batches(
            _Decoder,
            fn_constructor_args=(sampling,),
            batch_size=_VIDEOS_PER_BLOCK,
            num_cpus=actors.cores,
            compute=ActorPoolStrategy(size=actors.decoders),
        )
        .map_batches(
            _Encoder,
            fn_constructor_args=(encoder, device),
            batch_size=_VIDEOS_PER_FORWARD,
            num_cpus=actors.cores,
            num_gpus=1 if device.startswith("cuda") else None,
            compute=ActorPoolStrategy(size=actors.encoders),
        )
    )
    yield from rows.iter_rows()


def _take(
    found: Failure | tuple[Entry, np.ndarray],
    given: dict[str, str],
    writer: StoreWriter,
    result: Extraction,
) -> None:
    """Put one video into the store, or its failure into the list; the second time do nothing."""
    key = found.id if isinstance(found, Failure) else found[0].id
    source = given.pop(key, None)
    if source is None:
        return
    if isinstance(found, Failure):
        result.failures.append(replace(found, source=source))
        return
    entry, features = found
    writer.add(replace(entry, source=source), torch.from_numpy(features))
    result.encoded += 1
    result.frames += len(features)
