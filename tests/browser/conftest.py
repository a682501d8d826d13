"""Pages in a real Chromium: where it comes from, and what is heard from a page while the network is cut."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LOCAL = ("file:", "data:", "blob:", "about:")
WIDE, NARROW = 1440, 390
"""Pixels of a desktop and of a telephone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is marked `browser`."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


def chromium() -> str | None:
    """Where a Chromium is; $MCR_LENS_CHROMIUM goes first."""
    return os.environ.get("MCR_LENS_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def unavailable(what: str) -> None:
    """Skip in one sentence, or fail where a browser was promised."""
    if os.environ.get("MCR_LENS_BROWSER") == "required":
        pytest.fail(f"{what}, and MCR_LENS_BROWSER=required forbids to skip", pytrace=False)
    pytest.skip(f"{what}; install one, or set MCR_LENS_CHROMIUM to its path")


@dataclass
class Visit:
    """A page with everything that it said and asked for."""

    page: Any
    console: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def listen(self) -> None:
        """Note console errors, exceptions, failed requests and dialogs."""
        self.page.on("console", lambda m: m.type == "error" and self.console.append(m.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfailed", lambda r: self.failed.append(f"{r.url[:200]}: {r.failure}"))
        self.page.on("dialog", self._dismiss)

    def _dismiss(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def check(self) -> None:
        """Nothing went wrong and nothing was asked of a network."""
        heard = {"console": self.console, "exceptions": self.errors, "failed requests": self.failed,
                 "requests": self.outside, "dialogs": self.dialogs}  # fmt: skip
        assert not any(heard.values()), {what: said for what, said in heard.items() if said}


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One Chromium for all tests of a worker."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        unavailable("playwright is not installed")
    path = chromium()
    if path is None:
        unavailable(f"no Chromium was found (looked for {', '.join(NAMES)})")
    with sync_playwright() as playwright:
        # CI is root, where Chromium has no sandbox; /dev/shm is small in containers.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        launched = playwright.chromium.launch(executable_path=path, headless=True, args=arguments)
        yield launched
        launched.close()


@pytest.fixture(params=[NARROW, pytest.param(WIDE, marks=pytest.mark.slow)])
def width(request: pytest.FixtureRequest) -> int:
    """A telephone and a desktop."""
    return request.param


@pytest.fixture(scope="session")
def listening() -> Callable[[Any], Visit]:
    """Listen to a page that the test opened itself."""

    def listened(page: Any) -> Visit:
        found = Visit(page)
        found.listen()
        return found

    return listened


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Open a file with the network cut: `visit(path, width=390)`; `check()` says whether it was quiet."""
    contexts = []

    def opened(path: Path, *, width: int = WIDE, height: int = 900, **options: Any) -> Visit:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        context.set_default_timeout(20_000)
        found = Visit(context.new_page())
        context.set_offline(True)
        context.route("**/*", lambda route: _only_local(route, found))
        found.listen()
        found.page.goto(path.as_uri(), wait_until="load")
        return found

    yield opened
    for context in contexts:
        context.close()


def _only_local(route: Any, found: Visit) -> None:
    if route.request.url.startswith(LOCAL):
        route.continue_()
        return
    found.outside.append(route.request.url)
    route.abort()
