"""Messages of other programs, shortened to one line of a terminal."""

from __future__ import annotations


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
