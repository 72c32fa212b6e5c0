"""The WSDM Cup's Parquet: plain texts and a winner, without ties."""

from __future__ import annotations

from data.classes import PREFERENCE_NO_TIE
from data.schema import Rows, make_rows
from data.sources.formats import source_format
from data.sources.open import Columns, Table
from data.sources.place import TEXTS, Place, require
from data.sources.votes import copy_labels


def is_wsdm(table: Table) -> bool:
    """Whether columns are those of this format; lists of turns would be the LMSYS competition's."""
    names = set(table.names)
    return {"id", *TEXTS, "winner"} <= names and "label" not in names


@source_format("wsdm", is_wsdm)
def read_wsdm(columns: Columns, place: Place) -> Rows:
    """Read the WSDM Cup's layout: plain texts and a ``winner`` that is one of two models; no ties."""
    where = place.where
    require(columns, ["id", *TEXTS], where)
    ids = place.ids(columns["id"])
    out = place.begin(ids)
    for name in TEXTS:
        out[name] = place.turns(columns, ids, name)
    copy_labels(columns, out, PREFERENCE_NO_TIE, place)
    place.copy_models(columns, out)
    return make_rows(out, PREFERENCE_NO_TIE, where)
