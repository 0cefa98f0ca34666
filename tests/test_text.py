"""Messages about files of others: one line, short, and nothing that steers a terminal."""

from attncalc.text import one_line


def test_what_is_fine_stays():
    assert one_line("a.npz: the cell is 3.5 Å long") == "a.npz: the cell is 3.5 Å long"


def test_line_breaks_and_control_characters():
    assert one_line("a\n  b\tc\r\n") == "a b c"
    assert one_line("\x1b[2J\0\ud800") == r"\x1b[2J\x00\ud800"


def test_an_exception_without_words_is_called_by_its_type():
    assert one_line(MemoryError()) == "MemoryError"
    assert one_line(KeyError("x")) == "'x'"


def test_the_middle_of_long_texts_is_left_out():
    text = one_line("what is wrong " + "x" * 1000 + " how to mend it", longest=60)
    assert text.startswith("what is wrong xxx")
    assert text.endswith("xxx how to mend it")
    assert " ... " in text
    assert len(text) < 70
