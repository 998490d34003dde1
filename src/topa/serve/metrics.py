"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "topa_requests_total", "Requests answered.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "topa_request_seconds",
            "Time of requests.",
            ["route"],
            registry=registry,
            buckets=_SECONDS,
        )
        self.running = Gauge("topa_requests_running", "Requests taken on.", registry=registry)
        self.refused = Counter(
            "topa_requests_refused_total", "Requests told 429.", registry=registry
        )
        self.rows = Histogram(
            "topa_batch_rows", "Rows of a batch.", ["work"], registry=registry, buckets=_ROWS
        )
        self.tokens = Counter("topa_tokens_total", "Tokens.", ["kind"], registry=registry)
        self.videos = Counter(
            "topa_videos_total", "Videos asked about.", ["features"], registry=registry
        )
        self.prefixes = Counter(
            "topa_prefixes_reused_total", "Prompts whose video was read before.", registry=registry
        )

    def render(self) -> bytes:
        """Return all counters in the text format."""
        return generate_latest(self.registry)
