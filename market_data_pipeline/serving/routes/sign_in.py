"""The sign-in of a browser with the token, and its end."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response

from market_data_pipeline.serving.pages.templates import render
from market_data_pipeline.serving.problem_types import ProblemType
from market_data_pipeline.serving.problems import Problem
from market_data_pipeline.serving.routes.pages import PAGE_HEADERS

if TYPE_CHECKING:
    from market_data_pipeline.serving.access import AdminAccess


def router(access: AdminAccess) -> APIRouter:
    """Return the routes; none when no token is configured, since there is nothing to sign in with."""
    routes = APIRouter(include_in_schema=False)
    sessions = access.sessions
    if sessions is None:
        return routes

    def form(status: HTTPStatus, *, refused: bool) -> HTMLResponse:
        return HTMLResponse(render("sign_in.html", root="", now=None, refused=refused), status, PAGE_HEADERS)

    @routes.get("/sign-in")
    async def ask() -> HTMLResponse:
        return form(HTTPStatus.OK, refused=False)

    @routes.post("/sign-in")
    async def sign_in(request: Request) -> Response:
        _require_own_page(request)
        fields = parse_qs((await request.body()).decode("latin-1"), max_num_fields=10)
        if not access.is_token(fields.get("token", [""])[0].strip()):
            return form(HTTPStatus.UNAUTHORIZED, refused=True)
        response = RedirectResponse("./", HTTPStatus.SEE_OTHER, {"cache-control": "no-store"})
        sessions.start(request, response)
        return response

    @routes.post("/sign-out")
    async def sign_out(request: Request) -> RedirectResponse:
        _require_own_page(request)
        response = RedirectResponse("./", HTTPStatus.SEE_OTHER, {"cache-control": "no-store"})
        sessions.end(response)
        return response

    return routes


def _require_own_page(request: Request) -> None:
    """Raise a Problem when another site's page sent the form."""
    if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        raise Problem(HTTPStatus.FORBIDDEN, "A page of another site sent this form.", kind=ProblemType.FOREIGN_PAGE)
    if request.headers.get("content-type", "").partition(";")[0] not in {"", "application/x-www-form-urlencoded"}:
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send a form.")
