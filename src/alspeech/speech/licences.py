"""Which recordings may be given on: corpora whose audio stays out of what is published."""

RESTRICTED = {  # CORPUS: why
    "jsonl": "these are your own recordings, and nobody has said that they may be published",
    "kaldi": "a Kaldi directory does not say under which licence its recordings may be published",
    # layouts in which anybody's recordings may lie
    "speechcommands": "a folder of words does not say whose recordings are in it",
    "esc10": "a folder of clips does not say whose they are",
}
