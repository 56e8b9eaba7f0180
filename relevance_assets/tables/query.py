"""Questions to the published database.

Belongs here: running one SELECT on it, read-only, with errors that say what to do. Does not belong here:
the questions themselves (`sql/queries`), how an answer is shown (`cli.py`).
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import polars as pl

__all__ = ["QueryError", "run_query"]

_READS = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)


class QueryError(ValueError):
    """A question that cannot be answered, and why."""


def run_query(database: Path, query: str | Path) -> pl.DataFrame:
    """Answer one SELECT (also DESCRIBE, SHOW TABLES, SUMMARIZE, EXPLAIN) from the published database.

    Parameters
    ----------
    database : `results.duckdb`; it is opened read-only and closed again.
    query : SQL text, or a file: a Path, or a text that ends in `.sql`.

    Raises
    ------
    QueryError
        In one line: no database yet, no such file, more than one statement, a statement that writes, a
        mistake in the SQL, or a database that another program holds open for writing.
    """
    database = Path(database)
    if not database.is_file():
        raise QueryError(
            f"no results at {database} yet; `relevance-assets demo` or `relevance-assets run STUDY` makes it"
        )
    where, text = _text(query)
    try:
        statements = duckdb.extract_statements(text)
    except duckdb.Error as error:
        raise QueryError(f"{where}: {_line(error)}") from error
    if len(statements) != 1:
        raise QueryError(f"{where}: one statement at a time, here are {len(statements)}")
    if statements[0].type not in _READS:
        kind = statements[0].type.name
        raise QueryError(f"{where}: {kind} is not a question; only SELECT, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN")
    try:
        connection = duckdb.connect(str(database), read_only=True, config={"autoinstall_known_extensions": "false"})
    except duckdb.Error as error:
        raise QueryError(_cannot_open(database, error)) from error
    with connection:
        try:
            return connection.sql(statements[0].query).pl()
        except duckdb.Error as error:
            raise QueryError(f"{where}: {_line(error)}") from error


def _text(query: str | Path) -> tuple[str, str]:
    """Where the query is from, for messages, and its text."""
    if isinstance(query, str) and not query.strip().endswith(".sql"):
        return "query", query
    file = Path(str(query).strip())
    try:
        return str(file), file.read_text()
    except OSError as error:
        raise QueryError(f"{file}: {error.strerror or error}") from error


def _cannot_open(database: Path, error: duckdb.Error) -> str:
    if "lock" in str(error).lower():
        return (
            f"{database} is open for writing in another program; close it there, or open it with "
            f"`duckdb -readonly` ({_line(error)})"
        )
    if "wal" in str(error).lower():
        return (
            f"{database}: a session that wrote into it left {database.name}.wal behind; remove that file "
            "or publish again"
        )
    return f"{database}: {_line(error)}"


def _line(error: duckdb.Error) -> str:
    """The error's first line, with the suggestion that some errors carry."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    hints = [line for line in lines[1:] if line.startswith(("Did you mean", "Candidate bindings"))]
    return " ".join([lines[0] if lines else "unknown error", *hints])
