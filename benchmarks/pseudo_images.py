"""Pre-alignment with half of the features as images of the frames would give them: a trial.

At inference a frame reaches the LLM as memory rows that lie near a mixture of ImageNet
classes. Here every training frame is also given that way: its likeliest classes by text
similarity, with noise, mixed by the encoder, projected through the memory of all *other*
Tideos. Each Tideo is trained on in both forms.

    python benchmarks/pseudo_images.py configs/embedded.yaml out=runs/pseudo [key=value ...]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from topa.config import AlignConfig, load_config
from topa.data.dataset import TideoDataset
from topa.features.conse import ConseEncoder, class_texts
from topa.features.encoder import load_encoder
from topa.features.store import TideoFeatures, encode_tideos
from topa.model.language import load_language
from topa.model.words import collect_words
from topa.tideo.textvid import load_tideos
from topa.train.align import build_model, choose_dtype, split_validation
from topa.train.run import open_run
from topa.train.session import train
from topa.train.start import start_words
from topa.train.validation import Validation

SHARPNESS = 30.0  # of the classes: cosines to logits
TEMPERATURE = 100.0  # of the memory


def imagine(features: TideoFeatures, encoder: ConseEncoder) -> Tensor:
    """Return [n, d] what the memory of the other Tideos makes of images of each frame."""
    classes = encoder.encode_text(class_texts()[-1])
    logits = SHARPNESS * features.frames @ classes.T
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    images = encoder.combine(logits + noise)
    counts = features.frame_offsets.diff()
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
    projected = []
    for part, own in zip(images.split(512), owner.split(512), strict=True):
        scores = TEMPERATURE * part @ features.frames.T
        scores[own[:, None] == owner[None, :]] = -torch.inf
        projected.append(functional.normalize(scores.softmax(-1) @ features.frames, dim=-1))
    return torch.cat(projected)


def doubled(features: TideoFeatures, imagined: Tensor) -> TideoFeatures:
    """Return the features of all Tideos, followed by their imagined form (one text a frame)."""
    frames, texts = len(features.frames), len(features.texts)
    return replace(
        features,
        texts=torch.cat([features.texts, imagined]),
        text_offsets=torch.cat([features.text_offsets, texts + torch.arange(1, frames + 1)]),
        frame_offsets=torch.cat([features.frame_offsets, frames + features.frame_offsets[1:]]),
        frames=torch.cat([features.frames, imagined]),
    )


def main() -> None:
    """Train, and print the figures of the validation Tideos (their own text features)."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    config = load_config(AlignConfig, Path(sys.argv[1]), sys.argv[2:])
    open_run(Path(config.out), config)
    encoder = load_encoder(config.model.encoder)
    if not isinstance(encoder, ConseEncoder):
        raise SystemExit("classes are mixed by the embedded encoder only")
    tideos, kept = split_validation(
        load_tideos(config.data.tideos), config.data.validation, config.train.seed
    )
    tideos += [tideo for source in config.data.extra for tideo in load_tideos(source)]
    features = encode_tideos(tideos, encoder)
    imagined = imagine(features, encoder)
    near = (imagined * features.frames).sum(-1).mean()
    print(f"cosine of imagined and text features: {near:.2f}")
    language = load_language(config.model.llm, choose_dtype(config.model.dtype))
    words = collect_words(tideos, language.tokenizer) if config.model.dictionary else []
    model, builder = build_model(config, encoder, language, len(words))
    if words:
        start_words(model, builder, words, encoder)
    dataset = TideoDataset(
        tideos * 2,
        doubled(features, imagined),
        builder,
        num_frames=config.model.num_frames,
        tasks=config.data.tasks,
        seed=config.train.seed,
        object_dropout=config.data.object_dropout,
        blind=config.data.blind,
    )
    validation = Validation.of_tideos(
        kept, encode_tideos(kept, encoder), builder, config.model.num_frames, config.data.tasks
    )
    print(train(config.train, Path(config.out), model, dataset, validation, print).metrics)


if __name__ == "__main__":
    main()
