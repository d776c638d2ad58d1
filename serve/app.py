"""The ASGI application: everything it needs is an argument, and is opened in one lifespan."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

import serve
from serve import openai, page
from serve.backend import Backend
from serve.backend_ort import OrtBackend, machine_for
from serve.callers import Callers
from serve.documentation import with_components
from serve.drain import Drain
from serve.errors import ServeError, SettingsError
from serve.layers import layers, open_tracing
from serve.machine import Machine
from serve.metrics import Metrics, ModelMetrics
from serve.model import Model
from serve.problems import on_http_error, on_serve_error
from serve.providers import Device
from serve.repository import Repository
from serve.routes import Gateway, generate, router
from serve.settings import Settings
from serve.shortcut import Shortcut

log = logging.getLogger(__name__)


def create_app(settings: Settings, backend: Backend | None = None) -> FastAPI:
    """The gateway for the models of the repository; without a back end, on the settings' one.

    A back end that is given serves one model, and stays with its version. The lifespan raises
    RepositoryError if the models cannot be loaded.
    """
    metrics = Metrics(serve.__version__)
    tracing = open_tracing(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        machine = machine_for(settings.threads, Device.of(settings))
        callers = Callers.of(settings)

        def open_backend(model: Model, metrics: ModelMetrics) -> Backend:
            return _open_backend(model, settings, machine, metrics) if backend is None else backend

        followed = settings if backend is None else settings.model_copy(update={"reload_s": 0.0})
        repository = Repository(followed, open_backend, metrics)
        try:
            await repository.start()
            await callers.start()
            app.state.gateway = Gateway(settings, repository, callers, metrics, Drain())
            yield
        finally:
            app.state.gateway = None
            await callers.close()
            await repository.close()
            machine.close()
            if tracing is not None:
                await tracing.close()

    app = FastAPI(
        title="singlepass",
        version=serve.__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,  # what generated clients call it
        middleware=[
            *layers(settings, metrics, tracing),
            Middleware(Shortcut, "/generate", generate),
        ],
        exception_handlers={ServeError: on_serve_error, HTTPException: on_http_error},
    )
    app.openapi = with_components(app.openapi)  # type: ignore[method-assign]
    app.state.gateway = None
    app.state.metrics = metrics
    app.include_router(router)
    app.include_router(openai.router)
    app.include_router(page.router)
    return app


def _open_backend(
    model: Model, settings: Settings, machine: Machine, metrics: ModelMetrics
) -> Backend:
    """Triton where the settings name one, else ONNX Runtime in this process."""
    if settings.triton is None:
        device = Device.of(settings)
        return OrtBackend(model, settings.threads, device=device, machine=machine, metrics=metrics)
    for name in ("threads", "provider"):
        if getattr(settings, name) != Settings.model_fields[name].default:
            value = getattr(settings, name)
            log.warning("%s is %s and ignored: Triton runs the model", name, value)
    try:
        from serve.backend_triton import TritonBackend  # an extra: not every gateway has it
    except (ImportError, RuntimeError) as error:
        raise SettingsError(
            f"triton is {settings.triton!r}, which needs the extra singlepass[triton]: {error}"
        ) from None
    return TritonBackend(model, settings.triton, settings.triton_in_flight, metrics=metrics)
