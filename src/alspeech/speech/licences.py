"""Which recordings may be given on: corpora whose audio stays out of what is published."""

RESTRICTED = {  # CORPUS: why
    "jsonl": "these are your own recordings, and nobody has said that they may be published",
    "kaldi": "a Kaldi directory does not say under which licence its recordings may be published",
}
