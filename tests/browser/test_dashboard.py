"""The dashboard and the playground in a real browser: what a person sees, types and clicks."""

from collections.abc import Iterator

import pytest

from tests.browser.browser import Browser, missing, open_browser
from tests.process import ServerProcess, serving

PASSWORD = "a password for tests"
TAB, ENTER, ESCAPE = "\ue004", "\ue007", "\ue00c"

pytestmark = [pytest.mark.service, pytest.mark.skipif(missing() is not None, reason=missing() or "")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("dashboard"), ADMIN_PASSWORD=PASSWORD) as started:
        started.sign_in(password=PASSWORD)
        started.wait_for("/readyz")
        yield started


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def browser(window: Browser, server: ServerProcess) -> Browser:
    """The window as a stranger finds it: signed out, light, wide."""
    window.open(f"{server.url}/livez")
    window.run("sessionStorage.clear(); localStorage.clear()")
    window.resize(1280, 900)
    window.logs()
    return window


def sign_in(browser: Browser, server: ServerProcess, page: str = "/dashboard") -> None:
    browser.open(server.url + page)
    browser.type("#username", "admin")
    browser.type("#password", PASSWORD)
    browser.click("#sign-in button")
    browser.find("#board")


def number(text: str) -> int:
    return int("".join(character for character in text if character.isdigit()))


def cell(browser: Browser, table: str, row: str) -> list[str]:
    script = """return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)]
        .map((row) => [...row.cells].map((cell) => cell.textContent))
        .find((cells) => cells[0] === arguments[1]) ?? []"""
    return browser.run(script, table, row)


def test_a_wrong_password_is_told_and_the_right_one_shows_the_numbers(browser: Browser, server: ServerProcess) -> None:
    browser.open(f"{server.url}/dashboard")
    browser.type("#username", "admin")
    browser.type("#password", "something else")
    browser.click("#sign-in button")
    browser.shows("#sign-in-error", "wrong")
    browser.type("#password", PASSWORD)
    browser.click("#sign-in button")
    browser.shows("#scope", "1 worker")
    browser.shows("#health", "healthy")
    assert browser.run("return document.querySelectorAll('#charts canvas').length") == 9
    assert [line for line in browser.logs() if "401" not in line] == []


def test_traffic_shows_without_a_reload(browser: Browser, server: ServerProcess) -> None:
    sign_in(browser, server)
    route = "POST /api/v1/agent/prompt"
    browser.find("#routes tbody tr")
    before = cell(browser, "routes", route) or ["", "0"]
    for text in ("live one", "live two", "live one"):
        server.prompt(text)
    expected = number(before[1]) + 3
    browser.wait(lambda: number((cell(browser, "routes", route) or ["", "0"])[1]) == expected, "three more prompts")
    browser.wait(lambda: "hits" in browser.shows("#tiles", "Hit ratio"), "the hit ratio")
    assert cell(browser, "agents", "default")[1] == "offline"


def test_a_slow_request_explains_itself(browser: Browser, server: ServerProcess) -> None:
    server.prompt("explain me")
    sign_in(browser, server)
    browser.click("#slow button")
    browser.shows("#story", "of the time was spent")
    browser.press(ESCAPE)
    browser.wait(lambda: not browser.run("return document.querySelector('#story-dialog').open"), "the dialog to close")


def test_the_cache_is_cleared_after_a_question(browser: Browser, server: ServerProcess) -> None:
    server.prompt("kept for the test")
    sign_in(browser, server)
    browser.click("#clear")
    browser.click("#clear-dialog button[value=no]")
    assert server.prompt("kept for the test").json()["cached"] is True
    browser.click("#clear")
    browser.click("#clear-yes")
    browser.shows("#notice", "was cleared")
    assert server.prompt("kept for the test").json()["cached"] is False


def test_an_expired_session_asks_for_the_password_again(browser: Browser, server: ServerProcess) -> None:
    sign_in(browser, server)
    browser.run("sessionStorage.setItem('mnemosine.token', 'eyJhbGciOiJIUzI1NiJ9.e30.expired')")
    browser.shows("#sign-in-error", "expired")
    assert browser.run("return document.querySelector('#board').checkVisibility()") is False
    browser.type("#username", "admin")
    browser.type("#password", PASSWORD)
    browser.click("#sign-in button")
    browser.find("#board")


def test_a_reload_keeps_the_session_and_signing_out_ends_it(browser: Browser, server: ServerProcess) -> None:
    sign_in(browser, server)
    browser.open(f"{server.url}/dashboard")
    browser.find("#board")
    browser.click("#sign-out")
    browser.find("#sign-in")
    browser.open(f"{server.url}/dashboard")
    browser.find("#sign-in")
    assert browser.run("return document.cookie") == ""


def test_an_answer_with_a_script_is_text(browser: Browser, server: ServerProcess) -> None:
    sign_in(browser, server, "/dashboard/playground")
    evil = "<script>window.owned = 1</script><img src=x onerror='window.owned = 1'><b>bold</b>"
    browser.find("#agent option, #agent")
    browser.type("#message", evil)
    browser.click("#send")
    browser.shows("#chat li:nth-child(2) .said", evil)  # the offline model repeats what it is asked
    browser.shows("#chat li:nth-child(2) .about", "cache MISS", "tokens")
    assert browser.run("return document.querySelectorAll('#chat script, #chat img, #chat b').length") == 0
    assert browser.run("return window.owned") is None
    browser.type("#message", evil)
    browser.press(ENTER)
    browser.shows("#chat li:nth-child(4) .about", "cache HIT")
    assert browser.logs() == []


@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_comes_in_pieces_or_whole(browser: Browser, server: ServerProcess, streamed: bool) -> None:
    sign_in(browser, server, "/dashboard/playground")
    if not streamed:
        browser.click("#stream")
    browser.type("#message", f"streamed {streamed}")
    browser.click("#send")
    about = browser.shows("#chat li:nth-child(2) .about", "cache MISS", "offline", "tokens", "in all")
    assert ("first text" in about) is streamed
    browser.shows("#chat li:nth-child(2) .said", f"streamed {streamed}")


def test_an_injected_script_would_not_run(browser: Browser, server: ServerProcess) -> None:
    browser.open(f"{server.url}/dashboard")
    script = """const made = document.createElement('div'); document.body.append(made);
        try { made.innerHTML = '<img src=x onerror="window.owned = 1">' } catch (error) { return error.name }"""
    assert browser.run(script) == "TypeError"
    assert any("TrustedHTML" in line for line in browser.logs())


@pytest.mark.parametrize("page", ["/dashboard", "/dashboard/playground"])
def test_both_themes_and_the_choice_stays(browser: Browser, server: ServerProcess, page: str) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    sign_in(browser, server, page)
    light = browser.run(background)
    browser.click("#theme")
    dark = browser.run(background)
    assert light != dark
    browser.open(server.url + page)
    browser.find("#board")
    assert browser.run(background) == dark
    browser.devtools("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    browser.run("localStorage.clear()")
    browser.open(server.url + page)
    assert browser.run(background) == dark
    browser.devtools("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "light"}]})


@pytest.mark.parametrize("page", ["/dashboard", "/dashboard/playground"])
def test_a_phone_shows_all_of_it(browser: Browser, server: ServerProcess, page: str) -> None:
    browser.resize(390, 844)
    sign_in(browser, server, page)
    if page == "/dashboard":
        browser.shows("#tiles", "Requests")
    assert browser.run("return document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("page", ["/dashboard", "/dashboard/playground"])
def test_the_keyboard_is_enough_and_everything_has_a_name(browser: Browser, server: ServerProcess, page: str) -> None:
    browser.open(server.url + page)
    browser.find("#username")
    browser.wait(lambda: browser.run("return document.activeElement.id") == "username", "the focus in the form")
    browser.press(*"admin", TAB, *PASSWORD, ENTER)
    browser.find("#board")
    tree = browser.devtools("Accessibility.getFullAXTree", {})["nodes"]
    wanted = {"button", "textbox", "combobox", "checkbox", "radio", "link"}
    controls = [node for node in tree if node.get("role", {}).get("value") in wanted and not node["ignored"]]
    assert len(controls) >= 6
    nameless = [node["role"]["value"] for node in controls if not node.get("name", {}).get("value")]
    assert nameless == []
