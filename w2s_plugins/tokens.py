"""Access tokens and passwords: found in what comes in, taken out of what goes out."""

import os
import re
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants

from w2s_plugins.errors import holds_login, without_logins

LOGIN = "run `hf auth login` or set HF_TOKEN"


_TOKEN = re.compile(r"\bhf_(?:[A-Za-z0-9]{16,}|(?:oauth|jwt)_[\w.-]+)")


def holds_token(text: str) -> bool:
    """True when an access token, of the user or of anybody, or a URL with a name or password is in ``text``."""
    return bool(_TOKEN.search(text)) or holds_login(text) or any(secret in text for secret in _secrets())


def _secrets() -> list[str]:
    secrets = [os.environ.get(k, "") for k in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
    with suppress(OSError, UnicodeDecodeError):
        secrets.append(Path(constants.HF_TOKEN_PATH).read_text())
    return [s.strip() for s in secrets if len(s.strip()) >= 4]  # a shorter one would garble texts, and is no token


def scrub(text: str) -> str:
    """Remove every access token from ``text``, as well as passwords and signatures in URLs."""
    for secret in _secrets():
        text = text.replace(secret, "***")
    text = without_logins(_TOKEN.sub("hf_***", text))
    return re.sub(r"(https?://)([^?\s]+)(?:\?[^\s'\")]*)?", r"\1\2", text)
