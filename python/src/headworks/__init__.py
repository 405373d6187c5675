"""Asks a Headworks server in SQL and gives Arrow, pandas or polars.

    import headworks
    headworks.sql("select 1 as n").pandas()
"""

from ._client import Client, HeadworksError, Result, sql

__all__ = ["Client", "HeadworksError", "Result", "sql"]
