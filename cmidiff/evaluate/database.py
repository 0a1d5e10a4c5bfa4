"""The results of a run: one SQLite database, one writer, any number of readers.

A run is a folder::

    RUN/results.sqlite            this database (write-ahead log beside it while it is open)
    RUN/run.log                   what happened, in words
    RUN/truth/IMAGE.png           the images as they were measured, after cropping and shrinking
    RUN/measured/TASK/...png      what each measurement looks like
    RUN/restored/TASK/SOLVER/...  per unit: sample-0.png ... sample-<K-1>.png, and for K > 1 mean.png and std.png

A *unit* is one image, restored by one solver for one task. Its identity is (image, task, solver, cmi, eta, steps,
seed), and its K posterior samples depend on that alone. A *cell* is what a table shows one figure for: all units with
the same (task, solver, cmi, eta, steps). The base solver and its CMI form share measurement and random numbers, so
units that differ in ``cmi`` and ``eta`` only are pairs.

Tables:

``run``         key, value (JSON). Keys: ``schema`` (int), ``config`` (resolved), ``prior`` (name, card and SHA-256 of
                the weights), ``machine`` (kind), ``versions`` (package: version), ``created`` (ISO 8601).
``image``       name, file, digest, width, height, path (of its PNG in the run), error (why it cannot be used, or NULL).
``measurement`` image, task, seed, path.
``unit``        identity; ``status``: ``pending``, ``ok`` (at least one sample finished), ``diverged`` (none did: a
                result, not a fault) or ``failed`` (``error`` says why). ``attempts``. ``diverged``: how many of its
                samples did. ``evaluations`` and ``gradients``: forward and backward passes of the network for each of
                its samples. ``seconds`` (of all its samples), ``finished`` (ISO 8601), ``worker``.
``sample``      unit, k, ok, step (at which it diverged), message.
``output``      unit, kind (``sample-K``, ``mean``, ``std``), path, digest. A std map has 16 bits: value / 65535 is the
                standard deviation, averaged over the channels, of images in [0, 1].
``metric``      name, units, better (``higher``, ``lower`` or ``none``), description, absent (why it has no values).
``score``       unit, metric, value: the mean over the unit's finished samples, where not said otherwise.
``cell_score``  cell, metric, value, images (how many it was computed from), network (its features): FID and KID. With
                CMI also difference (to the base), error (its standard error over images) and pairs (images of both).

To read it, open `Results`. Values that are not finite are stored as NULL and read as NaN.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, Self, get_args

from filelock import FileLock, Timeout

from cmidiff.evaluate.records import Cell, CellScore, ImageRow, Metric, Outcome, Status, Unit, UnitRow

SCHEMA = 3
FILE = "results.sqlite"

_TABLES = """
CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE image (
    name TEXT PRIMARY KEY, file TEXT NOT NULL, digest TEXT, width INTEGER, height INTEGER, path TEXT, error TEXT
) WITHOUT ROWID;
CREATE TABLE measurement (
    image TEXT NOT NULL REFERENCES image, task TEXT NOT NULL, seed INTEGER NOT NULL, path TEXT NOT NULL,
    PRIMARY KEY (image, task, seed)
) WITHOUT ROWID;
CREATE TABLE unit (
    id INTEGER PRIMARY KEY,
    image TEXT NOT NULL REFERENCES image, task TEXT NOT NULL, solver TEXT NOT NULL, cmi INTEGER NOT NULL,
    eta REAL NOT NULL, steps INTEGER NOT NULL, seed INTEGER NOT NULL,
    status TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'ok', 'diverged', 'failed')),
    error TEXT, attempts INTEGER NOT NULL DEFAULT 0, diverged INTEGER NOT NULL DEFAULT 0,
    evaluations REAL, gradients REAL, seconds REAL, finished TEXT, worker TEXT,
    UNIQUE (image, task, solver, cmi, eta, steps, seed)
);
CREATE TABLE sample (
    unit INTEGER NOT NULL REFERENCES unit, k INTEGER NOT NULL, ok INTEGER NOT NULL, step INTEGER, message TEXT NOT NULL,
    PRIMARY KEY (unit, k)
) WITHOUT ROWID;
CREATE TABLE output (
    unit INTEGER NOT NULL REFERENCES unit, kind TEXT NOT NULL, path TEXT NOT NULL, digest TEXT NOT NULL,
    PRIMARY KEY (unit, kind)
) WITHOUT ROWID;
CREATE TABLE metric (
    name TEXT PRIMARY KEY, units TEXT NOT NULL, better TEXT NOT NULL, description TEXT NOT NULL, absent TEXT
);
CREATE TABLE score (
    unit INTEGER NOT NULL REFERENCES unit, metric TEXT NOT NULL REFERENCES metric, value REAL,
    PRIMARY KEY (unit, metric)
) WITHOUT ROWID;
CREATE TABLE cell_score (
    task TEXT NOT NULL, solver TEXT NOT NULL, cmi INTEGER NOT NULL, eta REAL NOT NULL, steps INTEGER NOT NULL,
    metric TEXT NOT NULL REFERENCES metric, value REAL, images INTEGER NOT NULL, network TEXT NOT NULL,
    difference REAL, error REAL, pairs INTEGER NOT NULL,
    PRIMARY KEY (task, solver, cmi, eta, steps, metric)
) WITHOUT ROWID;
"""


class RunError(ValueError):
    """A run that cannot be opened, created or continued; the message says what to do."""


UNIT = ", ".join(Unit._fields)


class Results:
    """The results of a run, for reading; while another process writes, too.

    Args:
        folder: of the run.

    Raises:
        RunError: no run there, or one of another schema.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._connection = self._connect()

    def _connect(self) -> sqlite3.Connection:
        path = self.folder / FILE
        if not path.is_file():
            raise RunError(
                f"{self.folder} holds no run ({FILE} is missing): give the folder that cmidiff evaluate --out wrote"
            )
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)
        if _schema(connection, self.folder) == 0:
            raise RunError(f"the run in {self.folder} was never started: run cmidiff evaluate first")
        return connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def about(self) -> dict[str, Any]:
        """Keys and values of the table ``run``: schema, config, prior, machine, versions, created."""
        return {key: json.loads(value) for key, value in self._connection.execute("SELECT key, value FROM run")}

    def counts(self) -> dict[Status, int]:
        """Units of each status."""
        found = dict(self._connection.execute("SELECT status, count(*) FROM unit GROUP BY status"))
        return {status: found.get(status, 0) for status in get_args(Status)}

    def units(self) -> list[UnitRow]:
        """All units, in the order of the grid, with scores and images."""
        scores, images = defaultdict[int, dict](dict), defaultdict[int, dict](dict)
        for unit, metric, value in self._connection.execute("SELECT unit, metric, value FROM score"):
            scores[unit][metric] = _number(value)
        for unit, kind, path in self._connection.execute("SELECT unit, kind, path FROM output"):
            images[unit][kind] = path
        columns = f"id, {UNIT}, status, error, attempts, diverged, evaluations, gradients, seconds"
        return [
            UnitRow(_unit(row[:7]), *row[7:11], *map(_number, row[11:]), scores=scores[unit], images=images[unit])
            for unit, *row in self._connection.execute(f"SELECT {columns} FROM unit ORDER BY id")
        ]

    def images(self) -> list[ImageRow]:
        """The images, by name; those that could not be used have an ``error``."""
        columns = ", ".join(f.name for f in fields(ImageRow))
        return [ImageRow(*row) for row in self._connection.execute(f"SELECT {columns} FROM image ORDER BY name")]

    def metrics(self) -> list[Metric]:
        """What was measured, and what could not be."""
        columns = ", ".join(f.name for f in fields(Metric))
        return [Metric(*row) for row in self._connection.execute(f"SELECT {columns} FROM metric ORDER BY rowid")]

    def cell_scores(self) -> list[CellScore]:
        """Figures of whole cells."""
        rows = self._connection.execute("SELECT * FROM cell_score")
        found = []
        for row in rows:
            metric, value, images, network, difference, error, pairs = row[5:]
            cell = Cell(*row[:5])._replace(cmi=bool(row[2]))
            value, difference, error = map(_number, (value, difference, error))
            found.append(CellScore(cell, metric, value, images, network, difference, error, pairs))
        return found

    def measurement(self, image: str, task: str, seed: int) -> str | None:
        """Path of the image of a measurement, relative to the run's folder."""
        found = self._connection.execute(
            "SELECT path FROM measurement WHERE image = ? AND task = ? AND seed = ?", (image, task, seed)
        ).fetchone()
        return None if found is None else found[0]


class Writer(Results):
    """The one writer of a run: a second one, in any process, is refused.

    Args:
        folder: of the run; created with its database if there is none.

    Raises:
        RunError: another process writes this run, or the database has another schema.
    """

    def _connect(self) -> sqlite3.Connection:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / "writer.lock")  # ends with the process, however it ends
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise RunError(f"another process is writing the run in {self.folder}: wait for it, or stop it") from error
        try:
            return _create(self.folder)
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        super().close()
        self._lock.release()

    def plan(
        self, about: Mapping[str, Any], images: Iterable[ImageRow], units: Iterable[Unit], metrics: Iterable[Metric]
    ) -> None:
        """Write what is to be done, in one transaction. Units that are there already keep what they hold."""
        with self._connection as c:
            _insert(c, "run", [(key, json.dumps(value, sort_keys=True)) for key, value in about.items()])
            _insert(c, "image", [astuple(image) for image in images])
            c.executemany(f"INSERT OR IGNORE INTO unit ({UNIT}) VALUES (?, ?, ?, ?, ?, ?, ?)", units)
            c.execute("DELETE FROM metric WHERE name NOT IN (SELECT metric FROM score)")
            c.executemany(
                "INSERT INTO metric VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET absent = excluded.absent",
                [astuple(metric) for metric in metrics],
            )

    def statuses(self) -> dict[Unit, Status]:
        """Every planned unit and its status, in the order of the grid."""
        rows = self._connection.execute(f"SELECT {UNIT}, status FROM unit ORDER BY id")
        return {_unit(row[:7]): row[7] for row in rows}

    def record(self, outcomes: Iterable[Outcome], measured: Iterable[tuple[str, str, int, str]] = ()) -> None:
        """Finished units, all in one transaction; what they held before is replaced.

        Args:
            outcomes: of the units.
            measured: image, task, seed and path of the images of their measurements.
        """
        with self._connection as c:
            _insert(c, "measurement", measured)
            for outcome in outcomes:
                _record(c, outcome)

    def record_cells(self, scores: Iterable[CellScore]) -> None:
        """Figures of whole cells; those there before are replaced."""
        rows = [
            (*s.cell, s.metric, _finite(s.value), s.images, s.network, _finite(s.difference), _finite(s.error), s.pairs)
            for s in scores
        ]
        with self._connection as c:
            c.execute("DELETE FROM cell_score")
            _insert(c, "cell_score", rows)

    def add_score(self, unit: Unit, metric: str, value: float) -> None:
        """A score that a finished unit had not yet."""
        with self._connection as c:
            _insert(c, "score", [(_id(c, unit), metric, _finite(value))])


def _insert(c: sqlite3.Connection, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
    rows = list(rows)
    if rows:
        c.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)


def _record(c: sqlite3.Connection, outcome: Outcome) -> None:
    unit = _id(c, outcome.unit)
    for table in ("sample", "output", "score"):
        c.execute(f"DELETE FROM {table} WHERE unit = ?", (unit,))
    values = {
        "status": outcome.status,
        "error": outcome.error,
        "diverged": sum(not sample.ok for sample in outcome.samples),
        **{name: _finite(getattr(outcome, name)) for name in ("evaluations", "gradients", "seconds")},
        "finished": outcome.finished,
        "worker": outcome.worker,
    }
    columns = ", ".join(f"{name} = :{name}" for name in values)
    c.execute(f"UPDATE unit SET attempts = attempts + 1, {columns} WHERE id = :id", values | {"id": unit})
    _insert(c, "sample", [(unit, k, s.ok, s.step, s.message) for k, s in enumerate(outcome.samples)])
    _insert(c, "output", [(unit, kind, *file) for kind, file in outcome.images.items()])
    _insert(c, "score", [(unit, name, _finite(value)) for name, value in outcome.scores.items()])


def _id(c: sqlite3.Connection, unit: Unit) -> int:
    where = " AND ".join(f"{name} = ?" for name in Unit._fields)
    return c.execute(f"SELECT id FROM unit WHERE {where}", unit).fetchone()[0]


def _create(folder: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(folder / FILE, timeout=30)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")
    _schema(connection, folder)
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        if _schema(connection, folder) == 0:
            for statement in filter(str.strip, _TABLES.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
    return connection


def _schema(connection: sqlite3.Connection, folder: Path) -> int:
    """The schema of a database, 0 for a new one; another than this version's is refused."""
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError as error:
        raise RunError(f"{folder / FILE} is no database of a run ({error}): give another --out") from error
    if version not in (0, SCHEMA):
        raise RunError(
            f"the run in {folder} has schema {version}, this version of cmidiff reads schema {SCHEMA}: "
            "use the version that wrote it, or start a new run"
        )
    return version


def _unit(row: Sequence[Any]) -> Unit:
    return Unit(*row)._replace(cmi=bool(row[3]))


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
