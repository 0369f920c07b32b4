"""The pages about the API itself: its endpoints, and what each type of problem means."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse

from market_data_pipeline.serving.pages.templates import render
from market_data_pipeline.serving.problem_types import BY_SLUG, PATH
from market_data_pipeline.serving.routes.pages import PAGE_HEADERS

# Swagger UI's style sheet holds its icons as data addresses; they load nothing.
_DOCS_HEADERS: Final = PAGE_HEADERS | {
    "content-security-policy": PAGE_HEADERS["content-security-policy"].replace("img-src 'self'", "img-src 'self' data:")
}


def router() -> APIRouter:
    """Return the routes."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/docs")
    async def docs() -> HTMLResponse:
        return HTMLResponse(render("docs.html"), headers=_DOCS_HEADERS)

    @routes.get(PATH)
    async def problems() -> HTMLResponse:
        return HTMLResponse(render("problems.html", root="", now=None, kinds=BY_SLUG.values()), headers=PAGE_HEADERS)

    @routes.get(f"{PATH}/{{slug}}")
    async def problem(slug: str) -> HTMLResponse:
        if slug not in BY_SLUG:
            raise HTTPException(404)
        return HTMLResponse(render("problem.html", root="../", now=None, kind=BY_SLUG[slug]), headers=PAGE_HEADERS)

    return routes
