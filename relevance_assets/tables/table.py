"""What a table is: its key, its columns, and how a frame is made to conform to them.

Belongs here: the types `Table` and `Column` and the checks of one frame. Does not belong here: which tables
there are (`schema.py`), files (`store.py`), the database (`database.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

__all__ = ["Column", "Table", "TableError"]


class TableError(ValueError):
    """A frame, a file or a partition that does not fit its table."""


@dataclass(frozen=True)
class Column:
    """One column. `volatile` columns (times, run ids) are ignored when two runs are compared."""

    name: str
    dtype: pl.DataType
    description: str
    nullable: bool = False
    volatile: bool = False


@dataclass(frozen=True)
class Table:
    """A table: `columns` begins with `study`, then the rest of the key, then the values."""

    name: str
    description: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]

    @property
    def schema(self) -> dict[str, pl.DataType]:
        """Column names and polars types, in order."""
        return {column.name: column.dtype for column in self.columns}

    def empty(self) -> pl.DataFrame:
        """A frame with this table's columns and no rows."""
        return pl.DataFrame(schema=self.schema)

    def conform(self, frame: pl.DataFrame, study: str) -> pl.DataFrame:
        """Make `frame` a frame of this table, in the declared types and order, with `study` as first column.

        A missing nullable column becomes null. Types change only where no value does: int to float or
        text, whole floats to int; text never becomes a number.

        Parameters
        ----------
        frame : rows of one study, columns in any order; a column `study` may be there if it says the same.
        study : the study's name.

        Raises
        ------
        TableError
            Unknown or missing column, a type that does not fit, null or NaN or infinity where it must not
            be, or a key that appears twice; it names the table and the column.
        """
        if frame.width == 0 and frame.height == 0:
            return self.empty()
        if "study" in frame.columns:
            others = frame.filter(pl.col("study").ne_missing(pl.lit(study)))
            if others.height:
                raise TableError(
                    f"table {self.name}, column study: {others['study'][0]!r} among the rows of {study!r}; "
                    "write each study's rows by themselves"
                )
        else:
            frame = frame.with_columns(pl.lit(study, dtype=pl.String).alias("study"))
        unknown = [name for name in frame.columns if name not in self.schema]
        if unknown:
            raise TableError(
                f"table {self.name}, column {unknown[0]}: not a column of this table; "
                f"known are {', '.join(self.schema)}"
            )
        missing = [c.name for c in self.columns if c.name not in frame.columns and not c.nullable]
        if missing:
            raise TableError(f"table {self.name}, column {missing[0]}: missing, and it may not be null")
        columns = [self._cast(column, frame) for column in self.columns]
        return self.check(pl.DataFrame(columns))

    def check(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return `frame`, of this table's schema, if nulls and keys are as declared, else TableError."""
        for column in self.columns:
            series = frame[column.name]
            if not column.nullable and series.null_count():
                where = _row(frame.filter(series.is_null()), self.key)
                raise TableError(f"table {self.name}, column {column.name}: null at {where}; it needs a value")
        doubled = frame.filter(frame.select(pl.struct(self.key).is_duplicated()).to_series())
        if doubled.height:
            raise TableError(
                f"table {self.name}, key ({', '.join(self.key)}): more than one row with {_row(doubled, self.key)}"
            )
        return frame

    def _cast(self, column: Column, frame: pl.DataFrame) -> pl.Series:
        """The column of `frame` in its declared type; all null where the frame has no such column."""
        if column.name not in frame.columns:
            return pl.Series(column.name, [None] * frame.height, dtype=column.dtype)
        series = frame[column.name]
        where = f"table {self.name}, column {column.name}"
        if not _fits(series.dtype, column.dtype):
            raise TableError(f"{where}: is {series.dtype}, must be {column.dtype}")
        if series.dtype.is_float():
            bad = frame.filter(~series.fill_null(0).is_finite())
            if bad.height:
                raise TableError(
                    f"{where}: {bad[column.name][0]} at {_row(bad, self.key)}; write null where a value is undefined"
                )
            if column.dtype.is_integer() and not series.drop_nulls().round().equals(series.drop_nulls()):
                raise TableError(f"{where}: has fractions, must be whole numbers")
        if isinstance(series.dtype, pl.Datetime) and series.dtype.time_zone:
            series = series.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        try:
            return series.cast(column.dtype)
        except pl.exceptions.PolarsError as error:
            raise TableError(f"{where}: {str(error).splitlines()[0]}") from error


def _fits(given: pl.DataType, declared: pl.DataType) -> bool:
    """Whether a cast from `given` to `declared` guesses nothing."""
    if given in (pl.Null, declared):
        return True
    if declared == pl.String:
        return given.is_integer() or isinstance(given, pl.Categorical | pl.Enum)
    if isinstance(declared, pl.Datetime):
        return isinstance(given, pl.Datetime)
    return declared.is_numeric() and given.is_numeric()


def _row(frame: pl.DataFrame, key: tuple[str, ...]) -> str:
    """The key of the first row, as `scan=sub-A, fold=0`."""
    return ", ".join(f"{name}={frame[name][0]}" for name in key if name in frame.columns)
