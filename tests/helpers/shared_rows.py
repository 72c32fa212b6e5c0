"""Encoded rows whose sequences begin alike."""

import numpy as np

from data.encoding.encode import Encoded


def encoded(rows, orders=1):
    """Rows of sequences, each row as (tokens shared, tokens of their own, ...); every token a new one."""
    pieces, at = [], 100
    for shared, *owns in rows:
        start = np.arange(at, at + shared)
        at += shared
        for own in owns:
            pieces.append(np.concatenate([start, np.arange(at, at + own)]))
            at += own
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])
    sizes = None if orders > 1 else np.array([len(owns) for _, *owns in rows])
    return Encoded(np.concatenate(pieces).astype(np.int32), offsets, orders, 0, sizes)
