"""One style for every method, in every figure; and what is measured, for axes."""

import zlib

# label, colour (Okabe & Ito's palette), marker, line style: told apart without colour, too
METHOD_STYLE = {
    "random": ("random", "#000000", "o", ":"),
    "entropy": ("entropy", "#0072B2", "s", "--"),
    "pctc": ("pCTC", "#009E73", "^", "-."),
    "egl": ("EGL", "#D55E00", "D", "-"),
    "egl_renormalised": ("EGL, renormalised", "#CC79A7", "v", "-"),
    "least_confidence": ("least confidence", "#009E73", "^", "-."),
    "estimated_loss": ("estimated loss", "#56B4E9", "P", "-."),
    "loss_prediction": ("predicted loss", "#882255", "*", "-"),
    "margin": ("smallest margin", "#D55E00", "D", "-"),
    "largest_margin": ("largest margin", "#CC79A7", "v", "--"),
    "norm": ("norm", "#E69F00", "P", (0, (5, 1))),
    "margin_logits": ("smallest margin, logits", "#D55E00", "d", (0, (1, 1))),
    "least_confidence_logits": ("least confidence, logits", "#009E73", "<", (0, (1, 1))),
    "largest_margin_logits": ("largest margin, logits", "#CC79A7", ">", (0, (1, 1))),
    # EGL of the last layer, what the beam says, and selections
    "egl_last_layer": ("EGL, last layer", "#CC79A7", "<", "--"),
    "egl_unsquared": ("EGL, not squared", "#CC79A7", ">", "-."),
    "egl_per_frame": ("EGL a frame", "#CC79A7", "^", ":"),
    "egl_per_label": ("EGL a label", "#CC79A7", "P", ":"),
    "egl_per_second": ("EGL a second", "#CC79A7", "X", ":"),
    "power_egl": ("power EGL in clusters", "#CC79A7", "*", (0, (3, 1, 1, 1))),
    "nbest_entropy": ("n-best entropy", "#0072B2", "d", (0, (1, 1))),
    "nbest_margin": ("n-best margin", "#009E73", "d", (0, (1, 1))),
    "fisher_ratio": ("Fisher ratio", "#882255", "o", "-"),
    "fisher_ratio_pool": ("Fisher ratio, pool", "#882255", "s", "--"),
    "fisher_ratio_near": ("Fisher ratio, near", "#882255", "*", "-."),
    "fisher_ratio_aimed": ("Fisher ratio, aimed", "#882255", "X", (0, (5, 1))),
    "entropy_aimed": ("entropy, aimed", "#0072B2", "h", "-"),
    "d_optimal": ("D-optimal", "#882255", "D", ":"),
    "badge": ("BADGE", "#E69F00", "p", "-"),
    "k_centre": ("k-centre", "#E69F00", "h", "--"),
    "flqmi": ("FLQMI", "#56B4E9", "P", "-"),
    "uncertainty_herding": ("uncertainty herding", "#56B4E9", "v", "-."),
    # what methods are held against, and oracles
    "random_seconds": ("random seconds", "#666666", "o", (0, (1, 3))),
    "random_clusters": ("random in clusters", "#666666", "X", (0, (3, 1, 1, 1))),
    "longest": ("longest first", "#E69F00", ">", "--"),
    "shortest": ("shortest first", "#E69F00", "<", "-."),
    "oracle_gradient": ("oracle: true gradient", "#56B4E9", "D", "--"),
    "oracle_loss": ("oracle: true loss", "#56B4E9", "s", "-."),
    "oracle_groups": ("oracle: groups in turn", "#56B4E9", "*", "-"),
    # pseudo_labels.py
    "warm_up": ("after the warm-up", "#000000", "x", ":"),
    "supervised": ("labels only", "#000000", "o", ":"),
    "supervised_longer": ("labels only, all updates", "#000000", "s", ":"),
    "hard": ("hard", "#0072B2", "o", "-"),
    "ema_hard": ("hard, EMA teacher", "#0072B2", "s", "--"),
    "soft": ("soft", "#D55E00", "D", "-"),
    "mixture": ("soft + hard", "#CC79A7", "v", "--"),
    "prior": ("soft + labelled prior", "#009E73", "^", "-."),
    "temperature": ("soft, sharpened", "#E69F00", "P", ":"),
    "ema": ("soft, EMA teacher", "#882255", "X", (0, (5, 1, 1, 1, 1, 1))),
    "sampled_text": ("sampled, as text", "#56B4E9", "<", "--"),
    "sampled_frames": ("sampled, by frame", "#999999", ">", "-."),
}

# of a method that has none: drawn by its name's letters, so that two are seldom alike
COLOURS, MARKERS = ("#666666", "#56B4E9", "#E69F00", "#999933", "#882255"), ("8", "H", "d", "p")
DASHES = tuple((0, (5, 2, *[1, 2] * dots)) for dots in (1, 2, 3, 4))


def style_of(method: str) -> tuple:
    """A method's of ``METHOD_STYLE``, or one made from its name."""
    number = zlib.crc32(method.encode())
    made = (
        own[number // by % len(own)] for own, by in ((COLOURS, 1), (MARKERS, 64), (DASHES, 512))
    )
    return METHOD_STYLE.get(method, (method.replace("_", " "), *made))


def in_order(methods) -> list[str]:
    """Some methods, each once, in the order of ``METHOD_STYLE``; those that it lacks come last."""
    there = dict.fromkeys(methods)
    return [*(x for x in METHOD_STYLE if x in there), *(x for x in there if x not in METHOD_STYLE)]


# cells without a query, at the two ends of every curve
ENDS = {"base": "base data alone", "all": "all of the pool"}

METRIC_LABEL = {
    "ctc": "CTC loss (nats)",
    "cer": "CER (%)",
    "wer": "WER (%)",
    "macro_wer": "macro WER (%)",
    "unseen_wer": "WER of unseen words (%)",
}

MONITOR_LABEL = {
    "average_entropy": "entropy of the average (nats)",
    "frame_entropy": "mean frame entropy (nats)",
    "blank_share": "share of blank frames",
    "length_ratio": "pseudo-label length ÷ true",
    "pseudo_wer": "WER of the pseudo-labels (%)",
    "validation_wer": "validation WER (%)",
}
