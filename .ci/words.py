"""Print `file:line: word` of words that plain English avoids; exit with 1 if there are any.

Of Python files, comments and strings are read. `--lengths` prints mean words a sentence instead.
"""

import io
import re
import sys
import tokenize
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST_MEAN = 17.0  # words of a sentence, mean over a document

WORDS = """nobody|somebody|anybody|everybody|whoever|whomever|whom|lest|besides|unborn|strangers
in earnest|for ever|as ever|for good|so many|so often|hardly ever|at a stretch|without a word
goes on|go on|going on|went on|gone on|comes to|come to|came to|comes up|came up|comes out|came out
the same weather|knows beforehand|known beforehand|whence|thence|hitherto|wherein|thereof|hiccups?
the guilty|is told no|are told no|let go of|begin anew|had it been|what became of|to and fro"""
FORBIDDEN = re.compile(rf"\b({WORDS})\b".replace("\n", "|").replace(" ", r"\s+"), re.IGNORECASE)

LISTS = ("traces/README.md", "reports/README.md", "scenarios/README.md")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs", *LISTS)
CODE = ("CHANGELOG.md", "moesim", "benchmarks", "studies", "examples", "tests")
QUOTED = ("tests/unit/test_documents.py",)  # the words are its test data

_PROSE = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", None))
_ABBREVIATION = re.compile(r"\b(e\.g|i\.e|et al|vs)\.", re.IGNORECASE)


def texts(*roots: str) -> dict[str, str]:
    """Return the prose of each Markdown and Python file."""
    paths = [path for root in roots for path in (ROOT / root, *sorted((ROOT / root).rglob("*")))]
    read = [path for path in paths if path.suffix in (".md", ".py") and path.is_file()]
    names = {path.relative_to(ROOT).as_posix(): path for path in read}
    return {name: prose(path) for name, path in names.items() if name not in QUOTED}


def prose(path: Path) -> str:
    """Return a file's text with all code blanked; lines keep their number."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    starts = [0, *accumulate(map(len, text.splitlines(keepends=True)))]
    kept = list(re.sub(r"\S", "·", text))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in _PROSE:
            start = starts[token.start[0] - 1] + token.start[1]
            kept[start : start + len(token.string)] = token.string
    return re.sub("[\"'#]", " ", "".join(kept))  # a phrase may continue in the next line


def mean_words(text: str) -> float:
    """Return the mean words of a sentence of a document, without code, tables and headings."""
    text = re.sub(r"```.*?```|^\s*(?:[|#]|!\[)[^\n]*$", "\n\n", text, flags=re.S | re.M)
    text = re.sub(r"`[^`]*`|https?://\S+", "code", re.sub(r"\]\([^)]*\)", "]", text))
    text = re.sub(r"^\s*(?:[-*]|\d+\.) ", "\n\n", _ABBREVIATION.sub(r"\1", text), flags=re.M)
    sentences = re.split(r"[.!?]\W*?\s|\n\n", text)
    lengths = [len(re.findall(r"[^\W_][\w.,%'’-]*", sentence)) for sentence in sentences]
    return sum(lengths) / max(1, sum(map(bool, lengths)))


def main() -> int:
    """Print what breaks the rules; return 1 if anything does."""
    if "--lengths" in sys.argv:
        means = {name: mean_words(text) for name, text in texts(*DOCUMENTS).items()}
        print("\n".join(f"{mean:5.1f} {name}" for name, mean in means.items()))
        return int(max(means.values()) > LONGEST_MEAN)
    failed = False
    for name, text in texts(*DOCUMENTS, *CODE).items():
        for hit in FORBIDDEN.finditer(text):
            failed = True
            print(f"{name}:{text.count(chr(10), 0, hit.start()) + 1}: {' '.join(hit[0].split())}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
