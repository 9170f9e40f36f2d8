"""Access tokens and passwords: found in what comes in, taken out of what goes out."""

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


def _secrets() -> list[str]:
    """The user's own tokens, from where huggingface_hub looks for them."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "huggingface")
    file = os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token")
    secrets = [os.environ.get(name, "") for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
    with suppress(OSError, UnicodeDecodeError, RuntimeError):
        secrets.append(Path(os.path.expandvars(file)).expanduser().read_text())
    return [s.strip() for s in secrets if len(s.strip()) >= 4]  # a shorter one would garble texts, and is no token
