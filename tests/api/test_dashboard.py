"""The pages of the dashboard as files: public, of this server alone, and under a strict policy."""

import re

import pytest

from tests.application import Application

PAGES = ("/dashboard", "/dashboard/playground")


@pytest.mark.parametrize("page", PAGES)
async def test_a_page_is_public_and_everything_it_names_is_there(application: Application, page: str) -> None:
    reply = await application.anonymous.get(page)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    named = re.findall(r'(?:src|href)="([^"#]+)"', reply.text)
    assert len(named) >= 5
    for path in named:
        assert path.startswith("/dashboard"), "nothing comes from elsewhere"
        assert (await application.anonymous.get(path)).status_code == 200


@pytest.mark.parametrize("page", PAGES)
async def test_the_policy_is_strict_and_the_page_keeps_it(application: Application, page: str) -> None:
    reply = await application.anonymous.get(page)
    policy = reply.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", reply.text), "nothing is inline"


@pytest.mark.parametrize("name", ["common.js", "dashboard.js", "playground.js"])
async def test_scripts_never_turn_text_into_markup(application: Application, name: str) -> None:
    text = (await application.anonymous.get(f"/dashboard/assets/{name}")).text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)


async def test_what_has_not_changed_is_not_sent_again(application: Application) -> None:
    first = await application.anonymous.get("/dashboard/assets/style.css")
    again = await application.anonymous.get(
        "/dashboard/assets/style.css", headers={"If-None-Match": first.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "..%2f__init__.py", "__init__.py", "LICENSE"])
async def test_other_files_are_not_served(application: Application, name: str) -> None:
    assert (await application.anonymous.get(f"/dashboard/assets/{name}")).status_code == 404
