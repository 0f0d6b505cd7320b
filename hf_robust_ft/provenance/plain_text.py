"""Names that strangers gave (classes, data sets, models) as plain text in what we write: here alone they are escaped.

HTML pages need none of this: their templates escape, and their scripts set text.
"""

import html


def one_line(name: object) -> str:
    """A name for a terminal, a picture's title or a legend: no line break, and nothing that a terminal acts on.

    >>> one_line("cat |\\n dog")
    'cat | dog'
    """
    return "".join(letter for letter in " ".join(str(name).split()) if letter.isprintable())


def table_cell(text: object) -> str:
    """Text of ours around such names in a Markdown table: one line that ends no cell.

    >>> table_cell("cat | dog")
    'cat \\\\| dog'
    """
    return one_line(text).replace("|", r"\|")


def markdown(name: object) -> str:
    """A name in Markdown, a table's cell included: no markup, no cell's end, no new line.

    >>> markdown("cat | [dog](x)\\n<b>")
    'cat \\\\| \\\\[dog\\\\](x) &lt;b&gt;'
    """
    escaped = html.escape(one_line(name), quote=False)
    for mark in "\\|[]`*":
        escaped = escaped.replace(mark, f"\\{mark}")
    return escaped
