"""In the field: your own recordings, and recognisers that were trained elsewhere.

Read yours.py first: what to transcribe next, and what is learned from it; then stopping.py (what
the next minutes are worth), loop.py (both in a notebook) and audit.py (transcripts that may be
wrong).
Other people's recognisers have recognisers.py, pretrained.py for well-known kinds, taps.py for
gradients of any module, and elsewhere.py for what is asked of them.
"""
