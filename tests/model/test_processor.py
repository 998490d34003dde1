"""The processor: tokens of the prompt builder, slots for each video, and clear refusals."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor

from topa.data.collate import collate_for_generation
from topa.data.templates import CAPTION_INSTRUCTION, OPEN_INSTRUCTION
from topa.errors import ConfigError, FingerprintError
from topa.features.memory import Memory
from topa.model.config import TopaConfig
from topa.model.processor import VIDEO, TopaProcessor
from topa.model.topa import TopaForConditionalGeneration

FRAMES, WIDTH = 4, 6


class Colours:
    """An encoder of the mean colour, whose features a reader can work out."""

    fingerprint = "colours-1"
    dim = WIDTH

    def encode_frames(self, images, *, progress=None):
        rows = torch.tensor(
            [
                [*(c / 255 for c in image.resize((1, 1)).getpixel((0, 0))), 0, 0, 1]
                for image in images
            ]
        )
        return torch.nn.functional.normalize(rows, dim=-1)

    def encode_text(self, texts, *, progress=None):
        raise AssertionError("no text is encoded here")


@pytest.fixture
def config():
    return TopaConfig(feature_dim=WIDTH, num_frames=FRAMES, encoder_fingerprint="colours-1")


@pytest.fixture
def processor(tokenizer, config):
    return TopaProcessor(tokenizer, config, encoder=Colours())


def features_of(*counts):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, WIDTH, generator=generator) for count in counts]


def test_text_has_the_tokens_of_the_builder_s_prompts(processor):
    [shown] = features_of(3)
    for prompt, text in (
        (
            processor.ask("what is it"),
            f"{OPEN_INSTRUCTION}\nVideo:{VIDEO}\nQuestion: What is it?\nAnswer:",
        ),
        (processor.describe(), f"{CAPTION_INSTRUCTION}\nVideo:{VIDEO}\nDescription:"),
    ):
        found = processor(text, features=shown)
        wanted = collate_for_generation([prompt], [shown], FRAMES, 1)
        built = processor(prompt, features=shown)
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), name
            assert torch.equal(built[name], tensor), name


def test_a_choice_ends_before_the_letter(processor, tokenizer):
    prompt = processor.ask("what is it", ["a cat", "a dog"])
    text = tokenizer.decode([token for part in prompt.segments for token in part.ids])
    assert text.endswith("(A) a cat\n(B) a dog\nAnswer: The correct choice is")


def test_prompts_of_different_lengths_are_padded_on_the_side_asked_for(processor):
    texts = [processor.ask("Who?"), processor.ask("Who is standing on the left?")]
    left = processor(texts, features=features_of(4, 2))
    right = processor(texts, features=features_of(4, 2), padding_side="right")
    assert left["slot_index"][0, 0] == right["slot_index"][0, -1] == -1
    for row in range(2):
        for name in ("input_ids", "slot_index"):
            a = left[name][row][left["attention_mask"][row].bool()]
            b = right[name][row][right["attention_mask"][row].bool()]
            assert torch.equal(a, b)
    # The second video has 2 of 4 frames: two slots of it are masked.
    slots = left["slot_index"][1] >= 0
    assert left["attention_mask"][1][slots].tolist() == [1, 1, 0, 0]


def test_several_videos_are_numbered_through(processor):
    text = [f"First:{VIDEO} Second:{VIDEO} Which is longer?", "No video here."]
    found = processor(text, features=features_of(4, 1))
    assert found["features"].shape == (2, 2, FRAMES, WIDTH)
    slots = found["slot_index"][0]
    assert slots[slots >= 0].tolist() == list(range(2 * FRAMES))
    shown = found["attention_mask"][0][slots >= 0].tolist()
    assert shown == [1, 1, 1, 1, 1, 0, 0, 0]
    assert (found["slot_index"][1] < 0).all()


def test_frames_are_encoded_and_projected_through_the_memory(processor, tokenizer, config):
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    plain = processor(processor.describe(), [red, blue])["features"][0]
    assert torch.allclose(plain[0], torch.tensor([0.5**0.5, 0, 0, 0, 0, 0.5**0.5]))
    assert torch.equal(plain[2:], torch.zeros(2, WIDTH))
    rows = torch.eye(WIDTH)[:3]
    memory = Memory(rows, ["red", "green", "blue"], "colours-1")
    with_memory = TopaProcessor(tokenizer, config, encoder=Colours(), memory=memory)
    found = with_memory(with_memory.describe(), [[red, blue]])["features"][0]
    # tau = 100 and cosines 0.71 and 0: the nearest row alone counts.
    assert torch.allclose(found[:2], rows[[0, 2]], atol=1e-3)
    same = with_memory(with_memory.describe(), [red, blue], use_memory=False)["features"][0]
    assert torch.equal(same, plain)


@pytest.mark.parametrize(
    ("text", "counts", "message"),
    [
        ("nothing", (3,), "the text has 0 <video>, 1 videos are given"),
        (f"{VIDEO}{VIDEO}", (3,), "the text has 2 <video>, 1 videos are given"),
        (VIDEO, (5,), "5 frames given, the model has temporal slots for 4"),
    ],
)
def test_what_does_not_fit_is_refused(processor, text, counts, message):
    with pytest.raises(ConfigError, match=message):
        processor(text, features=features_of(*counts))


def test_unusable_arguments_are_refused(processor):
    with pytest.raises(ConfigError, match="both videos and features"):
        processor(VIDEO, [Image.new("RGB", (2, 2))], features=features_of(1))
    with pytest.raises(ConfigError, match="padding_side is 'up'"):
        processor(VIDEO, features=features_of(1), padding_side="up")
    with pytest.raises(ConfigError, match="a video is given as int"):
        processor(VIDEO, 7)


def test_a_memory_of_another_encoder_is_refused(tokenizer, config):
    memory = Memory(torch.eye(WIDTH), ["x"] * WIDTH, "shapes-1")
    with pytest.raises(FingerprintError, match="shapes-1"):
        TopaProcessor(tokenizer, config, encoder=Colours(), memory=memory)
    other = TopaConfig(feature_dim=WIDTH, encoder_fingerprint="shapes-1")
    with pytest.raises(FingerprintError, match="trained with encoder shapes-1"):
        TopaProcessor(tokenizer, other, encoder=Colours())


def test_auto_classes_know_a_checkpoint(checkpoint, tmp_path):
    assert isinstance(AutoConfig.from_pretrained(checkpoint), TopaConfig)
    model = AutoModelForMultimodalLM.from_pretrained(checkpoint)
    assert isinstance(model, TopaForConditionalGeneration)
    processor = AutoProcessor.from_pretrained(checkpoint)
    assert isinstance(processor, TopaProcessor)
    shown = [torch.randn(3, model.config.feature_dim)]
    inputs = processor(processor.describe(), features=shown)
    tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert tokens.shape[1] == inputs["input_ids"].shape[1] + 3
    assert isinstance(processor.batch_decode(tokens)[0], str)
    # Saved by itself, in a folder that the LLM's tokenizer then comes from.
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, TopaProcessor)
    assert torch.equal(again(again.describe(), features=shown)["input_ids"], inputs["input_ids"])


def test_a_video_file_goes_in(checkpoint, encoder, video):
    processor = TopaProcessor.from_pretrained(checkpoint)
    processor._encoder = encoder
    found = processor(processor.ask("What is it?"), video, use_memory=False)
    assert found["features"].shape == (1, 10, 384)
    assert (found["features"][0].norm(dim=-1) > 0.99).sum() == 4  # of two seconds at 2 a second
