"""What Prometheus scrapes: every figure in base units, on a registry of the application's own.

No label holds anything that a caller chooses freely: no prompt, seed, key, id or raw path.
"""

from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Literal, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

# 1, 2 and 5 in each decade, from a cheap stage to the longest deadline that people set
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"})
OTHER = "other"

Stage = Literal["queue", "tokenize", "infer", "encode"]
Phase = Literal["queued", "running", "encoding"]
Reuse = Literal["etag", "in_flight"]
Outcome = Literal["loaded", "refused"]

STAGES: tuple[Stage, ...] = ("queue", "tokenize", "infer", "encode")
PHASES: tuple[Phase, ...] = ("queued", "running", "encoding")
REUSES: tuple[Reuse, ...] = ("etag", "in_flight")
OUTCOMES: tuple[Outcome, ...] = ("loaded", "refused")


class Timed(Protocol):
    """The pictures of one order and the seconds of each stage; of several, the slowest."""

    @property
    def pictures(self) -> Sized: ...
    @property
    def queue_s(self) -> float: ...
    @property
    def tokenize_s(self) -> float: ...
    @property
    def infer_s(self) -> float: ...
    @property
    def encode_s(self) -> float: ...


@dataclass(frozen=True)
class _Watched:
    """What is asked of a model at each scrape."""

    depth: Callable[[], int]
    wait_s: Callable[[], float]
    ready: Callable[[], bool]


class ModelMetrics:
    """The figures of one model, whichever of its versions is served."""

    def __init__(self, families: "_Families", name: str) -> None:
        self._families = families
        self._name = name
        self._pictures = families.pictures.labels(name)
        self._stages = [families.stages.labels(name, stage) for stage in STAGES]
        self._batch_size = families.batch_size.labels(name)
        self._batch_s = families.batch_s.labels(name)
        self._cancelled = {phase: families.cancelled.labels(name, phase) for phase in PHASES}
        for outcome in OUTCOMES:
            families.reloads.labels(name, outcome)

    def serves(self, version: int | str, digest: str) -> None:
        """From now on this version answers."""
        self._families.state.info[self._name] = (str(version), digest)

    def watch(
        self, depth: Callable[[], int], wait_s: Callable[[], float], ready: Callable[[], bool]
    ) -> None:
        """Ask these at each scrape, in place of those before: pictures, seconds, readiness.

        `wait_s` is asked only of a model that is ready.
        """
        self._families.state.watched[self._name] = _Watched(depth, wait_s, ready)

    def made(self, answer: Timed) -> None:
        """An order was filled."""
        self._pictures.inc(len(answer.pictures))
        queue, tokenize, infer, encode = self._stages
        queue.observe(answer.queue_s)
        tokenize.observe(answer.tokenize_s)
        infer.observe(answer.infer_s)
        encode.observe(answer.encode_s)

    def batch(self, size: int, infer_s: float) -> None:
        """The model was called once, for that many pictures."""
        self._batch_size.observe(size)
        self._batch_s.observe(infer_s)

    def cancelled(self, phase: Phase) -> None:
        """A picture was dropped because nobody waited for it any more."""
        self._cancelled[phase].inc()

    def forget(self) -> None:
        """The model is not served any more: its series end."""
        self._families.forget(self._name)


class Metrics:
    """All figures of one application; `version` is the gateway's."""

    def __init__(self, version: str) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._families = _Families(self._registry, version)

    def model(self, name: str) -> ModelMetrics:
        """The figures of the model with this name; the same ones each time, until forgotten."""
        if name not in self._families.models:
            self._families.models[name] = ModelMetrics(self._families, name)
        return self._families.models[name]

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """A request was answered; `route` is a template as in /v1/models/{id}, or OTHER."""
        self._families.answered(route, method if method in METHODS else OTHER, status, seconds)

    def refused(self, reason: str) -> None:
        """A request was answered with an error; `reason` is the problem's short name."""
        self._families.refused.labels(reason).inc()

    def reused(self, how: Reuse) -> None:
        """A request needed no picture of its own."""
        self._families.reused.labels(how).inc()

    def reloaded(self, model: str, outcome: Outcome) -> None:
        """A version that was published after the start was taken, or was not fit to be."""
        self._families.reloads.labels(model, outcome).inc()

    def text(self) -> tuple[bytes, str]:
        """The whole exposition and its media type."""
        return generate_latest(_WithoutCreated(self._registry)), CONTENT_TYPE_PLAIN_0_0_4


class _Families:
    """The metric families, each with its labels; those of the counters that are hot are kept."""

    def __init__(self, registry: CollectorRegistry, version: str) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"singlepass_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"singlepass_{name}", text, labels, buckets=buckets, registry=registry)

        self.requests = counter(
            "http_requests_total", "HTTP requests that were answered.", "route", "method", "status"
        )
        self.request_s = histogram(
            "http_request_duration_seconds",
            "Seconds from a request's head to its answer's end.",
            SECONDS,
            "route",
        )
        self.refused = counter(
            "refused_total",
            "Requests that were answered with an error, by the problem's name.",
            "reason",
        )
        self.reused = counter(
            "reused_total", "Requests that were answered without a picture of their own.", "how"
        )
        self.pictures = counter("pictures_total", "Pictures that were made.", "model")
        self.stages = histogram(
            "stage_duration_seconds",
            "Seconds in a stage of filling a request; of several pictures the slowest.",
            SECONDS,
            "model",
            "stage",
        )
        self.batch_size = histogram(
            "batch_size", "Pictures in one call of the model.", SIZES, "model"
        )
        self.batch_s = histogram(
            "batch_duration_seconds", "Seconds in one call of the model.", SECONDS, "model"
        )
        self.cancelled = counter(
            "cancelled_total",
            "Pictures that were dropped because nobody waited for them.",
            "model",
            "phase",
        )
        self.reloads = counter(
            "model_reloads_total",
            "Versions that were met after the start: taken, or refused.",
            "model",
            "outcome",
        )
        self.state = _State(version)
        registry.register(self.state)
        self.models: dict[str, ModelMetrics] = {}
        self._hot: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        for how in REUSES:
            self.reused.labels(how)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answer; looking labels up costs more than counting."""
        key = (route, method, status)
        if key not in self._hot:
            self._hot[key] = (self.requests.labels(*key), self.request_s.labels(route))
        count, duration = self._hot[key]
        count.inc()
        duration.observe(seconds)

    def forget(self, name: str) -> None:
        """Drop every series of a model."""
        for family in (self.pictures, self.batch_size, self.batch_s):
            family.remove(name)
        for stage in STAGES:
            self.stages.remove(name, stage)
        for phase in PHASES:
            self.cancelled.remove(name, phase)
        for outcome in OUTCOMES:
            self.reloads.remove(name, outcome)
        self.models.pop(name, None)
        self.state.info.pop(name, None)
        self.state.watched.pop(name, None)


class _State(Collector):
    """The gauges: what holds at the time of a scrape."""

    def __init__(self, version: str) -> None:
        self._version = version
        self.info: dict[str, tuple[str, str]] = {}
        self.watched: dict[str, _Watched] = {}

    def describe(self) -> Iterable[Metric]:
        """The names, so that registering asks nobody."""
        return self._families().values()

    def collect(self) -> Iterable[Metric]:
        """One sample a model; none of the wait where a model is not ready."""
        families = self._families()
        families["build"].add_metric([self._version], 1)
        for name, (version, digest) in self.info.items():
            families["info"].add_metric([name, version, digest], 1)
        for name, watched in self.watched.items():
            ready = watched.ready()
            families["ready"].add_metric([name], float(ready))
            families["depth"].add_metric([name], watched.depth())
            if ready:
                families["wait"].add_metric([name], watched.wait_s())
        return families.values()

    def _families(self) -> dict[str, GaugeMetricFamily]:
        def gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"singlepass_{name}", text, labels=labels)

        return {
            "build": gauge("build_info", "The gateway's release.", "version"),
            "info": gauge(
                "model_info", "The version that is served.", "model", "version", "digest"
            ),
            "ready": gauge("model_ready", "1 if pictures can be made, else 0.", "model"),
            "depth": gauge(
                "queue_depth", "Pictures that are accepted and not answered yet.", "model"
            ),
            "wait": gauge(
                "queue_wait_seconds",
                "Seconds that a new picture is foretold to wait; absent if not ready.",
                "model",
            ),
        }


class _WithoutCreated(Collector):
    """A registry without the time at which each series began, which doubles their number."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        """The families, less those samples."""
        for family in self._registry.collect():
            created = family.name + "_created"
            family.samples = [sample for sample in family.samples if sample.name != created]
            yield family


def unobserved() -> ModelMetrics:
    """Figures that nobody scrapes, for a back end outside a gateway."""
    return Metrics("").model("")
