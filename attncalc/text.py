"""Text for terminals: numbers with their nouns, messages of other programs in one line."""

from __future__ import annotations

# errors that a user can cause; any other error is a bug, and printed with its traceback
EXPECTED = (ValueError, OSError, RuntimeError, ArithmeticError, ImportError)


def counted(n: int, noun: str) -> str:
    """Return a number and its noun, which takes an s unless the number is 1."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def one_line(message: object, *, longest: int = 400) -> str:
    """Return a text, or the message of an exception, without line breaks and control characters.

    Other parsers quote their input in messages: it may be megabytes long, or control the terminal.

    Args:
        message: text or an exception; an exception without a message is named by its type.
        longest: number of characters; a longer text loses its middle, so that both the problem and
            its remedy remain.
    """
    text = str(message) or type(message).__name__
    if len(text) > longest:
        text = f"{text[: longest // 2]} ... {text[-(longest // 2) :]}"
    text = " ".join(text.split())
    # lone surrogates and the like cannot even be printed
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
