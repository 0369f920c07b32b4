"""Follow an answer's pages by `next_url`, which is a hint: path and query, never a host, a key or a smaller window.

Add here: faults of paging that somebody recorded. Keep out: attempts (calls) and what a page must look like (pages).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from market_data_pipeline.domain.failures import DataError

if TYPE_CHECKING:
    from market_data_pipeline.polygon.calls import Caller, Question
    from market_data_pipeline.polygon.usage import Tally

# Pages of bars end by themselves, because every one must go on after the last; both caps are for a vendor gone mad.
PAGE_CAP: Final = 1_000  # a window of ten years of 5m bars has 50
EMPTY_PAGE_CAP: Final = 10

_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Page(Generic[_R]):
    """One page: its rows, how many they are, and the vendor's address of the next page."""

    rows: _R
    count: int
    next_url: str | None


class Paging:
    """Follows pages on one server.

    Args:
        caller: asks for each page.
        base_path: the path that the server's address has itself, mostly none.
    """

    def __init__(self, caller: Caller, base_path: str = "") -> None:
        self._caller = caller
        self._base_path = base_path

    def pages(
        self,
        question: Question,
        read: Callable[[bytes], Page[_R]],
        path: str,
        again: Mapping[str, str],
        tally: Tally,
        left: Callable[[], tuple[int, int]] | None = None,
    ) -> Iterator[Page[_R]]:
        """Yield the pages in order, the first one being the answer to `question`.

        Args:
            question: what to ask.
            read: decodes and checks a page.
            path: what every page's path starts with.
            again: parameters to send with every page, because the vendor's cursor was seen to lose them.
            tally: every attempt is counted here.
            left: the first and the last millisecond that are still to be read, where the path ends in a window of those
                (`…/from/to`): a next page that leaves out some of them is asked for them all the same.

        Raises:
            DataError: a next page was read before or is something else, or the pages do not end.
            PipelineError: as `Caller.ask`.
        """
        what = question.what
        seen = {question.target}
        empty = 0
        for _ in range(PAGE_CAP):
            page = self._caller.ask(question, read, tally)
            yield page
            if not page.next_url:
                return
            empty = 0 if page.count else empty + 1
            if empty >= EMPTY_PAGE_CAP:
                raise DataError(f"{what}: {empty} pages in a row are empty and name a next one.")
            target = self._target(page.next_url, path, again, what, left() if left else None)
            if target in seen:
                raise DataError(f"{what}: the next page is one that was read before.")
            seen.add(target)
            question = question._replace(target=target)
        raise DataError(f"{what}: no end after {PAGE_CAP} pages.")

    def _target(
        self, next_url: str, path: str, again: Mapping[str, str], what: str, left: tuple[int, int] | None
    ) -> str:
        """Return path and query of `next_url`, without a key and with the parameters `again`."""
        try:
            parts = urlsplit(next_url)
        except ValueError:
            raise DataError(f"{what}: next_url is not an address.") from None
        target = parts.path.removeprefix(self._base_path)
        if not unquote(target).startswith(unquote(path)):
            raise DataError(f"{what}: next_url leads elsewhere, to {target[:100]!r}.")
        if left is not None:
            target = _widened(target, *left)
        query = [
            (name, value)
            for name, value in parse_qsl(parts.query, keep_blank_values=True)
            if name.lower().replace("_", "") != "apikey" and name not in again
        ]
        return f"{target}?{urlencode([*query, *again.items()])}"


def _widened(target: str, first: int, last: int) -> str:
    """Return a path that ends in `/from/to`, in ms, with bounds that leave out none of `first` to `last`."""
    start, _, end = target.rpartition("/")
    start, _, begin = start.rpartition("/")
    if not (begin.isdigit() and end.isdigit() and int(begin) <= int(end)):
        return target  # dates, or no window at all
    return f"{start}/{min(int(begin), first)}/{max(int(end), last)}"
