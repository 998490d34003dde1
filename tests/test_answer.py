"""The Python interface, with the real encoder, a tiny LLM and a real video file."""

from __future__ import annotations

import pytest
import torch

from topa.answer import METHODS, Topa, drop_unfinished
from topa.errors import ConfigError, FingerprintError, VideoError
from topa.features.memory import Memory

OPTIONS = ["A cat sits", "A cup of coffee", "A red car", "Two men talk", "A dog runs"]
QUESTION = "What can be seen?"


@pytest.fixture(scope="module")
def topa(checkpoint) -> Topa:
    return Topa.from_pretrained(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def clip(topa, video):
    return topa.watch(video)


def test_a_checkpoint_comes_with_its_memory(topa, tideos):
    assert len(topa.memory) == sum(len(tideo.frames) for tideo in tideos)
    assert topa.memory.fingerprint == topa.encoder.fingerprint


@pytest.mark.parametrize("method", METHODS)
def test_one_of_the_options_is_chosen(method, topa, clip):
    answer = topa.ask(clip, QUESTION, OPTIONS, method=method)
    assert answer.text == OPTIONS[answer.option]
    assert len(answer.probabilities) == 5
    assert sum(answer.probabilities) == pytest.approx(1, abs=1e-5)
    assert answer.option == max(range(5), key=answer.probabilities.__getitem__)


def test_without_options_the_answer_is_words(topa, clip):
    answer = topa.ask(clip, QUESTION, max_new_tokens=5)
    assert answer.option is answer.probabilities is None
    assert isinstance(answer.text, str)
    assert topa.ask(clip, QUESTION, max_new_tokens=5) == answer


def test_a_file_is_watched_as_its_clip(topa, video, clip):
    assert topa.ask(video, QUESTION, OPTIONS) == topa.ask(clip, QUESTION, OPTIONS)
    assert len(clip.images) <= topa.model.config.num_frames


def test_a_description_is_words(topa, clip):
    assert isinstance(topa.describe(clip, max_new_tokens=5), str)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("A cat sits. It looks at the", "A cat sits."),
        ('A man says "Stop!" Then he', 'A man says "Stop!"'),
        ("A cat sits on a red car and", "A cat sits on a red car and"),  # nothing else to show
        ("It is 3.5 m long and", "It is 3.5 m long and"),
        ("Done. All of it.", "Done. All of it."),
        ("", ""),
    ],
)
def test_a_sentence_that_is_cut_off_is_left_out(text, whole):
    assert drop_unfinished(text) == whole


def test_features_are_projected_into_the_text_region(topa, clip):
    projected, plain = topa.encode(clip), topa.encode(clip, use_memory=False)
    torch.testing.assert_close(projected, topa.memory.project(plain))
    assert not torch.allclose(projected, plain, atol=1e-2)
    torch.testing.assert_close(projected.norm(dim=-1), torch.ones(len(projected)))


def test_blind_answers_do_not_depend_on_the_video(topa, clip, tideos):
    other = topa.encoder.encode_text([tideos[0].caption])
    questions = [[(QUESTION, OPTIONS)]]
    for method in ("likelihood", "selection"):
        first, second = (
            topa.score(questions, [shown], method=method, blind=True)[0][0]
            for shown in (topa.encode(clip), other)
        )
        torch.testing.assert_close(first, second, rtol=0, atol=1e-6)
    answer = topa.ask(clip, QUESTION, blind=True, max_new_tokens=5)
    prompt = [topa.builder.open(QUESTION)]
    assert answer.text == topa.generate(prompt, [other[:0]], 5)[0]


def test_likelihood_is_less_the_blind_one_if_the_checkpoint_says_so(topa, clip, monkeypatch):
    questions, shown = [[(QUESTION, OPTIONS)]], [topa.encode(clip)]
    assert topa.model.config.subtract_blind
    found = topa.score(questions, shown, method="likelihood")[0][0]
    blind = topa.score(questions, shown, method="likelihood", blind=True)[0][0]
    monkeypatch.setattr(topa.model.config, "subtract_blind", False)
    raw = topa.score(questions, shown, method="likelihood")[0][0]
    torch.testing.assert_close(found, raw - blind)


@pytest.mark.parametrize("method", METHODS)
def test_many_videos_score_as_each_alone(method, topa, clip, tideos):
    shown = [topa.encode(clip), topa.encoder.encode_text(tideos[0].frames[0].texts), None]
    shown[2] = shown[1][:1]
    questions = [
        [(QUESTION, OPTIONS), ("Who is it?", ["a man", "a woman"])],
        [("What happens first?", OPTIONS[:3])],
        [(QUESTION, OPTIONS)],
    ]
    done: list[int] = []
    together = topa.score(questions, shown, method=method, batch_size=2, progress=done.append)
    for asked, features, scores in zip(questions, shown, together, strict=True):
        [alone] = topa.score([asked], [features], method=method)
        assert [len(s) for s in scores] == [len(options) for _, options in asked]
        torch.testing.assert_close(scores, alone, rtol=0, atol=1e-4)


def test_similarity_is_the_nearest_frame_s_cosine(topa, clip):
    shown = topa.encode(clip)
    [[scores]] = topa.score([[(QUESTION, OPTIONS)]], [shown], method="similarity")
    for option, score in zip(OPTIONS, scores, strict=True):
        [text] = topa.encoder.encode_text([f"{QUESTION} {option}"])
        assert float(score) == pytest.approx(max(float(text @ f) for f in shown), abs=1e-5)


def test_combined_adds_likelihood_and_similarity_on_one_scale(topa, clip):
    questions, shown = [[(QUESTION, OPTIONS)]], [topa.encode(clip)]
    parts = [
        topa.score(questions, shown, method=method)[0][0] for method in ("likelihood", "similarity")
    ]
    wanted = sum((part - part.mean()) / part.std(correction=0) for part in parts)
    found = topa.score(questions, shown, method="combined")[0][0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_frames_are_explained_by_memory_captions(topa, clip):
    frames = topa.explain(clip, k=3)
    assert [frame.time for frame in frames] == clip.times
    for frame in frames:
        assert len(frame.captions) == len(frame.weights) == 3
        assert frame.weights == sorted(frame.weights, reverse=True)
        assert all(caption in topa.memory.captions for caption in frame.captions)


# What is refused --------------------------------------------------------------------------


def test_nothing_is_explained_without_a_memory(topa, clip):
    without = Topa(topa.model, topa.builder, topa.encoder, None)
    with pytest.raises(ConfigError, match="no memory"):
        without.explain(clip)
    torch.testing.assert_close(without.encode(clip), topa.encode(clip, use_memory=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["one"], "1 options given"),
        ([], "0 options given"),
        (["x"] * 27, "27 options given"),
        (["a", " "], "option 2 is empty"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_options_that_cannot_be_asked(options, message, method, topa, clip):
    with pytest.raises(ConfigError, match=message):
        topa.ask(clip, QUESTION, options, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_question_is_refused(method, topa, clip):
    with pytest.raises(ConfigError, match="the question is empty"):
        topa.ask(clip, "  ", OPTIONS, method=method)


def test_an_empty_open_question_is_refused(topa, clip):
    with pytest.raises(ConfigError, match="the question is empty"):
        topa.ask(clip, "  ")


def test_an_unknown_method_is_refused(topa, clip):
    with pytest.raises(ConfigError, match="unknown method 'likelyhood'"):
        topa.ask(clip, QUESTION, OPTIONS, method="likelyhood")


def test_similarity_has_no_blind_form(topa, clip):
    with pytest.raises(ConfigError, match="no blind form"):
        topa.ask(clip, QUESTION, OPTIONS, method="similarity", blind=True)


@pytest.mark.parametrize("count", [0, -1, 11])
def test_frames_out_of_bounds_are_refused(count, topa, video):
    with pytest.raises(ConfigError, match=f"{count} frames asked for"):
        topa.watch(video, num_frames=count)


def test_an_unreadable_video_is_an_error_never_an_answer(topa, tmp_path):
    """The official evaluation scores unreadable videos as "(A)"."""
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"not a video")
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        topa.ask(path, QUESTION, OPTIONS)
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        topa.describe(path)


def test_a_foreign_memory_is_refused(topa, checkpoint, tmp_path):
    foreign = Memory(torch.eye(topa.encoder.dim)[:2], ["a", "b"], "another-encoder")
    with pytest.raises(FingerprintError, match="another-encoder"):
        Topa(topa.model, topa.builder, topa.encoder, foreign)
    foreign.save(tmp_path)
    with pytest.raises(FingerprintError, match="another-encoder"):
        Topa.from_pretrained(checkpoint, memory=tmp_path)


def test_a_foreign_encoder_is_refused(topa, monkeypatch):
    monkeypatch.setattr(topa.model.config, "encoder_fingerprint", "another-encoder")
    with pytest.raises(FingerprintError, match="another-encoder"):
        Topa(topa.model, topa.builder, topa.encoder, topa.memory)
