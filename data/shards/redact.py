"""Remove secrets from texts for files, logs and screens."""

import re

HIDDEN = "***"
_PLACES = (
    # https://user:password@host, and s3://key@host
    (re.compile(r"(://)[^/\s@'\"]+@"), rf"\1{HIDDEN}@"),
    # ?X-Amz-Signature=...&sig=...: any value may be a secret, and hardly any says more than the path
    (re.compile(r"(\?|&)([\w.%~-]+=)[^&\s'\"#]+"), rf"\1\2{HIDDEN}"),
    # Authorization: Bearer ...
    (re.compile(r"(?i)(\b(?:bearer|basic|negotiate)[\s:]+)[^\s'\"]+"), rf"\1{HIDDEN}"),
    # --token ..., API_KEY=..., "password": "...", X-Auth-Token: ...
    (
        re.compile(
            r"(?i)([\w-]*(?:token|secret|passw(?:or)?d|api[-_]?key|access[-_]?key|credential|signature)[\w-]*"
            r"['\"]?\s*[=:\s]\s*['\"]?)[^\s'\"&,;]+"
        ),
        rf"\1{HIDDEN}",
    ),
    # curl -u user:password
    (re.compile(r"(\s(?:-u|--user)[\s=]*['\"]?)[^\s'\"]+"), rf"\1{HIDDEN}"),
    (re.compile(r"\b(?:hf|ghp|github_pat|sk|AKIA|ya29)[_.-]?[A-Za-z0-9_-]{16,}"), HIDDEN),
)


def redact(text: str) -> str:
    """The text without passwords, tokens and signatures, and without all values of URLs' queries.

    Local paths and plain URLs do not change.
    """
    if not any(sign in text for sign in (":", "=", " ")):
        return text
    for place, instead in _PLACES:
        text = place.sub(instead, text)
    return text
