"""Foreign text: access tokens and passwords found in what comes in, and taken out of what goes out; names of files,
classes and annotators written so that a terminal and a log show them and do not obey them."""

import logging
import os
import re
from contextlib import suppress
from pathlib import Path

LOGIN = "run `hf auth login` or set HF_TOKEN"
_TOKEN = re.compile(r"\bhf_(?:[A-Za-z0-9]{16,}|(?:oauth|jwt)_[\w.-]+)")
_BEFORE_HOST = r"([a-zA-Z][\w+.-]+:/{slashes})[^/\s]*@"  # of a URL: a name, a password, a token


def holds_token(text: str) -> bool:
    """True when an access token, of the user or of anybody, or a URL with a name or password is in ``text``."""
    return bool(_TOKEN.search(text)) or holds_login(text) or any(secret in text for secret in _secrets())


def holds_login(text: str) -> bool:
    """True when a URL with a name or password before its host is in ``text``; a path has one slash in place of two."""
    return bool(re.search(_BEFORE_HOST.replace("{slashes}", "/?"), text))


def scrub(text: str) -> str:
    """Remove every access token from ``text``, as well as names, passwords and signatures in URLs."""
    for secret in _secrets():
        text = text.replace(secret, "***")
    text = re.sub(_BEFORE_HOST.replace("{slashes}", "/"), r"\1", _TOKEN.sub("hf_***", text))
    return re.sub(r"(https?://)([^?\s]+)(?:\?[^\s'\")]*)?", r"\1\2", text)


def shown(text: object) -> str:
    """Return text for a line of a terminal or a log, wherever it comes from: what would move the cursor, colour, break
    or reverse the line stands as an escape such as ``\\x1b``, and secrets are left out.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in scrub(str(text)))


def say(*lines: object) -> None:
    """Print lines, each as `shown`."""
    print("\n".join(map(shown, lines)), flush=True)


class PublicFormatter(logging.Formatter):
    """Writes a message in one line, as `shown`; any package may log what a file or a server said."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = shown(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: tuple) -> str:
        return "\n".join(map(shown, super().formatException(ei).split("\n")))


def _secrets() -> list[str]:
    """The user's own tokens, from where huggingface_hub looks for them."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "huggingface")
    file = os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token")
    secrets = [os.environ.get(name, "") for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
    with suppress(OSError, UnicodeDecodeError, RuntimeError):
        secrets.append(Path(os.path.expandvars(file)).expanduser().read_text())
    return [s.strip() for s in secrets if len(s.strip()) >= 4]  # a shorter one would garble texts, and is no token
