"""The course: what checks the exercises of course/lab1.md … lab4.md, makes the labs' versions, and
runs strangers' acquisition functions for a leaderboard.

Read checks.py first: what an exercise is, and how an answer is judged; then the exercises (ctc_lab,
egl_lab, experiment_lab, beyond_lab), labs.py: one source, two versions; board.py and page.py: the
leaderboard; isolation.py and confined.py: the process in which a submission runs.
"""

from .checks import check

__all__ = ["check"]
