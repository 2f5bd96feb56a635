"""HTML and SVG as trees: text is escaped, every tag is closed, and a page needs nothing from outside."""

import base64
import hashlib
import re
from xml.etree.ElementTree import Element, tostring

# Controls, halves of UTF-16 pairs, and signs that turn the direction of the text that follows.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def el(tag: str, /, *children: Element | str | None, **attributes: str | float | None) -> Element:
    """An element of HTML or SVG.

    Args:
        tag: its name.
        children: elements, and texts of any origin; None is left out.
        attributes: None is left out. A `_` at the end of a name is dropped, others become `-`.
    """
    element = Element(tag)
    for key, value in attributes.items():
        if value is not None:
            element.set(key.rstrip("_").replace("_", "-"), visible(str(value)))
    for child in children:
        if isinstance(child, str):
            _add_text(element, visible(child))
        elif child is not None:
            element.append(child)
    return element


def _add_text(element: Element, text: str) -> None:
    """Put text behind what the element holds already."""
    if len(element):
        element[-1].tail = (element[-1].tail or "") + text
    else:
        element.text = (element.text or "") + text


def visible(text: str) -> str:
    """The text with a replacement character for each character that a page cannot hold or that would affect
    others."""
    # What can be printed has none of them; most texts, and all long ones, end here.
    return text if text.isprintable() else UNSEEN.sub("\ufffd", text)


def data_uri(data: bytes, kind: str) -> str:
    """A file as a data URI, for `src`; `kind` is its media type, such as image/png."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def write_document(title: str, style: str, body: Element, script: str = "") -> str:
    """A whole HTML file.

    Its policy tells browsers to load nothing and to run no script but this one.

    Args:
        title: title of the window.
        style: CSS.
        body: the element `body`.
        script: JavaScript, which runs when the body is loaded. Neither it nor the style may contain `</`.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
        body.append(el("script", script))
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", title),
        el("style", style),
    )
    page = el("html", head, body, lang="en")
    return "<!doctype html>\n" + tostring(page, encoding="unicode", method="html") + "\n"
