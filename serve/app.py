"""The ASGI application: everything it needs is an argument, and is opened in one lifespan."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException

import serve
from serve.admission import Admission
from serve.backend import Backend
from serve.backend_ort import OrtBackend
from serve.errors import ServeError
from serve.generate import Generator
from serve.model import load_model
from serve.problems import on_bug, on_http_error, on_serve_error
from serve.routes import Gateway, router
from serve.settings import Settings


def create_app(settings: Settings, backend: Backend | None = None) -> FastAPI:
    """The gateway for one model of the repository; without a back end, on ONNX Runtime.

    Its lifespan raises RepositoryError if the model cannot be loaded.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        model = await asyncio.to_thread(load_model, settings.repository, settings.model)
        engine = OrtBackend(model, settings.threads) if backend is None else backend
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
        exception_handlers={
            ServeError: on_serve_error,
            HTTPException: on_http_error,
            Exception: on_bug,
        },
    )
    app.state.gateway = None
    app.include_router(router)
    return app
