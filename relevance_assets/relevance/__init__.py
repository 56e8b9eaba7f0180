"""Layer-wise relevance propagation for any torch network, with an account of every operation.

`explain` one batch, `Explainer` for many, `check_model` before either. See docs/relevance.md.
"""

from relevance_assets.relevance.check import check_model
from relevance_assets.relevance.composites import COMPOSITES, Composite
from relevance_assets.relevance.engine import Explainer, explain
from relevance_assets.relevance.explanation import Explanation, Inner
from relevance_assets.relevance.graph import UnknownOperation

__all__ = ["COMPOSITES", "Composite", "Explainer", "Explanation", "Inner", "UnknownOperation", "check_model", "explain"]
