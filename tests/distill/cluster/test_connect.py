"""The door to Ray, as far as it needs no Ray."""

from __future__ import annotations

import socket


def test_a_note_of_a_cluster_that_is_gone_is_not_waited_for(tmp_path):
    from distill.cluster.connect import _is_stale

    note = tmp_path / "ray_current_cluster"
    assert not _is_stale(note)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        note.write_text(f"127.0.0.1:{listening.getsockname()[1]}")
        assert not _is_stale(note)
    assert _is_stale(note)
