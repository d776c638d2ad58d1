"""From a request to pictures: the one path, for HTTP and for the command line alike."""

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from serve.backend import Backend, Inferred
from serve.backend_ort import OrtBackend
from serve.errors import FieldError, InvalidParametersError, ServeError
from serve.give_way import give_way
from serve.images import WITH_QUALITY, Format, Origin, encode
from serve.metrics import ModelMetrics, unobserved
from serve.model import Feeds, Model, load_model
from serve.noise import MAX_SEED
from serve.requested_subject import subject_errors, subject_of
from serve.schemas import GenerateRequest, parse_fields
from serve.settings import Settings
from serve.subject import Subject, example_subject, fields_of
from serve.turn import USUAL, Turn

T = TypeVar("T")

RECENT = 0.1  # weight of the latest order in the mean of what a round of encoding takes
SUFFIXES: dict[str, Format] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@dataclass(frozen=True)
class Order:
    """A request that the model can meet, unless its prompt is too long; its seeds are chosen."""

    subject: Subject
    seeds: tuple[int, ...]
    size: str
    format: Format
    quality: int | None


@dataclass(frozen=True)
class Picture:
    """An encoded picture and what it was made from."""

    data: bytes
    format: Format
    origin: Origin


@dataclass(frozen=True)
class Answer:
    """The pictures of one order, and where the time went; for several, the slowest of each."""

    pictures: tuple[Picture, ...]
    queue_s: float
    tokenize_s: float
    infer_s: float
    encode_s: float


def read_order(request: GenerateRequest, model: Model, settings: Settings) -> Order:
    """Check a request against the model and the limits; raises InvalidParametersError."""
    seed = secrets.randbits(32) if request.seed is None else request.seed
    refused = subject_errors(
        request, model.manifest.classes, model.label, settings.max_prompt_chars
    )
    refused += _refused(request, seed, model, settings)
    if refused:
        raise InvalidParametersError.of(*refused)
    return Order(
        subject=subject_of(request),
        seeds=tuple(range(seed, seed + request.num_images)),
        size=request.size or model.default_size,
        format=request.format,
        quality=request.quality,
    )


def _refused(
    request: GenerateRequest, seed: int, model: Model, settings: Settings
) -> list[FieldError]:
    """What the schema cannot know: limits of the settings, of the model, and between fields."""
    refused = []
    last_seed = seed + request.num_images - 1
    if request.num_images > settings.max_images:
        detail = f"is {request.num_images}, allowed is 1 to {settings.max_images}"
        refused.append(FieldError("num_images", detail))
    if last_seed > MAX_SEED:
        detail = f"of the last picture would be {last_seed}, allowed is 0 to {MAX_SEED}"
        refused.append(FieldError("seed", detail))
    if request.size is not None and request.size not in model.manifest.sizes:
        detail = f"is {request.size}, {model.label} has sizes: {', '.join(model.manifest.sizes)}"
        refused.append(FieldError("size", detail))
    if request.quality is not None and request.format not in WITH_QUALITY:
        detail = f"applies to jpeg and webp, the format is {request.format}"
        refused.append(FieldError("quality", detail))
    return refused


class Generator:
    """Fills orders with a model, a back end and a pool of threads that encode."""

    def __init__(
        self,
        model: Model,
        backend: Backend,
        encode_workers: int,
        metrics: ModelMetrics | None = None,
    ) -> None:
        self._metrics = metrics or unobserved()
        self._model = model
        self._backend = backend
        self._encoders = ThreadPoolExecutor(encode_workers, "encode", initializer=give_way)
        self._encode_workers = encode_workers
        self._round_s = 0.0  # what a picture a thread took lately, the wait for it included

    def encode_s(self, pictures: int) -> float:
        """Seconds that encoding so many took lately, in as many rounds as they need."""
        return self._rounds(pictures) * self._round_s

    def _rounds(self, pictures: int) -> int:
        return -(-pictures // self._encode_workers)

    def close(self) -> None:
        """Let the encoding threads go."""
        self._encoders.shutdown(wait=False, cancel_futures=True)

    async def generate(
        self, order: Order, within_s: float = math.inf, turn: Turn = USUAL
    ) -> Answer:
        """The order's pictures, for somebody who waits `within_s` for them, in their turn.

        The model has so much less time as encoding takes.

        Raises InvalidParametersError for a prompt of too many tokens, InferenceError or a
        RetryableError. Cancelling takes them out of the queue.
        """
        start = time.perf_counter()
        ids = self._model.condition(order.subject)
        feeds: list[Feeds] = [
            {**ids, "noise": self._model.noise(seed, order.size)} for seed in order.seeds
        ]
        drawn = time.perf_counter()
        left_s = within_s - (drawn - start) - self.encode_s(len(feeds))
        inferred = await self._infer(feeds, left_s, turn)
        made = time.perf_counter()
        pictures = await self._encode_all(order, inferred)
        answer = Answer(
            pictures=tuple(pictures),
            queue_s=max(one.queue_s for one in inferred),
            tokenize_s=drawn - start,
            infer_s=max(one.infer_s for one in inferred),
            encode_s=time.perf_counter() - made,
        )
        taken_s = answer.encode_s / self._rounds(len(pictures))
        self._round_s += RECENT * (taken_s - self._round_s)
        self._metrics.made(answer)
        return answer

    async def _infer(self, feeds: list[Feeds], within_s: float, turn: Turn) -> list[Inferred]:
        futures = [self._backend.infer(one, within_s, turn) for one in feeds]
        try:
            return await _all(futures)
        finally:
            for future in futures:
                future.cancel()

    async def _encode_all(self, order: Order, inferred: list[Inferred]) -> list[Picture]:
        each = zip(order.seeds, inferred, strict=True)
        try:
            return await _all([self._encode(order, seed, one) for seed, one in each])
        except asyncio.CancelledError:
            for _ in inferred:
                self._metrics.cancelled("encoding")
            raise

    async def _encode(self, order: Order, seed: int, inferred: Inferred) -> Picture:
        origin = Origin(order.subject, seed, self._model.label, self._model.manifest.digest)
        if order.format == "raw":  # a copy takes less than the way to another thread
            return Picture(encode(inferred.pixels, "raw", None, origin), "raw", origin)
        loop = asyncio.get_running_loop()
        data = await loop.run_in_executor(
            self._encoders, encode, inferred.pixels, order.format, order.quality, origin
        )
        return Picture(data, order.format, origin)


async def _all(work: Sequence[Awaitable[T]]) -> list[T]:
    """What each gives, all at the same time; an order of one picture needs no task for it."""
    return [await work[0]] if len(work) == 1 else await asyncio.gather(*work)


def generate_file(
    settings: Settings,
    prompt: str | None,
    seed: int | None,
    out: Path,
    size: str | None = None,
    quality: int | None = None,
    class_label: int | None = None,
) -> Picture:
    """Write one picture to `out`, in the format of its suffix: the gateway's very bytes.

    Raises ServeError, with one sentence, for whatever is wrong with the arguments or the model.
    """
    format = SUFFIXES.get(out.suffix.lower())
    if format is None:
        raise ServeError(f"{out} ends in {out.suffix!r}, allowed are: {', '.join(SUFFIXES)}")
    if not out.parent.is_dir():
        raise ServeError(f"{out} cannot be written: there is no folder {out.parent}")
    fields = {"prompt": prompt, "class_label": class_label, "seed": seed, "size": size}
    request = parse_fields({**fields, "format": format, "quality": quality})
    model = load_model(settings.repository, *settings.models[:1])
    picture = asyncio.run(_one(read_order(request, model, settings), model, settings))
    try:
        out.write_bytes(picture.data)
    except OSError as error:
        raise ServeError(f"{out} cannot be written: {error.strerror}") from None
    return picture


@asynccontextmanager
async def _opened(model: Model, settings: Settings) -> AsyncIterator[Generator]:
    """A generator on a back end of its own, for as long as it is needed."""
    backend = OrtBackend(model, settings.threads, measure_s=0)
    generator = Generator(model, backend, encode_workers=1)
    await backend.start()
    try:
        yield generator
    finally:
        generator.close()
        await backend.close()


async def _one(order: Order, model: Model, settings: Settings) -> Picture:
    async with _opened(model, settings) as generator:
        return (await generator.generate(order)).pictures[0]


def time_pictures(
    settings: Settings, count: int, prompt: str = "a small red circle"
) -> list[float]:
    """Seconds from text to PNG bytes of `count` pictures, one at a time, on a warm model.

    Of a model with classes, from a class's number.

    Raises ServeError, as `generate_file` does.
    """
    model = load_model(settings.repository, *settings.models[:1])
    return asyncio.run(_time_each(model, settings, count, prompt))


async def _time_each(model: Model, settings: Settings, count: int, prompt: str) -> list[float]:
    times, classes = [], model.manifest.classes
    subject = fields_of(prompt if classes is None else example_subject(0, classes))
    async with _opened(model, settings) as generator:
        for seed in range(count + 1):
            start = time.perf_counter()
            request = parse_fields({**subject, "seed": seed, "format": "png"})
            await generator.generate(read_order(request, model, settings))
            times.append(time.perf_counter() - start)
    return times[1:]  # the first warms up
