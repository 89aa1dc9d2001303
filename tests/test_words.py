"""Docstrings, messages and pages use the words of the field: see the habits in CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
from functools import cache

import package_source
import pytest

PLAIN_WORDS = {
    r"\A(What|Who) ": "begin with a noun: 'The files to send', not 'What to send'",
    r"\banswer(s|ed)?\b": "response, result, or a verb such as 'shows'",
    r"\b(said|told)\b": "reported",
    r"\bgo(es)? on\b": "continue, or resume",
    r"\bmay pass\b": "transient",
    r"\bgone\b": "missing, removed, or deleted",
    r"\b[Ww]hoever\b": "name who does it: 'the process that ...'",
}
"""Pattern of a word that a reader would have to translate -> what to write instead."""


@cache
def sentences() -> list[tuple[str, str]]:
    """Place and text of every docstring and message of the package, and of every line of the pages."""
    root = package_source.ROOT
    texts = [
        (f"{path.relative_to(root)}:{node.lineno}", node.value)
        for path in package_source.modules().values()
        for node in ast.walk(package_source.tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.count(" ") > 1
    ]
    lines = [
        (f"{path.relative_to(root)}:{number}", f" {line}")
        for path in (*root.glob("*.md"), *root.glob("docs/*.md"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    ]
    return texts + lines


@pytest.mark.parametrize(("word", "instead"), PLAIN_WORDS.items())
def test_sentences_use_the_words_of_the_field(word: str, instead: str) -> None:
    found = [f"{place}: {text.strip()[:80]}" for place, text in sentences() if re.search(word, text)]
    assert found == [], f"write {instead}"
