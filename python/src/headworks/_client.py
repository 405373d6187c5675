"""The client: submits a query over HTTP, waits, and reads its result as an Arrow stream."""

from __future__ import annotations

import json
import os
import pathlib
import ssl
import sys
import time
import urllib.error
import urllib.request
import uuid
from typing import Any, Iterable, Optional, Sequence

import pyarrow

DEFAULT_URL = "http://127.0.0.1:8470"
# How long one request waits for a query's end; the progress is shown between two of them.
WAIT_MS = 1_000
# How long the server may take to answer beyond that.
ANSWER_WITHIN_SECS = 30


class HeadworksError(Exception):
    """What went wrong, with the server's code and its hint."""

    def __init__(self, message: str, code: str = "", hint: str = ""):
        super().__init__(f"{message}\nhint: {hint}" if hint else message)
        self.code = code
        self.hint = hint


class Result:
    """The rows of a query; read from the server once, when first asked for."""

    def __init__(self, client: "Client", status: dict):
        self._client = client
        self._status = status
        self._table: Optional[pyarrow.Table] = None

    @property
    def id(self) -> str:
        """The query's id on the server."""
        return self._status["id"]

    @property
    def is_cached(self) -> bool:
        """True when the server had the answer already."""
        return self._status["is_cached"]

    def arrow(self) -> pyarrow.Table:
        """The rows as an Arrow table."""
        if self._table is None:
            with self._client._open("GET", f"/queries/{self.id}/results?format=arrow") as stream:
                self._table = pyarrow.ipc.open_stream(stream).read_all()
        return self._table

    def pandas(self, **options: Any):
        """The rows as a pandas DataFrame; options are those of `pyarrow.Table.to_pandas`.

        Decimals stay exact and as quick as other numbers, as pandas' Arrow type `decimal128(p, s)[pyarrow]`; with
        `types_mapper=None` they become Python objects, which take a hundred times as long to make.
        """
        options.setdefault("types_mapper", _decimals_of_arrow)
        return self.arrow().to_pandas(**options)

    def polars(self):
        """The rows as a polars DataFrame."""
        import polars

        return polars.from_arrow(self.arrow())

    def __len__(self) -> int:
        return self._status["rows"]

    def __iter__(self) -> Iterable[dict]:
        return iter(self.arrow().to_pylist())

    def __repr__(self) -> str:
        return f"<{len(self)} rows of query {self.id}>"

    def _repr_html_(self) -> str:
        return self.pandas()._repr_html_()


class Client:
    """A server, and who asks."""

    def __init__(self, url: Optional[str] = None, token: Optional[str] = None, ca: Optional[str] = None):
        """Takes what is not given from HEADWORKS_URL, HEADWORKS_TOKEN (or ~/.config/headworks/token) and HEADWORKS_CA."""
        self._url = (url or os.environ.get("HEADWORKS_URL") or DEFAULT_URL).rstrip("/")
        self._token = token or os.environ.get("HEADWORKS_TOKEN") or _token_of_file()
        if not self._token:
            raise HeadworksError(
                "there is no token to sign in with",
                hint="make one with headworks tokens create, and set HEADWORKS_TOKEN",
            )
        ca = ca or os.environ.get("HEADWORKS_CA")
        self._tls = ssl.create_default_context(cafile=ca) if self._url.startswith("https:") else None

    def sql(
        self,
        query: str,
        parameters: Sequence[Any] = (),
        *,
        queue: Optional[str] = None,
        timeout_secs: Optional[float] = None,
        rows_max: Optional[int] = None,
        use_cache: bool = True,
        progress: Optional[bool] = None,
    ) -> Result:
        """Runs one statement and waits for it.

        `parameters` are the values of $1, $2 and so on. `progress` shows how far it is on stderr; unless given, on a terminal
        and in a notebook. An interrupt stops the query on the server.
        """
        body = {
            "sql": query,
            "parameters": [_plain(value) for value in parameters],
            "queue": queue,
            "timeout_ms": None if timeout_secs is None else int(timeout_secs * 1000),
            "rows_max": rows_max,
            "use_cache": use_cache,
            "wait_ms": WAIT_MS,
            "request_id": uuid.uuid4().hex,
        }
        shown = _Progress(_is_watched() if progress is None else progress)
        status = None
        try:
            status = self._json("POST", "/queries", body)
            while status["state"] not in ("done", "failed", "cancelled"):
                shown.update(status)
                try:
                    self._json("GET", f"/queries/{status['id']}/results?limit=0&wait_ms={WAIT_MS}")
                except HeadworksError as error:
                    if error.code != "QUERY_NOT_DONE":
                        raise
                status = self._json("GET", f"/queries/{status['id']}")
        except KeyboardInterrupt:
            if status is not None:
                self._json("DELETE", f"/queries/{status['id']}")
            raise
        finally:
            shown.close()
        if status["state"] != "done":
            raise _error(status.get("error") or {"detail": f"the query was {status['state']}"})
        return Result(self, status)

    def _json(self, method: str, path: str, body: Optional[dict] = None) -> dict:
        with self._open(method, path, body) as answer:
            text = answer.read()
        return json.loads(text) if text else {}

    def _open(self, method: str, path: str, body: Optional[dict] = None):
        headers = {"Authorization": f"Bearer {self._token}", "User-Agent": "headworks-python/0.1.0"}
        data = None
        if body is not None:
            data = json.dumps({key: value for key, value in body.items() if value is not None}).encode()
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(f"{self._url}/api/v1{path}", data=data, headers=headers, method=method)
        try:
            return urllib.request.urlopen(request, timeout=WAIT_MS / 1000 + ANSWER_WITHIN_SECS, context=self._tls)
        except urllib.error.HTTPError as error:
            text = error.read()
            try:
                problem = json.loads(text)
            except ValueError:
                problem = {"detail": f"the server answered {error.code}"}
            # A query that failed is told as a query with its error.
            raise _error(problem.get("error") or problem) from None
        except urllib.error.URLError as error:
            raise HeadworksError(
                f"no server answers at {self._url}: {error.reason}",
                hint="start one with headworks up, or set HEADWORKS_URL",
            ) from None


def sql(query: str, parameters: Sequence[Any] = (), **options: Any) -> Result:
    """Runs one statement on the server that the environment names; options are those of `Client.sql`."""
    return Client().sql(query, parameters, **options)


def _error(problem: dict) -> HeadworksError:
    message = problem.get("detail", "the query failed")
    if problem.get("line"):
        message = f"{message} (line {problem['line']}, column {problem.get('column')})"
    return HeadworksError(message, problem.get("code", ""), problem.get("hint", ""))


def _plain(value: Any) -> Any:
    """A value as JSON has it; days and times as text, which SQL compares with their columns."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return str(value)


def _decimals_of_arrow(kind: pyarrow.DataType):
    import pandas

    return pandas.ArrowDtype(kind) if pyarrow.types.is_decimal(kind) else None


def _token_of_file() -> Optional[str]:
    home = os.environ.get("XDG_CONFIG_HOME") or pathlib.Path.home() / ".config"
    path = pathlib.Path(home) / "headworks" / "token"
    return path.read_text().strip() if path.is_file() else None


def _is_watched() -> bool:
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class _Progress:
    """One line on stderr that is written over."""

    def __init__(self, enabled: bool):
        self._enabled = enabled
        self._began = time.monotonic()
        self._width = 0

    def update(self, status: dict) -> None:
        if not self._enabled:
            return
        if status["state"] == "waiting":
            text = f"waits in queue {status['queue']}, number {status.get('place', 1)} in line"
        else:
            read = status["scanned_bytes"] / 1e6
            text = f"{status['state']}: {status['rows']:,} rows, {read:,.0f} MB read"
        self._write(f"{time.monotonic() - self._began:.0f} s, {text}")

    def close(self) -> None:
        if self._width:
            self._write("")
            sys.stderr.write("\r")

    def _write(self, text: str) -> None:
        sys.stderr.write("\r" + text.ljust(self._width))
        sys.stderr.flush()
        self._width = len(text)
