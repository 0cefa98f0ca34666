"""Text of foreign messages, made fit for one line of a terminal."""

from __future__ import annotations


def one_line(message: object, *, longest: int = 400) -> str:
    """Return a text, or the message of an exception, without line breaks and control characters.

    A foreign parser puts what it stumbled over into its message: that may be megabytes, or steer
    the terminal.

    Args:
        message: text or an exception; one that says nothing is called by its type.
        longest: characters; what is longer loses its middle, so that what is wrong and how to mend
            it both stay.
    """
    text = str(message) or type(message).__name__
    if len(text) > longest:
        text = f"{text[: longest // 2]} ... {text[-(longest // 2) :]}"
    text = " ".join(text.split())
    # lone surrogates and the like cannot even be printed
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
