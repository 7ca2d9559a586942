"""Where utterances come from: manifests, audio, features, transcripts.

corpus.py is the door: the prepared corpus. It is spoken (phrases.py, synthesis.py), joined
(fsdd.py) or read (download.py, readers.py, validation.py), listed (manifests.py), turned into
numbers (text.py, features.py), and heard (players.py). clips.py has clips with labels, for ALOE;
target.py a folder's audio, for selections to aim at.
"""
