"""Real text and code that is on every machine: the functions of the interpreter's own standard library, each with the
first line of its docstring. Files are read and parsed, never imported."""

import ast
import hashlib
import os
import platform
import sysconfig
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from autogreen.errors import EvaluationError

SHORTEST = 4  # words of a line that says what a function does; below it stand "Test.", "See also X", names alone
FOREIGN = ("site-packages", "dist-packages", "test", "tests", "idle_test")  # folders that are not the library itself

KNOWN = {  # digests of whole libraries as released; distributors leave parts out (tkinter, idlelib)
    "5301a99694f9f6ed434ff46f04f415a09a86635bb92317c182f30f2c02962d22": "CPython 3.11.7",
    "7d348dad3899061be1dabdb306cccd2d0f4c3fc536957d209ee2fdc6065f8c8e": "CPython 3.12.1",
    "bc3f404aa9f0ad396070f89f01672a33a92f37ae85c6496613cae7fbdff18d8e": "CPython 3.13.0",
}


@dataclass(frozen=True, kw_only=True)
class Function:
    """module: path below the library, without suffix. query: the docstring's first line. document: signature and body
    without the docstring, comments kept, as written."""

    module: str
    query: str
    document: str


def library() -> Path:
    """Folder of the standard library."""
    return Path(sysconfig.get_path("stdlib"))


def files(folder: Path) -> list[Path]:
    """Python files of a library, ordered by path; installed packages, tests and build settings are left out."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in FOREIGN and not name.startswith("config-")]
        found += [Path(place) / name for name in names if name.endswith(".py")]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


@cache
def read(folder: Path) -> tuple[Function, ...]:
    """Functions of modules and classes below a folder, ordered by path and line, no query and no document twice.

    A document is cut out of the source rather than written anew by `ast.unparse`: the same text has the same document
    under every version of Python, comments stay, and it is several times faster.

    Raises:
        EvaluationError: there is no function with a docstring, or a file cannot be parsed.
    """
    found: list[Function] = []
    queries: set[str] = set()
    documents: set[str] = set()
    for path in files(folder):
        module = path.relative_to(folder).with_suffix("").as_posix()
        for query, document in _functions(path):
            if _bare(query) not in queries and _bare(document) not in documents:
                queries.add(_bare(query))
                documents.add(_bare(document))
                found.append(Function(module=module, query=query, document=document))
    if not found:
        raise EvaluationError(
            f"{folder} holds no Python function with a docstring; retrieval needs the library's source."
        )
    return tuple(found)


def digest(functions: tuple[Function, ...]) -> str:
    """sha256 over modules, queries and documents in their order."""
    sha = hashlib.sha256()
    for function in functions:
        for text in (function.module, function.query, function.document):
            sha.update(text.encode() + b"\0")
    return sha.hexdigest()


def described(sha256: str | None) -> str:
    """A digest, and whose it is where that is known."""
    return f"{sha256} ({KNOWN[sha256]})" if sha256 in KNOWN else str(sha256)


def version() -> str:
    """The running interpreter, as `KNOWN` names it."""
    return f"{platform.python_implementation()} {platform.python_version()}"


def _bare(text: str) -> str:
    """What encoders that ignore case and spacing see of a text."""
    return " ".join(text.casefold().split())


def _functions(path: Path) -> Iterator[tuple[str, str]]:
    """Query and document of every function of a file that has both."""
    try:
        with tokenize.open(path) as file:  # the encoding that the file itself declares
            source = file.read()
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"{path} cannot be parsed ({error}); is this interpreter's own library damaged?"
        ) from error
    lines = source.split("\n")  # as the parser counts them; `splitlines` would cut at form feeds too
    for function in _defined(tree):
        text = ast.get_docstring(function)
        query = " ".join(text.split("\n", 1)[0].split()) if text else ""
        if len(query.split()) >= SHORTEST and len(function.body) > 1:
            yield query, _document(lines, function)


def _defined(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions of a module and of its classes, also below `if` and `try`; not those inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif isinstance(child, ast.stmt | ast.excepthandler):
            yield from _defined(child)


def _document(lines: list[str], function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    docstring = function.body[0]
    assert docstring.end_lineno and docstring.end_col_offset is not None and function.end_lineno
    first, last = docstring.lineno - 1, docstring.end_lineno - 1
    head = lines[first].encode()[: docstring.col_offset].decode()  # the parser counts bytes
    tail = lines[last].encode()[docstring.end_col_offset :].decode()
    left = head + tail.lstrip("; ")
    kept = [
        *lines[function.lineno - 1 : first],
        *([left] if left.strip() else []),
        *lines[last + 1 : function.end_lineno],
    ]
    return textwrap.dedent("\n".join(kept)).strip()
