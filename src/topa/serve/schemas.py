"""What the HTTP interface takes and gives. OpenAI's fields mean what they mean there."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from topa.answer import Method

Text = Annotated[str, Field(min_length=1, max_length=8000)]
Short = Annotated[str, Field(min_length=1, max_length=2000)]


class Body(BaseModel):
    """A request: no unknown fields, so that nothing asked for is left out in silence."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class VideoAddress(Body):
    """Where a video is."""

    url: str = Field(
        min_length=1,
        description="data:video/...;base64,... or, where allowed, https://... or file://...;"
        " data:video/jpeg;base64,A,B,... is a list of frames.",
    )


class TextPart(Body):
    """Text of a message."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=8000)]


class VideoPart(Body):
    """A video of a message, as vLLM defines it."""

    type: Literal["video_url"]
    video_url: VideoAddress
    uuid: str | None = Field(None, max_length=200)


Part = Annotated[TextPart | VideoPart, Field(discriminator="type")]


class Message(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=8000)] | Annotated[list[Part], Field(max_length=16)]
    name: str | None = Field(None, max_length=200)
    # An answer of this server, given back as an earlier turn, has these, and they are empty.
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


class VideoSampling(Body):
    """How many frames of a video are looked at."""

    num_frames: int | None = Field(None, gt=0, le=100_000)
    fps: PositiveFloat | None = Field(None, le=1000)


class MediaOptions(Body):
    """vLLM's `media_io_kwargs`."""

    video: VideoSampling = VideoSampling()


class ResponseFormat(Body):
    """Words are all that is written."""

    type: Literal["text"]


class StreamOptions(Body):
    """What a stream holds besides the answer."""

    include_usage: bool = False


class Watching(VideoSampling):
    """What every request about a video can say."""

    model: str | None = Field(None, max_length=200)
    use_memory: bool = Field(True, description="Project image features through the memory.")


class ChatRequest(Watching):
    """A question about a video, in OpenAI's form."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=64)]
    blind: bool = Field(False, description="Mask the video.")
    media_io_kwargs: MediaOptions = MediaOptions()
    mm_processor_kwargs: VideoSampling = VideoSampling()
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(None, description="Of a stream only.")
    n: PositiveInt | None = Field(None, description="1 if not said.")
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    temperature: float | None = Field(None, ge=0, le=2, description="0 if not said.")
    top_p: float | None = Field(None, gt=0, le=1)
    stop: Short | Annotated[list[Short], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20, description="With logprobs only.")
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    no_repeat_ngram_size: int = Field(4, ge=0, le=64)
    # Of these, only what changes nothing is taken.
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    response_format: ResponseFormat | None = None
    user: str | None = Field(None, max_length=1000)
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = Field(None, max_length=100)
    safety_identifier: str | None = Field(None, max_length=1000)
    prompt_cache_key: str | None = Field(None, max_length=1000)

    @property
    def answers(self) -> int:
        """How many answers are to be written."""
        return self.n or 1

    def sampled(self) -> VideoSampling:
        """Return how many frames are asked for, in whichever of the three places it is said."""
        places = (self, self.media_io_kwargs.video, self.mm_processor_kwargs)
        count = next((p.num_frames for p in places if p.num_frames is not None), None)
        fps = next((p.fps for p in places if p.fps is not None), None)
        return VideoSampling(num_frames=count, fps=fps)


class Question(Body):
    """A question with its options."""

    question: Text
    options: Annotated[list[Short], Field(min_length=2, max_length=26)]


class ScoreRequest(Watching):
    """Questions with options about a video."""

    video_url: VideoAddress
    questions: Annotated[list[Question], Field(min_length=1, max_length=64)]
    method: Method | None = Field(None, description="The checkpoint's own if not said.")
    blind: bool = Field(False, description="Mask the video.")


class Scored(BaseModel):
    """The answer to one question."""

    question: str
    options: list[str]
    probabilities: list[float]
    answer: str
    option: int


class ScoreResponse(BaseModel):
    """The answers to all questions of a request."""

    object: Literal["list"] = "list"
    model: str
    method: Method
    data: list[Scored]


class ExplainRequest(Watching):
    """A video to explain."""

    video_url: VideoAddress
    k: int = Field(3, ge=1, le=20, description="Captions for each frame.")
    pictures: bool = Field(True, description="Send the frames too, as small JPEG images.")


class FrameExplained(BaseModel):
    """A frame and what the memory takes it for."""

    time: float
    captions: list[str]
    weights: list[float]
    image_url: str | None


class ExplainResponse(BaseModel):
    """All sampled frames of a video."""

    object: Literal["list"] = "list"
    model: str
    duration: float | None
    data: list[FrameExplained]


class EmbeddingsRequest(Watching):
    """Texts, or a video whose frames are wanted, in OpenAI's form."""

    input: Text | Annotated[list[Text | Part], Field(min_length=1, max_length=256)]
    encoding_format: Literal["float", "base64"] = "float"
    use_memory: bool = Field(False, description="Project frames through the memory.")
    user: str | None = Field(None, max_length=1000)


class Embedding(BaseModel):
    """The feature of a text or of a frame."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    time: float | None = Field(None, description="Of a frame, in seconds.")


class EmbeddingsResponse(BaseModel):
    """Features in the order of the input, all frames of a video in its place."""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: dict[str, int]


class Problem(BaseModel):
    """What is wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ProblemResponse(BaseModel):
    """An answer that is none."""

    error: Problem


class ModelCard(BaseModel):
    """The model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "topa"
    details: dict[str, Any] = {}


class ModelList(BaseModel):
    """All models of the server."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
