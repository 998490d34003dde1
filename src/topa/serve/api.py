"""The HTTP interface: OpenAI's routes for chat and embeddings, and those of the method itself."""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from topa.errors import ConfigError, RequestError, TopaError, VideoError
from topa.serve.chat import Conversation, build_prompt, find_video
from topa.serve.gate import Gate
from topa.serve.schemas import (
    ChatRequest,
    Embedding,
    EmbeddingsRequest,
    EmbeddingsResponse,
    ExplainRequest,
    ExplainResponse,
    FrameExplained,
    ModelCard,
    ModelList,
    Problem,
    ProblemResponse,
    Scored,
    ScoreRequest,
    ScoreResponse,
    TextPart,
    VideoPart,
)
from topa.serve.service import Service
from topa.serve.settings import ApiKeys

Item = TypeVar("Item")
_SHARE = 8  # questions, or texts, computed without a break
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemResponse, "description": text}
    for status, text in {
        400: "The request cannot be answered as it is.",
        401: "A key is needed.",
        403: "The server's settings do not allow it.",
        404: "No such model.",
        408: "The request was sent too slowly.",
        413: "The request, or its video, is too large.",
        429: "The server has enough to do.",
        504: "It took too long.",
    }.items()
}


def create_app(service: Service, keys: ApiKeys | None = None) -> FastAPI:
    """Return the application that answers for a service.

    Args:
        service: The model at work; it is started and closed with the application.
        keys: Keys of which each request to `/v1/` must bring one.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(
        title="topa",
        version=sys.modules["topa"].__version__,  # the package above is loaded already
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(Gate, service=service, keys=keys or ApiKeys())
    _add_errors(app)
    _add_state(app, service)
    _add_chat(app, service)
    _add_method(app, service)
    _add_embeddings(app, service)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(TopaError)
    async def tell(request: Request, error: TopaError) -> JSONResponse:
        wrong_use = isinstance(error, (ConfigError, VideoError))
        status = error.status if isinstance(error, RequestError) else 400 if wrong_use else 500
        where = None if error.where is None else str(error.where)
        return problem(status, str(error), where)

    @app.exception_handler(RequestValidationError)
    async def tell_field(request: Request, error: RequestValidationError) -> JSONResponse:
        # Of the ways to read a field, the one that got furthest was meant.
        first = max(error.errors(), key=lambda found: len(found["loc"]))
        # Keys of unions and of the body are pydantic's, not the client's.
        parts = [str(part) for part in first["loc"] if part not in ("body", "constrained-str")]
        where = ".".join(part for part in parts if "[" not in part)
        if not where and isinstance(error.body, bytes):
            return problem(400, "the request needs the header Content-Type: application/json")
        return problem(400, f"{where or 'body'}: {first['msg']}", where or None)

    @app.exception_handler(HTTPException)
    async def tell_status(request: Request, error: HTTPException) -> JSONResponse:
        text = str(error.detail)
        if error.status_code == 404 and text == "Not Found":
            text = "there is nothing at this address; /openapi.json lists what there is"
        return problem(error.status_code, text, None, error.headers)


def problem(status: int, text: str, where: str | None = None, headers: Any = None) -> JSONResponse:
    """Return a problem in OpenAI's form."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = Problem(message=text, type=kind, param=where)
    content = ProblemResponse(error=error).model_dump()
    return JSONResponse(content, status, headers=dict(headers or {}))


def _check_model(service: Service, name: str | None) -> None:
    if name is not None and name != service.name:
        raise HTTPException(404, f"there is no model {name[:80]!r} here, only {service.name!r}")


def _add_state(app: FastAPI, service: Service) -> None:
    created = int(time.time())

    def card() -> ModelCard:
        config = service.topa.model.config
        details = {
            "num_frames": config.num_frames,
            "scoring": config.scoring,
            "memory": 0 if service.topa.memory is None else len(service.topa.memory),
        }
        return ModelCard(id=service.name, created=created, details=details)

    @app.get("/health", tags=["state"])
    async def health() -> dict[str, str]:
        """Tell that the server answers."""
        return {"status": "ok"}

    counters = {"description": "Prometheus's text format.", "content": {"text/plain": {}}}

    @app.get("/metrics", tags=["state"], response_class=Response, responses={200: counters})
    async def metrics() -> Response:
        """Give the counters to Prometheus."""
        return Response(service.metrics.render(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", tags=["openai"], responses=_PROBLEMS)
    async def models() -> ModelList:
        """List the model."""
        return ModelList(data=[card()])

    @app.get("/v1/models/{name:path}", tags=["openai"], responses=_PROBLEMS)
    async def model(name: str) -> ModelCard:
        """Describe the model."""
        _check_model(service, name)
        return card()


def _add_chat(app: FastAPI, service: Service) -> None:
    answers = {
        "description": "OpenAI's chat completion, or chunks of it.",
        "content": {"application/json": {}, "text/event-stream": {}},
    }

    @app.post(
        "/v1/chat/completions",
        tags=["openai"],
        responses={**_PROBLEMS, 200: answers},
        response_model=None,
    )
    async def chat(request: ChatRequest) -> Response:
        """Answer a question about a video in free words."""
        _check_model(service, request.model)
        build_prompt(service.topa.builder, request.messages)  # refuse before looking at the video
        sampling = request.sampled()
        url = find_video(request.messages)
        video = await service.watch(url, sampling.num_frames, sampling.fps)
        conversation = Conversation(service, request, video)
        if request.stream:
            return StreamingResponse(conversation.stream(), media_type="text/event-stream")
        return JSONResponse(await conversation.response())


def _add_method(app: FastAPI, service: Service) -> None:
    @app.post("/v1/score", tags=["topa"], responses=_PROBLEMS)
    async def score(request: ScoreRequest) -> ScoreResponse:
        """Give the probability of every option of questions about a video."""
        _check_model(service, request.model)
        method = request.method or service.own_method
        video = await service.watch(request.video_url.url, request.num_frames, request.fps)
        choices = [(asked.question, asked.options) for asked in request.questions]
        probabilities: list[list[float]] = []
        for some in _shares(choices):
            probabilities += await service.choose(
                video, some, method=method, use_memory=request.use_memory, blind=request.blind
            )
        data = []
        for asked, shares in zip(request.questions, probabilities, strict=True):
            best = shares.index(max(shares))
            data.append(
                Scored(
                    question=asked.question,
                    options=asked.options,
                    probabilities=shares,
                    answer=asked.options[best],
                    option=best,
                )
            )
        return ScoreResponse(model=service.name, method=method, data=data)

    @app.post("/v1/explain", tags=["topa"], responses=_PROBLEMS)
    async def explain(request: ExplainRequest) -> ExplainResponse:
        """Show the sampled frames of a video and what the memory takes them for."""
        _check_model(service, request.model)
        video = await service.watch(request.video_url.url, request.num_frames, request.fps)
        frames = [
            FrameExplained(
                time=frame.time,
                captions=frame.captions,
                weights=frame.weights,
                image_url=_picture(frame.picture) if request.pictures else None,
            )
            for frame in await service.explain(video, request.k)
        ]
        return ExplainResponse(model=service.name, duration=video.duration, data=frames)


def _add_embeddings(app: FastAPI, service: Service) -> None:
    @app.post("/v1/embeddings", tags=["openai"], responses=_PROBLEMS)
    async def embeddings(request: EmbeddingsRequest) -> EmbeddingsResponse:
        """Give the features of texts and of the frames of videos."""
        _check_model(service, request.model)
        items = [request.input] if isinstance(request.input, str) else request.input
        texts = [i.text if isinstance(i, TextPart) else i for i in items if not _is_video(i)]
        if not all(text.strip() for text in texts if isinstance(text, str)):
            raise RequestError("a text is empty", where="input")
        found: list[list[float]] = []
        for some in _shares([text for text in texts if isinstance(text, str)]):
            found += (await service.embed_texts(some)).tolist()
        encoded = iter(found)
        data: list[Embedding] = []
        rows: list[tuple[list[float], float | None]]
        for item in items:
            if isinstance(item, VideoPart):
                video = await service.watch(item.video_url.url, request.num_frames, request.fps)
                shown = video.shown(request.use_memory, blind=False).tolist()
                rows = [*zip(shown, video.times, strict=True)]
            else:
                rows = [(next(encoded), None)]
            for row, moment in rows:
                spelled = _spell(row, request.encoding_format)
                data.append(Embedding(index=len(data), embedding=spelled, time=moment))
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        return EmbeddingsResponse(model=service.name, data=data, usage=usage)


def _shares(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Return the work of a request in shares, between which others have their turn.

    What is being computed cannot be stopped; a request that is given up stops after a share.
    """
    return [items[start : start + _SHARE] for start in range(0, len(items), _SHARE)]


def _is_video(item: Any) -> bool:
    return isinstance(item, VideoPart)


def _spell(row: Sequence[float], encoding: str) -> list[float] | str:
    if encoding == "float":
        return list(row)
    return base64.b64encode(np.asarray(row, dtype="<f4").tobytes()).decode("ascii")


def _picture(content: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"
