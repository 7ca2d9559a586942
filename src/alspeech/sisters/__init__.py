"""Three systems that answer the paper's question in other ways.

Loss prediction: joint.py, then loss_prediction.py. Continuous pseudo-labels: slimipl.py, then
pseudo_labels.py. Few labels on a frozen encoder: encoders.py and few_labels.py, then aloe.py; and
labelling.py, where a person answers. Each has its recogniser or its mathematics in the first file,
and its study (steps, tables, ``run``) in the last.
"""
