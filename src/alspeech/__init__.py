"""An executable companion to *Active Learning for Speech Recognition: the Power of Gradients*.

Read the modules in this order, each imports only from those before it:
config, text, corpus, synthesis, features, model, ctc, decoding, metrics, training,
gradients, acquisition, querying, statistics, experiment, plots, notebooks.
"""
