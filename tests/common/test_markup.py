"""Text stays text whatever it is, and trees are written as HTML that parses to the same."""

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packvit.common.markup import data_uri, el, visible, write_document


class Body(HTMLParser):
    """Everything behind the head."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple] = []
        self.feed(page[page.index("<body") :])
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.found.append((f"/{tag}",))

    def handle_data(self, data):
        if self.found[-1][0] == "text":
            data = self.found.pop()[1] + data
        self.found.append(("text", data))


texts = st.text(st.characters(codec=None), min_size=1)


@given(texts, texts, texts)
def test_any_text_comes_back_as_text(first, second, value):
    body = el("body", el("p", first, el("b", second, title=value), second))
    found = Body(write_document("t", "", body)).found
    assert found[:-2] == [
        ("body", {}),
        ("p", {}),
        ("text", visible(first)),
        ("b", {"title": visible(value)}),
        ("text", visible(second)),
        ("/b",),
        ("text", visible(second)),
        ("/p",),
        ("/body",),
    ]
    assert write_document(first, "", body).encode()


@pytest.mark.parametrize("text", ["\x00", "\x07", "\x85", "\u202e", "\u2066", "\ud800", "\ufffe"])
def test_what_no_page_can_hold_is_replaced(text):
    assert visible(f"a{text}b") == "a\ufffdb"


def test_plain_text_of_any_language_is_left_as_it_is():
    text = "Zürich, \u00a05 % \u4e2d\u6587 \u05e9\u05dc\u05d5\u05dd \N{DROMEDARY CAMEL}\nnext\tline"
    assert visible(text) == text


def test_attributes_are_named_as_html_names_them_and_none_is_left_out():
    element = el("td", None, "x", class_="n", data_v="1", aria_label=None, viewBox=2)
    assert element.attrib == {"class": "n", "data-v": "1", "viewBox": "2"}
    assert element.text == "x"


def test_a_file_as_an_address():
    assert data_uri(b"abc", "image/png") == "data:image/png;base64,YWJj"
