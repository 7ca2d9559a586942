"""An executable companion to *Active Learning for Speech Recognition: the Power of Gradients*.

Here is the paper. Read acquisition.py first: the scores; then selection.py: which utterances
together, for a target in sight. Then what they stand on (embeddings.py, gradients.py, backward.py,
decoding.py, ctc.py, model.py), what they are for (querying.py, training.py, metrics.py), and the
experiment that puts them to the test (experiment.py, tables.py, statistics.py, costs.py). What is
too large for one process has shards.py and together.py.

Around it are five rooms: ``speech``, where utterances come from; ``sisters``, three systems that
answer the paper's question in other ways; ``field``, your own recordings and recognisers;
``course``, what teaches all that; ``workshop``, what all of them use. Imports run one way: course →
field → sisters → paper → speech → workshop.
"""
