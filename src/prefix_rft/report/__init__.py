"""One HTML file about one or several runs: curves, schedule, samples, settings, environment.

Every text in it comes from models and datasets and is untrusted: the page has no script, its
policy allows none, and whatever is put into it is made visible and escaped in one place.
"""

from prefix_rft.report.write import write_report

__all__ = ["write_report"]
