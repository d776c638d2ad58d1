"""The ASGI application: everything it needs is an argument, and is opened in one lifespan."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

import serve
from serve import openai
from serve.admission import Admission
from serve.backend import Backend
from serve.backend_ort import OrtBackend
from serve.errors import ServeError, SettingsError
from serve.generate import Generator
from serve.model import Model, load_model
from serve.problems import on_bug, on_http_error, on_serve_error
from serve.routes import Gateway, router
from serve.settings import Settings
from serve.stamping import Stamping

log = logging.getLogger(__name__)


def create_app(settings: Settings, backend: Backend | None = None) -> FastAPI:
    """The gateway for one model of the repository; without a back end, on the settings' one.

    Its lifespan raises RepositoryError if the model cannot be loaded.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        model = await asyncio.to_thread(load_model, settings.repository, settings.model)
        engine = _open_backend(model, settings) if backend is None else backend
        generator = Generator(model, engine, settings.encode_workers)
        await engine.start()
        app.state.gateway = Gateway(
            settings, model, generator, Admission(engine, settings.max_queue)
        )
        try:
            yield
        finally:
            app.state.gateway = None
            await engine.close()
            generator.close()

    app = FastAPI(
        title="singlepass",
        version=serve.__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        middleware=[Middleware(Stamping)],
        exception_handlers={
            ServeError: on_serve_error,
            HTTPException: on_http_error,
            Exception: on_bug,
        },
    )
    app.state.gateway = None
    app.include_router(router)
    app.include_router(openai.router)
    return app


def _open_backend(model: Model, settings: Settings) -> Backend:
    """Triton where the settings name one, else ONNX Runtime in this process."""
    if settings.triton is None:
        return OrtBackend(model, settings.threads)
    if settings.threads:
        log.warning("threads is %d and ignored: Triton runs the model", settings.threads)
    try:
        from serve.backend_triton import TritonBackend  # an extra: not every gateway has it
    except (ImportError, RuntimeError) as error:
        raise SettingsError(
            f"triton is {settings.triton!r}, which needs the extra singlepass[triton]: {error}"
        ) from None
    return TritonBackend(model, settings.triton)
