"""What every room uses, and what is not about speech.

Settings (config.py, scenarios.py, on values.py) and the one line when something is wrong
(errors.py); steps, folders found by what they depend on (steps.py on sources.py, store.py and
processes.py), and where they are computed (engines.py); result tables and where they come from
(provenance.py); figures (plots.py, styles.py) and notebooks (notebooks.py).
"""
